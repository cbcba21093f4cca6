"""Self-distillation of local crops and masked patches from an EMA teacher (TIPS, section 3.2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from big_mm.models.vision import mask_lowest
from big_mm.objectives.teacher import Teacher
from big_mm.spec import UserError
from big_mm.types import Aux, Batch, Mean, Outputs

HEADS = ("prototypes", "patch_prototypes")


@dataclasses.dataclass(frozen=True, eq=False)
class SpatialAwareness(Teacher):
    """Adds to the model's outputs, for `Distillation`: the student's of local crops and of the
    masked image, and what the teacher says of the whole image.

    A teacher's cosines are centred by their running mean, against one prototype for all, and
    sharpened, against all prototypes for each (arXiv:2104.14294, section 3.1).

    Attributes:
      views: the batch's key with local crops [B,N,S,S,3].
      mask_ratio: the share of patches that are masked at random, rounded to whole patches.
      teacher_temperature: of the teacher's softmax.
      centre_momentum: of the running means.
    """

    views: str = "local_crops"
    mask_ratio: float = 0.75
    teacher_temperature: float = 0.07
    centre_momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"mask_ratio={self.mask_ratio} must be between 0 and 1")

    def init_extra(self, rng: Array, params: Any) -> dict[str, Any]:
        centres = {name: jnp.zeros(self.model.prototypes) for name in HEADS}
        return super().init_extra(rng, params) | {"centres": centres}

    def forward(self, params: Any, extra: Any, batch: Batch, rng: Array) -> Outputs:
        """`local`, `masked` and `patch_mask` of the student, `target` and `patch_target` of the
        teacher, with its cosines, for the centres.
        """
        rngs = jax.random.split(rng, 4)

        def apply(rows: Batch, rng: Array) -> Outputs:
            return self.model.apply({"params": params}, rows, train=True, rngs={"dropout": rng})

        whole = {"image": batch["image"]}
        outputs, taught = apply(batch, rngs[0]), self.teach(extra, whole)
        views = batch[self.views]
        local = apply({"image": views.reshape(-1, *views.shape[2:])}, rngs[1])["prototypes"]
        scores = jax.random.uniform(rngs[2], outputs["patch_tokens"].shape[:2])
        mask = mask_lowest(scores, self.mask_ratio)
        masked = apply(whole | {"patch_mask": mask}, rngs[3])["patch_prototypes"]
        targets = {
            name: jax.nn.softmax((taught[name] - extra["centres"][name]) / self.teacher_temperature)
            for name in HEADS
        }
        return outputs | {
            "local": local.reshape(*views.shape[:2], -1),
            "masked": masked,
            "patch_mask": mask,
            "target": targets["prototypes"][:, None],
            "patch_target": targets["patch_prototypes"],
            **{f"teacher_{name}": taught[name] for name in HEADS},
        }

    def carry(self, outputs: Outputs, batch: Batch) -> dict[str, Mean]:
        """The sums of the teacher's cosines, by head."""
        found = {}
        for name in HEADS:
            rows = outputs[f"teacher_{name}"].reshape(-1, self.model.prototypes)
            found[name] = Mean(rows.sum(axis=0), jnp.float32(len(rows)))
        return found

    def update_extra(self, extra: Any, params: Any, aux: Aux) -> dict[str, Any]:
        m = self.centre_momentum
        centres = {
            name: m * centre + (1 - m) * aux.carry[name].compute()
            for name, centre in extra["centres"].items()
        }
        return super().update_extra(extra, params, aux) | {"centres": centres}
