"""What an evaluator is, and how all of a run's are run.

An evaluator is a frozen dataclass with one method, `evaluate(predictor, step) -> Result`; `run` is
its numbers alone. It knows models only through the methods of `Predictor`, so it gives the same
numbers inside training, alone on a checkpoint and in a notebook. Conventions:

- A metric named `x_chance` is what `x` would be without any skill, `x_low` and `x_high` bound its
  bootstrap interval.
- A metric is a number, or a `Statistic` where it can be computed from figures of each image: then
  `suite.run_all` can give its interval, and `big_mm.compare` a paired test of two models.
- The protocol says what pins the numbers: prompts, gallery, decoding, splits. It stands beside them
  in every table.
- Every process reads the whole evaluation set and makes the same calls; the predictor spreads the
  rows over the devices and gives every process all results. Padding and damaged records are dropped
  by their mask, so nothing depends on batch size, devices or hosts.
- Artifacts are small and JSON-able: `{"kind": ..., ...}` by name, pictures as data URIs.
  `suite` stores them in a workdir, where the report finds them.
"""

import abc
import base64
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from big_mm.data import pipeline
from big_mm.data.contract import Contract
from big_mm.data.records import Source
from big_mm.metrics.statistics import Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError

# Pictures larger than this are stored as JPEG.
_LOSSLESS_PIXELS = 128


@dataclasses.dataclass(frozen=True)
class About:
    """How to present a metric: a short label, one sentence, its unit.

    Attributes:
      unit: "share" (shown in per cent), "score" or "nats".
      headline: belongs to the few numbers that sum up a run.
      lower_is_better: as for a loss.
    """

    label: str
    text: str
    unit: str = "share"
    headline: bool = False
    lower_is_better: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """Metrics, and what there is to show.

    Attributes:
      metrics: numbers, or statistics over the images named by `keys`.
      artifacts: small and JSON-able, by name.
      keys: the record key of each image, in the order of the statistics.
      protocol: JSON-able facts that pin the numbers.
    """

    metrics: Mapping[str, float | Statistic]
    artifacts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: Sequence[str] = ()
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """All metrics as numbers."""
        return {
            name: metric.value() if isinstance(metric, Statistic) else float(metric)
            for name, metric in self.metrics.items()
        }

    @property
    def statistics(self) -> dict[str, Statistic]:
        """The metrics that can be resampled.

        Raises:
          ValueError: a statistic of another number of images than there are keys.
        """
        found = {k: v for k, v in self.metrics.items() if isinstance(v, Statistic)}
        if wrong := [name for name, metric in found.items() if len(metric) != len(self.keys)]:
            count = len(found[wrong[0]])
            raise ValueError(f"{wrong[0]} is of {count} images, not {len(self.keys)}")
        return found


class Evaluator(abc.ABC):
    """Base of all evaluators.

    Attributes:
      about: describes metrics to the report.
      place: evaluators with a smaller one come first in tables and reports (a config has no order).
    """

    about: ClassVar[Mapping[str, About]] = {}
    place: ClassVar[int] = 100

    @abc.abstractmethod
    def evaluate(self, predictor: Predictor, step: int) -> Result:
        """What this model reaches; `step` is for logs and seeds, and 0 outside training."""

    def run(self, predictor: Predictor, step: int = 0) -> dict[str, float]:
        """The metrics as numbers."""
        return self.evaluate(predictor, step).values


@dataclasses.dataclass(frozen=True)
class View:
    """Some records of a source, in a given order."""

    source: Source
    indices: tuple[int, ...] | range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.indices[index]]

    def where(self, index: int) -> str:
        return self.source.where(self.indices[index])


def examples(
    source: Source,
    contract: Contract,
    batch_size: int,
    limit: int | None = None,
    pictures: bool = True,
) -> Iterator[dict[str, Any]]:
    """Batches of the sound records of a source (of its first `limit`), without any padding row.

    Keys as `pipeline.examples`, and `index`: the record's number in the source. The batches may be
    smaller than `batch_size`, never empty.
    """
    if limit is not None and limit < len(source):
        source = View(source, range(limit))
    batches = pipeline.examples(source, contract, batch_size, pictures=pictures)
    for number, batch in enumerate(batches):
        rows = np.flatnonzero(batch["mask"])
        batch["index"] = number * batch_size + np.arange(len(batch["mask"]))
        if len(rows):
            yield {
                key: value[rows] if isinstance(value, np.ndarray) else [value[i] for i in rows]
                for key, value in batch.items()
            }


def rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of a batch, each without its picture."""
    features = [key for key in batch if key not in ("image", "key")]
    return [
        {"key": str(key), **{name: batch[name][i] for name in features}}
        for i, key in enumerate(batch["key"])
    ]


def texts(value: Any) -> list[str]:
    """All values of a record's feature as texts; none of an absent one (None)."""
    return [_text(v) for v in _values(value)]


def captions_of(batch: Mapping[str, Any], key: str = "captions") -> list[list[str]]:
    """The texts of each row: the record's captions, or those of another text feature.

    Raises:
      UserError: no such feature, or a row without text in it.
    """
    if key not in batch:
        raise UserError(
            f"the records have no {key!r} (they have {', '.join(sorted(batch))}): name it in the "
            "source's schema"
        )
    found = [texts(row) for row in batch[key]]
    for row, name in zip(found, batch["key"], strict=True):
        if not row:
            raise UserError(f"record {str(name)!r} has nothing in {key!r}")
    return found


def class_number(label: Any) -> int:
    """A class number, from the batch's own array or from a feature's list; -1 for none."""
    values = np.ravel(label) if label is not None else ()
    return int(values[0]) if len(values) else -1


def first_text(value: Any) -> str:
    """A text feature that holds one value, as decoded from a record or as plain text."""
    return _text(_values(value)[0])


def _values(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def picture_of(source: Source, contract: Contract, index: int) -> str:
    """The prepared picture of a record, as `picture`."""
    return picture(contract.image(source[index]["image"]))


def picture(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """A picture as a data URI: PNG when small, else JPEG."""
    small = max(image.shape[:2]) <= _LOSSLESS_PIXELS
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG" if small else "JPEG", quality=90)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
