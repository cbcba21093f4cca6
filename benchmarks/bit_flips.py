"""Flips single bits in the files of a real checkpoint: each must be noticed, or make no difference.

    python benchmarks/bit_flips.py --flips 1000 --seed 0 --out bit_flips.json

A tiny CoCa is trained (the run of chaos.py) until it has two checkpoints. Then, one at a time, a
random bit of a random file of the newer one is flipped; half of the files are drawn evenly, half by
their size. A trainer and a reader then open the folder as `big_mm.train` and `big_mm.evaluate` do:

- noticed: the trainer takes the older checkpoint, or either of them gives a clear error;
- harmless: both get exactly the arrays, the config and the tokenizer that were saved;
- SILENT: anything else is got without an error; UNCLEAR: any other exception.

Exits 1 if any flip is silent or unclear.
"""

import argparse
import collections
import json
import pathlib
import random
import sys
import tempfile
from typing import Any

import chaos
import jax
from absl import logging

from big_mm import spec, trees
from big_mm.training import checkpoint, loop
from big_mm.training import state as states
from big_mm.training.run import prepare

STEPS = 6


def train(root: pathlib.Path) -> tuple[Any, pathlib.Path]:
    """The built run, and its workdir with checkpoints at STEPS and half of it."""
    chaos.write_data(root)
    config = chaos.get_config(f"{root},skip")
    config.steps, config.checkpoint.every, config.eval_every = STEPS, STEPS // 2, 0
    config.checkpoint.best, config.evaluators = None, {}
    loop.train(config, root / "run")
    return spec.build(config), root / "run"


def open_as_trainer(run: Any, workdir: pathlib.Path, wanted: Any) -> dict[str, int]:
    """The digests of what a continued run begins with."""
    store = checkpoint.Store(workdir / "checkpoints", run.checkpoint, {})
    try:
        return trees.digest(store.restore(wanted))
    finally:
        store.close()


def open_as_reader(workdir: pathlib.Path) -> Any:
    """The digests of parameters and averages, the config and the tokenizer's bytes."""
    config = checkpoint.load_config(workdir)
    loaded = [trees.digest(checkpoint.load_params(workdir, which)) for which in ("params", "ema")]
    tokenizer = pathlib.Path(config.contract.tokenizer.path).read_bytes()
    return loaded, spec.to_json(config), tokenizer


def judge(run: Any, workdir: pathlib.Path, wanted: Any, saved: Any, older: Any) -> str:
    """What became of a flip. What the trainer has noticed, the reader need not read."""
    verdicts: list[str] = []
    for name, opened in (
        ("trainer", lambda: open_as_trainer(run, workdir, wanted)),
        ("reader", lambda: open_as_reader(workdir)),
    ):
        if verdicts == ["noticed"]:
            break
        try:
            found = opened()
        except checkpoint.CheckpointError:
            verdicts.append("noticed")
        except Exception as error:
            print(f"  UNCLEAR to the {name}: {type(error).__name__}: {str(error)[:200]}")
            verdicts.append("UNCLEAR")
        else:
            fell_back = name == "trainer" and found == older
            same = found == saved[name]
            verdicts.append("harmless" if same else "noticed" if fell_back else "SILENT")
    return min(verdicts, key=["SILENT", "UNCLEAR", "noticed", "harmless"].index)


def kind(name: str) -> str:
    """The sort of file, for the table."""
    if name.startswith("files/"):
        return name
    item, _, rest = name.partition("/")
    if not rest:
        return "Orbax: of the step"
    return "arrays (OCDBT)" if "ocdbt" in rest or "/d/" in f"/{rest}" else "Orbax: of an item"


def flip(arguments: argparse.Namespace, root: pathlib.Path) -> dict[str, Any]:
    """All flips; counts by kind of file and verdict."""
    run, workdir = train(root)
    prepared = prepare(run, loop.open_data(run, 0)[0])
    wanted = states.to_items(prepared.state)
    saved = {"trainer": open_as_trainer(run, workdir, wanted), "reader": open_as_reader(workdir)}
    folder = workdir / "checkpoints" / str(STEPS)
    hidden = folder.rename(root / "hidden")
    older = open_as_trainer(run, workdir, wanted)
    hidden.rename(folder)
    assert older != saved["trainer"]
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    sizes = [p.stat().st_size for p in files]
    rng = random.Random(arguments.seed)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for number in range(arguments.flips):
        [file] = rng.choices(files, sizes if number % 2 else None)
        content = file.read_bytes()
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        verdict = judge(run, workdir, wanted, saved, older)
        file.write_bytes(content)
        name = str(file.relative_to(folder))
        if verdict in ("SILENT", "UNCLEAR"):
            print(f"{verdict}: bit {bit} of byte {place} of {name}")
        counts[kind(name)][verdict] += 1
    return {"flips": arguments.flips, "files": len(files), "bytes": sum(sizes), "kinds": counts}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.FATAL)  # each flip would log what it broke
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        data = flip(arguments, pathlib.Path(folder).resolve())
    verdicts = ("noticed", "harmless", "SILENT", "UNCLEAR")
    print(" " * 24 + "".join(verdict.rjust(10) for verdict in verdicts))
    for name, count in sorted(data["kinds"].items()):
        print(name.ljust(24) + "".join(f"{count[verdict]:10}" for verdict in verdicts))
    total = sum(data["kinds"].values(), collections.Counter())
    if arguments.out:
        arguments.out.write_text(json.dumps(data, indent=1) + "\n")
    print(", ".join(f"{total[verdict]} {verdict}" for verdict in verdicts))
    return int(bool(total["SILENT"] or total["UNCLEAR"]))


if __name__ == "__main__":
    sys.exit(main())
