"""A process of its own for each measurement, and how its memory is to be counted."""

import ctypes
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def in_fresh_process(function: Callable[..., _T], *arguments: object) -> _T:
    """Call a module's ``function`` in a process that did nothing before, and return what it returns.

    The process is forked from a small server that multiprocessing keeps, and not started by this process: on Linux one
    that is started begins with the peak of the one that started it, which would hide its own.
    """
    # a pool for one call: a pool that replaces its process after every call may wait for ever (CPython issue 115634)
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(function, *arguments).result()


def import_beforehand(*modules: str) -> None:
    """Let the server import ``modules`` when it starts, and not every fresh process again (seconds each)."""
    multiprocessing.set_forkserver_preload(list(modules))


def return_freed_memory() -> None:
    """Let this process give each block of 64 KiB or more back to the system as soon as it is freed.

    glibc's malloc keeps freed blocks for later, as they happen to fit.  The peak of the very same step then moves by
    15 % with what the process allocated before; without the kept blocks by less than 1 %.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: these blocks are mappings of their own
