"""Classification by class names alone."""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from big_mm import search
from big_mm.data.records import Source
from big_mm.evaluators import base, features, files
from big_mm.evaluators.base import About
from big_mm.evaluators.prompts import Differential, Templates
from big_mm.metrics import recall
from big_mm.metrics.recall import SameId
from big_mm.metrics.statistics import ClassMean, Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.similarity import Cosine, Similarity
from big_mm.spec import UserError
from big_mm.types import Outputs

_SHOWN_CONFUSIONS = 8
_SHOWN_MISTAKES = 6


@dataclasses.dataclass(frozen=True)
class ZeroShot(base.Evaluator):
    """The class whose name is nearest to the image (arXiv:2103.00020, section 3.1).

    A class is the mean of the unit embeddings of its texts, brought back to unit length (unless the
    prompts say otherwise). Equal similarities count against the model: open_clip and CLIP_benchmark
    take the first class then, and agree wherever no two classes tie. Chance is one over the number
    of classes. Mean per class is what Caltech-101, Flowers, Pets and Aircraft are reported in.

    Attributes:
      source: records with a class number.
      classnames: in the order of the class numbers, or a file of them (`files.read_list`), one
        for each language; None: the records' own `class_name`, so the schema needs
        extra=("class_name",), and the choice is among the classes that occur.
      prompts: the texts of each class, a component of `prompts`.
      similarity: of images and texts; by one that is no cosine, a class's score is the mean over
        its texts (FILIP's rule, arXiv:2111.07783), and there is no second look.
      second_look: a `Differential`, if classes that are nearly alike are to be told apart.
      ks: "top<k>" beside accuracy, for each k below the number of classes.
      label: the record's key with the class number.
      batch_size: images prepared at a time.
      limit: only the first records.
    """

    source: Source
    classnames: tuple[str, ...] | str | None = None
    prompts: Any = Templates()
    similarity: Similarity = Cosine()
    second_look: Differential | None = None
    ks: tuple[int, ...] = (5,)
    label: str = "label"
    batch_size: int = 256
    limit: int | None = None

    place: ClassVar[int] = 10
    about: ClassVar[dict[str, About]] = {
        "accuracy": About(
            "Zero-shot accuracy",
            "images whose own class name is the nearest of all class names",
            headline=True,
        ),
        "top5": About(
            "Zero-shot top 5", "images whose own class name is among the five nearest class names"
        ),
        "mean_per_class": About(
            "Zero-shot mean per class", "accuracy of each class that occurs, averaged over classes"
        ),
    }

    def __post_init__(self) -> None:
        if not hasattr(self.prompts, "texts"):
            raise UserError(
                f"prompts={self.prompts!r} must be a component such as "
                "big_mm.evaluators.prompts.Templates"
            )
        if not isinstance(self.similarity, Cosine) and self.second_look:
            raise UserError(f"second_look needs the cosine of embeddings, not {self.similarity!r}")

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: accuracy, mean_per_class, top<k>, their chance levels, examples.

        Raises:
          UserError: no label, a label without a name, one name twice, or a model without
            embeddings, or with one that is not finite.
        """
        images, labels, named, index, keys = self._embed_images(predictor)
        classnames, labels = self._classes(labels, named)
        count = len(classnames)
        texts = self.prompts.texts(classnames)
        ks = [k for k in sorted(self.ks) if k < count]
        depth = max([1, *ks, self.second_look.k if self.second_look else 1])
        relevance = SameId(labels, np.arange(count))
        if isinstance(self.similarity, Cosine):
            (output,) = self.similarity.text
            classes = class_embeddings(predictor, texts, self.prompts.renormalize, output)
            ranking = recall.rank(images, classes, relevance, k=depth)
            if self.second_look is not None:
                pair = self.second_look, classnames
                ranking = look_again(predictor, *pair, classes, images, labels, ranking, output)
        else:
            classes = class_outputs(predictor, texts, self.similarity.text)
            score = functools.partial(_class_scores, self.similarity)
            ranking, _ = search.rank_by(score, images, classes, relevance, depth, predictor.mesh)
        first = ranking.right[:, 0]
        metrics: dict[str, float | Statistic] = {
            "accuracy": Mean.of(first),
            "mean_per_class": ClassMean(first.astype(np.float64), labels),
        }
        metrics |= {f"top{k}": Mean.of(ranking.right[:, :k].any(axis=1)) for k in ks}
        metrics |= {"accuracy_chance": 1 / count, "mean_per_class_chance": 1 / count}
        metrics |= {f"top{k}_chance": k / count for k in ks}
        metrics["examples"] = float(len(labels))
        table = confusion_table(classnames, labels, ranking.indices[:, 0])
        table["mistakes"] = [
            {
                "image": base.picture_of(self.source, predictor.contract, index[i]),
                "true": classnames[labels[i]],
                "predicted": classnames[ranking.indices[i, 0]],
            }
            for i in np.flatnonzero(~first)[:_SHOWN_MISTAKES]
        ]
        protocol = {"classes": count} | self.prompts.protocol()
        if self.similarity != Cosine():
            protocol["similarity"] = repr(self.similarity)
        if self.second_look is not None:
            protocol |= self.second_look.protocol()
        return base.Result(metrics, {"classes": table}, keys, protocol)

    def _embed_images(
        self, predictor: Predictor
    ) -> tuple[Any, Int[np.ndarray, " n"], list[str | None], list[int], list[str]]:
        """Embeddings (for another similarity than the cosine what it reads, by name), labels, class
        names, numbers and keys of the sound records.
        """
        wanted = self.similarity.image
        seen, labels = [], []
        named: list[str | None] = []
        index: list[int] = []
        keys: list[str] = []
        for batch in features.embedded(predictor, self.source, self.batch_size, self.limit, wanted):
            if self.label not in batch:
                raise UserError(f"the records have no {self.label!r}: set the schema's label")
            seen.append({name: batch[name] for name in wanted})
            labels.append(_numbers(batch[self.label], batch["key"]))
            names = batch.get("class_name", [None] * len(labels[-1]))
            named += [None if name is None else base.first_text(name) for name in names]
            index += batch["index"].tolist()
            keys += list(map(str, batch["key"]))
        images: Any = {name: np.concatenate([part[name] for part in seen]) for name in wanted}
        if isinstance(self.similarity, Cosine):
            (images,) = images.values()
        return images, np.concatenate(labels), named, index, keys

    def _classes(
        self, labels: Int[np.ndarray, " n"], named: list[str | None]
    ) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
        """The class names, and the labels as positions in them."""
        if self.classnames is not None:
            classnames = tuple(files.read_list(self.classnames))
            if labels.max() >= len(classnames):
                raise UserError(
                    f"label {labels.max()} has no name among the {len(classnames)} classnames"
                )
            _check_names(classnames)
            return classnames, labels
        if None in named:
            raise UserError(
                "classnames is not set and the records have no class_name: give classnames=(...), "
                'or a schema with extra=("class_name",)'
            )
        occurring, positions = np.unique(labels, return_inverse=True)
        first = {label: name for label, name in zip(labels[::-1], named[::-1], strict=True)}
        classnames = tuple(first[label] for label in occurring)
        _check_names(classnames)
        return classnames, positions


def class_embeddings(
    predictor: Predictor,
    texts: Sequence[Sequence[str]],
    renormalize: bool = True,
    output: str = "text_embedding",
) -> Float[np.ndarray, "classes width"]:
    """The mean of the unit embeddings of each class's texts, of unit length if `renormalize`."""
    counts = [len(row) for row in texts]
    flat = [text for row in texts for text in row]
    return _means(_embed(predictor, flat, output), counts, renormalize)


