"""How a model answers: by the likeliest of given answers, or in its own words."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from big_mm.data import token_rows
from big_mm.data.contract import Decoding
from big_mm.evaluators import files
from big_mm.evaluators.scoring import Likelihood, cut_texts, joined, refuse_equal
from big_mm.predictor import Predictor
from big_mm.spec import UserError


class Answerer(Protocol):
    """Answers prompts about images. The two kinds are not comparable with each other."""

    def __call__(
        self,
        predictor: Predictor,
        images: UInt8[np.ndarray, "n size size 3"],
        prompts: Sequence[str],
        choices: Sequence[str] = (),
    ) -> list[str]:
        """One answer for each image and its prompt, from `choices` if the task is closed."""

    def protocol(
        self, predictor: Predictor, prompts: Sequence[str], choices: Sequence[str] = ()
    ) -> dict[str, Any]:
        """What pins the answers to these prompts, JSON-able."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best-scored candidate; of equals, the first.

    Attributes:
      candidates: the answers, or a file of them (`files.read_list`); none: the task's own choices.
      scorer: a `TextScorer`; for a dual encoder `Similarity`, which arXiv:2107.06383 found near
        chance on VQA.
    """

    candidates: tuple[str, ...] | str = ()
    scorer: Any = Likelihood()

    @functools.cached_property
    def answers(self) -> tuple[str, ...]:
        """The candidates, read.

        Raises:
          UserError: no such file, or a candidate comes up twice.
        """
        answers = tuple(files.read_list(self.candidates))
        if len(set(answers)) < len(answers):
            twice = next(a for a in answers if answers.count(a) > 1)
            raise UserError(f"the candidate answer {twice!r} comes up twice")
        return answers

    def __call__(
        self,
        predictor: Predictor,
        images: UInt8[np.ndarray, "n size size 3"],
        prompts: Sequence[str],
        choices: Sequence[str] = (),
    ) -> list[str]:
        answers = self._candidates(choices)
        texts = [answers] * len(prompts)
        refuse_equal(predictor.contract, joined(prompts, texts))
        scores = self.scorer(predictor, images, texts, prompts)
        return [answers[i] for i in scores.argmax(axis=1)]

    def protocol(
        self, predictor: Predictor, prompts: Sequence[str], choices: Sequence[str] = ()
    ) -> dict[str, Any]:
        """How answers are chosen, from how many, and whether the model sees the longest whole."""
        made = {"answers": f"ranked by {self.scorer.protocol()}"}
        if self.answers:
            made["candidates"] = len(self.answers)
        longest = max(self._candidates(choices), key=len)
        return made | cut_texts(predictor.contract, (prompt + longest for prompt in prompts))

    def _candidates(self, choices: Sequence[str]) -> tuple[str, ...]:
        answers = self.answers or tuple(choices)
        if not answers:
            raise UserError("ranking needs candidates: set the answerer's candidates=(...)")
        return answers


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the caption decoder says behind the prompt.

    Attributes:
      decoding: None takes the contract's.
      seed: of the samples, if the decoding samples.
    """

    decoding: Decoding | None = None
    seed: int = 0

    def __call__(
        self,
        predictor: Predictor,
        images: UInt8[np.ndarray, "n size size 3"],
        prompts: Sequence[str],
        choices: Sequence[str] = (),
    ) -> list[str]:
        how = self.decoding or predictor.contract.decoding
        tokens, _ = predictor.generate(images, how, prefix=list(prompts), seed=self.seed)
        prefixes, _ = predictor.contract.text(list(prompts))
        tokenizer = predictor.contract.tokenizer
        begin = [tokenizer.bos_id] * (tokenizer.bos_id >= 0)
        given = token_rows.ends(prefixes, tokenizer)
        rows = [[*begin, *row[start:].tolist()] for row, start in zip(tokens, given, strict=True)]
        return [text.strip() for text in predictor.contract.detokenize(rows)]

    def protocol(
        self, predictor: Predictor, prompts: Sequence[str], choices: Sequence[str] = ()
    ) -> dict[str, Any]:
        """How answers are written."""
        how = self.decoding or predictor.contract.decoding
        return {"answers": "generated", "decoding": dataclasses.asdict(how)}
