"""The peak of memory: counted on every system, in the same unit."""

import builtins
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from metasp_lite import memory


def test_the_peak_grows_by_what_is_held_and_stays():
    before = memory.peak_mib()
    held = np.ones(int(2 * before) * 2**20 // 8)  # twice what there was, so that no earlier peak hides it
    peak = memory.peak_mib()
    assert peak > before + held.nbytes / 2**20 * 0.4
    del held
    assert memory.peak_mib() >= peak


def without_resource(name, *arguments, imported=builtins.__import__, **named):
    if name == "resource":
        raise ModuleNotFoundError("No module named 'resource'")
    return imported(name, *arguments, **named)


def test_on_windows_it_is_the_peak_of_the_working_set(monkeypatch):
    """Simulated: Windows has no module ``resource``."""
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**19))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(builtins, "__import__", without_resource)
    assert memory.peak_mib() == 1.5


@pytest.mark.parametrize(("platform", "factor"), [("linux", 2**10), ("darwin", 1)])
def test_elsewhere_it_is_the_systems_own_count_in_its_unit(monkeypatch, platform, factor):
    """Linux counts kibibytes, macOS bytes."""
    usage = SimpleNamespace(ru_maxrss=5 * 2**20 / factor)
    fake = SimpleNamespace(getrusage=lambda who: usage, RUSAGE_SELF=0)
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(sys, "platform", platform)
    assert memory.peak_mib() == 5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_a_peak_can_be_forgotten():
    """In a shell's child: one that this process starts itself begins with this process's peak."""
    code = "from metasp_lite import memory; x = bytearray(2**27); del x; high = memory.peak_mib(); memory.forget_peak()"
    code = f"{code}; print(high - memory.peak_mib())"
    line = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, code]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 100


def test_training_needs_neither_resource_nor_the_studies():
    """What ``train`` imports, on a system without ``resource``."""
    code = (
        "import sys; sys.modules['resource'] = None\n"
        "from metasp_lite.continual import training, grid, presets\n"
        "assert not [name for name in sys.modules if name.startswith('metasp_lite.studies')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
