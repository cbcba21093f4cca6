"""Writes report.html of a workdir anew, and prints the headline metrics.

python -m big_mm.report --workdir runs/quickstart
"""

import argparse
import sys
from collections.abc import Sequence

from big_mm import report
from big_mm.spec import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m big_mm.report", description=__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a run or evaluation")
    arguments = parser.parse_args(argv)
    try:
        path = report.write(arguments.workdir)
        report.print_table(report.headline(arguments.workdir))
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
