"""Run the program's command to its end, then the same with another folder, killed again and again at random moments."""

import os
import random
import signal
import sys
import time

import torch

from metasp_lite.__main__ import main


def run_to_the_end(argv: list[str], draw: random.Random, longest: float) -> int:
    """Start ``argv`` until once it gets to its end; return how many processes were killed before."""
    killed = 0
    while True:
        child = os.fork()  # without the seconds that a new interpreter takes to import torch
        if child == 0:
            os._exit(main(argv))
        time.sleep(draw.uniform(0.02, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL:
            assert code == 0
            return killed
        killed, longest = killed + 1, 1.15 * longest  # however slow the machine is, once it is long enough


if __name__ == "__main__":
    seed, longest, whole, killed, *command = sys.argv[1:]
    torch.set_num_threads(1)
    assert main([*command, "--out", whole]) == 0
    print("killed", run_to_the_end([*command, "--out", killed], random.Random(int(seed)), float(longest)))
