"""Heads trained on a frozen model's patch tokens: CoCa's attentional pooler, and segmentation."""

import colorsys
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Shaped, UInt8

from big_mm.data.records import Source
from big_mm.evaluators import base, features, masks
from big_mm.evaluators.base import About
from big_mm.evaluators.features import Features
from big_mm.evaluators.probes import Probe, about_accuracy
from big_mm.metrics.segmentation import MeanIoU
from big_mm.metrics.statistics import Mean
from big_mm.predictor import Predictor
from big_mm.probing import heads
from big_mm.probing.heads import IGNORE, AttentionalHead, PatchHead, Recipe

_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class AttentionalProbe(Probe):
    """An attentional pooler and a softmax on frozen patch tokens: CoCa's frozen-feature protocol
    (arXiv:2205.01917, section 3.3).

    The paper trains the head along with augmented pictures; here the tokens are those of the
    prepared pictures, computed once.

    Attributes:
      heads: of the pooler.
      recipe: how the head is trained.
    """

    output: str = "patch_tokens"
    dtype: str = "float16"
    heads: int = 8
    recipe: Recipe = Recipe()

    about: ClassVar[dict[str, About]] = about_accuracy(
        "", "Attentional probe", "by an attentional pooler"
    )

    def classify(self, predictor, train, test, validation, classes):
        """As of `Probe`."""
        del validation
        head = AttentionalHead(classes, self.heads)
        params = heads.train(
            head, train.values, train.classes, self.recipe, predictor.mesh, predictor.progress
        )

        def predict(rows: Array) -> Array:
            return head.apply({"params": params}, rows.astype(jnp.float32)).argmax(axis=-1)

        predicted = heads.apply(predict, [test.values], predictor.mesh)
        return {"": predicted[None]}, predicted, self.recipe.protocol() | {"heads": self.heads}


