"""What things cost: ``python -m metasp_lite bench [toy] [step] [train]``, written to data/results/bench."""

import argparse

import torch

from metasp_lite import bench_step, bench_toy, bench_train
from metasp_lite.bench_process import import_beforehand

BENCHMARKS = ("toy", "step", "train")


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Register ``bench``."""
    command = subparsers.add_parser(
        "bench", help="measure what influences, a MetaSP step and training cost, and store it"
    )
    command.add_argument(
        "benchmarks",
        nargs="*",
        metavar="{toy,step,train}",
        help="toy: influences; step: a MetaSP step; train: steps a second of training (default: all)",
    )
    command.add_argument("--seeds", type=int, default=5, help="toy: how many starting weights, 0, 1, … (default 5)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmarks that are asked for, on one thread."""
    chosen = arguments.benchmarks or BENCHMARKS
    unknown = sorted(set(chosen) - set(BENCHMARKS))
    if unknown:
        raise ValueError(f"there is no benchmark {', '.join(map(repr, unknown))}; choose from {', '.join(BENCHMARKS)}")
    if arguments.seeds < 1:
        raise ValueError(f"--seeds {arguments.seeds}: give at least 1")
    torch.set_num_threads(1)  # as in the processes that measure: stored results name this number
    import_beforehand(bench_toy.__name__, bench_step.__name__)
    if "toy" in chosen:
        bench_toy.run(arguments.seeds)
    if "step" in chosen:
        bench_step.run()
    if "train" in chosen:
        bench_train.run()
    return 0
