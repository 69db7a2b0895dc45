"""Where the runs of a grid are computed: processes here, which end with the one that began them, or a Dask cluster."""

import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import joblib

from metasp_lite import files
from metasp_lite.continual.place import clear

_GLANCE = 0.5  # seconds between two looks at whether the process that asked is still there
_SCHEDULER_SECONDS = 10  # in which a scheduler has to answer
_STARTING_SECONDS = 20  # of a Python that imports distributed, on a busy machine
_ASK = "import sys, distributed; distributed.Client(sys.argv[1], timeout=float(sys.argv[2]), set_as_default=False)"


@contextlib.contextmanager
def pool(workers: int, dask: str | None, folders: Iterable[Path]) -> Iterator[Callable[[], joblib.Parallel]]:
    """Yield what makes the one call that runs jobs, in ``workers`` processes here or on the cluster at ``dask``.

    Where the call is interrupted, the workers are gone, and what they wrote half into ``folders`` goes, too.

    Raises:
        ValueError: when the Dask extra is not installed, or no scheduler answers at the address within seconds.
    """
    if dask is None:
        here = {"initializer": _end_with, "initargs": (os.getpid(),)} if workers > 1 else {}
        with joblib.parallel_config(backend="loky", n_jobs=workers, **here):
            try:
                yield functools.partial(joblib.Parallel, batch_size=1, return_as="generator_unordered")
            except BaseException:
                for folder in folders:
                    clear(folder)
                raise
        return
    _require_scheduler(dask)
    with joblib.parallel_config(backend="dask", scheduler_host=dask, n_jobs=-1) as config:
        try:
            yield functools.partial(joblib.Parallel, batch_size=1, pre_dispatch="all", return_as="generator_unordered")
        finally:
            config["backend"].client.close()


def _require_scheduler(address: str) -> None:
    """Refuse an address at which no Dask scheduler answers; what distributed itself says then fills a screen."""
    if importlib.util.find_spec("distributed") is None:
        raise ValueError("a Dask cluster needs the package's extra: pip install -e '.[dask]'")
    try:  # in a process of its own, which ends: a program that takes the connection and says nothing holds the client
        asking = [sys.executable, "-c", _ASK, address, str(_SCHEDULER_SECONDS)]
        asked = subprocess.run(asking, capture_output=True, check=False, timeout=_SCHEDULER_SECONDS + _STARTING_SECONDS)
        if asked.returncode == 0:
            return
        said = asked.stderr.decode(errors="replace").splitlines()
        reason = said[-1] if said else f"the client ended with status {asked.returncode}"
    except subprocess.TimeoutExpired:
        reason = "it takes the connection and says nothing"
    raise ValueError(
        f"no Dask scheduler answers at {address!r} ({reason}); start one (dask scheduler) and give the address "
        "that it prints, tcp://…"
    )


def _end_with(starter: int) -> None:
    """Let this worker end within seconds of the process ``starter``, its parent, however that ends.

    Left alone, it would train on to the end of its run, and then hold its memory for minutes.  What it has written half
    goes with it.
    """
    threading.Thread(target=_watch, args=(starter,), daemon=True).start()


def _watch(starter: int) -> None:
    while _is_there(starter):
        time.sleep(_GLANCE)
    files.abandon()
    os._exit(1)  # the main thread may be in the middle of a step, and would go on to the next run after an error


def _is_there(starter: int) -> bool:
    """Whether the parent lives; its children get another, but on Windows, where they keep its number."""
    if sys.platform == "win32":
        import psutil

        return psutil.pid_exists(starter)
    return os.getppid() == starter
