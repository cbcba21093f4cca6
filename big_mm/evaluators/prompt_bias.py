"""What images show that their prompts did not ask for."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from big_mm.data.contract import Decoding
from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.evaluators.scoring import Similarity
from big_mm.metrics import bias
from big_mm.metrics.choice import chosen
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor


class Objects(Protocol):
    """The objects that a text names."""

    def __call__(self, text: str) -> Sequence[str]: ...


# Words that are no objects, in prompts and short captions.
_NO_OBJECTS = frozenset(
    """a an the this that these those there it its his her their our my your some any each other
    another both all many few several one two three four five six seven eight nine ten and or but
    with without of on in at by to from for into onto over under above below behind beside between
    near next front back top bottom left right up down out off around through inside outside along
    is are was be been being has have having do does not no as like very who which what while
    photo picture image painting drawing view scene background""".split()
)


@dataclasses.dataclass(frozen=True)
class ContentWords:
    """The words of a text but for function words, each once: the official program's way to take
    nouns without a tagger, so adjectives and verbs count too. Synonyms and plurals stay apart.
    """

    also_left_out: tuple[str, ...] = ()

    def __call__(self, text: str) -> Sequence[str]:
        words = dict.fromkeys(re.findall(r"[^\W_]+", text.lower()))
        return [w for w in words if w not in _NO_OBJECTS and w not in self.also_left_out]


@dataclasses.dataclass(frozen=True)
class PromptBias(base.Evaluator):
    """What images show that nobody asked for: distribution bias, Jaccard hallucination and miss
    rate of images and the prompts that made them (arXiv:2312.13053).

    Objects come from captions of the images, the model's own or a text feature; with a feature and
    its own captions as prompts it measures a caption data set. An image misses its prompt if the
    text " " fits it as well or better, as in the official program.

    Attributes:
      source: records with an image and a prompt.
      objects: an `Objects`; it also decides which words are one thing.
      prompt: text feature.
      captions: text feature of which the first counts, or None: the model's own.
      decoding: of its own captions; None takes the contract's.
      batch_size: images prepared at a time.
    """

    source: Source
    objects: Any = ContentWords()
    prompt: str = "prompt"
    captions: str | None = None
    decoding: Decoding | None = None
    batch_size: int = 256

    place: ClassVar[int] = 73
    about: ClassVar[dict[str, About]] = {
        "distribution_bias": About(
            "Distribution bias", "area under the frequencies of objects not asked for", "score"
        ),
        "hallucination": About(
            "Hallucination",
            "1 - Jaccard index of objects asked for and shown",
            lower_is_better=True,
        ),
        "miss_rate": About("Miss rate", "images that miss their prompt", lower_is_better=True),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: distribution_bias, hallucination, miss_rate, objects, examples.

        Raises:
          UserError: a record without prompt, or a model without embeddings or captions.
        """
        how = self.decoding or predictor.contract.decoding
        unasked: collections.Counter = collections.Counter()
        hallucinated: list[float] = []
        missed: list[bool] = []
        keys: list[str] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size):
            prompts = [texts[0] for texts in base.captions_of(batch, self.prompt)]
            if self.captions is None:
                tokens, _ = predictor.generate(batch["image"], how, seed=len(keys))
                said = predictor.contract.detokenize(tokens)
            else:
                said = [texts[0] for texts in base.captions_of(batch, self.captions)]
            for prompt, caption in zip(prompts, said, strict=True):
                asked, shown = set(self.objects(prompt)), set(self.objects(caption))
                unasked.update(shown - asked)
                hallucinated.append(bias.hallucination(asked, shown))
            pairs = [(prompt, " ") for prompt in prompts]
            scores = Similarity()(predictor, batch["image"], pairs, [""] * len(pairs))
            missed += (chosen(scores, np.zeros(len(pairs), int)) != 0).tolist()
            keys += list(map(str, batch["key"]))
        metrics: dict[str, float | Statistic] = {
            "distribution_bias": bias.distribution_bias(list(unasked.values()) or [0]),
            "hallucination": Mean.of(hallucinated),
            "miss_rate": Mean.of(missed),
            "objects": float(len(unasked)),
            "examples": float(len(keys)),
        }
        shown = {"kind": "objects", "unasked": dict(unasked.most_common(30))}
        protocol = {
            "captions": self.captions or "the model's own",
            "missed": 'against the text " "',
        }
        return base.Result(metrics, {"objects": shown}, keys, protocol)
