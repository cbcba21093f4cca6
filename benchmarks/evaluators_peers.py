"""The peers' part of `evaluators.py`: their own functions on our embeddings and captions.

Runs in an interpreter that has clip_benchmark, open_clip and pycocoevalcap (and Java); never needs
ours. A "model" looks embeddings up, a "tokenizer" gives the number of a text. The last line of
standard output is {program: {metric: value}}.
"""

import contextlib
import json
import pathlib
import sys
import types

import numpy as np
import torch
from train_step_open_clip import tolerate_missing_operators


class Lookup:
    """A model whose image inputs are embeddings and whose tokens are numbers of texts."""

    def __init__(self, texts: list[str], embeddings: np.ndarray):
        self.numbers = {text: number for number, text in enumerate(texts)}
        self.embeddings = torch.tensor(embeddings)

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([self.numbers[text] for text in texts])

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def encode_text(self, tokens: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        found = self.embeddings[tokens]
        return torch.nn.functional.normalize(found, dim=-1) if normalize else found

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"image_features": image}


class Loader(list):
    """Batches with the data set's classes, as CLIP_benchmark asks for."""

    def __init__(self, batches: list, classes: list[str]):
        super().__init__(batches)
        self.dataset = types.SimpleNamespace(classes=classes)


def batches(*columns, size: int = 64) -> list:
    count = len(columns[0])
    return [tuple(c[i : i + size] for c in columns) for i in range(0, count, size)]


def zero_shot(folder: pathlib.Path) -> dict[str, dict[str, float]]:
    from clip_benchmark.metrics import zeroshot_classification
    from open_clip import build_zero_shot_classifier
    from open_clip_train import zero_shot as open_clip_zero_shot

    arrays, said = (
        np.load(folder / "zero_shot.npz"),
        json.loads((folder / "zero_shot.json").read_text()),
    )
    images, labels = torch.tensor(arrays["images"]), torch.tensor(arrays["labels"])
    model = Lookup(said["texts"], arrays["texts"])
    loader = Loader(batches(images, labels), said["classnames"])
    by_class = dict(zip(said["classnames"], said["prompts"], strict=True))
    found = zeroshot_classification.evaluate(
        model, loader, model.tokenize, said["classnames"], by_class, "cpu", amp=False
    )
    places = range(len(said["prompts"][0]))
    functions = [(lambda name, place=place: by_class[name][place]) for place in places]
    classifier = build_zero_shot_classifier(
        model, model.tokenize, said["classnames"], functions, num_classes_per_batch=7, device="cpu"
    )
    options = types.SimpleNamespace(device="cpu", precision="fp32", batch_size=64)
    top1, top5 = open_clip_zero_shot.run(model, classifier, loader, options)
    return {
        "CLIP_benchmark": {
            "zero-shot accuracy": found["acc1"],
            "zero-shot top5": found["acc5"],
            "zero-shot mean_per_class": found["mean_per_class_recall"],
        },
        "open_clip": {"zero-shot accuracy": top1, "zero-shot top5": top5},
    }


def retrieval(folder: pathlib.Path) -> dict[str, dict[str, float]]:
    from clip_benchmark.metrics import zeroshot_retrieval
    from open_clip_train.train import get_clip_metrics

    arrays, said = (
        np.load(folder / "retrieval.npz"),
        json.loads((folder / "retrieval.json").read_text()),
    )
    images = torch.tensor(arrays["images"])
    model = Lookup(said["texts"], arrays["texts"])
    loader = batches(images, said["captions"])
    found = zeroshot_retrieval.evaluate(
        model, loader, model.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    names = {"image": "text_to_image", "text": "image_to_text"}
    recalls = {
        f"retrieval {names[key.split('_')[0]]}_r@{key.split('@')[1]}": value
        for key, value in found.items()
    }
    first = model.encode_text(model.tokenize([row[0] for row in said["captions"]]))
    alone = get_clip_metrics(images, first, 1.0)
    medians = {
        f"retrieval {name}_median_rank (one caption)": float(alone[f"{name}_median_rank"])
        for name in ("image_to_text", "text_to_image")
    }
    return {"CLIP_benchmark": recalls, "open_clip": medians}


def captioning(folder: pathlib.Path) -> dict[str, dict[str, float]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = json.loads((folder / "captions.json").read_text())
    tokenizer = PTBTokenizer()
    rows = enumerate(said["references"])
    truth = tokenizer.tokenize({i: [{"caption": c} for c in row] for i, row in rows})
    ours = tokenizer.tokenize({i: [{"caption": c}] for i, c in enumerate(said["predictions"])})
    bleus = Bleu(4).compute_score(truth, ours, verbose=0)[0]
    scores = {f"captioning bleu_{n}": float(b) for n, b in enumerate(bleus, start=1)}
    scores["captioning rouge_l"] = float(Rouge().compute_score(truth, ours)[0])
    scores["captioning cider"] = float(Cider().compute_score(truth, ours)[0])
    return {"pycocoevalcap": scores}


def main() -> None:
    folder, found = pathlib.Path(sys.argv[1]), {}
    with contextlib.redirect_stdout(sys.stderr):
        tolerate_missing_operators()
        for part in (zero_shot, retrieval, captioning):
            for program, values in part(folder).items():
                found.setdefault(program, {}).update(values)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
