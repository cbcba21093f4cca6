"""Our evaluators and the field's programs on the same embeddings and captions, number by number.

    pip install clip_benchmark==1.6.2 open_clip_torch==3.3.0 pycocoevalcap==1.2  # PEERS, Java
    python benchmarks/evaluators.py --checkpoint runs/quickstart --peers PEERS/bin/python

Scores the zero-shot, retrieval and captioning evaluators of the checkpoint's own config, with
several prompts and all captions of an image; gives the embeddings, labels and captions to
CLIP_benchmark's, open_clip's and the official caption scorer's own functions in the interpreter
PEERS, which needs nothing of ours; prints both numbers and the largest difference. Exits 1 if one
is above --tolerance.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

import big_mm
from big_mm import spec
from big_mm.data import watch
from big_mm.evaluators import Captioning, Retrieval, ZeroShot, base, prompts
from big_mm.training import checkpoint

THEIRS = pathlib.Path(__file__).with_name("evaluators_peers.py")


def zero_shot(predictor: Any, evaluator: ZeroShot, folder: pathlib.Path) -> dict[str, float]:
    """Our figures; writes what the peers need."""
    found = evaluator.evaluate(predictor, 0)
    images, labels, _, _, _ = evaluator._embed_images(predictor)
    texts = evaluator.prompts.texts(evaluator.classnames)
    flat = sorted({text for row in texts for text in row})
    np.savez(folder / "zero_shot.npz", images=images, labels=labels, texts=encode(predictor, flat))
    content = {"classnames": evaluator.classnames, "prompts": texts, "texts": flat}
    (folder / "zero_shot.json").write_text(json.dumps(content))
    values = found.values
    return {f"zero-shot {name}": values[name] for name in ("accuracy", "top5", "mean_per_class")}


def retrieval(predictor: Any, evaluator: Retrieval, folder: pathlib.Path) -> dict[str, float]:
    values = evaluator.run(predictor)
    images, rows = [], []
    for batch in base.examples(evaluator.source, predictor.contract, 256):
        images.append(predictor.encode_image(batch["image"]))
        rows += base.captions_of(batch)
    flat = sorted({text for row in rows for text in row})
    embedded = encode(predictor, flat)
    np.savez(folder / "retrieval.npz", images=np.concatenate(images), texts=embedded)
    (folder / "retrieval.json").write_text(json.dumps({"captions": rows, "texts": flat}))
    names = [n for n in values if "_r@" in n and not n.endswith("_chance")]
    one = Retrieval(evaluator.source, captions_per_image=1).run(predictor)
    medians = {f"{n} (one caption)": one[n] for n in one if n.endswith("median_rank")}
    return {f"retrieval {n}": v for n, v in ({n: values[n] for n in names} | medians).items()}


def captioning(predictor: Any, evaluator: Captioning, folder: pathlib.Path) -> dict[str, float]:
    values = evaluator.run(predictor)
    said, truth = [], []
    for batch in base.examples(evaluator.source, predictor.contract, evaluator.batch_size):
        tokens, _ = predictor.generate(batch["image"], predictor.contract.decoding)
        said += predictor.contract.detokenize(tokens)
        truth += base.captions_of(batch)
    (folder / "captions.json").write_text(json.dumps({"predictions": said, "references": truth}))
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
    return {f"captioning {name}": values[name] for name in names}


def encode(predictor: Any, texts: list[str]) -> np.ndarray:
    return predictor.encode_text(texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="with such evaluators")
    parser.add_argument("--peers", required=True, metavar="PYTHON", help="an interpreter with them")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments, overrides = parser.parse_known_args()
    config = checkpoint.load_config(arguments.checkpoint)
    spec.override(config, overrides)
    predictor = big_mm.load(arguments.checkpoint)
    built = spec.build(config.evaluators)
    several = prompts.Templates(prompts.ENSEMBLE)
    ours: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        chosen = built["zero_shot"]
        chosen = ZeroShot(chosen.source, chosen.classnames, several, label=chosen.label)
        ours |= zero_shot(predictor, chosen, folder)
        ours |= retrieval(predictor, Retrieval(built["retrieval"].source), folder)
        ours |= captioning(predictor, Captioning(built["captioning"].source), folder)
        done = subprocess.run(
            [arguments.peers, str(THEIRS), str(folder)], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"{arguments.peers} failed, see above")
    theirs = json.loads(done.stdout.splitlines()[-1])
    print(f"{'':44}{'big_mm':>12}{'theirs':>12}{'difference':>12}  program")
    rows = []
    for name, value in ours.items():
        for program, found in theirs.items():
            if name in found:
                differ = abs(value - found[name])
                rows.append({"metric": name, "ours": value, "theirs": found[name]})
                rows[-1] |= {"program": program, "difference": differ}
                print(f"{name:44}{value:12.6f}{found[name]:12.6f}{differ:12.1e}  {program}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    worst = max(rows, key=lambda row: row["difference"])
    if worst["difference"] > arguments.tolerance:
        sys.exit(f"{worst['metric']} differs by {worst['difference']:.1e} from {worst['program']}")


if __name__ == "__main__":
    watch.leave(main())
