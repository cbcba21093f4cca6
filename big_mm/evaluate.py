"""Scores a checkpoint with the evaluators of its own config, or of another one.

    python -m big_mm.evaluate --checkpoint runs/quickstart
    python -m big_mm.evaluate --checkpoint runs/quickstart/checkpoints/900 --only zero_shot
    python -m big_mm.evaluate --checkpoint ... --config configs/coca.py --workdir scores

The numbers are those that training gave at that step, with 95 % bootstrap intervals over the
images. --config (a run, or a config with just `evaluators`) says what to score, not how: pictures
and texts are prepared as the checkpoint's own contract says, and a config with another contract is
refused.

--workdir gets evaluation.json, evaluation.csv, evaluation.md and report.html, the protocol beside
each number, and what each evaluator found as soon as it is done: the same command goes on after an
interruption and runs only what is missing or has changed. `python -m big_mm.compare` tests the
difference of two such folders.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

import big_mm
from big_mm import allocator, distributed, exported, report, spec, trees
from big_mm.data import watch
from big_mm.data.records import TFRecordSource
from big_mm.evaluators import Languages, files, suite
from big_mm.interop import reading
from big_mm.predictor import Predictor
from big_mm.report import table
from big_mm.spec import UserError
from big_mm.training import checkpoint

_LONGEST_PATH = 1024  # a longer text names no file


def evaluate(
    directory: epath.PathLike,
    config: ml_collections.ConfigDict | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    workdir: epath.PathLike | None = None,
    announce: Callable[[str], None] = lambda name: None,
    *,
    bootstrap: int = 1000,
    fresh: bool = False,
    features: epath.PathLike | None = None,
) -> tuple[dict[str, float], list[report.Row]]:
    """The metrics of a checkpoint by name, and the same as rows for people.

    Args:
      directory: as `big_mm.load` takes it.
      config: what to score; None: the checkpoint's own config.
      overrides: `--config.key=value` arguments.
      only: names of evaluators; default: all.
      workdir: where to put the tables, artifacts and report.html.
      announce: called with what begins.
      bootstrap: samples for the intervals; 0 for none.
      fresh: run also what is in the workdir already.
      features: a local folder for what probes compute of whole sources, and find there again.

    Raises:
      UserError: no checkpoint, no such evaluator, another contract, or an evaluator's own refusal.
    """
    stored = checkpoint.load_config(directory) if config is None else None
    chosen = stored if config is None else config
    spec.override(chosen, overrides)
    evaluators = _evaluators(chosen, only)
    predictor = dataclasses.replace(big_mm.load(directory), features=features)
    if config is not None:
        _check_contract(config, predictor)
    number = itertools.count(1)
    metrics = suite.run_all(
        evaluators,
        predictor,
        _step(directory),
        workdir,
        lambda name: announce(f"{name} ({next(number)} of {len(evaluators)})"),
        bootstrap=bootstrap,
        fingerprints=_fingerprints(chosen.evaluators, evaluators, predictor, bootstrap),
        fresh=fresh,
    )
    if workdir is not None and jax.process_index() == 0:
        _write_tables(epath.Path(workdir), metrics)
    return metrics, report.rows(metrics, suite.describe(evaluators))


def _fingerprints(
    specs: ml_collections.ConfigDict,
    evaluators: Mapping[str, Any],
    predictor: Predictor,
    bootstrap: int,
) -> dict[str, str]:
    """By evaluator, of its spec and data, the model, its parameters and its contract."""
    parts = [repr(predictor.model), trees.digest(predictor.params)]
    model = json.dumps([*parts, predictor.contract.fingerprint, bootstrap])
    return {
        name: hashlib.sha256(
            "\n".join([model, spec.to_json(spec.resolve(specs[name])), _data(built)]).encode()
        ).hexdigest()
        for name, built in evaluators.items()
    }


def _data(component: Any) -> str:
    """What a component reads: sizes and versions of shards, digests of the files that it names
    (classes, annotations; behind a # stands a place in one), the checkpoints that it names, and
    the same of whatever components it has.
    """
    if isinstance(component, TFRecordSource):
        return str([(shard.url, shard.stamp) for shard in component.shards_found()])
    if dataclasses.is_dataclass(component):
        fields = [f for f in dataclasses.fields(component) if not f.metadata.get(files.WRITTEN)]
        parts = [getattr(component, field.name) for field in fields]
        if isinstance(component, Languages):  # the files that only its evaluators name
            parts += component.evaluators.values()
    elif isinstance(component, Mapping):
        parts = list(component.values())
    elif isinstance(component, tuple):
        parts = list(component)
    elif isinstance(component, str) and len(component) < _LONGEST_PATH:
        return _content(component)
    else:
        return ""
    return "".join(map(_data, parts))


def _content(name: str) -> str:
    """A digest of the file or checkpoint that a text may name; "" if it names none."""
    file, path = epath.Path(name.partition("#")[0]), epath.Path(name)
    if file.is_file():
        beside = [file.parent / config for config in reading.WEIGHTS]
        return _digest(file, *(beside if reading.recognises(file) else ()))
    if not path.is_dir():
        return ""
    if reading.recognises(path) or exported.is_exported(path):
        return _digest(*sorted(file for file in path.iterdir() if file.is_file()))
    try:
        return checkpoint.digest(path)
    except checkpoint.CheckpointError:
        return ""


def _digest(*files: epath.Path) -> str:
    """Of the content of those files that exist."""
    made = hashlib.sha256()
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    made.update(block)
    return made.hexdigest()


def _write_tables(folder: epath.Path, metrics: Mapping[str, float]) -> None:
    text = json.dumps(metrics, indent=1, sort_keys=True) + "\n"
    (folder / report.EVALUATION).write_text(text)
    found = table.load(folder)
    (folder / report.EVALUATION).with_suffix(".csv").write_text(table.to_csv(found))
    (folder / report.EVALUATION).with_suffix(".md").write_text(table.to_markdown(found))
    report.write(folder)


def _evaluators(config: ml_collections.ConfigDict, only: Sequence[str]) -> dict[str, Any]:
    """The evaluators of a config that were asked for, built."""
    there = config.get("evaluators") or {}
    if not there:
        raise UserError("the config has no evaluators: give another one by --config FILE.py")
    if unknown := [name for name in only if name not in there]:
        raise UserError(f"no evaluator {unknown[0]!r}: the config has {', '.join(there)}")
    return {name: spec.build(there[name]) for name in only or there}


def _check_contract(config: ml_collections.ConfigDict, predictor: Predictor) -> None:
    if config.get("contract") is not None:
        predictor.contract.check_same(spec.build(config.contract))


def _step(directory: epath.PathLike) -> int:
    """The step of a checkpoint; 0 for exported parameters and other programs' checkpoints."""
    try:
        name = checkpoint.find_checkpoint(directory).name
    except checkpoint.CheckpointError:
        return 0
    return int(name) if name.isdigit() else 0


def _announce() -> Callable[[str], None]:
    """Prints what begins, and how long the evaluation has taken."""
    begun = time.monotonic()

    def announce(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - begun), 60)
        print(f"{minutes}m {seconds:02}s  evaluating {text}", file=sys.stderr, flush=True)

    return announce


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE sets a key of the config, at any depth.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="workdir or checkpoint")
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="default: the checkpoint's own")
    parser.add_argument("--only", default="", metavar="NAME,...", help="evaluators to run")
    parser.add_argument("--out", metavar="FILE", help="write the metrics as JSON")
    parser.add_argument("--workdir", metavar="DIR", help="tables, report, and what is done so far")
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="samples for the 95 %% intervals (default: %(default)s; 0: no intervals)",
    )
    parser.add_argument("--features", metavar="DIR", help="keep the features of probes here")
    parser.add_argument(
        "--fresh", action="store_true", help="run also what the workdir has results of"
    )
    arguments, overrides = parser.parse_known_args(argv)
    allocator.keep_freed_memory()
    try:
        distributed.init()
        config = spec.load_config(arguments.config) if arguments.config else None
        only = tuple(filter(None, arguments.only.split(",")))
        metrics, rows = evaluate(
            arguments.checkpoint,
            config,
            overrides,
            only,
            arguments.workdir,
            _announce(),
            bootstrap=arguments.bootstrap,
            fresh=arguments.fresh,
            features=arguments.features,
        )
        if jax.process_index() == 0:
            report.print_table(rows)
            if arguments.out:
                text = json.dumps(metrics, indent=1, sort_keys=True) + "\n"
                epath.Path(arguments.out).write_text(text)
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except watch.Stalled as error:
        print(f"error: {error}", file=sys.stderr)
        return watch.STATUS
    return 0


if __name__ == "__main__":
    watch.leave(main())
