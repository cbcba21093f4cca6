"""Uses an exported model with jax, numpy, pillow, safetensors and sentencepiece, and no big_mm.

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
KERNELS = {"area": Image.BOX, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


def program(name):
    """An exported function."""
    return jax.export.deserialize((HERE / f"{name}.jaxexport").read_bytes()).call


def prepare(path, inputs):
    """A picture file as [1,S,S,3] uint8."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    size = (inputs["image_size"], inputs["image_size"])
    if inputs["resize"] == "crop":
        picture = ImageOps.fit(picture, size, KERNELS[inputs["kernel"]])
    return np.asarray(picture.resize(size, KERNELS[inputs["kernel"]]))[None]


def tokenize(text, inputs, tokenizer, eos=True):
    """A text as [1,L] tokens."""
    if inputs["canonicalize"]:
        text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
        text = " ".join(text.lower().split())
    if inputs["lowercase"]:
        text = text.lower()
    ids, length = inputs["tokenizer"], inputs["max_len"]
    words = tokenizer.encode(text)[: length - 2]
    row = [ids["bos_id"], *words, *([ids["eos_id"]] if eos else [])]
    return np.array([row + [ids["pad_id"]] * (length - len(row))], np.int32)


def detokenize(row, inputs, tokenizer):
    """The words of a generated row."""
    ids = inputs["tokenizer"]
    special = {ids["pad_id"], ids["bos_id"], ids["eos_id"], ids["cls_id"]}
    return tokenizer.decode([i for i in np.asarray(row).tolist() if i not in special])


def main():
    inputs = json.loads((HERE / "config.json").read_text())["inputs"]
    params = load_file(HERE / "model.safetensors")
    image, texts = prepare(sys.argv[1], inputs), sys.argv[2:]
    model = HERE / "tokenizer.model"
    tokenizer = (
        sentencepiece.SentencePieceProcessor(model_file=str(model)) if model.exists() else None
    )
    if (HERE / "caption.jaxexport").exists():
        prefix = tokenize("", inputs, tokenizer, eos=False)
        tokens, log_probability = program("caption")(params, image, prefix)
        print(f"caption: {detokenize(tokens[0], inputs, tokenizer)}")
        print(f"its log-probability: {log_probability[0]:.3f}")
    if (HERE / "encode_image.jaxexport").exists():
        embedding = np.asarray(program("encode_image")(params, image))
        print(
            f"embedding: {embedding.shape[1]} numbers, of which the first is {embedding[0, 0]:.4f}"
        )
        for text in texts:
            tokens = tokenize(text, inputs, tokenizer)
            mask = np.ones(tokens.shape, bool)
            if inputs["padding"] == "masked":
                mask = tokens != inputs["tokenizer"]["pad_id"]
            other = np.asarray(program("encode_text")(params, tokens, mask))
            print(f"cosine {(embedding @ other.T).item():.4f} with: {text}")


if __name__ == "__main__":
    main()
