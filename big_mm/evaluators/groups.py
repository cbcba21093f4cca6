"""How much worse a metric is for some groups of images than for others."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from big_mm.data.damage import BadRecord
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.metrics.groups import Gap, Worst
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class GroupGap(base.Evaluator):
    """Another evaluator's metrics by group: each group's, the worst one's, and the gap between best
    and worst (sub-populations and contexts, arXiv:2202.06523).

    Attributes:
      evaluator: what to split; its metrics that are means over images are.
      group: a feature of its source's records: a context, a region, a language.
      metrics: names of the evaluator's metrics.
      smallest: groups of fewer images are left out of worst and gap.
    """

    evaluator: base.Evaluator
    group: str
    metrics: tuple[str, ...] = ("accuracy",)
    smallest: int = 1

    place: ClassVar[int] = 65

    @property
    def about(self) -> dict[str, About]:
        made = {}
        for name in self.metrics:
            there = self.evaluator.about.get(name, About(name, name))
            made |= {
                f"{name}_worst": About(f"{there.label}, worst group", there.text, there.unit),
                f"{name}_gap": About(
                    f"{there.label}, gap",
                    "best minus worst group",
                    there.unit,
                    lower_is_better=True,
                ),
            }
        return made

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: each of `metrics`, the same as x_GROUP, x_worst, x_gap; groups, examples.

        Raises:
          UserError: no such metric, or one that is no mean over images; a record without group;
            no group of `smallest` images.
        """
        result = self.evaluator.evaluate(predictor, step)
        names = self._groups(set(result.keys))
        group = np.array([names[key] for key in result.keys])
        labels, numbers, counts = np.unique(group, return_inverse=True, return_counts=True)
        large = counts >= self.smallest
        if not large.any():
            raise UserError(f"no {self.group!r} has {self.smallest} images")
        kept = large[numbers].astype(np.float64)
        made: dict[str, float | Statistic] = {"groups": float(large.sum())}
        made["examples"] = float(len(group))
        for name in self.metrics:
            found = result.metrics.get(name)
            if not isinstance(found, Mean):
                means = [k for k, v in result.metrics.items() if isinstance(v, Mean)]
                raise UserError(f"{name!r} is no mean over images: those are {', '.join(means)}")
            made[name] = found
            for i in np.flatnonzero(large):
                of = (numbers == i).astype(np.float64)
                made[f"{name}_{labels[i]}"] = Mean(found.total * of, found.count * of)
            parts = (found.total * kept, found.count * kept, numbers)
            made |= {f"{name}_worst": Worst(*parts), f"{name}_gap": Gap(*parts)}
        protocol = {"groups by": self.group, "smallest group": self.smallest}
        return base.Result(made, keys=result.keys, protocol={**result.protocol, **protocol})

    def _groups(self, keys: set[str]) -> dict[str, str]:
        """The group of each of these records."""
        source, made = self.evaluator.source, {}
        for index in range(len(source)):
            try:
                record: dict[str, Any] = source[index]
            except BadRecord:
                continue
            if (key := str(record["key"])) in keys:
                if not (found := base.texts(record.get(self.group))):
                    raise UserError(
                        f"record {key!r} has nothing in {self.group!r}: does the schema name it?"
                    )
                made[key] = found[0]
        return made
