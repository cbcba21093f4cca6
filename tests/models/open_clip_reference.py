"""What open_clip's CoCa computes with known weights: writes `open_clip_coca.json`.

    python tests/models/open_clip_reference.py     (made with open_clip_torch 3.3.0, torch 2.13.0)

Weights and inputs are functions of their names, so that only outputs need to be stored.
"""

import json
import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("open_clip_coca.json")
IMAGE_SIZE, PATCH, VISION_WIDTH, TEXT_WIDTH, HEAD_DIM = 16, 8, 24, 16, 8
LAYERS, MLP_RATIO, QUERIES, POOLER_HEADS, VOCAB, LENGTH = 2, 4, 5, 4, 20, 7
# The last rows: a caption that fills the length, and one with open_clip's padding id inside it.
TOKENS = np.array(
    [
        [18, 5, 7, 19, 0, 0, 0],
        [18, 3, 19, 0, 0, 0, 0],
        [18, 1, 2, 3, 4, 5, 19],
        [18, 6, 0, 8, 9, 19, 0],
    ]
)


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers that depend on the name; around one for the scales of norms."""
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 0.5
    if ".ln_" in f".{name}" and name.endswith("weight"):
        return (1 + values).astype(np.float32)
    return (values if len(shape) < 2 else values * shape[-1] ** -0.5 * 4).astype(np.float32)


def image() -> np.ndarray:
    """[4, size, size, 3] uint8."""
    return (np.random.default_rng(0).random((4, IMAGE_SIZE, IMAGE_SIZE, 3)) * 256).astype(np.uint8)


def reference() -> dict[str, list]:
    """Embeddings, caption logits and the text tower's additive mask as open_clip computes them."""
    import torch

    _tolerate_missing_torchvision_operators(torch)
    from open_clip import constants
    from open_clip.coca_model import CoCa

    text = {
        "context_length": LENGTH,
        "vocab_size": VOCAB,
        "width": TEXT_WIDTH,
        "heads": TEXT_WIDTH // HEAD_DIM,
        "layers": LAYERS,
    }
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "layers": LAYERS,
        "width": VISION_WIDTH,
        "head_width": HEAD_DIM,
        "attentional_pool": True,
        "attn_pooler_heads": POOLER_HEADS,
        "attn_pooler_queries": QUERIES,
        "output_tokens": True,
    }
    model = CoCa(TEXT_WIDTH, text, {**text, "embed_cls": True, "output_tokens": True}, vision)
    weights = {k: torch.tensor(array(k, tuple(v.shape))) for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    mean, std = np.array(constants.OPENAI_DATASET_MEAN), np.array(constants.OPENAI_DATASET_STD)
    pixels = ((image() / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    tokens = torch.tensor(TOKENS)
    with torch.no_grad():
        out = model.eval()(torch.tensor(pixels), tokens)
        _, mask = model.text._embeds(tokens)
    heads = TEXT_WIDTH // HEAD_DIM
    return {
        "names": {k: list(v.shape) for k, v in model.state_dict().items()},
        "image_embedding": _round(out["image_features"]),
        "text_embedding": _round(out["text_features"]),
        "caption_logits": _round(out["logits"]),
        "logit_scale": float(out["logit_scale"]),
        "mask": (mask[::heads] == 0).int().tolist(),
    }


def _round(x) -> list:
    return np.round(x.numpy().astype(float), 6).tolist()


def _tolerate_missing_torchvision_operators(torch) -> None:
    # torchvision's compiled operators do not load beside a CPU build of torch, nor are they needed.
    register = torch.library.register_fake

    def tolerant(*args, **kwargs):
        def decorate(function):
            try:
                return register(*args, **kwargs)(function)
            except RuntimeError:
                return function

        return decorate

    torch.library.register_fake = tolerant


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(reference()))
