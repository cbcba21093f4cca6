"""Images a second of each evaluator of a config, beside encoding the same images alone.

    python benchmarks/evaluation_speed.py --checkpoint runs/quickstart
    python benchmarks/evaluation_speed.py --checkpoint CHECKPOINT --config suite.py --out speed.json

Each evaluator runs once to compile, then --rounds times, in turns with the plain encoding of 512
of its images; the figures are medians. "of encoding" is the evaluator's rate relative to that: what
reading, decoding pictures, ranking, writing captions and scoring leave of it.
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np

import big_mm
from big_mm import spec
from big_mm.evaluators import base
from big_mm.training import checkpoint

ENCODED = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR")
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="default: the checkpoint's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments, overrides = parser.parse_known_args()
    if arguments.config:
        config = spec.load_config(arguments.config)
    else:
        config = checkpoint.load_config(arguments.checkpoint)
    spec.override(config, overrides)
    predictor = big_mm.load(arguments.checkpoint)
    print(f"{'':28}{'images':>8}{'images/s':>10}{'encoding/s':>12}{'of encoding':>12}", flush=True)
    rows = []
    for name, evaluator in spec.build(config.evaluators).items():
        values = evaluator.run(predictor)
        images = values.get("images", values.get("examples"))
        batch = next(base.examples(evaluator.source, predictor.contract, ENCODED))["image"]
        predictor.encode_image(batch)
        ours, plain = [], []
        for _ in range(arguments.rounds):
            fresh = predictor.replace(params=predictor.params)
            ours.append(images / seconds(lambda: evaluator.run(fresh)))  # noqa: B023
            plain.append(len(batch) / seconds(lambda: fresh.encode_image(np.array(batch))))  # noqa: B023
        rate, limit = statistics.median(ours), statistics.median(plain)
        rows.append({"evaluator": name, "images": images, "rate": rate, "encoding": limit})
        print(f"{name:28}{images:8,.0f}{rate:10,.0f}{limit:12,.0f}{rate / limit:12.2f}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def seconds(work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
