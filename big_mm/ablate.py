"""Trains the arms of an ablation over seeds, and says what differs and by how much.

    python -m big_mm.ablate --config experiments/filip/config.py --workdir runs/filip
    python -m big_mm.ablate --config configs/coca.py --arms tiny base --seeds 0 1 2 \\
        --workdir runs/sizes --config.steps=2000

An arm is an argument of the config's get_config, as in FILE.py:ARM; without --arms they are what
the file lists in VARIANTS. The first arm is compared with each other one. Every run is a
`python -m big_mm.train` of its own in WORKDIR/ARM-SEED, one after the other; what is finished is
not run again, and an interrupted one goes on from its checkpoint. WORKDIR gets ablation.json and
ablation.md: mean and standard deviation over the seeds, and the difference between arms of equal
seed with its 95 % t-interval, which for three seeds is 2.5 standard deviations wide to either side;
and ablation.svg, a picture of the same.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np
import rich.console
import rich.markdown
import scipy.stats
from etils import epath
from jaxtyping import Float

from big_mm import spec
from big_mm.report import arms as arms_lib
from big_mm.report import table
from big_mm.report.table import Row, format_bounds, format_value
from big_mm.spec import UserError
from big_mm.training import workdir as workdir_lib
from big_mm.training import writers


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first arm minus another, over seeds.

    Attributes:
      value: the mean difference.
      low, high: its 95 % t-interval; None with one seed.
      better: seeds in which the first arm is the better one.
      seeds: of how many.
    """

    value: float
    low: float | None
    high: float | None
    better: int
    seeds: int

    @classmethod
    def of(cls, differences: Float[np.ndarray, " seed"], lower_is_better: bool) -> "Difference":
        mean, count = float(differences.mean()), len(differences)
        better = int(((differences < 0) if lower_is_better else (differences > 0)).sum())
        if count < 2:
            return cls(mean, None, None, better, count)
        half = scipy.stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
        return cls(mean, float(mean - half), float(mean + half), better, count)


@dataclasses.dataclass(frozen=True)
class Line:
    """A metric of all arms.

    Attributes:
      values: {arm: one value a seed}.
      differences: {other arm: the first arm minus it}.
    """

    row: Row
    values: dict[str, list[float]]
    differences: dict[str, Difference]


