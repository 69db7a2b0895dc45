"""Whole commands that are killed, started twice or out of disk: nothing is lost, and what is stored is the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faults import trials

KINDS = ("kills of a grid", "pairs", "disks", "disks of results", "kills of a run")
SCRIPT = Path(__file__).parents[1] / "helpers" / "forked_faults.py"
GRID = """streams = ["{folder}"]
methods = ["er"]
memory = [12]
seeds = [1, 2]
[set]
epochs = 3
batch = 4
lr = 0.02
momentum = 0.9
"""


def can_mount() -> bool:
    """Whether a small disk can be made, in a name space of its own that ends with its process."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def ended(folder, tmp_path_factory) -> dict[str, dict[str, int]]:
    """How all trials ended: one script for all, for it imports torch once."""
    scratch, mounts = tmp_path_factory.mktemp("scratch"), can_mount()
    (scratch / "grid.toml").write_text(GRID.format(folder=folder), encoding="utf-8")
    words = [f"kills={trials(1)}", f"pairs={trials(2)}", f"disks={trials(4) if mounts else 0}"]
    words += [f"more_kills={trials(1)}"]
    done = subprocess.run(
        [*(["unshare", "-rm"] if mounts else []), sys.executable, SCRIPT, folder, scratch, *words],
        capture_output=True,
        text=True,
        check=False,
        # CUDA does not survive a fork
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "METASP_CACHE": str(scratch / "cache"),
            "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind, ended, tally):
    if kind not in ended:
        pytest.skip("needs unshare and mount")
    counts = ended[kind]
    tally.update(counts)
    assert counts["trials"] > 0
    assert (counts["lost"], counts["silent"], counts["traceback"]) == (0, 0, 0)
