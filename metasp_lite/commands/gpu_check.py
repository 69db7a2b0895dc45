"""Whether a GPU can do the full runs, and how long: ``python -m metasp_lite gpu-check``, about three minutes.

Stored in data/results/bench/gpu.json.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metasp_lite import settings
from metasp_lite.commands.options import named

_SPEED = ("method", "precision", "ms_first", "ms_middle", "ms_last", "steps_per_second", "idle", "peak_mib")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``gpu-check``."""
    parser.add_argument(
        "--device",
        default="cuda",
        help="cuda, cuda:1, …; cpu: the same in small, the CPU against itself (default: cuda)",
    )
    parser.add_argument(
        "--out", type=named, metavar="FILE", help="where to store it (default: bench/gpu.json; of a CPU nowhere)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Check and measure, print the tables, store what was found; the last line is the command of the full grid.

    Raises:
        ValueError: for a device that is not here, or is neither a GPU of CUDA nor the CPU.
        ArithmeticError: when the device does not keep the bounds, after all else.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler would tell of itself in between
    from metasp_lite import files, results

    path = arguments.out
    if path is not None:
        files.require_writable(path)
    elif not arguments.device.startswith("cpu"):
        path = results.place("bench/gpu.json")
    device = settings.device(arguments.device)
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"--device {arguments.device}: this check knows cuda and cpu alone; give one of them")
    import torch

    from metasp_lite.studies import gpu

    torch.set_num_threads(1)  # of the CPU's side; a GPU needs no more
    found = gpu.study(device)
    if path is not None:
        results.write(path, found)
    print("\n".join(_told(found)))
    print("not stored; --out FILE does" if path is None else f"stored in {_shown(path)}")
    if not found["within"]:
        raise ArithmeticError(f"{found['device']} is not within these bounds: {_outside(found)}; train nothing on it")
    print(f"python -m metasp_lite grid {found['grid']} --out data/results/runs/{Path(found['grid']).stem}")
    return 0


def _shown(path: Path) -> Path:
    inside = path.is_relative_to(settings.PROJECT_DIR)
    return path.relative_to(settings.PROJECT_DIR) if inside else path


def _told(found: Mapping[str, Any]) -> list[str]:
    """Return what was found as tables and sentences."""
    resumed, full = found["resumed"], found["full"]
    changed = f"{resumed['difference']:.1e}, two whole runs by {resumed['difference_of_whole_runs']:.1e}"
    lines = [
        f"one step on {found['device']} beside the CPU's in float64",
        _table(found["steps"], ("method", "numbers", "error", "bound", "same_memory", "within")),
        f"a run killed in epoch {resumed['killed_in_epoch']} that went on differs by {changed}",
        f"steps of {found['network']}; milliseconds in a task's first, a middle and its last epoch; "
        f"float32 convolutions multiply in {found['convolutions']}",
        _table(found["speed"], _SPEED),
        *(f"not measured: {name}" for name in found["not_measured"]),
    ]
    if full is None:
        return [*lines, "the CPU beside itself, on a small network: nothing of this holds for a GPU"]
    return [
        *lines,
        "full runs on Split CIFAR-10 at these speeds; not counted are scores, checkpoints and ends of tasks",
        _table(full["runs"], ("method", "precision", "hours", "mib")),
        f"{full['memory_runs']} runs with a memory of {full['memory']}: {full['memory_hours']} hours; all "
        f"{full['grid_runs']} of the grid: {full['grid_hours']} hours, one after another",
    ]


def _table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    import pandas as pd

    return pd.DataFrame(rows)[list(columns)].to_string(index=False, na_rep="-", float_format=lambda each: f"{each:.4g}")


def _outside(found: Mapping[str, Any]) -> str:
    """Name what is not within its bound."""
    steps = [f"{row['method']} in {row['numbers']}" for row in found["steps"] if not row["within"]]
    return ", ".join([*steps, *([] if found["resumed"]["within"] else ["a run that is killed and goes on"])])
