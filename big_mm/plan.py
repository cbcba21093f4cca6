"""Says what a run will need before any hardware is there, by compiling it with the real compiler.

    python -m big_mm.plan --config configs/coca.py:giant --topology v5p:8x8x4 --topology v5e:16x16
    python -m big_mm.plan --config ... --topology v5e:16x16 --sweep mesh,remat --price v5e=1.20
    python -m big_mm.plan --config ... --topology v5e:16x16 --effort default   cycles as well
    python -m big_mm.plan --config ... --topology h100:32x8 --topology h200:32x8   nodes x GPUs
    python -m big_mm.plan --config ... --topology v5e:16x16 --analytic         no compiler needed

What is compiled is the update that training jits, with its shardings. For each plan: the memory of
a chip by kind, operations, HBM traffic and collectives of a step, the time that each of these takes
at the chip's peak, and the utilisation that this allows. A plan that does not fit is a result, not
an error; the exit status is 0 if one fits. Needs libtpu (pip install -e '.[plan]'), not a TPU, and
for GPUs JAX's CUDA plugin ('.[plan-gpu]'), not a GPU. A compilation takes 1 to 2 minutes of CPU for
a large model, 3 to 8 with --effort default; results are cached, and Ctrl-C shows what is done.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import ml_collections
import numpy as np

from big_mm import spec
from big_mm.mesh import MeshConfig
from big_mm.planning import analytic, chips, compiler, example, plans, sweep, tables
from big_mm.planning.chips import Topology
from big_mm.planning.plans import Plan
from big_mm.spec import UserError
from big_mm.training import loop
from big_mm.training import run as runs


def prices(text: str) -> dict[str, float]:
    """{chip, or "" for all others: dollars for an hour}, from "1.2" or "v5e=1.2,v5p=4.2"."""
    out = {}
    for part in filter(None, text.split(",")):
        chip, _, dollars = part.rpartition("=")
        try:
            out[chip] = float(dollars)
        except ValueError:
            raise UserError(f"--price {part}: dollars, or CHIP=DOLLARS,...") from None
        if chip and chip not in chips.CHIPS:
            raise UserError(f"--price {part}: there are {', '.join(chips.CHIPS)}")
    return out


def shapes(config: ml_collections.ConfigDict, read_data: bool) -> dict[str, np.ndarray]:
    """A host batch in the run's shapes, of real records or of one that stands in for them."""
    if read_data:
        return loop.open_data(spec.build(config), 0)[0]
    return example.batch(example.build(config))


def compiled(
    config: ml_collections.ConfigDict,
    slices: Sequence[Topology],
    arguments: argparse.Namespace,
) -> Iterator[Plan]:
    """One plan after the other, as they are done."""
    compiler.require(slices)
    costs = prices(arguments.price)
    batch = shapes(config, arguments.read_data)
    axes = list(filter(None, arguments.sweep.split(",")))
    points = [(s, *point) for s in slices for point in sweep.points(config, s, axes)]
    for number, (topology, settings, point) in enumerate(points, start=1):
        kind = topology.name.partition(":")[0]
        label = f"{number}/{len(points)} {topology.name} {settings or ''}"

        def wait(seconds: float, label: str = label) -> None:
            if sys.stderr.isatty():
                print(f"\rcompiling {label} {seconds:.0f} s ", end="", file=sys.stderr, flush=True)

        keep = arguments.hlo and pathlib.Path(arguments.hlo) / f"{number}.txt"
        try:
            prepared = plans.lay_out(point, topology, batch)
        except UserError as error:
            if len(points) == 1:
                raise
            yield plans.refused(point, topology, settings, str(error))
            continue
        plan = plans.make(
            prepared,
            topology,
            settings,
            effort=arguments.effort,
            price=costs.get(kind, costs.get("")),
            keep=keep or None,
            wait=wait,
        )
        print(f"\r{label}: {'fits' if plan.fits else plan.refusal}", file=sys.stderr, flush=True)
        yield plan


def run_compiled(
    config: ml_collections.ConfigDict,
    slices: Sequence[Topology],
    arguments: argparse.Namespace,
) -> int:
    """Compiles and reports; 1 if nothing fits."""
    done: list[Plan] = []
    stopped = False
    try:
        for plan in compiled(config, slices, arguments):
            done.append(plan)
    except KeyboardInterrupt:
        print("\nstopped: the plans so far", file=sys.stderr)
        stopped = True
    if arguments.json is not None:
        write_json(arguments.json, [dataclasses.asdict(plan) for plan in done])
    if arguments.json != "-" and done:
        tables.show(tables.overview(done), tables.LEGEND, "")
        tables.show(*(tables.details(plan) for plan in done), "", tables.advice(done))
    status = 0 if any(plan.fits for plan in done) else 1
    if stopped:
        sys.stdout.flush()
        os._exit(130)  # a compilation that runs cannot be told to stop
    return status


def run_analytic(
    config: ml_collections.ConfigDict,
    slices: Sequence[Topology],
    arguments: argparse.Namespace,
) -> int:
    """The table of modules and what a chip holds, without a compiler."""
    batch = shapes(config, arguments.read_data)
    run = example.build(config)
    out = []
    for topology in slices or [None]:
        # Without a slice everything lies on one imaginary chip.
        layout = run.mesh.abstract(topology.chips) if topology else MeshConfig().abstract(1)
        found = analytic.analyse(run, *runs.shapes(run, batch, layout))
        rows = [dataclasses.asdict(row) for row in found.rows]
        name = topology.name if topology else None
        out.append({"topology": name, "modules": rows, "memory_bytes": found.memory})
        if arguments.json != "-":
            tables.show(*tables.analysis(found, topology))
    if arguments.json is not None:
        write_json(arguments.json, out)
    return 0


def write_json(path: str, data: list[dict]) -> None:
    """To a file, or for "-" to the standard output."""
    text = json.dumps(data, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        pathlib.Path(path).write_text(text)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it overrides the config."""
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE sets a key of the config, at any depth. Slices: "
        + chips.extents(),
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="get_config(ARG)")
    parser.add_argument(
        "--topology",
        action="append",
        default=[],
        metavar="CHIP:AxB[xC]",
        help="may be repeated; GPUs: NODESxGPUS",
    )
    parser.add_argument(
        "--sweep", default="", metavar="AXIS,...", help=f"any of {', '.join(sweep.AXES)}"
    )
    parser.add_argument("--effort", choices=compiler.EFFORTS, default="low", help="default: low")
    parser.add_argument("--price", default="", metavar="DOLLARS", help="a chip hour, or CHIP=...")
    parser.add_argument("--analytic", action="store_true", help="by module, without a compiler")
    parser.add_argument("--read-data", action="store_true", help="take shapes from the real data")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="a list of plans; default: printed"
    )
    parser.add_argument("--hlo", metavar="DIR", help="keep the optimised programs as text")
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parse(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing runs, and a real device must not be taken
    try:
        config = spec.load_config(arguments.config)
        spec.override(config, overrides)
        plans.check(config)
        slices = [chips.parse(name) for name in arguments.topology]
        if arguments.analytic:
            return run_analytic(config, slices, arguments)
        if not slices:
            raise UserError("--topology is needed, like v5e:16x16 (--analytic does without)")
        return run_compiled(config, slices, arguments)
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
