"""The same evaluation in several languages."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.metrics.statistics import Mean, MeanOfMeans, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError

PLACE = "{language}"
_COUNTS = ("examples", "images")
_CHANCE = "_chance"


@dataclasses.dataclass(frozen=True)
class Languages(base.Evaluator):
    """Another evaluator's metrics in each language, and their means over the languages.

    Whatever text of the evaluator (and of its components) holds {language} is taken for each one:
    Retrieval(source, captions="caption_{language}"), ZeroShot(source, "names.json#{language}",
    prompts.Templates("templates.json#{language}")). Pictures of one source are embedded once. What
    is shown of single pictures is that of the first language.

    Attributes:
      evaluator: with {language} somewhere.
      languages: what to put there.
    """

    evaluator: base.Evaluator
    languages: tuple[str, ...]

    place: ClassVar[int] = 22

    def __post_init__(self) -> None:
        if len(set(self.languages)) < max(1, len(self.languages)):
            raise UserError(f"languages={self.languages} must be different, and at least one")
        if not any(PLACE in text for text in _texts(self.evaluator)):
            raise UserError(
                f"nothing in {type(self.evaluator).__name__} holds {PLACE}, so all languages would "
                "be one: write it where they differ, such as classnames='names.json#{language}'"
            )

    @property
    def evaluators(self) -> dict[str, base.Evaluator]:
        """The evaluator of each language."""
        return {name: _filled(self.evaluator, name) for name in self.languages}

    @property
    def about(self) -> dict[str, About]:
        made = {}
        for name, about in self.evaluator.about.items():
            label = f"{about.label}, mean of {len(self.languages)} languages"
            made[name] = dataclasses.replace(about, label=label)
            for language in self.languages:
                label = f"{about.label}, {language}"
                own = dataclasses.replace(about, label=label, headline=False)
                made[_named(name, language)] = own
        return made

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: x, the mean over the languages, and x_LANGUAGE of each of the evaluator's.

        They are statistics where all languages have the same sound records.

        Raises:
          UserError: as the evaluator; names the language.
        """
        results: dict[str, base.Result] = {}
        for language, evaluator in self.evaluators.items():
            try:
                results[language] = evaluator.evaluate(predictor, step)
            except UserError as error:
                raise UserError(f"language {language!r}: {error}") from error
        first = results[self.languages[0]]
        same = all(list(result.keys) == list(first.keys) for result in results.values())
        metrics: dict[str, float | Statistic] = {}
        for name in first.metrics:
            found = {lang: r.metrics[name] for lang, r in results.items() if name in r.metrics}
            if not same:
                found = {language: _number(metric) for language, metric in found.items()}
            metrics[name] = _mean(list(found.values()))
            if name not in _COUNTS:
                metrics |= {_named(name, language): metric for language, metric in found.items()}
        protocol = {
            key: value if all(r.protocol.get(key) == value for r in results.values()) else "differs"
            for key, value in first.protocol.items()
        }
        protocol = {"languages": list(self.languages)} | protocol
        keys = first.keys if same else ()
        shown = {"languages": self._table(metrics), **first.artifacts}
        return base.Result(metrics, shown, keys, protocol)

    def _table(self, metrics: Mapping[str, float | Statistic]) -> dict[str, Any]:
        """For the report: the headline metrics of each language."""
        columns = {n: about for n, about in self.evaluator.about.items() if about.headline}
        columns = {name: about for name, about in columns.items() if name in metrics}
        return {
            "kind": "languages",
            "columns": {name: [about.label, about.unit] for name, about in columns.items()},
            "rows": {
                language: {
                    name: _number(metrics[_named(name, language)])
                    for name in columns
                    if _named(name, language) in metrics
                }
                for language in self.languages
            },
        }


def _named(metric: str, language: str) -> str:
    """With the chance level's ending at the end."""
    if metric.endswith(_CHANCE):
        return f"{metric.removesuffix(_CHANCE)}_{language}{_CHANCE}"
    return f"{metric}_{language}"


def _mean(found: Sequence[float | Statistic]) -> float | Statistic:
    if all(isinstance(metric, Mean) for metric in found):
        columns = [np.stack([getattr(m, f) for m in found], axis=1) for f in ("total", "count")]
        return MeanOfMeans(*columns)
    return float(np.mean([_number(metric) for metric in found]))


def _number(metric: float | Statistic) -> float:
    return metric.value() if isinstance(metric, Statistic) else float(metric)


def _texts(part: Any) -> Iterator[str]:
    """All texts in a component, its components and their lists."""
    if isinstance(part, str):
        yield part
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from _texts(getattr(part, field.name))
    elif isinstance(part, (tuple, list)):
        for item in part:
            yield from _texts(item)
    elif isinstance(part, Mapping):
        for item in part.values():
            yield from _texts(item)


def _filled(part: Any, language: str) -> Any:
    """The same with the language in place; what holds none of it stays the very same object, so
    that a source's pictures are known again.
    """
    if isinstance(part, str):
        return part.replace(PLACE, language)
    if not any(PLACE in text for text in _texts(part)):
        return part
    if dataclasses.is_dataclass(part):
        fields = [field.name for field in dataclasses.fields(part) if field.init]
        changed = {name: _filled(getattr(part, name), language) for name in fields}
        return dataclasses.replace(part, **changed)
    if isinstance(part, Mapping):
        return {key: _filled(item, language) for key, item in part.items()}
    return type(part)(_filled(item, language) for item in part)
