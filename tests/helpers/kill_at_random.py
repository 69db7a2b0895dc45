"""Run the program's command to its end, then the same with another folder, killed again and again at random moments."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time

import torch

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


if __name__ == "__main__":
    seed, whole, out, *command = sys.argv[1:]
    torch.set_num_threads(1)
    start = time.monotonic()
    assert main([*command, "--out", whole]) == 0
    longest, draw, killed = (time.monotonic() - start) / 4, random.Random(int(seed)), 0
    while killed < LEAST:  # however fast the machine is, once the kills come early enough
        shutil.rmtree(out, ignore_errors=True)
        killed = run_to_the_end([*command, "--out", out], draw, longest)
        longest /= 2
    print("killed", killed)
