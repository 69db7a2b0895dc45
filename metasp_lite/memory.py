"""The largest memory that this process has had, and what is free, on whatever system."""

import contextlib
import importlib
import sys
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")  # of a container, which may have less than its machine


def peak_mib() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    if sys.platform == "win32":
        import psutil  # there Python's own ``resource`` is missing

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    # kibibytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def forget_peak() -> None:
    """Let the process's peak of memory begin anew, where the system can (Linux): a worker does many runs."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def available_bytes() -> int | None:
    """Return how much memory a process can still take without swapping, in bytes; None where nothing tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
        free = [found["MemAvailable"], *_left_to_group()]
    except (OSError, ValueError, KeyError):
        try:
            return int(importlib.import_module("psutil").virtual_memory().available)
        except ImportError:
            return None
    return min(free)


def _left_to_group() -> list[int]:
    """Return what a container's limit leaves, its files in memory counted as free, or nothing where it has none."""
    try:
        most, taken = ((_GROUP / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
        lines = (_GROUP / "memory.stat").read_text(encoding="utf-8").splitlines()
        files = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
        return [max(int(most) - int(taken) + files, 0)]
    except (OSError, ValueError):  # no such limit; "max"
        return []
