"""Running evaluators one after the other, and keeping what each found.

A workdir's `artifacts/` holds two files an evaluator: NAME.json with metrics, protocol and what
there is to show, NAME.npz with the statistics that a paired test draws from. The JSON is written
last: what has one is complete, and an interrupted suite goes on behind it.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from big_mm import spec
from big_mm.evaluators.base import Evaluator, Result
from big_mm.metrics import statistics
from big_mm.metrics.statistics import Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError

ARTIFACTS = "artifacts"
LOW, HIGH = "_low", "_high"


def run_all(
    evaluators: Mapping[str, Evaluator],
    predictor: Predictor,
    step: int = 0,
    workdir: epath.PathLike | None = None,
    announce: Callable[[str], None] = lambda name: None,
    *,
    bootstrap: int = 0,
    fingerprints: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> dict[str, float]:
    """Runs evaluators in order; metric names become `<evaluator>/<metric>`.

    Args:
      workdir: where the first process stores what each evaluator found, the latest step's.
      announce: called before each evaluator runs, with its name.
      bootstrap: samples for the 95 % intervals of all metrics that have a statistic; 0: none.
      fingerprints: by evaluator, of all that its numbers depend on. One whose stored result has
        the same is not run again, unless `fresh`. Every process gives the same.

    Raises:
      UserError: an evaluator cannot work with this model or data; the message names it.
    """
    folder = None if workdir is None else epath.Path(workdir) / ARTIFACTS
    fingerprints = fingerprints or {}
    kept = {} if fresh else _kept(folder, evaluators, fingerprints)
    metrics: dict[str, float] = {}
    for name, evaluator in evaluators.items():
        if name in kept:
            announce(f"{name}: found in {folder}")
            values = kept[name]
        else:
            announce(name)
            try:
                result = evaluator.evaluate(predictor, step)
            except UserError as error:
                raise UserError(f"evaluator {name!r}: {error}") from error
            values = result.values | _bounds(result, bootstrap)
            if folder is not None and jax.process_index() == 0:
                about = describe({name: evaluator})[name]
                content = {
                    "place": evaluator.place,
                    "step": step,
                    "fingerprint": fingerprints.get(name),
                    "metrics": values,
                    "about": about,
                    "protocol": dict(result.protocol) | {"input": _input(predictor)},
                    "artifacts": dict(result.artifacts),
                }
                _store(folder, name, content, result)
        metrics |= {f"{name}/{key}": value for key, value in values.items()}
    return metrics


def describe(evaluators: Mapping[str, Evaluator]) -> dict[str, dict[str, dict[str, Any]]]:
    """The fields of `About` of each metric, by evaluator in the order to show them; JSON-able."""
    ordered = sorted(evaluators.items(), key=lambda item: (item[1].place, item[0]))
    return {
        name: {metric: dataclasses.asdict(about) for metric, about in evaluator.about.items()}
        for name, evaluator in ordered
    }


def stored(workdir: epath.PathLike) -> dict[str, dict[str, Any]]:
    """What `run_all` stored, by evaluator in the order to show: `step`, `metrics`, `about`,
    `protocol`, `artifacts`.
    """
    folder = epath.Path(workdir) / ARTIFACTS
    if not folder.exists():
        return {}
    files = [p for p in folder.iterdir() if p.suffix == ".json" and p.name[0] != "."]
    found = {path.stem: json.loads(path.read_text()) for path in files}
    return dict(sorted(found.items(), key=lambda item: (item[1]["place"], item[0])))


def stored_statistics(workdir: epath.PathLike, name: str) -> tuple[list[str], dict[str, Statistic]]:
    """The record keys and statistics that `run_all` stored of an evaluator; none if it has none."""
    path = epath.Path(workdir) / ARTIFACTS / f"{name}.npz"
    if not path.exists():
        return [], {}
    fields: dict[str, dict[str, np.ndarray]] = {}
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        keys = arrays["keys"].tolist()
        kinds = json.loads(str(arrays["kinds"]))
        for name in arrays.files:
            metric, slash, field = name.rpartition("/")
            if slash:
                fields.setdefault(metric, {})[field] = arrays[name]
    made = {
        metric: spec.locate(kind, trusted=spec.TRUSTED)(**fields[metric])
        for metric, kind in kinds.items()
    }
    return keys, made


def _input(predictor: Predictor) -> str:
    """The contract's rules for pictures, in words."""
    contract = predictor.contract
    return f"{contract.image_size} pixels, {contract.resize}, {contract.kernel}"


def _bounds(result: Result, samples: int) -> dict[str, float]:
    if not samples:
        return {}
    found = statistics.intervals(result.statistics, samples)
    low = {name + LOW: interval.low for name, interval in found.items()}
    return low | {name + HIGH: interval.high for name, interval in found.items()}


def _kept(
    folder: epath.Path | None,
    evaluators: Mapping[str, Evaluator],
    fingerprints: Mapping[str, str],
) -> dict[str, dict[str, float]]:
    """The stored metrics of the evaluators that need not run; the first process decides."""
    if folder is None or not fingerprints:
        return {}
    theirs = stored(folder.parent)
    same = [
        name in theirs and theirs[name].get("fingerprint") == fingerprints[name]
        for name in evaluators
    ]
    if jax.process_count() > 1:
        same = multihost_utils.broadcast_one_to_all(np.array(same)).tolist()
    return {
        name: theirs[name]["metrics"] for name, keep in zip(evaluators, same, strict=True) if keep
    }


def _store(folder: epath.Path, name: str, content: Mapping[str, Any], result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = result.statistics
    kinds = {k: f"{type(v).__module__}.{type(v).__qualname__}" for k, v in found.items()}
    arrays = {
        f"{metric}/{field}": array
        for metric, statistic in found.items()
        for field, array in statistic.arrays().items()
    }
    file = io.BytesIO()
    np.savez_compressed(
        file, keys=np.array(list(result.keys), np.str_), kinds=json.dumps(kinds), **arrays
    )
    for suffix, data in ((".npz", file.getvalue()), (".json", json.dumps(content).encode())):
        temporary = folder / f".{name}{suffix}"
        temporary.write_bytes(data)
        temporary.replace(folder / f"{name}{suffix}")
