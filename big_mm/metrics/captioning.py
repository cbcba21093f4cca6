"""The COCO caption scores from plain text, and the command that scores files of captions.

    python -m big_mm.metrics.captioning --references references.json --predictions predictions.json

references: {"image": ["a caption", ...], ...}, or COCO's annotations ({"images": [{"id": ...}],
"annotations": [{"image_id": ..., "caption": ...}]}). predictions: {"image": "a caption", ...}, or
COCO's results ([{"image_id": ..., "caption": ...}]). Prints one JSON object: bleu_1 to bleu_4,
rouge_l and cider, which are those of pycocoevalcap 1.2 (see `ptb` for its tokenizer), and images.

Every image with references must have a prediction: what is left out would raise the scores of what
is left in, and the document frequency, which comes from the references that are scored, would
change. The official program stops there too; its example scores only the images that have
predictions, which is what --subset does.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from big_mm.metrics import bleu, cider, ptb, rouge
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.spec import UserError

Scores = dict[str, float]


def statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Statistic]:
    """BLEU-1..4, ROUGE-L and CIDEr(-D) as pycocoevalcap 1.2 gives them for the same captions.

    One prediction and at least one reference an image, over the complete evaluation set: the scores
    of parts do not average to the score of the whole. BLEU and ROUGE-L lie in 0..1, CIDEr in 0..10.
    The order of the images matters only as far as `ptb.tokenize_all` says.
    Drawn again, CIDEr keeps the document frequencies of the complete set.

    Raises:
      ValueError: nothing to score, lengths differ, or an image has no reference.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"caption scores need one prediction an image: got {len(predictions)} predictions and "
            f"references of {len(references)} images"
        )
    if missing := [i for i, captions in enumerate(references) if not captions]:
        raise ValueError(
            f"no reference caption for image {missing[0]} ({len(missing)} such images)"
        )
    tokenised = ptb.tokenize_all(predictions)
    flat = iter(ptb.tokenize_all([caption for captions in references for caption in captions]))
    truths = [[next(flat) for _ in captions] for captions in references]
    scores: dict[str, Statistic] = {
        f"bleu_{n}": score for n, score in enumerate(bleu.bleu(tokenised, truths), start=1)
    }
    scores["rouge_l"] = Mean.of(rouge.rouge_l(tokenised, truths))
    scores["cider"] = Mean.of(cider.cider_d(tokenised, truths))
    return scores


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """`statistics` as numbers."""
    return {name: found.value() for name, found in statistics(predictions, references).items()}


def per_image(found: Mapping[str, Statistic]) -> list[Scores]:
    """What each image would score alone, with the document frequencies of the complete set."""
    images = len(next(iter(found.values())))
    rows = np.arange(images)[:, None]
    return [{name: score.take(row).value() for name, score in found.items()} for row in rows]


def read_references(path: epath.PathLike) -> dict[str, list[str]]:
    """{image: captions} of a file of references, in its order.

    Raises:
      UserError: no such file, another form, or an image without a caption.
    """
    content = _read(path)
    if isinstance(content, Mapping) and "annotations" in content:
        found: dict[str, list[str]] = {_id(i, "id", path): [] for i in content.get("images", ())}
        for entry in content["annotations"]:
            found.setdefault(_id(entry, "image_id", path), []).append(_caption(entry, path))
    elif isinstance(content, Mapping):
        found = {image: _captions(image, value, path) for image, value in content.items()}
    else:
        raise UserError(f'{path}: references are {{"image": [captions]}} or COCO\'s annotations')
    if empty := [image for image, captions in found.items() if not captions]:
        raise UserError(f"{path}: no reference caption for image {_some(empty)}")
    return found


def read_predictions(path: epath.PathLike) -> dict[str, str]:
    """{image: caption} of a file of predictions.

    Raises:
      UserError: no such file, another form, or an image that is there twice.
    """
    content = _read(path)
    if isinstance(content, Mapping):
        for image, value in content.items():
            if not isinstance(value, str):
                raise UserError(
                    f"{path}: image {image} has no caption but {json.dumps(value)[:80]}"
                )
        return dict(content)
    if not isinstance(content, list):
        raise UserError(f'{path}: predictions are {{"image": "caption"}} or COCO\'s results')
    found: dict[str, str] = {}
    for entry in content:
        image = _id(entry, "image_id", path)
        if image in found:
            raise UserError(f"{path}: image {image} has more than one prediction")
        found[image] = _caption(entry, path)
    return found


def paired(
    references: Mapping[str, Sequence[str]], predictions: Mapping[str, str], subset: bool = False
) -> list[str]:
    """The images to score, in the order of the references.

    Args:
      subset: leave out the images without a prediction.

    Raises:
      UserError: a prediction for an unknown image, an image without a prediction, or no images.
    """
    if unknown := [image for image in predictions if image not in references]:
        raise UserError(f"there are no references for the predicted image {_some(unknown)}")
    if missing := [image for image in references if image not in predictions]:
        if not subset:
            raise UserError(
                f"no prediction for image {_some(missing)}; --subset scores the others alone, "
                "which is another metric"
            )
    images = [image for image in references if image in predictions]
    if not images:
        raise UserError("there is no image to score")
    return images


def _some(images: Sequence[str]) -> str:
    more = f" (and {len(images) - 1} more)" if len(images) > 1 else ""
    return f"{images[0]}{more}"


def _read(path: epath.PathLike) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{path}: {twice!r} is there twice")
        return found

    try:
        return json.loads(epath.Path(path).read_bytes(), object_pairs_hook=unique)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def _id(entry: Any, key: str, path: epath.PathLike) -> str:
    if not isinstance(entry, Mapping) or key not in entry:
        raise UserError(f"{path}: an entry has no {key!r}: {json.dumps(entry)[:80]}")
    return str(entry[key])


def _caption(entry: Mapping[str, Any], path: epath.PathLike) -> str:
    if not isinstance(entry.get("caption"), str):
        raise UserError(f"{path}: an entry has no 'caption': {json.dumps(entry)[:80]}")
    return entry["caption"]


def _captions(image: str, value: Any, path: epath.PathLike) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(caption, str) for caption in value):
        raise UserError(f"{path}: image {image} has no list of captions: {json.dumps(value)[:80]}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.metrics.captioning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--references", required=True, metavar="FILE", help="JSON, see above")
    parser.add_argument("--predictions", required=True, metavar="FILE", help="JSON, see above")
    parser.add_argument(
        "--subset", action="store_true", help="score only the images that have predictions"
    )
    parser.add_argument("--per_image", metavar="FILE", help="write {image: scores} here as JSON")
    parser.add_argument("--out", metavar="FILE", help="write what is printed here as well")
    arguments = parser.parse_args(argv)
    try:
        references = read_references(arguments.references)
        predictions = read_predictions(arguments.predictions)
        images = paired(references, predictions, arguments.subset)
        found = statistics([predictions[i] for i in images], [references[i] for i in images])
        text = json.dumps(
            {name: score.value() for name, score in found.items()} | {"images": len(images)},
            indent=1,
        )
        if arguments.out:
            epath.Path(arguments.out).write_text(text + "\n")
        if arguments.per_image:
            rows = dict(zip(images, per_image(found), strict=True))
            epath.Path(arguments.per_image).write_text(json.dumps(rows, indent=1) + "\n")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
