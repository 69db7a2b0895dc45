"""Guards for `pytest --nbval notebooks`: a dead kernel is reported at once, a busy machine is given time."""

import os
import time
from queue import Empty

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell

POLL_SECONDS = 2.0
OUTPUT_SECONDS = 60.0

# with a backend of the user's own choice the figures would not appear in the notebook
os.environ.pop("MPLBACKEND", None)

wait_for_message = RunningKernel.get_message


def get_message(kernel: RunningKernel, stream: str, timeout: float | None = None) -> dict:
    """Wait for a message as nbval does, but look every two seconds whether the kernel still lives.

    By hand, since nbval never looks; and not by the tour's module, which would load torch into pytest, 800 MiB more.

    Raises:
        RuntimeError: when it has died; nbval alone would wait for the whole cell timeout.
        Empty: when ``timeout`` seconds have passed.
    """
    deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
    while True:
        left = deadline - time.monotonic()
        try:
            return wait_for_message(kernel, stream, timeout=max(0.0, min(POLL_SECONDS, left)))
        except Empty:
            if not kernel.is_alive():
                raise RuntimeError("the kernel died, most often for want of memory") from None
            if left <= POLL_SECONDS:
                raise


RunningKernel.get_message = get_message


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each cell more than nbval's fixed five seconds between its end and the arrival of its output."""
    if isinstance(item, IPyNbCell):
        item.output_timeout = OUTPUT_SECONDS
