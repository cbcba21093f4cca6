"""Answering questions about images, scored as VQA and its relatives do."""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, get_args

import numpy as np

from big_mm.data.records import Source
from big_mm.evaluators import base, files
from big_mm.evaluators.answering import Ranking
from big_mm.evaluators.base import About
from big_mm.metrics import vqa
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError, choose

_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about an image.

    Attributes:
      id: as submissions name it.
      people: the answers of people, ten in VQA; none where they are withheld.
      kind: the answer's type, such as "yes/no".
    """

    id: Any
    text: str
    people: tuple[str, ...] = ()
    kind: str = ""


class Questions(Protocol):
    """Which questions belong to a record."""

    def of(self, record: Mapping[str, Any]) -> Sequence[Question]:
        """The questions about a record's image; none to pass it over."""

    def check(self, asked: Sequence[Question]) -> None:
        """Raises UserError if a question has not been asked."""


@dataclasses.dataclass(frozen=True)
class RecordQuestions:
    """A question a record; the schema names the features in `extra`.

    Attributes:
      question, answers, id, kind: features. A record may lack all but the question; without an id,
        the record's key is the id.
    """

    question: str = "question"
    answers: str = "answers"
    id: str = "question_id"
    kind: str = "answer_type"

    def of(self, record: Mapping[str, Any]) -> Sequence[Question]:
        if self.question not in record:
            raise UserError(
                f"the records have no {self.question!r}: give the schema "
                f'extra=("{self.question}", ...)'
            )
        found = {name: base.texts(record.get(name)) for name in (self.question, self.answers)}
        number, kind = base.texts(record.get(self.id)), base.texts(record.get(self.kind))
        if not found[self.question]:
            raise UserError(f"record {record['key']!r} has nothing in {self.question!r}")
        name = number[0] if number else record["key"]
        return [
            Question(
                int(name) if name.isdigit() else name,
                found[self.question][0],
                tuple(found[self.answers]),
                kind[0] if kind else "",
            )
        ]

    def check(self, asked: Sequence[Question]) -> None:
        """Every record has been asked."""


class _FileQuestions:
    """Base: the questions of a file, found by the key of the image that they are about."""

    def of(self, record: Mapping[str, Any]) -> Sequence[Question]:
        return self._by_image.get(record["key"], ())

    def check(self, asked: Sequence[Question]) -> None:
        """Raises UserError if the records lack an image that a question is about."""
        ids = {question.id for question in asked}
        for key, questions in self._by_image.items():
            if missing := [question.id for question in questions if question.id not in ids]:
                raise UserError(
                    f"{self.questions}: question {missing[0]} is about the image {key!r}, which is "
                    "not among the sound records (is key= as the records write it?)"
                )


@dataclasses.dataclass(frozen=True)
class VqaFiles(_FileQuestions):
    """VQA's own files: `v2_OpenEnded_mscoco_val2014_questions.json` and the like.

    Attributes:
      questions, annotations: the files; a test split has no annotations.
      key: how an image_id is written in the records' keys: "COCO_val2014_{:012d}".
    """

    questions: str
    annotations: str | None = None
    key: str = "{}"

    @functools.cached_property
    def _by_image(self) -> dict[str, list[Question]]:
        content = files.read_json(self.questions)
        listed = content.get("questions") if isinstance(content, dict) else content
        rows = files.entries(self.questions, listed, ("question_id", "image_id", "question"))
        files.unique(self.questions, "question", (row["question_id"] for row in rows))
        people = self._people({row["question_id"] for row in rows})
        made: dict[str, list[Question]] = collections.defaultdict(list)
        for row in rows:
            answers, kind = people.get(row["question_id"], ((), ""))
            question = Question(row["question_id"], row["question"], answers, kind)
            made[self.key.format(row["image_id"])].append(question)
        return made

    def _people(self, asked: set[Any]) -> dict[Any, tuple[tuple[str, ...], str]]:
        """People's answers and their type, by question."""
        if self.annotations is None:
            return {}
        content = files.read_json(self.annotations)
        listed = content.get("annotations") if isinstance(content, dict) else content
        rows = files.entries(self.annotations, listed, ("question_id", "answers"))
        files.unique(self.annotations, "question", (row["question_id"] for row in rows))
        made = {
            row["question_id"]: (
                tuple(answer["answer"] for answer in row["answers"]),
                row.get("answer_type", ""),
            )
            for row in rows
        }
        if unknown := [name for name in made if name not in asked]:
            raise UserError(f"{self.annotations}: {self.questions} has no question {unknown[0]!r}")
        if missing := asked - set(made):
            raise UserError(f"{self.annotations} has no answers to question {min(missing)!r}")
        return made


