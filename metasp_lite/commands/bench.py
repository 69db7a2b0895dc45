"""What things cost: ``python -m metasp_lite bench [NAME …]``, written to data/results/bench."""

import argparse
from collections.abc import Callable, Mapping, Sequence

from metasp_lite.commands.options import require_known, whole

_BENCHMARKS = ("toy", "step", "train", "methods")
_ALL = (*_BENCHMARKS, "peers")  # peers only where it is named: it needs other libraries
_SHOWN = {
    "step": ("variant", "network", "n", "v", "counted_ratio_to_er", "cpu_seconds", "cpu_ratio_to_er", "peak_extra_mib"),
    "methods": ("method", "operations_in_er_runs", "cpu_seconds_in_er_runs", "cpu_seconds"),
    "train": ("network", "variant", "steps_per_second", "ratio_to_bare", "share_of_er_step"),
    "peers": (
        "library",
        "method",
        "seed",
        "cpu_seconds_median",
        "extra_mib",
        "signs_right",
        "balanced_accuracy",
        "lines",
    ),
}
_Rows = Mapping[str, object] | Sequence[Mapping[str, object]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench``."""
    parser.add_argument(
        "benchmarks",
        nargs="*",
        metavar=f"{{{','.join(_ALL)}}}",
        help="toy: influences; step: a MetaSP step; train: steps a second of training; methods: a run of each method "
        "(default: these four); peers: other libraries on the toy",
    )
    parser.add_argument(
        "--seeds", type=whole, default=5, help="toy, peers: how many starting weights, 0, 1, … (default 5)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmarks that are asked for, on one thread; print a table of each and store it."""
    chosen = arguments.benchmarks or _BENCHMARKS
    require_known(chosen, _ALL, "benchmark")
    if arguments.seeds < 1:
        raise ValueError(f"--seeds {arguments.seeds}: give at least 1")
    import torch

    from metasp_lite import results, settings
    from metasp_lite.studies import import_beforehand, method_cost, peers, step_cost, toy_cost, training_cost

    paths = {name: results.place(f"bench/{name}.json") for name in _ALL if name in chosen}
    torch.set_num_threads(1)  # as in the processes that measure: stored results name this number
    import_beforehand(toy_cost.__name__, step_cost.__name__)  # peers names its own
    studies: dict[str, Callable[[], _Rows]] = {
        "toy": lambda: toy_cost.study(arguments.seeds),
        "step": step_cost.study,
        "train": training_cost.study,
        "methods": method_cost.study,
        "peers": lambda: peers.study(arguments.seeds),
    }
    for name, path in paths.items():
        found = studies[name]()
        results.write(path, found)
        print(_table(found, _SHOWN.get(name)))
        print(f"stored in {path.relative_to(settings.PROJECT_DIR)}")
    return 0


def _table(found: _Rows, shown: Sequence[str] | None) -> str:
    """Return the rows of a study as lines of text: all their columns, or those ``shown``."""
    import pandas as pd

    table = pd.DataFrame(found["runs"] if isinstance(found, Mapping) else found)
    return table[list(shown or table.columns)].to_string(index=False)
