"""Trains what a config describes.

    python -m big_mm.train --config configs/coca.py:tiny --workdir runs/mine
    python -m big_mm.train --config ... --workdir ... --config.optimizer.learning_rate=3e-4
    python -m big_mm.train --config ... --config.steps=0     check everything, train nothing

The workdir gets metrics.jsonl, evaluation.json, report.html, config.json, checkpoints/ and
tensorboard/, and incidents.jsonl if an update was refused. The same command continues an
interrupted run from its latest checkpoint.

Exit status:
    0   trained to the last step, and evaluated
    2   something to correct first, as the line `error: ...` says: config, data, disk, divergence
    74  a data worker died, or no batch came for data.timeout seconds: `error: ...` says who is to
        blame. Worth another try, perhaps on another machine
    75  SIGTERM came, the state was saved: the same command continues
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence

import jax
from absl import logging

from big_mm import allocator, distributed, report, spec
from big_mm.data import watch
from big_mm.spec import UserError
from big_mm.training import check, loop

# What a disk says; other errors without the name of a file are no mistake of the user.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE sets a key of the config, at any depth: values are Python "
        "literals, text, or the dotted name of a component.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="get_config(ARG)")
    parser.add_argument("--workdir", metavar="DIR", help="where results go; needed unless steps=0")
    arguments, overrides = parser.parse_known_args(argv)
    logging.set_verbosity(logging.WARNING)
    allocator.keep_freed_memory()
    try:
        config = spec.load_config(arguments.config)
        spec.override(config, overrides)
        distributed.init()
        if config.steps == 0:
            print(check.check(config, arguments.workdir))
        elif not arguments.workdir:
            raise UserError("--workdir DIR is needed to train (--config.steps=0 only checks)")
        elif (metrics := loop.train(config, arguments.workdir)) is None:
            print("stopped by SIGTERM and saved: the same command continues", file=sys.stderr)
            return os.EX_TEMPFAIL
        elif metrics and jax.process_index() == 0:
            page = report.write(arguments.workdir)
            report.print_table(report.headline(arguments.workdir))
            print(page)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except watch.Stalled as error:
        print(f"error: {error}", file=sys.stderr)
        return watch.STATUS
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        place = "" if error.filename else f" (in writing to {arguments.workdir}?)"
        print(f"error: {error}{place}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    watch.leave(main())
