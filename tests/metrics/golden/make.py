"""Asks the official scorer again: rewrites the answers in this folder, inputs as they are.

    python -m venv official && official/bin/pip install pycocoevalcap==1.2    # and Java
    LC_ALL=C.UTF-8 official/bin/python tests/metrics/golden/make.py

Before its release 18, Java takes the characters of a file from the locale: it must be a UTF-8 one.
Imports nothing of big_mm.
"""

import json
import pathlib

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

HERE = pathlib.Path(__file__).parent


def tokenize(captions: dict[int, list[str]]) -> dict[int, list[str]]:
    return PTBTokenizer().tokenize({k: [{"caption": c} for c in v] for k, v in captions.items()})


def score(predictions: list[str], references: list[list[str]]) -> dict:
    truth = tokenize(dict(enumerate(references)))
    said = tokenize({i: [p] for i, p in enumerate(predictions)})
    bleu, bleus = Bleu(4).compute_score(truth, said, verbose=0)
    rouge, rouges = Rouge().compute_score(truth, said)
    cider, ciders = Cider().compute_score(truth, said)
    scores = {f"bleu_{n}": float(b) for n, b in enumerate(bleu, start=1)}
    scores |= {"rouge_l": float(rouge), "cider": float(cider)}
    each = {f"bleu_{n}": list(b) for n, b in enumerate(bleus, start=1)}
    return {"scores": scores, "rouge_l": rouges.tolist(), "cider": ciders.tolist()} | each


def main() -> None:
    path = HERE / "coco_scores.json"
    cases = json.loads(path.read_text())
    for case in cases.values():
        case |= score(case["predictions"], case["references"])
    path.write_text(json.dumps(cases, indent=0, ensure_ascii=False) + "\n")

    path = HERE / "ptb_tokens.json"
    lines = [line for line, _ in json.loads(path.read_text())]
    answers = tokenize(dict(enumerate([line] for line in lines)))
    pairs = [[line, answers[i][0]] for i, line in enumerate(lines)]
    text = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs)
    path.write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