def class_outputs(
    predictor: Predictor, texts: Sequence[Sequence[str]], names: Sequence[str]
) -> Outputs:
    """Outputs of each class's texts, [classes, texts, ...], and `weight` [classes, texts], a text's
    share; a class with fewer texts than others has its first one again, which weighs nothing.
    """
    most = max(map(len, texts))
    flat = [text for row in texts for text in [*row, *[row[0]] * (most - len(row))]]
    outputs = predictor.text_outputs(flat, names)
    counts = np.array([len(row) for row in texts])[:, None]
    weight = (np.arange(most) < counts) / counts
    shaped = {k: v.reshape(len(texts), most, *v.shape[1:]) for k, v in outputs.items()}
    return shaped | {"weight": weight.astype(np.float32)}


def _class_scores(similarity: Similarity, images: Outputs, classes: Outputs) -> Array:
    texts = {name: classes[name] for name in similarity.text}
    scores_TxIxC = jax.vmap(lambda one: similarity(images, one)[0], in_axes=1)(texts)
    return jnp.einsum("tic,ct->ic", scores_TxIxC, classes["weight"])


def look_again(
    predictor: Predictor,
    differential: Differential,
    classnames: Sequence[str],
    classes: Float[np.ndarray, "classes width"],
    images: Float[np.ndarray, "n width"],
    labels: Int[np.ndarray, " n"],
    ranking: recall.Ranking,
    output: str = "text_embedding",
) -> recall.Ranking:
    """The first `differential.k` classes of each image in the order of a second score; ties are
    resolved against the model again.
    """
    k = min(differential.k, ranking.indices.shape[1])
    candidates = ranking.indices[:, :k]
    sets, which = np.unique(np.sort(candidates, axis=1), axis=0, return_inverse=True)
    wanted = {(a, b) for row in sets.tolist() for a in row for b in row if a != b}
    texts = {p: differential.texts(classnames[p[0]], classnames[p[1]]) for p in sorted(wanted)}
    flat = sorted({text for found in texts.values() for text in found})
    vectors = dict(zip(flat, _embed(predictor, flat, output), strict=True)) if flat else {}
    indices, right = ranking.indices.copy(), ranking.right.copy()
    for number, members in enumerate(sets.tolist()):
        rows = np.flatnonzero(np.ravel(which) == number)
        embedded = [classes[c] for c in members]
        for place, c in enumerate(members):
            own = [vectors[t] for other in members if other != c for t in texts[c, other]]
            if own:
                mean = np.mean(own, axis=0)
                embedded[place] = mean / np.linalg.norm(mean)
        scores = (images[rows].astype(np.float64) @ np.stack(embedded).T).astype(np.float32)
        own_class = labels[rows, None] == np.array(members)
        order = np.lexsort((own_class, -scores), axis=1)
        indices[rows, :k] = np.array(members)[order]
        right[rows, :k] = np.take_along_axis(own_class, order, axis=1)
    return recall.Ranking(indices, right, ranking.positives)


