"""Writes shards again with further features: rewritten captions, captions of a checkpoint.

    python -m big_mm.annotate --config experiments/laclip/rewrite.py \\
        --shards 'data/train-*.tfrecord' --out data/rewritten

The config is one annotator, spec(Rewrite, ...) or spec(Caption, ...) of big_mm.curation, or your
own. A shard of --out has the records of the input's shard of that name, in their order, with all
their features and the new ones; damaged records are named and left out.

Every answer is kept in --answers as it comes. The same command goes on after an interruption:
finished shards are left alone, and nothing is asked for twice.

Exit status:
    0   every shard is finished
    2   something to correct first, as the line `error: ...` says
    75  SIGTERM or Ctrl-C came: the same command continues
"""

import argparse
import collections
import contextlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence

from absl import logging

from big_mm import spec
from big_mm.curation import annotation
from big_mm.curation.asking import Annotator
from big_mm.data.damage import DAMAGE
from big_mm.spec import UserError
from big_mm.training import writers

# Seconds between two updates, and over how many the rate is taken: kept answers cost no time.
_EVERY, _WINDOW = 10.0, 12


class _Progress:
    """Records, rate and the time left."""

    def __init__(self) -> None:
        self._line: writers.ProgressLine | None = None
        self._shown = collections.deque([(time.monotonic(), 0)], maxlen=_WINDOW)

    def __call__(self, done: int, total: int, bad: int) -> None:
        now = time.monotonic()
        if done < total and now - self._shown[-1][0] < _EVERY:
            return
        self._line = self._line or writers.ProgressLine(total, "record")
        begun, before = self._shown[0]
        self._shown.append((now, done))
        text = f"{bad:,} damaged" if bad else ""
        if rate := (done - before) / max(now - begun, 1e-9):
            left = writers.duration((total - done) / rate)
            text = f"{rate:,.1f} records/s  {left} left  {text}"
        self._line.update(done, text.rstrip())

    def close(self) -> None:
        """Leaves the line as it is."""
        if self._line is not None:
            self._line.close()


def _parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.annotate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE sets a key of the config, at any depth.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="the annotator")
    parser.add_argument(
        "--shards",
        required=True,
        nargs="+",
        metavar="SHARDS",
        help="paths or URLs; *, ?, [...], {a,b}, {00000..00031} and name@4 are expanded",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="local or remote")
    parser.add_argument(
        "--answers",
        metavar="FILE",
        help=f"a local file that keeps all answers (default: {annotation.ANSWERS} in --out)",
    )
    parser.add_argument(
        "--max_bad_share",
        type=float,
        default=0.01,
        help="more damaged records than this share of a shard are an error (default: %(default)s)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=8,
        help="how often a service that is busy or fails is asked again, after 1, 2, 4 ... 60 "
        "seconds or what it says itself (default: %(default)s)",
    )
    return parser.parse_known_args(argv)


def _describe(report: annotation.Report, out: str) -> str:
    bad = ", ".join(f"{report.bad[kind]} {kind}" for kind in DAMAGE if report.bad[kind])
    left_out = f", {report.bad.total():,} of them damaged and left out ({bad})" if bad else ""
    return (
        f"{out}: {report.written} shards written, {report.finished} were finished; "
        f"{report.records:,} records{left_out}; {report.asked:,} answers asked for"
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = _parse_arguments(argv)
    # SIGTERM ends the job as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.set_verbosity(logging.WARNING)
    try:
        config = spec.load_config(arguments.config)
        spec.override(config, overrides)
        annotator = spec.build(config)
        if not isinstance(annotator, Annotator):
            raise UserError(f"{arguments.config} is not spec(...) of an annotator")
        with contextlib.closing(_Progress()) as progress:
            report = annotation.annotate(
                annotator,
                tuple(arguments.shards),
                arguments.out,
                answers=arguments.answers,
                max_bad_share=arguments.max_bad_share,
                retries=arguments.retries,
                progress=progress,
            )
    except KeyboardInterrupt:
        print("stopped: the same command continues", file=sys.stderr)
        return os.EX_TEMPFAIL
    except (UserError, OSError, sqlite3.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    print(_describe(report, arguments.out))
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Python would wait for a request that hangs
