"""A tiny CoCa with its tokenizer, and its checkpoint in a temporary workdir."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from big_mm import spec, trees
from big_mm.data import tokenizers
from big_mm.data.contract import Contract
from big_mm.losses import captioning, contrastive
from big_mm.models import variants
from big_mm.objectives.base import Weighted
from big_mm.training import checkpoint

IMAGE_SIZE, MAX_LEN = 16, 12
COLOURS = ("red", "green", "blue", "white")
SHAPES = ("circle", "square", "star", "ring")
TEXTS = tuple(f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES)


@functools.cache
def tokenizer_bytes() -> bytes:
    return tokenizers.train(TEXTS, 300, model_type="bpe", hard_vocab_limit=False)


def config(directory: pathlib.Path, model=None, **contract) -> spec.ml_collections.ConfigDict:
    """A config with its tokenizer file in `directory`; `model` is `siglip`, `captioner`, ..."""
    file = directory / "tokenizer.model"
    file.write_bytes(tokenizer_bytes())
    tokenizer = tokenizers.SentencePiece(str(file))
    model = model or coca
    return spec.ml_collections.ConfigDict(
        {
            "objective": spec.spec(
                Weighted,
                model=model(tokenizer.vocab_size),
                losses={
                    "contrastive": spec.spec(contrastive.Softmax),
                    "captioning": spec.spec(captioning.CrossEntropy),
                },
            ),
            "contract": spec.spec(
                Contract,
                tokenizer=spec.spec(tokenizers.SentencePiece, path=str(file)),
                image_size=IMAGE_SIZE,
                max_len=MAX_LEN,
                **contract,
            ),
        }
    )


def coca(vocab_size: int) -> spec.ml_collections.ConfigDict:
    made = variants.coca(
        "tiny",
        image_size=IMAGE_SIZE,
        patch_size=4,
        vocab_size=vocab_size,
        max_len=MAX_LEN,
        queries=4,
    )
    return _shrink(made, made.image.blocks, made.text.blocks, made.decoder)


def siglip(vocab_size: int) -> spec.ml_collections.ConfigDict:
    made = variants.siglip(
        "Ti/4", image_size=IMAGE_SIZE, vocab_size=vocab_size, max_len=MAX_LEN, embed_dim=16
    )
    return _shrink(made, made.image.blocks, made.text.blocks)


def captioner(vocab_size: int) -> spec.ml_collections.ConfigDict:
    made = variants.captioner("Ti/4", image_size=IMAGE_SIZE, vocab_size=vocab_size, max_len=MAX_LEN)
    return _shrink(made, made.image.blocks, made.text.blocks)


def _shrink(made, *stacks):
    for stack in stacks:
        stack.update({"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32})
    return made


def parameters(model, contract, seed: int = 0, gain: float = 2.0):
    """Random parameters, larger than at initialisation so that outputs differ between inputs."""
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.normal(size=shape)
        if path.endswith(("scale", "bias")):
            return noise / 10 + (2 if path.endswith("log_scale") else path.endswith("scale"))
        fan_in = math.prod(shape[-3:-1]) if path.endswith("kernel") else 16
        return gain * noise / fan_in**0.5

    tokens, token_mask = contract.text([""])
    image = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    batch = {"image": image, "tokens": tokens, "token_mask": token_mask}
    init = functools.partial(model.init, train=False)
    shapes = trees.flatten(jax.eval_shape(init, jax.random.key(0), batch)["params"])
    return trees.unflatten({k: jnp.float32(draw(k, v.shape)) for k, v in shapes.items()})


def workdir(directory: pathlib.Path, model=None, **contract) -> pathlib.Path:
    """Writes a checkpoint of random parameters at step 3, and returns the workdir."""
    made = config(directory, model, **contract)
    built = spec.build(made)
    params = parameters(built["objective"].model, built["contract"])
    files = {
        checkpoint.CONFIG: spec.to_json(spec.resolve(made)).encode(),
        tokenizers.SentencePiece.file_name: tokenizer_bytes(),
    }
    out = directory / "run"
    store = checkpoint.Store(out / "checkpoints", checkpoint.Checkpoints(), files)
    store.save(3, {"params": trees.flatten(params)})
    store.close()
    return out


def images(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
