"""A Dask cluster on this machine's loopback alone, whose workers a test may kill."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from metasp_lite.continual import grid


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, Callable[[int], list[subprocess.Popen]]]]:
    """Start a scheduler; yield its address and what starts so many workers and waits until ``count`` are there."""
    distributed = pytest.importorskip("distributed", reason="needs the extra: pip install -e '.[dask]'")
    file, log = folder / "scheduler.json", (folder / "cluster.log").open("w")
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes: list[subprocess.Popen] = []

    def start(*words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", *words, *common]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment))
        return processes[-1]

    def workers(count: int) -> list[subprocess.Popen]:
        alive = [process for process in processes[1:] if process.poll() is None]
        words = ("distributed.cli.dask_worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny")
        alive += [start(*words) for _ in range(count - len(alive))]
        with distributed.Client(address) as client:
            client.wait_for_workers(count, timeout=300)
            client.run(import_module, grid.__name__)  # so that all begin at the same moment
        return alive

    try:
        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        end = time.monotonic() + 300
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        yield address, workers
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()
