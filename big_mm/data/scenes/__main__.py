"""Writes a data set of the embedded world: python -m big_mm.data.scenes --help."""

import argparse
import dataclasses
import sys
import time

from rich import progress as rich_progress
from rich.console import Console

from big_mm.data.scenes.sampling import World
from big_mm.data.scenes.splits import SPLITS
from big_mm.data.scenes.world import MAX_OBJECTS
from big_mm.data.scenes.writer import write
from big_mm.spec import UserError


def _parser() -> argparse.ArgumentParser:
    splits = "\n".join(f"  {name:17} {split.about}" for name, split in SPLITS.items())
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.data.scenes",
        description="Renders scenes of coloured shapes with captions, boxes, masks and scene\n"
        "graphs, and writes them as TFRecord shards. Same arguments, same bytes.",
        epilog=f"splits:\n{splits}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("--split", required=True, choices=SPLITS, help="see below")
    parser.add_argument("--num", required=True, type=int, help="number of scenes")
    parser.add_argument("--image_size", type=int, default=64, help="pixels a side (64)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (0)")
    parser.add_argument("--num_shards", type=int, default=1, help="files to write (1)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes; 0: this one (0)")
    parser.add_argument(
        "--max_objects", type=int, default=MAX_OBJECTS, help=f"1 to {MAX_OBJECTS} ({MAX_OBJECTS})"
    )
    parser.add_argument(
        "--noise", type=float, default=World.noise, help=f"largest pixel noise ({World.noise})"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for arguments that make no sense."""
    args = vars(_parser().parse_args(argv))
    max_objects = args.pop("max_objects")
    console = Console(stderr=True)
    bar = rich_progress.Progress(
        "[progress.description]{task.description}",
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        "{task.fields[rate]}",
        rich_progress.TimeRemainingColumn(),
        console=console,
    )
    start = time.monotonic()
    try:
        world = dataclasses.replace(
            World(), noise=args.pop("noise"), count_weights=World.count_weights[:max_objects]
        )
        with bar:
            task = bar.add_task(args["split"], total=args["num"], rate="")

            def report(done: int) -> None:
                rate = done / (time.monotonic() - start)
                bar.update(task, completed=done, rate=f"{rate:,.0f} scenes/s")

            paths = write(**args, world=world, progress=report)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - start
    rate = args["num"] / seconds
    print(
        f"{args['num']:,} scenes in {len(paths)} shards of {args['out']}: "
        f"{seconds:.1f} s, {rate:,.0f} scenes/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
