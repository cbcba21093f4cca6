"""Captioning that knows how well its training captions fit: NoC (arXiv:2212.13563).

    python -m experiments.noc.noc --config experiments/noc/config.py --batches 20

prints how the training pairs' similarities spread, from which a config takes its boundaries.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num

from big_mm import spec
from big_mm.models.captioner import Captioner
from big_mm.objectives.judge import Judge, Judged
from big_mm.spec import UserError
from big_mm.types import Batch, Outputs


def uniform(low: float, high: float, levels: int) -> tuple[float, ...]:
    """The boundaries between levels of equal width."""
    return tuple(np.linspace(low, high, levels + 1)[1:-1].tolist())


def bucketize(
    similarity: Float[Array, " batch"], boundaries: Sequence[float]
) -> Int[Array, " batch"]:
    """The level of each similarity, from 0; one on a boundary belongs to the upper level."""
    return jnp.searchsorted(jnp.asarray(boundaries, jnp.float32), similarity, side="right")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Aligned(Judged):
    """`Weighted`, on batches whose pairs a frozen dual encoder has given a `level`.

    Attributes:
      boundaries: of the levels, rising, in the judge's cosine of image and text.
      minimum: pairs of a lower level do not count: filtering.
    """

    judge: Judge
    boundaries: tuple[float, ...]
    minimum: int = 0

    def prepare(self, state: Any, batch: Batch) -> Batch:
        level = bucketize(self.similarity(state.extra["judge"], batch), self.boundaries)
        kept = level >= self.minimum
        return batch | {"level": level, "mask": batch.get("mask", kept) & kept}

    @functools.cached_property
    def similarity(self) -> Callable[[Any, Batch], Float[Array, " batch"]]:
        """(the judge's parameters, batch) -> its cosine of each image and its text."""

        def similarity(params: Any, batch: Batch) -> Float[Array, " batch"]:
            outputs = self.judge(params, batch)
            return (outputs["image_embedding"] * outputs["text_embedding"]).sum(axis=-1)

        return jax.jit(similarity)


class ControlledCaptioner(Captioner):
    """A captioner whose decoder sees the image and a control: how well the caption is to fit.

    Attributes:
      levels: of the control.
      level: that it writes at.
    """

    levels: int = 8
    level: int = 7

    def setup(self) -> None:
        super().setup()
        self.control = nn.Embed(self.levels, self.image.blocks.width)

    def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
        out = super().encode_image(batch["image"], batch.get("patch_mask"), train=train)
        out["image_tokens"] = self._controlled(out["image_tokens"], batch.get("level"))
        return out | self._captions(out["image_tokens"], batch, train)

    def encode_image(
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        out = super().encode_image(image, patch_mask, train=train)
        return out | {"image_tokens": self._controlled(out["image_tokens"], None)}

    def _controlled(
        self, image_tokens: Float[Array, "batch source width"], level: Any
    ) -> Float[Array, "batch source_1 width"]:
        level = jnp.full(len(image_tokens), self.level) if level is None else level
        control = self.control(level)[:, None].astype(image_tokens.dtype)
        return jnp.concatenate([image_tokens, control], axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.noc.noc", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py", help="with this objective")
    parser.add_argument("--batches", type=int, default=20, metavar="N", help="to look at (20)")
    args = parser.parse_args(argv)
    try:
        run = spec.build(spec.load_config(args.config))
        batches = run.data.batches(run.contract, run.batch_size, run.seed)
        ask = run.objective
        judge = ask.judge.load(ask.judge.init(jax.random.key(0), run.contract), run.contract)
        rows = [ask.similarity(judge, next(batches)) for _ in range(args.batches)]
    except UserError as error:
        parser.error(str(error))
    found = np.concatenate(rows)
    for share in (0, 1, 5, 25, 50, 75, 95, 99, 100):
        print(f"{share:3} %  {np.percentile(found, share):+.3f}")
    print("levels", np.bincount(bucketize(found, run.objective.boundaries)) / len(found))


if __name__ == "__main__":
    main()
