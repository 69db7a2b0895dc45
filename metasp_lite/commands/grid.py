"""Many runs at once: ``python -m metasp_lite grid FILE.toml --out DIR``."""

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from metasp_lite import settings
from metasp_lite.commands.options import named, number, whole

if TYPE_CHECKING:
    from metasp_lite.continual.grid import Outcome


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``grid``; its help shows a grid."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"FILE reads like this:\n\n{settings.GRID_EXAMPLE.read_text(encoding='utf-8')}"
    parser.add_argument("file", type=named, metavar="FILE.toml")
    parser.add_argument("--out", type=named, required=True, metavar="DIR", help="each run gets a folder in it")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=whole, metavar="N", help="processes (default: one a core; one with a GPU)")
    where.add_argument(
        "--dask", metavar="ADDRESS", help="a scheduler's, tcp://…; its workers (--nthreads 1) must see DIR and the data"
    )
    parser.add_argument("--threads", type=whole, default=1, metavar="N", help="of each run (default: 1)")
    parser.add_argument(
        "--checkpoint-seconds", type=number, default=60.0, metavar="S", help="default: 60; 0: after every epoch"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the grid; the status is 1 when any run failed."""
    if (arguments.workers is not None and arguments.workers < 1) or arguments.threads < 1:
        raise ValueError("--workers and --threads must be at least 1")
    if arguments.dask is not None and not arguments.dask.strip():
        raise ValueError("--dask is empty; give the address that the scheduler prints, tcp://…")
    from metasp_lite.continual import grid, plan

    outcomes = grid.run_all(
        plan.read_grid(arguments.file, arguments.out, arguments.threads),
        workers=arguments.workers or grid.default_workers(),
        dask=arguments.dask,
        checkpoint_seconds=arguments.checkpoint_seconds,
    )
    print(_report(outcomes))
    return int(any(outcome.state == "failed" for outcome in outcomes))


def _report(outcomes: "Sequence[Outcome]") -> str:
    """Say how many runs ended in which way, and of each that failed why and how to repeat it."""
    counts = Counter(outcome.state for outcome in outcomes)
    lines = [
        f"{len(outcomes)} runs: {counts['finished']} finished, {counts['skipped']} skipped (finished before), "
        f"{counts['failed']} failed"
    ]
    for outcome in outcomes:
        if outcome.state == "failed":
            lines += [f"{outcome.job.name} failed: {outcome.error}", f"  alone: {outcome.job.command}"]
    return "\n".join(lines)
