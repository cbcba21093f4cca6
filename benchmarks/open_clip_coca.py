"""A CoCa trained here, written to open_clip's layout and run by open_clip itself.

    python -m big_mm.train --config benchmarks/open_clip_coca.py:runs/scenes --workdir runs/oc
    python benchmarks/open_clip_coca.py --checkpoint runs/oc --peers PEERS/bin/python \
        --shards 'runs/scenes/test_*.tfrecord'

The config is the quickstart's (`make quickstart` makes its data) with the one kind of CoCa that
open_clip can express, faults included, in a small size: a few minutes on two CPU cores. PEERS has
open_clip_torch==3.3.0 and transformers==4.55.4 (later ones lack the beam search that open_clip
calls), and needs nothing of ours.

open_clip loads the directory as `local-dir:` and prepares the records' own files by its own
transforms; texts come as token ids, since it has no SentencePiece. Compared are pictures pixel by
pixel, embeddings, greedy captions and beams token by token. Its beam search has two faults: it adds
up logits that are not normalised to log-probabilities, so that a beam's score is no probability,
and it counts bos as a token of the caption, so that the length penalty divides by one too many. And
it leaves transformers' scorer to stop by a rule of thumb, which may miss a better beam. Beams are
compared with the faults mended and the scorer told when to stop (when enough are finished, our
`early_stop`; or when none can become better), as the claim; and as they are, for the record. Exits
1 where an embedding differs by more than --tolerance, or a greedy or mended caption in a token.
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
from big_mm.data.contract import Decoding
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.evaluators import base
from big_mm.interop import convert
from big_mm.models import variants
from big_mm.predictor import Predictor

THEIRS = pathlib.Path(__file__).with_name("open_clip_coca_peer.py")
QUICKSTART = pathlib.Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"
WIDTH, DEPTH, HEADS = 96, 2, 4
BEAMS = 3
DECODINGS = {
    "greedy": Decoding(),
    "beams, first": Decoding(num_beams=BEAMS),
    "beams, exact": Decoding(num_beams=BEAMS, early_stop=False),
}
# Their captions, and ours beside which they stand.
CAPTIONS = {
    "greedy": "greedy",
    "beams, mended, first": "beams, first",
    "beams, mended, exact": "beams, exact",
    "beams as is": "beams, exact",
}


def get_config(arg: str = "runs/scenes") -> Any:
    """The quickstart's run of a small CoCa of open_clip's kind."""
    config = spec.load_config(f"{QUICKSTART}:{arg}")
    quick = config.objective.model
    model = variants.open_clip_coca(
        "B/32",
        image_size=quick.image.image_size,
        vocab_size=quick.text.vocab_size,
        max_len=quick.text.max_len,
        queries=9,
        pooler_heads=HEADS,
        embed_dim=WIDTH,
        blocks={"unroll": DEPTH},
    )
    model.image.patch_size = quick.image.patch_size
    model.image.mean, model.image.std = quick.image.mean, quick.image.std
    for stack in (model.image.blocks, model.text.blocks, model.decoder):
        stack.update({"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp_dim": 4 * WIDTH})
    config.objective.model = model
    config.contract.kernel = "bicubic"  # open_clip has no area mean
    config.contract.transparency = "drop"
    config.steps = 300
    return config


def ours(predictor: Predictor, source: TFRecordSource, count: int) -> dict[str, Any]:
    """Arrays of the first records: files, prepared pictures, tokens, embeddings, captions."""
    batch = next(base.examples(source, predictor.contract, min(count, len(source))))
    pictures, texts = batch["image"], [row[0] for row in base.captions_of(batch)]
    made = {"pictures": pictures, "tokens": predictor.contract.text(texts)[0]}
    made["image"], made["text"] = predictor.encode_image(pictures), predictor.encode_text(texts)
    for name, how in DECODINGS.items():
        made[name], _ = predictor.generate(pictures, how)
    made["captions"] = np.array([len(set(predictor.contract.detokenize(made["greedy"])))])
    files = [source[int(i)]["image"] for i in batch["index"]]
    return made | {f"file_{i}": np.frombuffer(file, np.uint8) for i, file in enumerate(files)}


def words(tokens: np.ndarray, eos_id: int) -> list[list[int]]:
    """Rows from bos to before eos; theirs puts an eos in the last place, ours leaves it out."""
    rows = (row[: row.index(eos_id)] if eos_id in row else row for row in tokens.tolist())
    return [row[: tokens.shape[1] - 1] for row in rows]


def compare(found: dict[str, Any], theirs: dict[str, Any], eos_id: int) -> list[dict[str, Any]]:
    """The rows of the table."""
    pixels = np.abs(found["pictures"].astype(int) - theirs["pictures"].astype(int))
    rows = [{"compared": "pixels", "of": int(pixels.size), "largest": float(pixels.max())}]
    rows[-1]["different"] = int((pixels > 0).sum())
    for side in ("image", "text"):
        largest = float(np.abs(found[side] - theirs[side]).max())
        rows.append({"compared": f"{side} embeddings", "of": len(found[side]), "largest": largest})
    for name, mine in CAPTIONS.items():
        pairs = zip(words(found[mine], eos_id), words(theirs[name], eos_id), strict=True)
        different = sum(a != b for a, b in pairs)
        rows.append({"compared": f"captions, {name}", "of": len(found[mine])})
        rows[-1]["different"] = different
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR")
    parser.add_argument("--peers", required=True, metavar="PYTHON", help="has open_clip")
    parser.add_argument("--shards", required=True, metavar="PATTERN", help="records with captions")
    parser.add_argument("--captions", default="caption_short", help="their feature (%(default)s)")
    parser.add_argument("--count", type=int, default=400, help="records (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of an embedding's entry")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments = parser.parse_args()
    predictor = big_mm.load(arguments.checkpoint)
    tokenizer = predictor.contract.require_tokenizer()
    source = TFRecordSource(arguments.shards, Schema(captions=arguments.captions))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        written = convert.convert(arguments.checkpoint, "open_clip", folder / "model")
        found = ours(predictor, source, arguments.count)
        np.savez(folder / "ours.npz", **found)
        said = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        said |= {"length": predictor.contract.max_len, "beams": BEAMS}
        (folder / "said.json").write_text(json.dumps(said))
        done = subprocess.run(
            [arguments.peers, str(THEIRS), str(folder)], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"{arguments.peers} failed, see above")
        with np.load(folder / "theirs.npz") as arrays:
            theirs = dict(arrays)
    rows = compare(found, theirs, tokenizer.eos_id)
    versions = json.loads(done.stdout.splitlines()[-1])
    captions = f"{found['captions'][0]} different captions"
    print(f"{written.parameters:,} parameters; {captions}; {versions}")
    print(f"{'':28}{'of':>10}{'different':>12}{'largest difference':>20}")
    for row in rows:
        largest = f"{row['largest']:.1e}" if "largest" in row else ""
        print(f"{row['compared']:28}{row['of']:10,}{row.get('different', ''):>12}{largest:>20}")
    if arguments.out:
        content = {"versions": versions, "parameters": written.parameters, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    claimed = [row for row in rows if row["compared"] not in ("pixels", "captions, beams as is")]
    for row in claimed:
        if row.get("largest", 0) > arguments.tolerance or row.get("different"):
            sys.exit(f"{row['compared']} differ")


if __name__ == "__main__":
    watch.leave(main())
