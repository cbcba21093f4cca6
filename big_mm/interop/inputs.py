"""The input contract of other programs' models: what they do to pictures and texts, in our words.

Each function reads what the directory says, takes the program's defaults for what it does not say,
and warns of what a contract cannot express. What no contract expresses, whatever the directory
says:

- The peers show a picture as it is stored; here it is upright (EXIF), and 16-bit channels keep
  their high byte, which Pillow clips to white.
- open_clip resizes palette, transparent and CMYK pictures before it makes them RGB, here they are
  RGB first. Hugging Face composites transparency on white since release 5; before, it dropped it.
- TensorFlow decodes JPEG with a faster, less exact cosine transform.
- A text that spells a special token ("<|endoftext|>") is only a text here.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging
from etils import epath

from big_mm.data import subwords
from big_mm.data.contract import Contract
from big_mm.interop import tokenizer_files as files
from big_mm.spec import UserError, choose, spec

RGB = tuple[float, float, float]

OPENAI_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
HALF: RGB = (0.5, 0.5, 0.5)

# open_clip's names, then ours.
_CLEAN = {
    "lower": {"clean": "web", "lowercase": True},
    "whitespace": {"clean": "web"},
    "whitespace_underscore": {"clean": "web_underscore"},
    "canonicalize": {"clean": "web", "canonicalize": True},
}
_RESIZE_MODES = {"shortest": "crop", "longest": "pad", "squash": "squash"}
_INTERPOLATIONS = {"bicubic": "bicubic", "bilinear": "triangle", "random": "bicubic"}
_CLIP_SIZE = 49_408
_CHINESE_LENGTH = 52
# Pillow's numbers.
_RESAMPLE = {2: "triangle", 3: "bicubic"}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a foreign model is fed.

    Attributes:
      contract: the spec of a `Contract`.
      mean, std: what pixels in 0..1 are normalised with: the vision tower's.
    """

    contract: ml_collections.ConfigDict
    mean: RGB
    std: RGB


def open_clip(config: Mapping[str, Any], folder: epath.Path, tokenizer: str | None) -> Inputs:
    """Of an open_clip model: `image_transform_v2` and `get_tokenizer` of its release 3.3.

    Args:
      config: open_clip_config.json, or the "model_cfg" in it alone.
      folder: where tokenizer files may lie.
      tokenizer: the user's tokenizer file, None to take the folder's.

    Raises:
      UserError: a tokenizer or preprocessing that a contract cannot express at all.
    """
    model = config.get("model_cfg", config)
    text, pictures = model.get("text_cfg", {}), config.get("preprocess_cfg")
    if pictures is None:
        logging.warning(
            "no preprocess_cfg: taking open_clip's defaults (OpenAI's mean and std, bicubic, "
            "crop); SigLIP and CLIPA were trained with others"
        )
        pictures = {}
    size = pictures.get("size") or model.get("vision_cfg", {}).get("image_size", 224)
    contract = {
        "image_size": _square(size, "preprocess_cfg.size"),
        "resize": _named(_RESIZE_MODES, pictures, "resize_mode", "shortest"),
        "kernel": _named(_INTERPOLATIONS, pictures, "interpolation", "bicubic"),
        "fill": pictures.get("fill_color", 0),
        "transparency": "drop",
        "max_len": text.get("context_length", 77),
        "padding": "attended" if text.get("no_causal_mask") else "masked",
    }
    contract |= _open_clip_text(text, folder, tokenizer)
    mean, std = (pictures.get(k) or v for k, v in (("mean", OPENAI_MEAN), ("std", OPENAI_STD)))
    return Inputs(spec(Contract, **contract), _rgb(mean), _rgb(std))