@dataclasses.dataclass(frozen=True)
class SegmentationProbe(base.Evaluator):
    """A linear classifier of frozen patch tokens, scored pixel by pixel.

    Scores of the patches are enlarged to the picture's pixels bilinearly, for the loss as for the
    prediction; masks are prepared as pictures are (`masks.prepare`), so the score is at the model's
    own resolution, not at the files'. Intersections and unions are summed over all images. Chance
    is the most frequent training class everywhere.

    Attributes:
      train, test: records with masks; different ones.
      masks: reads them, `masks.ClassMasks` or `masks.SceneMasks`.
      output, dtype: as of `Probe`.
      recipe: how the classifier is trained.
      batch_size: pictures prepared at a time.
      train_limit, limit: only the first records of `train` and of `test`.
    """

    train: Source
    test: Source
    masks: Any
    output: str = "patch_tokens"
    dtype: str = "float16"
    recipe: Recipe = Recipe(batch_size=32)
    batch_size: int = 256
    train_limit: int | None = None
    limit: int | None = None

    place: ClassVar[int] = 55
    about: ClassVar[dict[str, About]] = {
        "miou": About(
            "Segmentation mIoU",
            "overlap of predicted and true regions of each class, averaged over classes",
            headline=True,
        ),
        "pixel_accuracy": About("Pixel accuracy", "pixels that are classified rightly"),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: miou, pixel_accuracy, their chance levels, examples.

        Raises:
          UserError: records without mask, or a model without the output.
        """
        train, truth = self._split(predictor, self.train, self.train_limit)
        test, expected = self._split(predictor, self.test, self.limit)
        classnames = tuple(self.masks.classnames)
        head = PatchHead(len(classnames), predictor.contract.image_size)
        params = heads.train(
            head, train.values, truth, self.recipe, predictor.mesh, predictor.progress
        )
        rows = self.recipe.batch_size
        overlap, shown = score(head, params, test.values, expected, predictor.mesh, rows)
        frequent = np.bincount(truth[truth != IGNORE], minlength=len(classnames)).argmax()
        everywhere = np.zeros_like(overlap.true)
        everywhere[:, frequent] = overlap.true.sum(axis=1)
        guess = np.zeros_like(overlap.true)
        guess[:, frequent] = overlap.true[:, frequent]
        metrics = {
            "miou": overlap,
            "miou_chance": MeanIoU(guess, everywhere, overlap.true).value(),
            "pixel_accuracy": Mean(overlap.intersection.sum(axis=1), overlap.true.sum(axis=1)),
            "pixel_accuracy_chance": float(guess.sum() / overlap.true.sum()),
            "examples": float(len(test)),
        }
        protocol = {
            "features": self.output,
            "training images": len(train),
            "classes": len(classnames),
            "scored at": f"{head.size} pixels",
        } | self.recipe.protocol()
        sheet = self._sheet(predictor, test, classnames, expected[: len(shown)], shown)
        sheet["iou"] = [
            None if np.isnan(x) else float(x) for x in overlap.per_class(np.ones(len(test)))
        ]
        return base.Result(metrics, {"segmentation": sheet}, test.keys, protocol)

    def _split(
        self, predictor: Predictor, source: Source, limit: int | None
    ) -> tuple[Features, UInt8[np.ndarray, "n size size"]]:
        """Tokens and prepared masks."""
        found = features.extract(
            predictor,
            source,
            self.output,
            limit=limit,
            dtype=self.dtype,
            batch_size=self.batch_size,
        )
        records = features.read(source, found.index)
        prepared = [masks.prepare(self.masks(record), predictor.contract) for record in records]
        return found, np.stack(prepared)

    def _sheet(
        self,
        predictor: Predictor,
        test: Features,
        classnames: Sequence[str],
        expected: UInt8[np.ndarray, "n size size"],
        shown: UInt8[np.ndarray, "n size size"],
    ) -> dict[str, Any]:
        """The first pictures, their masks and what was predicted, in the classes' colours."""
        colours = palette(len(classnames))
        index = test.index.tolist()
        return {
            "kind": "segmentation",
            "classnames": list(classnames),
            "colours": [f"#{bytes(c).hex()}" for c in colours[: len(classnames)].tolist()],
            "examples": [
                {
                    "image": base.picture_of(self.test, predictor.contract, index[i]),
                    "true": base.picture(colours[truth]),
                    "predicted": base.picture(colours[predicted]),
                }
                for i, (truth, predicted) in enumerate(zip(expected, shown, strict=True))
            ],
        }


def score(
    head: nn.Module,
    params: Any,
    tokens: Shaped[np.ndarray, "n tokens width"],
    truth: UInt8[np.ndarray, "n size size"],
    mesh: Mesh,
    batch_size: int,
) -> tuple[MeanIoU, UInt8[np.ndarray, "few size size"]]:
    """Pixel counts of each picture and class, and the first few predictions."""
    classes = head.classes

    def predict(rows: Array) -> Array:
        scores = head.apply({"params": params}, rows.astype(jnp.float32))
        return scores.argmax(axis=-1).astype(jnp.uint8)

    def count(labels: Array, counted: Array) -> Array:
        return jnp.bincount(labels.ravel(), counted.ravel().astype(jnp.int32), length=classes)

    def compare(rows: Array, truth: Array) -> tuple[Array, ...]:
        predicted, counted = predict(rows), truth != IGNORE
        one = jax.vmap(count)
        right = counted & (predicted == truth)
        return one(predicted, right), one(predicted, counted), one(truth, counted)

    counts = heads.apply(compare, [tokens, truth], mesh, batch_size)
    shown = heads.apply(predict, [tokens[:_SHOWN]], mesh, batch_size)
    return MeanIoU(*(np.asarray(x, np.float64) for x in counts)), shown


def palette(classes: int) -> UInt8[np.ndarray, "256 3"]:
    """Colours by class number, the first one dark, neighbours far apart; IGNORE is white."""
    golden = 0.618034
    made = np.full((256, 3), 255, np.uint8)
    made[0] = 40
    for number in range(1, classes):
        value = (0.95, 0.7, 0.5)[number // 12 % 3]
        rgb = colorsys.hsv_to_rgb(number * golden % 1, 0.75, value)
        made[number] = np.round(255 * np.array(rgb))
    return made