def _embed(
    predictor: Predictor, texts: Sequence[str], output: str
) -> Float[np.ndarray, "texts width"]:
    """Unit embeddings in float64, each different text computed once."""
    unique, places = np.unique(np.array(texts, dtype=object), return_inverse=True)
    vectors = predictor.text_outputs(unique.tolist(), (output,))[output].astype(np.float64)
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        raise UserError(
            f"the embedding of {unique[finite.argmin()]!r} is not finite: the model has diverged, "
            "or it learnt contexts of classes (`classes`) and this is the text of none"
        )
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors[np.ravel(places)]


def _means(
    vectors: Float[np.ndarray, "texts width"], counts: Sequence[int], renormalize: bool
) -> Float[np.ndarray, "classes width"]:
    ends = np.cumsum(counts)
    mean = np.stack(
        [vectors[end - n : end].mean(axis=0) for n, end in zip(counts, ends, strict=True)]
    )
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True) if renormalize else mean


def _check_names(classnames: Sequence[str]) -> None:
    """Refuses one name for two classes, which no model could tell apart."""
    first: dict[str, int] = {}
    for number, name in enumerate(classnames):
        if name in first:
            raise UserError(
                f"classes {first[name]} and {number} are both called {name!r}: give them "
                "different names"
            )
        first[name] = number


def confusion_table(
    classnames: tuple[str, ...],
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    """For the report: examples and hits of every class, and the most frequent confusions."""
    wrong = collections.Counter(
        (int(t), int(p)) for t, p in zip(labels, predicted, strict=True) if t != p
    )
    counts = np.bincount(labels, minlength=len(classnames))
    right = np.bincount(labels[labels == predicted], minlength=len(classnames))
    frequent = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_CONFUSIONS]
    return {
        "kind": "classes",
        "classnames": list(classnames),
        "examples": counts.tolist(),
        "right": right.tolist(),
        "confusions": [
            {
                "true": classnames[t],
                "predicted": classnames[p],
                "count": count,
                "of": int(counts[t]),
            }
            for (t, p), count in frequent
        ],
    }


def _numbers(labels: Any, keys: Any) -> Int[np.ndarray, " n"]:
    """Class numbers as an array; refuses records without one."""
    numbers = np.array([base.class_number(label) for label in labels], np.int64)
    if (numbers < 0).any():
        key = str(keys[int(np.argmax(numbers < 0))])
        raise UserError(f"record {key!r} has no label: does the source's schema name one?")
    return numbers
