"""The largest memory that this process has had, on whatever system."""

import contextlib
import sys
from pathlib import Path


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