@dataclasses.dataclass(frozen=True)
class DataFile(_FileQuestions):
    """The file of TextVQA (`TextVQA_0.5.1_val.json`), ST-VQA or DocVQA: {"data": [{"question": ...,
    "answers": [...], ...}]}; a test split has no answers.

    Attributes:
      questions: the file.
      id, image: the fields with the question's and the image's name: "questionId" and "image" in
        DocVQA's, "file_path" is ST-VQA's image.
      key: how the image's name is written in the records' keys.
    """

    questions: str
    id: str = "question_id"
    image: str = "image_id"
    key: str = "{}"

    @functools.cached_property
    def _by_image(self) -> dict[str, list[Question]]:
        content = files.read_json(self.questions)
        listed = content.get("data") if isinstance(content, dict) else content
        rows = files.entries(self.questions, listed, (self.id, self.image, "question"))
        files.unique(self.questions, "question", (row[self.id] for row in rows))
        made: dict[str, list[Question]] = collections.defaultdict(list)
        for row in rows:
            question = Question(row[self.id], row["question"], tuple(row.get("answers", ())))
            made[self.key.format(row[self.image])].append(question)
        return made


@dataclasses.dataclass(frozen=True)
class VQA(base.Evaluator):
    """VQA's soft accuracy: an answer is right as far as people gave it (`metrics.vqa`).

    Answers are compared as text by the benchmark's own rule: TextVQA's, ST-VQA's, DocVQA's ANLS and
    ChartQA's are other ones than VQA's, and the text in the image is only what the model sees of
    it. Ranking, generation and a trained
    classifier over frequent answers are three different settings that do not compare. Chance is the
    accuracy of the single answer that people gave most often.

    Attributes:
      source: records with an image.
      questions: `RecordQuestions`, or of the benchmark's own files `VqaFiles` or `DataFile`.
      answerer: `answering.Ranking` over candidates, or `answering.Generation`.
      prompt: what stands before the answer; {} is the question.
      rule: of `metrics.vqa.accuracy`: "vqa", "aokvqa", "textvqa", "stvqa", "anls" or "chartqa".
      submission: where to write [{"question_id": ..., "answer": ...}], as the servers take it.
      batch_size: images prepared at a time.
      limit: only the first records.
    """

    source: Source
    questions: Any = RecordQuestions()
    answerer: Any = Ranking()
    prompt: str = "question: {} answer: "
    rule: str = "vqa"
    submission: str | None = dataclasses.field(default=None, metadata={files.WRITTEN: True})
    batch_size: int = 64
    limit: int | None = None

    place: ClassVar[int] = 50
    about: ClassVar[dict[str, About]] = {
        "accuracy": About(
            "VQA accuracy", "answers, as far as people agree with them", headline=True
        ),
        "accuracy_yes_no": About("VQA yes or no", "of the questions with such an answer"),
        "accuracy_number": About("VQA numbers", "of the questions with such an answer"),
        "accuracy_other": About("VQA other", "of the other questions"),
        "questions": About("Questions", "that were asked", unit="score"),
    }

    def __post_init__(self) -> None:
        choose("rule", self.rule, get_args(vqa.Rule))
        if self.prompt.count("{}") != 1:
            raise UserError(f"the prompt {self.prompt!r} must hold {{}} exactly once")
        if self.submission is not None and self.limit is not None:
            raise UserError("a submission holds all questions: set submission or limit, not both")

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: accuracy and that of each answer type with chance levels, questions, images.

        Raises:
          UserError: a question without image or without answers, or a model that cannot answer so.
        """
        asked: list[Question] = []
        answers: list[str] = []
        image: list[int] = []
        keys: list[str] = []
        shown: list[dict[str, Any]] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            found = [self._questions(record) for record in base.rows(batch)]
            rows = [i for i, questions in enumerate(found) for _ in questions]
            if not rows:
                continue
            here = [question for questions in found for question in questions]
            said = self.answerer(predictor, batch["image"][rows], self._prompts(here))
            for i in range(min(len(here), _SHOWN - len(shown))):
                shown.append(_shown(batch["image"][rows[i]], here[i], said[i], self.rule))
            asked_of = {row: len(keys) + n for n, row in enumerate(dict.fromkeys(rows))}
            image += [asked_of[row] for row in rows]
            keys += [str(batch["key"][row]) for row in asked_of]
            asked += here
            answers += said
        if not asked:
            raise UserError("no record has a question")
        if self.limit is None:
            self.questions.check(asked)
        if self.submission is not None:
            files.write_json(self.submission, submission(asked, answers))
        metrics = self._scores(asked, answers, np.array(image), len(keys))
        metrics |= {"questions": float(len(asked)), "images": float(len(keys))}
        protocol = {"prompt": self.prompt, "rule": self.rule}
        protocol |= self.answerer.protocol(predictor, self._prompts(asked))
        return base.Result(
            metrics, {"answers": {"kind": "queries", "queries": shown}}, keys, protocol
        )

    def _prompts(self, asked: Sequence[Question]) -> list[str]:
        return [self.prompt.replace("{}", question.text) for question in asked]

    def _questions(self, record: Mapping[str, Any]) -> Sequence[Question]:
        found = self.questions.of(record)
        if self.submission is None:
            if silent := [question.id for question in found if not question.people]:
                raise UserError(
                    f"question {silent[0]!r} has no people's answers: set submission=FILE to have "
                    "a server judge"
                )
        return found

    def _scores(
        self, asked: list[Question], answers: list[str], image: np.ndarray, images: int
    ) -> dict[str, float | Statistic]:
        """By answer type and in all; nothing where people's answers are withheld."""
        if not all(question.people for question in asked):
            return {}
        people = collections.Counter(answer for question in asked for answer in question.people)
        commonest = people.most_common(1)[0][0]
        right, chance = (
            np.array(
                [vqa.accuracy(a, q.people, self.rule) for a, q in zip(said, asked, strict=True)]
            )
            for said in (answers, [commonest] * len(asked))
        )
        made: dict[str, float | Statistic] = {}
        for kind in ("", *sorted({question.kind for question in asked} - {""})):
            of = np.array([kind in ("", question.kind) for question in asked])
            name = "accuracy" + (f"_{re.sub(r'[^0-9a-z]+', '_', kind.lower())}" if kind else "")
            made[name] = Mean.grouped(right[of], image[of], images)
            made[f"{name}_chance"] = float(chance[of].mean())
        return made


def submission(asked: Sequence[Question], answers: Sequence[str]) -> list[dict[str, Any]]:
    """What the servers take.

    Raises:
      UserError: a question was asked twice.
    """
    files.unique("the submission", "question", (question.id for question in asked))
    return [
        {"question_id": question.id, "answer": answer}
        for question, answer in zip(asked, answers, strict=True)
    ]


def _shown(image: np.ndarray, question: Question, answer: str, rule: vqa.Rule) -> dict[str, Any]:
    people = collections.Counter(question.people).most_common(3)
    right = bool(people) and vqa.accuracy(answer, question.people, rule) > 0
    return {
        "image": base.picture(image),
        "text": question.text,
        "results": [{"text": answer, "right": right}],
        "truth": [f"{said} ({count})" for said, count in people],
    }
