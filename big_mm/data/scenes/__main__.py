"""Writes a data set of the embedded world: python -m big_mm.data.scenes --help."""

import argparse
import dataclasses
import sys
import time

from rich import progress as rich_progress
from rich.console import Console

from big_mm.data.scenes.sampling import WORLDS
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
    parser.add_argument(
        "--splits",
        required=True,
        nargs="+",
        type=_split,
        metavar="SPLIT=NUM",
        help="what to write, and how many scenes of it: train=20000 test_seen=500",
    )
    parser.add_argument("--image_size", type=int, default=64, help="pixels a side (64)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (0)")
    parser.add_argument("--num_shards", type=int, default=1, help="files to write (1)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes; 0: this one (0)")
    parser.add_argument(
        "--max_objects", type=int, default=MAX_OBJECTS, help=f"1 to {MAX_OBJECTS} ({MAX_OBJECTS})"
    )
    parser.add_argument(
        "--world",
        choices=WORLDS,
        default="full",
        help="easy: large, mostly plain objects on light backgrounds, learnt in minutes (full)",
    )
    return parser


def _split(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    if name not in SPLITS or not equals or not number.isdigit():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not SPLIT=NUM with a split among {', '.join(SPLITS)}"
        )
    return name, int(number)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for arguments that make no sense."""
    args = vars(_parser().parse_args(argv))
    splits, max_objects = args.pop("splits"), args.pop("max_objects")
    total = sum(number for _, number in splits)
    bar = rich_progress.Progress(
        "[progress.description]{task.description}",
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        "{task.fields[rate]}",
        rich_progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    start = time.monotonic()
    before, paths = 0, []
    try:
        world = WORLDS[args.pop("world")]
        world = dataclasses.replace(world, count_weights=world.count_weights[:max_objects])
        with bar:
            task = bar.add_task("", total=total, rate="")
            for name, number in splits:

                def report(done: int, name: str = name, before: int = before) -> None:
                    rate = f"{(before + done) / (time.monotonic() - start):,.0f} scenes/s"
                    bar.update(task, description=name, completed=before + done, rate=rate)

                paths += write(split=name, num=number, **args, world=world, progress=report)
                before += number
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - start
    print(
        f"{total:,} scenes in {len(paths)} shards of {args['out']}: "
        f"{seconds:.1f} s, {total / seconds:,.0f} scenes/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
