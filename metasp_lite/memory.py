"""A process of its own for each measurement, and the largest memory it had."""

import contextlib
import sys
from pathlib import Path


def peak_mib() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    import resource  # not on Windows, where the rest of the package runs

    # kibibytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let the process's peak of memory begin anew, where the system can (Linux): a worker does many runs."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
