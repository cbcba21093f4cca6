"""Asks the peers what their models compute with known weights, and writes golden/*.json.

    python -m tests.interop.make_golden open_clip hugging_face torch

from the repository's root, with the peers installed (`pip install open_clip_torch==3.3.0
'transformers<4.56' torch`; open_clip's captions need the beam search that later ones lack).
For the big_vision family add `--big_vision PATH`, a checkout of github.com/google-research/
big_vision, and `--flaxformer PATH`, one of github.com/google/flaxformer, in an environment with
JAX, Flax, aqtp and chex (`pip install --no-deps aqtp chex`). Nothing of big_mm is imported.
"""

import argparse
import collections
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import sys
import tempfile
import unittest.mock
from typing import Any

import numpy as np

from tests.interop import cases


def tolerate_missing_torchvision_operators() -> None:
    """torchvision's compiled operators do not load beside a CPU build of torch, nor are needed."""
    import torch

    register = torch.library.register_fake

    def tolerant(*args, **kwargs):
        def decorate(function):
            try:
                return register(*args, **kwargs)(function)
            except RuntimeError:
                return function

        return decorate

    torch.library.register_fake = tolerant


def rounded(x: Any) -> Any:
    """Six digits after the point, a tenth of what the tests allow."""
    array = np.asarray(x.detach() if hasattr(x, "detach") else x, np.float64)
    return np.round(array, 6).tolist()


def open_clip() -> dict[str, Any]:
    """CLIP, SigLIP and CoCa of open_clip."""
    tolerate_missing_torchvision_operators()
    import open_clip  # noqa: F401  (registers timm's models)
    import timm
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    register_trunks(timm)
    made = {}
    for name, config in cases.OPEN_CLIP.items():
        arguments = json.loads(json.dumps(config))
        kind = CoCa if "multimodal_cfg" in config else CLIP
        bert = (pad_id := cases.pad_id(config)) is not None
        custom = arguments.pop("custom_text", False) or bert
        kind = CustomTextCLIP if custom and kind is CLIP else kind
        with tempfile.TemporaryDirectory() as folder:
            if bert:
                said, _ = cases.TEXT_TOWERS[config["text_cfg"]["hf_model_name"]]
                pathlib.Path(folder, "config.json").write_text(json.dumps(said))
                arguments["text_cfg"]["hf_model_name"] = folder
            model = loaded(kind(**arguments), cases.SEEDS.get(name, 0))
        tokens = cases.padded(pad_id) if bert else cases.TOKENS
        found = open_clip_outputs(model, tokens=tokens)
        made[name] = {"names": cases.digest(shapes(model)), **found}
    return {"versions": versions("open_clip_torch", "timm", "torch", "transformers"), "cases": made}


