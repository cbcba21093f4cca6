"""Our evaluators and the field's programs on the same embeddings and captions, number by number.

    pip install clip_benchmark==1.6.2 open_clip_torch==3.3.0 pycocoevalcap==1.2 "numpy<2.3"
    python benchmarks/evaluators.py --checkpoint runs/quickstart --peers PEERS/bin/python

Scores the zero-shot, retrieval and captioning evaluators of the checkpoint's own config, with
several prompts and all captions of an image; gives the embeddings, labels and captions to
CLIP_benchmark's, open_clip's and the official caption scorer's own functions in the interpreter
PEERS, which needs nothing of ours; prints both numbers. Exits 1 if a difference is above
--tolerance.

Of equal similarities the peers take whichever their sort leaves first, we the wrong one. Equal
captions of several images are such; the share of images that have one is printed and allowed for.
"""

import argparse
import collections
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
    np.savez(
        folder / "zero_shot.npz", images=images, labels=labels, texts=predictor.encode_text(flat)
    )
    content = {"classnames": evaluator.classnames, "prompts": texts, "texts": flat}
    (folder / "zero_shot.json").write_text(json.dumps(content))
    values = found.values
    return {f"zero-shot {name}": values[name] for name in ("accuracy", "top5", "mean_per_class")}


def retrieval(
    predictor: Any, evaluator: Retrieval, folder: pathlib.Path
) -> tuple[dict[str, float], float]:
    """Our figures, and the share of images with a caption that another image has too."""
    values = evaluator.run(predictor)
    images, rows = [], []
    for batch in base.examples(evaluator.source, predictor.contract, 256):
        images.append(predictor.encode_image(batch["image"]))
        rows += base.captions_of(batch)
    flat = sorted({text for row in rows for text in row})
    embedded = predictor.encode_text(flat)
    np.savez(folder / "retrieval.npz", images=np.concatenate(images), texts=embedded)
    (folder / "retrieval.json").write_text(json.dumps({"captions": rows, "texts": flat}))
    names = [n for n in values if "_r@" in n and not n.endswith("_chance")]
    one = Retrieval(evaluator.source, captions_per_image=1).run(predictor)
    medians = {f"{n} (one caption)": one[n] for n in one if n.endswith("median_rank")}
    found = {f"retrieval {n}": v for n, v in ({n: values[n] for n in names} | medians).items()}
    counts = collections.Counter(text for row in rows for text in set(row))
    return found, float(np.mean([any(counts[text] > 1 for text in row) for row in rows]))


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="with such evaluators")
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="default: the checkpoint's own")
    parser.add_argument("--peers", required=True, metavar="PYTHON", help="an interpreter with them")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments, overrides = parser.parse_known_args()
    if arguments.config:
        config = spec.load_config(arguments.config)
    else:
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
        found, tied = retrieval(predictor, Retrieval(built["retrieval"].source), folder)
        ours |= found
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
    print(f"{100 * tied:.1f} % of the images have a caption that another one has too")
    for row in rows:
        allowed = arguments.tolerance + ("_r@" in row["metric"]) * tied
        if row["difference"] > allowed:
            sys.exit(f"{row['metric']} differs by {row['difference']:.1e} from {row['program']}")


if __name__ == "__main__":
    watch.leave(main())
