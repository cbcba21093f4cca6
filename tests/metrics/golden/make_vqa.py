"""Asks the official VQA program: writes vqa_scores.json, [answer, people's answers, accuracy].

    git clone https://github.com/GT-Vision-Lab/VQA
    python tests/metrics/golden/make_vqa.py VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py

Made with commit a013f0043c1e2cdc995922dfe257f7149aa9af06. The program is of Python 2: its print
statements are rewritten here, nothing else. Imports nothing of big_mm.
"""

import json
import pathlib
import random
import re
import sys

WORDS = (
    "yes no a an the none zero two ten eleven dont Don't its it's shed couldn'tve somebody'd Im im "
    "red grey dog dogs twas y'alld've 1,000 2.5 3. .5 v.2 $5 6'2\" mother-in-law black/white 50% "
    "(left) [top] u.s.a. a.m. e-mail what? left, right; TV, \\ @home <- _ = + ! ` {x} 1, ,2 1,2"
).split()
BLANKS = (" ", " ", " ", "  ", "\n", "\t", "")


def phrases(rng: random.Random) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randint(0, 4))]
    return "".join(word + rng.choice(BLANKS) for word in words)


def cases() -> list[tuple[str, list[str]]]:
    rng = random.Random(0)
    made = [("Yes", ["yes"] * 10), ("yes", ["yes"] * 10), (" yes\n", ["yes"] * 9 + ["no"])]
    made += [("." * 40 + " a", ["." * 40 + " a", "." * 8] + ["a"] * 8)]
    for _ in range(200):
        pool = [phrases(rng) for _ in range(rng.randint(1, 4))]
        pool += [pool[0].upper(), pool[0] + ".", "the " + pool[0]]
        made.append((rng.choice(pool), [rng.choice(pool) for _ in range(10)]))
    return made


class Answers:
    """As much of the VQA API as the program asks for."""

    def __init__(self, qa):
        self.qa = qa

    def getQuesIds(self):  # noqa: N802
        return list(self.qa)


def main() -> None:
    source = pathlib.Path(sys.argv[1]).read_text()
    program: dict = {}
    exec(re.sub(r"^(\s*)print (.*)$", r"\1print(\2)", source, flags=re.MULTILINE), program)
    made = cases()
    truth = {
        i: {
            "question_type": "",
            "answer_type": "",
            "answers": [{"answer": p, "answer_id": n} for n, p in enumerate(people, 1)],
        }
        for i, (_, people) in enumerate(made)
    }
    said = {i: {"answer": answer} for i, (answer, _) in enumerate(made)}
    judge = program["VQAEval"](Answers(truth), Answers(said), n=12)
    judge.evaluate()
    lines = [
        json.dumps([answer, people, judge.evalQA[i] / 100])
        for i, (answer, people) in enumerate(made)
    ]
    path = pathlib.Path(__file__).parent / "vqa_scores.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
