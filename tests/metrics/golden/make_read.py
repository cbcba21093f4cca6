"""Asks MMF's and pix2struct's programs: writes read_scores.json, of answers about text in images:
[answer, people's answers, TextVQA accuracy, ST-VQA accuracy, ANLS, ChartQA's relaxed accuracy].

    git clone https://github.com/facebookresearch/mmf
    git clone https://github.com/google-research/pix2struct
    pip install editdistance
    python tests/metrics/golden/make_read.py mmf/mmf/utils/m4c_evaluators.py \
        pix2struct/pix2struct/metrics.py

Made with mmf b0ffc7fba39f210f833c127362146aec01a2f259, pix2struct
945f27e936c9464d9d7c133f1bd1f4f383be9e99 and editdistance 0.8.1. Of pix2struct only the function
`relaxed_correctness` is run, for the rest of its file needs Java. Imports nothing of big_mm.
"""

import ast
import json
import pathlib
import random
import sys

import make_vqa

NUMBERS = ("12", "12.5", "12.6%", "12.5%", "0.125", "0", "1e3", "1,000", "-3", "inf", "2 %", "%")


def cases() -> list[tuple[str, list[str]]]:
    rng = random.Random(1)
    made = make_vqa.cases()
    for _ in range(60):
        pool = [rng.choice(NUMBERS) for _ in range(3)] + [f"{rng.uniform(12, 14):.3g}"]
        made.append((rng.choice(pool), [rng.choice(pool) for _ in range(10)]))
    for _ in range(60):  # small misreadings
        truth = make_vqa.phrases(rng) + "The Stop"
        read = "".join(rng.choice((c, c, c, c, "", "x", c + c, c.upper())) for c in truth)
        made.append((read, [truth, truth.title()] * 5))
    return made


def main() -> None:
    mmf: dict = {}
    exec(pathlib.Path(sys.argv[1]).read_text(), mmf)
    judges = [
        mmf[name]().eval_pred_list
        for name in ("TextVQAAccuracyEvaluator", "STVQAAccuracyEvaluator", "STVQAANLSEvaluator")
    ]
    tree = ast.parse(pathlib.Path(sys.argv[2]).read_text())
    (function,) = (n for n in tree.body if getattr(n, "name", "") == "relaxed_correctness")
    charts: dict = {}
    exec("from typing import Optional\n" + ast.unparse(function), charts)
    lines = []
    for answer, people in cases():
        if not (answer.strip() and all(person.strip() for person in people)):
            continue  # MMF's ANLS divides by zero
        entry = [{"pred_answer": answer, "gt_answers": people}]
        scores = [judge(entry) for judge in judges]
        right = any(charts["relaxed_correctness"](person, answer) for person in people)
        lines.append(json.dumps([answer, people, *scores, float(right)]))
    path = pathlib.Path(__file__).parent / "read_scores.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