def _open_clip_text(
    text: Mapping[str, Any], folder: epath.Path, tokenizer: str | None
) -> dict[str, Any]:
    """Cleaning and tokenizer."""
    for key in ("tokenizer_mode", "tokenizer_type"):
        if text.get(key):
            raise UserError(
                f"text_cfg.{key}={text[key]!r} makes rows that a contract does not have"
            )
    options = text.get("tokenizer_kwargs", {})
    own = not text.get("hf_tokenizer_name")
    clean = options.get("clean") or ("lower" if own else "whitespace")
    choose("text_cfg.tokenizer_kwargs.clean", clean, _CLEAN)
    names = (*files.MERGES, *files.JSON) if own else (*files.JSON, *files.SENTENCEPIECE)
    if bert := text.get("hf_model_name"):
        names = files.JSON
    path = files.find(folder, tokenizer, (*names, *files.WORD_PIECES))
    if path is None:
        return _CLEAN[clean] | {"tokenizer": no_tokenizer(folder, names)}
    if bert:
        files.require_bert(path)
    ids = {"pad_id": 0} if own else {}
    made = files.named(path, **ids)
    if options.get("strip_sep_token"):  # its place is kept, and filled with padding
        made.eos_id = made.pad_id if made.get("pad_id", -1) >= 0 else 0
    return _CLEAN[clean] | {"tokenizer": made}


def hugging_face(folder: epath.Path, tokenizer: str | None) -> Inputs:
    """Of a Hugging Face CLIP, SigLIP or SigLIP 2 directory, as transformers 5 reads it. Texts of
    Chinese CLIP have 52 tokens, as in its authors' program; transformers leaves the length open.

    Args:
      folder: with config.json, preprocessor_config.json (or processor_config.json) and tokenizer
        files.
      tokenizer: the user's tokenizer file, None to take the folder's.

    Raises:
      UserError: no preprocessor_config.json, or preprocessing that a contract cannot express.
    """
    config = _read(folder / "config.json")
    text = config.get("text_config", {})
    siglip = "siglip" in config.get("model_type", "")
    contract, mean, std = _hugging_face_pictures(folder, config.get("vision_config", {}))
    contract["max_len"] = text.get("max_position_embeddings", 64 if siglip else 77)
    contract["padding"] = "attended" if siglip else "masked"
    if siglip:
        contract |= _siglip_text(folder, tokenizer)
    elif config.get("model_type") == "chinese_clip":
        contract |= _chinese_text(folder, tokenizer, contract["max_len"])
    else:
        names = (*files.JSON, "merges.txt")
        path = files.find(folder, tokenizer, names)
        contract["tokenizer"] = _hugging_face_clip(path) if path else no_tokenizer(folder, names)
    return Inputs(spec(Contract, **contract), mean, std)


def _hugging_face_clip(path: epath.Path) -> ml_collections.ConfigDict:
    if files.kind(path) is subwords.ClipBPE:
        pad = files.special_token(path.parent, "pad") or "<|endoftext|>"
        pad_id = subwords.ClipBPE(str(path)).id_of(pad)
        return spec(subwords.ClipBPE, path=str(path), pad_id=pad_id, normalize=True)
    return files.named(path)


def _chinese_text(folder: epath.Path, tokenizer: str | None, longest: int) -> dict[str, Any]:
    names = (*files.JSON, *files.WORD_PIECES)
    path = files.find(folder, tokenizer, names)
    if path is None:
        made = no_tokenizer(folder, names)
    else:
        files.require_bert(path)
        made = files.named(path)
    return {"max_len": min(_CHINESE_LENGTH, longest), "tokenizer": made}


def _siglip_text(folder: epath.Path, tokenizer: str | None) -> dict[str, Any]:
    """SigLIP's SentencePiece (canonicalised, padded with eos) or SigLIP 2's Gemma (lower-cased)."""
    names = (*files.SENTENCEPIECE[:1], *files.JSON, *files.SENTENCEPIECE[1:])
    path = files.find(folder, tokenizer, names)
    if path is None:
        return {"tokenizer": no_tokenizer(folder, names)}
    says = files.settings(folder)
    gemma = any(name in str(says.get("tokenizer_class")) for name in ("Siglip2", "Gemma"))
    if says.get("do_lower_case") is False:
        logging.warning("%s: do_lower_case=false; texts are lower-cased all the same", folder)
    if not gemma:
        return {"canonicalize": "hugging_face", "tokenizer": _siglip_ids(path)}
    made = files.named(path, bos_id=-1)
    if made.get("eos_id") == -1:  # the file's own default; the models were trained with it
        made.eos_id = files.token_id(path, files.special_token(path.parent, "eos") or "<eos>")
    return {"lowercase": "characters", "tokenizer": made}


