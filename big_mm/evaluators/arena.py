"""A captioner against others, caption by caption."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from big_mm.data.contract import Decoding
from big_mm.data.records import Source
from big_mm.evaluators import base, files
from big_mm.evaluators.base import About
from big_mm.metrics import arena
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError


class Judge(Protocol):
    """Compares two captions of a record (without its picture)."""

    def __call__(self, first: str, second: str, record: Mapping[str, Any]) -> float:
        """1 if the first is better, 0 if the second is, 1/2 for a tie."""


@dataclasses.dataclass(frozen=True)
class ByScore:
    """The judge that prefers the larger of two scores.

    Attributes:
      scorer: as `Captioning.scorer`.
      metric: the name of the deciding score.
      margin: smaller differences are ties.
    """

    scorer: Any
    metric: str
    margin: float = 0.0

    def __call__(self, first: str, second: str, record: Mapping[str, Any]) -> float:
        found = [self.scorer(caption, record) for caption in (first, second)]
        if self.metric not in found[0]:
            raise UserError(f"the scorer has no {self.metric!r} but {', '.join(found[0])}")
        difference = found[0][self.metric] - found[1][self.metric]
        return 0.5 if abs(difference) <= self.margin else float(difference > 0)


@dataclasses.dataclass(frozen=True)
class Arena(base.Evaluator):
    """Bradley-Terry ratings from pairwise comparisons of captions (CapArena, arXiv:2503.12329).

    Every pair of captioners meets over every image, in both orders, since judges prefer a place;
    the two verdicts count half each. Ratings are on Elo's scale and of mean 1000, so they compare
    among the same rivals only. `score` is CapArena-Auto's: +1 for a battle won, -1 for one lost, 0
    for a tie, here as the mean over battles.

    Attributes:
      source: records with an image.
      rivals: a JSON file of {captioner: {record key: caption}}.
      judge: a `Judge`; people's or a model's verdicts come in as one.
      decoding: None takes the contract's.
      prefix: the words that captions begin with.
      name: of the evaluated captioner.
      batch_size: images prepared at a time.
      limit: only the first records.
    """

    source: Source
    rivals: str
    judge: Any
    decoding: Decoding | None = None
    prefix: str = ""
    name: str = "model"
    batch_size: int = 256
    limit: int | None = None

    place: ClassVar[int] = 35
    about: ClassVar[dict[str, About]] = {
        "rating": About("Arena rating", "Bradley-Terry, mean 1000", "score", headline=True),
        "score": About("Arena score", "battles won minus battles lost", "score"),
        "order_bias": About(
            "Order bias",
            "how much likelier the judge prefers the first caption than chance",
            "score",
        ),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: rating, rating_RIVAL, score, order_bias, examples.

        Raises:
          UserError: a rival without a caption for a record, one that is named as the model, or a
            model that does not caption.
        """
        rivals = self._rivals()
        players = [self.name, *rivals]
        how = self.decoding or predictor.contract.decoding
        keys: list[str] = []
        verdicts: list[np.ndarray] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            tokens, _ = predictor.generate(batch["image"], how, prefix=self.prefix, seed=len(keys))
            own = predictor.contract.detokenize(tokens)
            for caption, record in zip(own, base.rows(batch), strict=True):
                theirs = [captions.get(record["key"]) for captions in rivals.values()]
                if None in theirs:
                    name = list(rivals)[theirs.index(None)]
                    raise UserError(f"{self.rivals}: {name!r} has no caption of {record['key']!r}")
                verdicts.append(self._battles([caption, *theirs], record))
                keys.append(record["key"])
        # [image, first, second]: the verdict when `first` was shown first.
        shown = np.array(verdicts)
        wins = (shown + 1 - shown.swapaxes(1, 2)) / 2
        wins[:, np.arange(len(players)), np.arange(len(players))] = 0
        found = arena.ratings(wins)
        metrics: dict[str, float | Statistic] = {"rating": found[0]}
        metrics |= {f"rating_{n}": r for n, r in zip(players[1:], found[1:], strict=True)}
        others = len(players) - 1
        metrics["score"] = Mean.of(2 * wins[:, 0].sum(axis=1) / others - 1)
        apart = ~np.eye(len(players), dtype=bool)
        metrics["order_bias"] = Mean.of(shown[:, apart].mean(axis=1) - 0.5)
        metrics["examples"] = float(len(keys))
        protocol = {
            "rivals": list(rivals),
            "judge": type(self.judge).__name__,
            "order": "both, half each",
            "decoding": dataclasses.asdict(how),
        }
        return base.Result(metrics, keys=keys, protocol=protocol)

    def _battles(self, captions: list[str], record: Mapping[str, Any]) -> np.ndarray:
        found = np.full((len(captions), len(captions)), 0.5)
        for i, j in itertools.permutations(range(len(captions)), 2):
            verdict = float(self.judge(captions[i], captions[j], record))
            if not 0 <= verdict <= 1:
                raise UserError(f"the judge's verdict {verdict} is not between 0 and 1")
            found[i, j] = verdict
        return found

    def _rivals(self) -> dict[str, dict[str, str]]:
        content = files.read_json(self.rivals)
        if not isinstance(content, dict) or not content:
            raise UserError(f"{self.rivals}: expected captioners and their captions by record key")
        for name, captions in content.items():
            if not isinstance(captions, dict):
                raise UserError(f"{self.rivals}: {name!r} has no captions by record key")
        if self.name in content:
            raise UserError(f"{self.rivals}: {self.name!r} is the evaluated captioner's name")
        return content