def runs(
    config: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> dict[tuple[str, int], tuple[list[str], ml_collections.ConfigDict]]:
    """{(arm, seed): the arguments of its `big_mm.train`, and its config}.

    Raises:
      UserError: a config that does not load or build, an override that does not fit, or one of
        `metrics` that is of no evaluator.
    """
    made = {}
    for seed, arm in itertools.product(seeds, arms):
        source = f"{config}:{arm}" if arm else config
        given = [f"--config.seed={seed}", *overrides]
        loaded = spec.load_config(source)
        spec.override(loaded, given)
        spec.build(loaded)
        for name in metrics:
            if name.split("/")[0] not in loaded.evaluators:
                known = ", ".join(loaded.evaluators)
                raise UserError(f"{source}: {name!r} is of none of the evaluators {known}")
        made[arm, seed] = ["--config", source, *given], loaded
    return made


def finished(folder: epath.Path, config: ml_collections.ConfigDict) -> bool:
    """Whether the folder holds the final evaluation of this very config.

    Raises:
      UserError: it holds a run of another one.
    """
    workdir_lib.check_same_run(folder, config)
    stored = folder / workdir_lib.CONFIG
    if not (folder / table.EVALUATION).exists() or not stored.exists():
        return False
    return stored.read_text() == spec.to_json(spec.resolve(config))


def summary(folders: Mapping[tuple[str, int], epath.Path], metrics: Sequence[str]) -> list[Line]:
    """A line for each headline metric, or each of `metrics` (`<evaluator>/<metric>`).

    Args:
      folders: finished workdirs by (arm, seed), the first arm first.

    Raises:
      UserError: a metric that no run has.
    """
    found = {at: {_name(row): row for row in table.load(path)} for at, path in folders.items()}
    first = next(iter(found.values()))
    chosen = list(metrics) or [name for name, row in first.items() if row.headline] or list(first)
    for name in chosen:
        if missing := [f"{arm}-{seed}" for (arm, seed), have in found.items() if name not in have]:
            known = ", ".join(first)
            raise UserError(f"{', '.join(missing)} has no metric {name!r}; the metrics are {known}")
    arms = list(dict.fromkeys(arm for arm, _ in folders))
    lines = []
    for name in chosen:
        values = {
            arm: [have[name].value for (a, _), have in found.items() if a == arm] for arm in arms
        }
        row = first[name]
        own = np.array(values[arms[0]])
        differences = {
            arm: Difference.of(own - np.array(values[arm]), row.lower_is_better) for arm in arms[1:]
        }
        lines.append(Line(row, values, differences))
    return lines


def to_markdown(lines: Sequence[Line]) -> str:
    """The table: a row a metric, a column an arm, then the differences."""
    arms, others = list(lines[0].values), list(lines[0].differences)
    head = ["", *(f"`{arm}`" for arm in arms), *(f"`{arms[0]}` - `{other}`" for other in others)]
    cells = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for label, line in zip(_labels(lines), lines, strict=True):
        shown = [_spread(values, line.row.unit) for values in line.values.values()]
        shown += [_difference(found, line.row.unit) for found in line.differences.values()]
        cells.append([label, *shown])
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def to_svg(lines: Sequence[Line]) -> str:
    """The picture: a panel a metric, each arm's seeds and their mean."""
    made = {}
    for label, line in zip(_labels(lines), lines, strict=True):
        share = line.row.unit == "share"
        values = {a: [(100 if share else 1) * x for x in v] for a, v in line.values.items()}
        made[f"{label}, %" if share else label] = values
    return arms_lib.svg(made)


def _labels(lines: Sequence[Line]) -> list[str]:
    """What to call each line, all different."""
    evaluators = collections.defaultdict(set)
    for line in lines:
        evaluators[line.row.label, line.row.variant].add(line.row.evaluator)
    made = []
    for row in (line.row for line in lines):
        # Evaluators of one kind whose names share no beginning are told apart by their names.
        several = len(evaluators[row.label, row.variant]) > 1
        told = row.evaluator if several else row.variant
        made.append(f"{row.label} ({told.replace('_', ' ')})" if told else row.label)
    return made


def _name(row: Row) -> str:
    return f"{row.evaluator}/{row.metric}"


def _spread(values: Sequence[float], unit: str) -> str:
    mean = format_value(float(np.mean(values)), unit)
    if len(values) < 2:
        return mean
    spread = format_value(float(np.std(values, ddof=1)), unit)
    return f"{mean.removesuffix(' %')} ± {spread}"


def _difference(found: Difference, unit: str) -> str:
    text = format_value(found.value, unit)
    if found.low is not None and found.high is not None:
        text += f" ({format_bounds(found.low, found.high, unit)})"
    return f"{text}, better in {found.better} of {found.seeds}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE overrides a key of every run's config.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py", help="with get_config(arm)")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of all runs and the table")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: the file's VARIANTS")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="EVALUATOR/METRIC",
        help="the table's rows; default: those that reports show first",
    )
    arguments, overrides = parser.parse_known_args(argv)
    try:
        arms = arguments.arms or spec.variants(arguments.config)
        planned = runs(arguments.config, arms, arguments.seeds, overrides, arguments.metrics)
        folder = epath.Path(arguments.workdir)
        folders = {(arm, seed): folder / f"{arm or 'run'}-{seed}" for arm, seed in planned}
        done = {at: finished(folders[at], config) for at, (_, config) in planned.items()}
        for number, (at, (command, _)) in enumerate(planned.items(), start=1):
            if done[at]:
                continue
            print(f"[{number}/{len(planned)}] {folders[at]}", flush=True)
            if status := _train([*command, "--workdir", str(folders[at])]):
                print(f"error: {folders[at]} ended with status {status}", file=sys.stderr)
                return status
        lines = summary(folders, arguments.metrics)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = to_markdown(lines)
    rich.console.Console().print(rich.markdown.Markdown(text))
    writers.write_whole(folder / "ablation.md", text)
    writers.write_whole(folder / "ablation.svg", to_svg(lines))
    record = {_name(line.row): dataclasses.asdict(line) for line in lines}
    writers.write_whole(folder / "ablation.json", json.dumps(record, indent=1) + "\n")
    return 0


def _train(arguments: list[str]) -> int:
    """The exit status of a `python -m big_mm.train`, to which SIGTERM is passed on."""
    process = subprocess.Popen([sys.executable, "-m", "big_mm.train", *arguments])
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        status = process.wait()
    except KeyboardInterrupt:
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
    return status if status >= 0 else os.EX_SOFTWARE


if __name__ == "__main__":
    sys.exit(main())
