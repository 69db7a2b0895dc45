"""The command line: ``python -m metasp_lite data``, ``tour`` and ``bench``."""

import argparse
import sys
from collections.abc import Sequence

from metasp_lite import bench, data, tour


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; each module adds its own subcommand and the function that runs it."""
    parser = argparse.ArgumentParser(prog="python -m metasp_lite", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    data.add_command(commands)
    tour.add_command(commands)
    bench.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; an expected error ends in one clear sentence, not a traceback."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError) as error:
        print(f"metasp_lite: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