def _siglip_ids(path: epath.Path) -> ml_collections.ConfigDict:
    """c4_en's ids: no bos, and eos is also what rows are padded with."""
    return files.named(path, pad_id=1, bos_id=-1, eos_id=1)


def _hugging_face_pictures(
    folder: epath.Path, vision: Mapping[str, Any]
) -> tuple[dict[str, Any], RGB, RGB]:
    """The picture rules of a directory, and its mean and std."""
    if (folder / "preprocessor_config.json").exists():
        says = _read(folder / "preprocessor_config.json")
    else:
        says = _read(folder / "processor_config.json").get("image_processor", {})
    name = str(says.get("image_processor_type", ""))
    if "max_num_patches" in says or name.startswith("Siglip2"):
        # Of any aspect ratio; here squares of the model's own grid of positions.
        patch = vision.get("patch_size", 16)
        side = patch * math.isqrt(vision.get("num_patches", 256))
        squares = {"size": {"height": side, "width": side}, "resample": says.get("resample", 2)}
        says = {key: says[key] for key in ("image_mean", "image_std") if key in says} | squares
    crops = says.get("do_center_crop", "crop_size" in says)
    size = says.get("size", 224)
    short = size if isinstance(size, int) else size.get("shortest_edge")
    squash = not isinstance(size, int) and "height" in size
    resize_size = _square(size, "size") if squash else int(short or 0)
    image_size = _square(says.get("crop_size", resize_size), "crop_size") if crops else resize_size
    resample = says.get("resample", 3)
    if resample not in _RESAMPLE:
        raise UserError(f"{folder}: resample={resample} is neither 2 (bilinear) nor 3 (bicubic)")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if says.get(key) is False:
            raise UserError(f"{folder}: {key}=false is not supported")
    if not crops and not squash:
        raise UserError(f"{folder}: pictures are resized but not cropped to a square")
    contract = {
        "image_size": image_size,
        "resize": "squash" if squash else "crop",
        "resize_size": None if resize_size == image_size else resize_size,
        "rounding": "hugging_face",
        "kernel": _RESAMPLE[resample],
        "transparency": "white",
    }
    clip = name.startswith(("CLIP", "ChineseCLIP"))
    mean = says.get("image_mean") or (OPENAI_MEAN if clip else HALF)
    std = says.get("image_std") or (OPENAI_STD if clip else HALF)
    return contract, _rgb(mean), _rgb(std)


def write_open_clip(folder: epath.Path, contract: Contract, mean: RGB, std: RGB) -> dict[str, Any]:
    """The preprocess_cfg of a contract; writes its tokenizer into the folder.

    Warns of the rules that open_clip does not have. `open_clip_text` is the text's side.
    """
    files.write(folder, contract)
    warn_of("open_clip", contract, rounding="torchvision", transparency="drop", resize_size=None)
    return {
        "size": contract.image_size,
        "mode": "RGB",
        "mean": list(mean),
        "std": list(std),
        "interpolation": _nearest("open_clip", contract, _INTERPOLATIONS),
        "resize_mode": {ours: theirs for theirs, ours in _RESIZE_MODES.items()}[contract.resize],
        "fill_color": contract.fill,
    }


