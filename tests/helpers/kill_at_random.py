"""Run the program's command to its end, killed again and again at random moments."""

import contextlib
import os
import random
import signal
import time

from metasp_lite.__main__ import main

LEAST = 3  # kills that count as "again and again"


def run_to_the_end(argv: list[str], draw: random.Random, longest: float) -> int:
    """Start ``argv`` until once it gets to its end; return how many processes were killed before."""
    killed = 0
    while True:
        child = os.fork()  # without the seconds that a new interpreter takes to import torch
        if child == 0:
            os.setpgid(0, 0)  # a group of its own, with the workers that it starts
            os._exit(main(argv))
        time.sleep(draw.uniform(0, longest))
        with contextlib.suppress(ProcessLookupError):  # it has not come so far
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL:
            assert code == 0
            return killed
        killed, longest = killed + 1, 1.15 * longest  # however slow the machine is, once it is long enough