def hugging_face() -> dict[str, Any]:
    """CLIP, Chinese CLIP, SigLIP and SigLIP 2 of transformers."""
    tolerate_missing_torchvision_operators()
    import torch
    import transformers

    kinds = {"clip": "CLIP", "chinese_clip": "ChineseCLIP"}
    kinds |= {"siglip": "Siglip", "siglip2": "Siglip2"}
    made = {}
    for name, config in cases.HUGGING_FACE.items():
        arguments = json.loads(json.dumps(config))
        kind = kinds[arguments.pop("model_type")]
        build = getattr(transformers, f"{kind}Model")
        model = loaded(build(getattr(transformers, f"{kind}Config")(**arguments)))
        half = (0.5, 0.5, 0.5)
        clip = kind.endswith("CLIP")
        pictures = torch.tensor(cases.pixels() if clip else cases.pixels(half, half))
        given = {"pixel_values": pictures}
        if kind == "Siglip2":
            size = config["vision_config"]["patch_size"]
            rows = pictures.unfold(2, size, size).unfold(3, size, size)
            patches = rows.permute(0, 2, 3, 4, 5, 1).reshape(len(pictures), -1, size * size * 3)
            side = torch.tensor([[cases.SIZE // size] * 2] * len(pictures))
            given = {"pixel_values": patches, "spatial_shapes": side}
            given["pixel_attention_mask"] = torch.ones(patches.shape[:2], dtype=torch.int32)
        pad_id = cases.pad_id(config)
        tokens = torch.tensor(cases.TOKENS if pad_id is None else cases.padded(pad_id)).long()
        given |= {} if pad_id is None else {"attention_mask": tokens != pad_id}
        with torch.no_grad():
            out = model(input_ids=tokens, return_loss=True, **given)
        made[name] = {
            "names": cases.digest(shapes(model)),
            "image": rounded(out.image_embeds),
            "text": rounded(out.text_embeds),
            "logits": rounded(out.logits_per_image),
            "losses": [float(out.loss)],
        }
    return {"versions": versions("transformers", "torch"), "cases": made}


def big_vision(checkout: pathlib.Path, flaxformer: pathlib.Path) -> dict[str, Any]:
    """Two towers and CapPa of big_vision, whose files need TensorFlow for their paths only."""
    sys.path[:0] = [str(checkout), str(flaxformer)]
    import flax.training.checkpoints
    import jax

    # Only now: Flax would use it.
    for name in ("", ".io", ".io.gfile", *(f".compiler{x}" for x in ("", ".xla", ".xla.service"))):
        sys.modules.setdefault(f"tensorflow{name}", unittest.mock.MagicMock())
    from big_vision.models.proj.cappa import cappa
    from big_vision.models.proj.image_text import two_towers
    from flaxformer.architectures.bert import configs

    base = configs.BertBaseConfig
    configs.BertBaseConfig = lambda: dataclasses.replace(base(), **cases.BERT)
    half = (0.5, 0.5, 0.5)
    images = cases.pixels(half, half).transpose(0, 2, 3, 1)
    made = {}
    for name, arguments in cases.BIG_VISION.items():
        captioner = "patches" in arguments
        model = (cappa if captioner else two_towers).Model(**arguments)
        pixels = naflex_patches(images, 8) if name.startswith("naflex") else images
        tokens = cases.padded(0) if name == "lit_bert" else cases.TOKENS
        init = jax.eval_shape(model.init, jax.random.key(0), pixels, tokens)["params"]
        flat = flax.traverse_util.flatten_dict(init, sep="/")
        names = {key: list(leaf.shape) for key, leaf in flat.items()}
        weights = flax.traverse_util.unflatten_dict(cases.weights(names), sep="/")
        made[name] = {"names": names}
        out = model.apply({"params": weights}, pixels, tokens)
        if captioner:
            made[name]["caption_logits"] = rounded(out)
        else:
            image, text, rest = out
            logits = rest["t"] * image @ text.T + rest.get("b", 0.0)
            made[name] |= {"image": rounded(image), "text": rounded(text)}
            made[name]["logits"] = rounded(logits)
    return {"versions": versions("jax", "flax"), "cases": made}


def naflex_patches(images: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Rows of pixels, their type, and their places, as NaFlex takes them."""
    batch, side = len(images), images.shape[1] // size
    patches = images.reshape(batch, side, size, side, size, 3).transpose(0, 1, 3, 2, 4, 5)
    y, x = (np.tile(places.reshape(1, -1), (batch, 1)) for places in np.mgrid[:side, :side])
    return patches.reshape(batch, side * side, -1), np.ones_like(y), y, x


def register_trunks(timm: Any) -> None:
    """Makes timm know the tiny towers by name."""
    from timm.layers import LayerNorm
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    for name, (theirs, ours) in cases.TRUNKS.items():

        def make(pretrained=False, theirs=theirs, ours=ours, **options):
            del pretrained
            sizes = {
                "img_size": ours["image_size"],
                "patch_size": ours["patch_size"],
                "embed_dim": ours["width"],
                "depth": ours["depth"],
                "num_heads": ours["heads"],
                "mlp_ratio": ours["mlp_dim"] / ours["width"],
            }
            options = {
                k: v for k, v in options.items() if not k.startswith(("pretrained", "cache"))
            }
            if ours.get("clip"):
                options["norm_layer"] = functools.partial(LayerNorm, eps=1e-5)
            made = VisionTransformer(**{**sizes, **theirs, **options})
            made.default_cfg = {}
            return made

        make.__name__, make.__module__ = name, "timm.models.vision_transformer"
        register_model(make)


def open_clip_outputs(
    model: Any, mean: Any = cases.MEAN, std: Any = cases.STD, tokens: np.ndarray = cases.TOKENS
) -> dict[str, Any]:
    """Embeddings, logits, losses and captions."""
    import torch
    from open_clip.loss import ClipLoss, CoCaLoss, SigLipLoss

    images, tokens = torch.tensor(cases.pixels(mean, std)), torch.tensor(tokens).long()
    with torch.no_grad():
        if hasattr(model, "text_decoder"):
            out = model(images, tokens)
            features = [out["image_features"].reshape(4, -1), out["text_features"]]
            found = {"caption_logits": rounded(out["logits"])}
            _, mask = model.text._embeds(tokens)
            found["mask"] = (mask[:: model.text.heads] == 0).int().tolist()
            pad = model.text.pad_id
            loss = CoCaLoss(1.0, 1.0, pad_id=pad)
            terms = loss(*features, out["logits"], out["labels"], out["logit_scale"])
            found["losses"] = [float(x) for x in terms]
            found |= captions(model, images)
        else:
            features = [model.encode_image(images, True), model.encode_text(tokens, True)]
            found = {"logits": rounded(model.get_logits(images, tokens)[0])}
            scale, bias = model.logit_scale.exp(), model.logit_bias
            loss = ClipLoss()(*features, scale) if bias is None else None
            loss = SigLipLoss()(*features, scale, bias) if loss is None else loss
            found["losses"] = [float(loss)]
    return {"image": rounded(features[0]), "text": rounded(features[1]), **found}


def captions(model: Any, images: Any) -> dict[str, Any]:
    """Greedy captions and beams, all up to the length.

    open_clip adds up unnormalised logits along a beam, and counts bos in its length; here its model
    gives it log-probabilities, and its scorer is told of bos, so that what is compared is the
    search. It forbids no ids but eos: the model gives it the others as impossible.
    """
    import torch
    from open_clip import coca_model

    class Scorer(coca_model.BeamSearchScorer):
        def process(self, *args, **kwargs):
            return super().process(*args, **kwargs, decoder_prompt_len=1)

        def finalize(self, *args, **kwargs):
            return super().finalize(*args, **kwargs, decoder_prompt_len=1)

    coca_model.BeamSearchScorer, original = Scorer, coca_model.BeamSearchScorer

    forward, forbidden = model.forward, [model.text.pad_id, cases.BOS]

    def log_probabilities(*args, **kwargs):
        out = forward(*args, **kwargs)
        out["logits"] = out["logits"].log_softmax(-1)
        out["logits"][..., forbidden] = -1e9
        return out

    model.forward = log_probabilities
    common = {"seq_len": cases.LENGTH, "max_seq_len": cases.LENGTH, "fixed_output_length": True}
    common |= {"sot_token_id": cases.BOS, "eos_token_id": cases.EOS, "pad_token_id": 0}
    found = {
        f"beam_{beams}": model.generate(
            images, num_beams=beams, num_beam_groups=1, min_seq_len=2, **common
        )
        for beams in (2, 3)
    }
    found["greedy"] = model.generate(
        images, generation_type="top_k", top_k=1, min_seq_len=2, **common
    )
    model.forward, coca_model.BeamSearchScorer = forward, original
    return {"captions": {k: torch.as_tensor(v).tolist() for k, v in found.items()}}


def loaded(model: Any, seed: int = 0) -> Any:
    """The model with the weights that are functions of their names."""
    import torch

    weights = cases.weights(shapes(model), seed)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    return model.eval()


def shapes(model: Any) -> dict[str, list[int]]:
    """{name: shape} of all weights."""
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def torch_files(folder: pathlib.Path) -> None:
    """Small files of PyTorch's own formats: of a trainer, of TorchScript, and of before 1.6."""
    import torch

    base = torch.arange(24, dtype=torch.float32)
    saved = {
        "module.transposed": base.view(4, 6).T,
        "module.slice": base[6:18:2],
        "module.half": base[:3].half(),
        "module.bfloat16": base[:3].bfloat16() / 3,
        "module.scalar": torch.tensor(2.5),
        "module.empty": torch.zeros(0, 3),
        "module.parameter": torch.nn.Parameter(torch.ones(2)),
        "module.count": torch.tensor(7),
    }
    state = collections.OrderedDict(saved)
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}
    checkpoint = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer}
    torch.save(checkpoint, folder / "trainer.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    layers.load_state_dict({k: torch.full_like(v, 0.5) for k, v in layers.state_dict().items()})
    torch.jit.script(layers).save(folder / "scripted.pt")


def versions(*packages: str) -> dict[str, str]:
    """Of installed packages."""
    return {name: importlib.metadata.version(name) for name in packages}


FAMILIES = {"open_clip": open_clip, "hugging_face": hugging_face, "big_vision": big_vision}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="+", choices=[*FAMILIES, "torch"])
    parser.add_argument("--big_vision", type=pathlib.Path, metavar="PATH")
    parser.add_argument("--flaxformer", type=pathlib.Path, metavar="PATH")
    parser.add_argument("--out", type=pathlib.Path, default=cases.GOLDEN)
    arguments = parser.parse_args()
    if "torch" in arguments.families:
        torch_files(arguments.out)
    for family in set(arguments.families) - {"torch"}:
        file = arguments.out / f"{family}.json"
        checkouts = (arguments.big_vision, arguments.flaxformer)
        needed = checkouts if family == "big_vision" else ()
        made = FAMILIES[family](*needed)
        file.write_text(json.dumps(made, separators=(",", ":")) + "\n")
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