def open_clip_text(contract: Contract) -> dict[str, Any]:
    """What open_clip's text_cfg says of a contract: context_length and the tokenizer's options."""
    rules = {k: getattr(contract, k) for k in ("clean", "canonicalize", "lowercase")}
    defaults = {"clean": "none", "canonicalize": False, "lowercase": False}
    clean = next((name for name, r in _CLEAN.items() if defaults | r == rules), None)
    own = isinstance(contract.tokenizer, subwords.ClipBPE)
    if clean is None:
        clean = "canonicalize" if contract.canonicalize else "lower" if own else "whitespace"
        logging.warning("open_clip cleans texts in another way than %s: writing %r", rules, clean)
    if own and contract.tokenizer.vocab_size != _CLIP_SIZE:
        logging.warning("open_clip has CLIP's own vocabulary of %d, not this one", _CLIP_SIZE)
    made: dict[str, Any] = {
        "context_length": contract.max_len,
        "tokenizer_kwargs": {"clean": clean},
    }
    if not own:
        made["hf_tokenizer_name"] = "."  # a local-dir: model takes its own folder
    return made


def write_hugging_face(folder: epath.Path, contract: Contract, mean: RGB, std: RGB) -> None:
    """preprocessor_config.json and the tokenizer's files, for transformers 4 and 5.

    Warns of the rules that Hugging Face's processors do not have.

    Raises:
      UserError: resize="pad".
    """
    if contract.resize == "pad":
        raise UserError('Hugging Face\'s processors have nothing like resize="pad"')
    files.write(folder, contract)
    warn_of("Hugging Face", contract, rounding="hugging_face", transparency="white")
    side, inner = contract.image_size, contract.resize_size or contract.image_size
    squash = contract.resize == "squash"
    resample = {ours: number for number, ours in _RESAMPLE.items()}
    says = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": inner, "width": inner} if squash else {"shortest_edge": inner},
        "resample": resample[_nearest("Hugging Face", contract, {v: v for v in resample})],
        "do_center_crop": inner != side or not squash,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(says, indent=2) + "\n")


def _nearest(program: str, contract: Contract, known: Mapping[str, str]) -> str:
    """The program's name of the contract's kernel, or of the one nearest to it."""
    names = {ours: theirs for theirs, ours in reversed(known.items())}
    kernel = contract.kernel
    if kernel not in names:
        kernel = "bicubic" if "bicubic" in contract.kernel else "triangle"
        logging.warning("%s has no kernel %r: writing %r", program, contract.kernel, kernel)
    return names[kernel]


def warn_of(program: str, contract: Contract, **rules: Any) -> None:
    """Warns of the rules of a contract that are not the program's."""
    for key, theirs in rules.items():
        if (ours := getattr(contract, key)) != theirs:
            logging.warning("%s has %s=%r, not %r: inputs may differ", program, key, theirs, ours)


def _named(table: Mapping[str, str], config: Mapping[str, Any], key: str, default: str) -> str:
    value = config.get(key) or default
    choose(key, value, table)
    return table[value]


def _square(size: Any, name: str) -> int:
    """The side of a size given as a number, a pair, or {"height", "width"}."""
    sides = size
    if isinstance(size, Mapping):
        sides = [size.get("height", size.get("shortest_edge")), size.get("width")]
        sides[1] = sides[0] if sides[1] is None else sides[1]
    if isinstance(size, (int, float)):
        sides = [size, size]
    if len(set(sides)) != 1 or not sides[0]:
        raise UserError(f"{name}={size} is not square: models here take square pictures")
    return int(sides[0])


def _rgb(values: Any) -> RGB:
    if isinstance(values, (int, float)):
        values = [values] * 3
    if len(values) == 1:
        values = list(values) * 3
    if len(values) != 3:
        raise UserError(f"mean and std are of three channels, not {values}")
    return tuple(float(v) for v in values)


def no_tokenizer(folder: epath.Path | None, names: Any) -> None:
    """Warns that none was found or given."""
    where = f"none of {', '.join(names)} in {folder}" if folder else "none was given"
    logging.warning("no tokenizer (%s): the model will take pictures and token ids only", where)


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
