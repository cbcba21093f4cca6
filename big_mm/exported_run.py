"""Uses an exported model with jax, numpy, pillow, safetensors and sentencepiece, and no big_mm.

Two more where the model wants them: tokenizers (tokenizer.json), ftfy ("clean" in config.json).

    python run.py picture.jpg "a red circle" "two green stars"

A program is a function of the parameters (model.safetensors by name) and arrays of any number B of
rows; S is image_size and L is max_len in config.json:

    encode_image(params, image [B,S,S,3] uint8) -> [B,D], of unit length
    encode_text(params, tokens [B,L] int32, token_mask [B,L] bool) -> [B,D], of unit length
    caption(params, image, prefix [B,L] int32) -> tokens [B,L], log-probabilities [B]

Tokens are bos, words, eos, then pad; a prefix is bos, any words that the caption is to begin with,
then pad. Programs stay readable by the JAX releases of the six months after their export at least.
This file is a start: change it as you like.
"""

import html
import json
import pathlib
import string
import sys

import jax.export
import numpy as np
import sentencepiece
from PIL import Image, ImageOps
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent
# Pillow's nearest relatives of the kernels that training resizes with.
KERNELS = {"area": Image.BOX, "tf_area": Image.BOX, "bicubic": Image.BICUBIC}
KERNELS["tf_bicubic"] = Image.BICUBIC


def program(name):
    """An exported function."""
    return jax.export.deserialize((HERE / f"{name}.jaxexport").read_bytes()).call


def prepare(path, inputs):
    """A picture file as [1,S,S,3] uint8."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    size, inner = inputs["image_size"], inputs["resize_size"] or inputs["image_size"]
    kernel = KERNELS.get(inputs["kernel"], Image.BILINEAR)
    if inputs["resize"] == "pad":
        picture = ImageOps.pad(picture, (size, size), kernel, (inputs["fill"],) * 3)
    elif inputs["resize"] == "crop":
        picture = ImageOps.fit(picture, (inner, inner), kernel)
    margin = (inner - size) // 2
    picture = picture.resize((inner, inner), kernel)
    return np.asarray(picture.crop((margin, margin, margin + size, margin + size)))[None]


def tokenize(text, inputs, tokenizer, eos=True):
    """A text as [1,L] tokens, and how many of them are not padding."""
    text = normalize(text, inputs)
    ids, length = inputs["tokenizer"], inputs["max_len"]
    if hasattr(tokenizer, "no_padding"):  # of the package tokenizers
        words = tokenizer.encode(text, add_special_tokens=False).ids
    else:
        words = tokenizer.encode(text)
    begin = [ids["bos_id"]] * (ids["bos_id"] >= 0)
    end = [ids["eos_id"]] * (eos and ids["eos_id"] >= 0)
    row = begin + words[: length - len(begin) - (ids["eos_id"] >= 0)] + end
    rest = ids["pad_id"] if eos else ids["free_id"]
    return np.array([row + [rest] * (length - len(row))], np.int32), len(row)


def normalize(text, inputs):
    """The text as the model's tokenizer expects it."""
    if inputs["clean"] != "none":
        import ftfy

        text = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
        text = text.replace("_", " ") if inputs["clean"] == "web_underscore" else text
    if inputs["canonicalize"]:
        text = text.replace("_", "" if inputs["canonicalize"] == "hugging_face" else " ")
        text = text.translate(str.maketrans("", "", string.punctuation)).lower()
        text = " ".join(text.split())
    if inputs["lowercase"] == "ascii":
        return text.translate(str.maketrans(string.ascii_uppercase, string.ascii_lowercase))
    if inputs["lowercase"] == "casefold":
        return text.casefold()
    return text.lower() if inputs["lowercase"] else text


def detokenize(row, inputs, tokenizer):
    """The words of a generated row."""
    ids = inputs["tokenizer"]
    row = np.asarray(row).tolist()[1:]
    row = row[: row.index(ids["eos_id"])] if ids["eos_id"] in row else row
    text = tokenizer.decode([i for i in row if i not in (ids["free_id"], ids["cls_id"])])
    return text.replace("</w>", " ").strip()  # which CLIP's tokens end in


def read_tokenizer():
    """The tokenizer beside this file, if there is one."""
    if (HERE / "tokenizer.model").exists():
        return sentencepiece.SentencePieceProcessor(model_file=str(HERE / "tokenizer.model"))
    if (HERE / "tokenizer.json").exists():
        import tokenizers

        made = tokenizers.Tokenizer.from_file(str(HERE / "tokenizer.json"))
        made.no_truncation()
        made.no_padding()
        return made
    return None


def main():
    inputs = json.loads((HERE / "config.json").read_text())["inputs"]
    params = load_file(HERE / "model.safetensors")
    image, texts = prepare(sys.argv[1], inputs), sys.argv[2:]
    tokenizer = read_tokenizer()
    if (HERE / "caption.jaxexport").exists():
        prefix, _ = tokenize("", inputs, tokenizer, eos=False)
        tokens, log_probability = program("caption")(params, image, prefix)
        print(f"caption: {detokenize(tokens[0], inputs, tokenizer)}")
        print(f"its log-probability: {log_probability[0]:.3f}")
    if (HERE / "encode_image.jaxexport").exists():
        embedding = np.asarray(program("encode_image")(params, image))
        print(
            f"embedding: {embedding.shape[1]} numbers, of which the first is {embedding[0, 0]:.4f}"
        )
        for text in texts:
            tokens, count = tokenize(text, inputs, tokenizer)
            mask = np.ones(tokens.shape, bool)
            if inputs["padding"] == "masked":
                mask = np.arange(tokens.shape[1])[None] < count
            other = np.asarray(program("encode_text")(params, tokens, mask))
            print(f"cosine {(embedding @ other.T).item():.4f} with: {text}")


if __name__ == "__main__":
    main()
