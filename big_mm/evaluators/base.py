"""What an evaluator is, and how all of a run's are run.

An evaluator is a frozen dataclass. The least it has is `run(predictor, step) -> {name: float}`; one
that also has something to show overrides `run_with_artifacts` and lets `run` take its metrics. It
knows models only through the methods of `Predictor`, so it gives the same numbers inside training,
alone on a checkpoint and in a notebook. Conventions:

- A metric named `x_chance` is what `x` would be without any skill.
- Every process reads the whole evaluation set and makes the same calls; the predictor spreads the
  rows over the devices and gives every process all results. Padding and damaged records are dropped
  by their mask, so nothing depends on batch size, devices or hosts.
- Artifacts are small and JSON-able: `{"kind": ..., ...}` by name, pictures as data URIs.
  `run_all` stores them in `artifacts/` of a workdir, where the report finds them.
"""

import abc
import base64
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from big_mm.data import pipeline
from big_mm.data.contract import Contract
from big_mm.data.records import Source
from big_mm.predictor import Predictor
from big_mm.spec import UserError

ARTIFACTS = "artifacts"
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
    """Metrics, and what there is to show."""

    metrics: dict[str, float]
    artifacts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Evaluator(abc.ABC):
    """Base of all evaluators.

    Attributes:
      about: describes metrics to the report.
      place: evaluators with a smaller one come first in tables and reports (a config has no order).
    """

    about: ClassVar[Mapping[str, About]] = {}
    place: ClassVar[int] = 100

    @abc.abstractmethod
    def run(self, predictor: Predictor, step: int) -> dict[str, float]:
        """The metrics; `step` is for logs and seeds, and 0 outside training."""

    def run_with_artifacts(self, predictor: Predictor, step: int) -> Result:
        """The metrics and artifacts of one evaluation."""
        return Result(self.run(predictor, step))


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
    source: Source, contract: Contract, batch_size: int, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Batches of the sound records of a source (of its first `limit`), without any padding row.

    Keys as `pipeline.examples`, and `index`: the record's number in the source. The batches may be
    smaller than `batch_size`, never empty.
    """
    if limit is not None and limit < len(source):
        source = View(source, range(limit))
    for number, batch in enumerate(pipeline.examples(source, contract, batch_size)):
        rows = np.flatnonzero(batch["mask"])
        batch["index"] = number * batch_size + np.arange(len(batch["mask"]))
        if len(rows):
            yield {
                key: value[rows] if isinstance(value, np.ndarray) else [value[i] for i in rows]
                for key, value in batch.items()
            }


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
    texts = [[_text(v) for v in _values(row)] for row in batch[key]]
    for row, name in zip(texts, batch["key"], strict=True):
        if not row:
            raise UserError(f"record {str(name)!r} has nothing in {key!r}")
    return texts


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


def run_all(
    evaluators: Mapping[str, Any],
    predictor: Predictor,
    step: int = 0,
    workdir: epath.PathLike | None = None,
    announce: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """Runs evaluators in order; metric names become `<evaluator>/<metric>`.

    Args:
      workdir: where the first process stores artifacts, one file an evaluator, the latest step's.
      announce: called with each evaluator's name before it runs.

    Raises:
      UserError: an evaluator cannot work with this model or data; the message names it.
    """
    metrics: dict[str, float] = {}
    for name, evaluator in evaluators.items():
        announce(name)
        try:
            result = evaluator.run_with_artifacts(predictor, step)
        except UserError as error:
            raise UserError(f"evaluator {name!r}: {error}") from error
        values = {key: float(value) for key, value in result.metrics.items()}
        metrics |= {f"{name}/{key}": value for key, value in values.items()}
        if workdir is not None and jax.process_index() == 0:
            content = {
                "place": evaluator.place,
                "step": step,
                "metrics": values,
                "about": describe({name: evaluator})[name],
                "artifacts": result.artifacts,
            }
            _store(epath.Path(workdir), name, content)
    return metrics


def describe(evaluators: Mapping[str, Evaluator]) -> dict[str, dict[str, dict[str, Any]]]:
    """The fields of `About` of each metric, by evaluator in the order to show them; JSON-able."""
    ordered = sorted(evaluators.items(), key=lambda item: (item[1].place, item[0]))
    return {
        name: {metric: dataclasses.asdict(about) for metric, about in evaluator.about.items()}
        for name, evaluator in ordered
    }


def _store(workdir: epath.Path, name: str, content: dict[str, Any]) -> None:
    folder = workdir / ARTIFACTS
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.json"
    temporary.write_text(json.dumps(content))
    temporary.replace(folder / f"{name}.json")


def load_artifacts(workdir: epath.PathLike) -> dict[str, dict[str, Any]]:
    """What `run_all` stored, by evaluator in the order to show: `step`, `metrics`, `about`,
    `artifacts`.
    """
    folder = epath.Path(workdir) / ARTIFACTS
    if not folder.exists():
        return {}
    files = [p for p in folder.iterdir() if p.suffix == ".json" and p.name[0] != "."]
    stored = {path.stem: json.loads(path.read_text()) for path in files}
    return dict(sorted(stored.items(), key=lambda item: (item[1]["place"], item[0])))
