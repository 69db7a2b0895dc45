"""The workers of a grid: they end with it, however it ends, there are no more than runs, and a scheduler answers."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tiny_stream import SETTINGS

from metasp_lite import __main__ as program
from metasp_lite.continual import grid, plan, training, workers

pytestmark = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")


def grid_of(at: Path, folder: Path, *, epochs: int, seeds: int = 3) -> Path:
    """Write a grid of ER on the tiny images."""
    lines = [f"streams = {json.dumps([str(folder)])}", 'methods = ["er"]', f"seeds = {list(range(seeds))}"]
    lines += ["memory = [12]", "[set]", f"epochs = {epochs}", f"batch = {SETTINGS['batch']}", "lr = 0.02"]
    at.write_text("\n".join(lines), encoding="utf-8")
    return at


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met


# Seconds of a busy machine.  Three processes import torch, 17 s of CPU time, of which a grid at a low priority beside
# other programs got 7 in 240 s once; workers that nobody ends train on for hours.
_STARTING, _ENDING = 900, 250


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_soon_after_the_grid_and_leave_nothing_half_written(number, folder, tmp_path):
    """SIGHUP takes SIGTERM's way (``test_main``)."""
    path, out = grid_of(tmp_path / "grid.toml", folder, epochs=100_000), tmp_path / "out"
    command = [sys.executable, "-m", "metasp_lite", "grid", str(path), "--out", str(out), "--workers", "2"]
    with subprocess.Popen(
        [*command, "--checkpoint-seconds", "0"],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            assert until(lambda: len(list(out.glob("*/checkpoint.pt"))) == 2, _STARTING)
            workers_of_it = children(process.pid)
            assert len(workers_of_it) >= 2
            process.send_signal(number)
            assert until(lambda: not any(map(is_there, [process.pid, *workers_of_it])), _ENDING)
            said = process.stderr.read().decode()
        finally:  # a test that fails leaves none behind, and does not wait for 100,000 epochs
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}.get(number, 128 + number)
    if number != signal.SIGKILL:
        assert "metasp_lite: interrupted; the same command goes on from the last checkpoint" in said
        assert "Traceback" not in said
    assert {file.name for file in out.glob("*/*")} == {"checkpoint.pt", "lock"}
    assert not [name for name in os.listdir("/dev/shm") if f"_{process.pid}_" in name or f"-{process.pid}-" in name]


def test_a_worker_whose_grid_is_gone_before_it_begins_ends_at_once():
    code = "import time; from metasp_lite.continual import workers; workers._end_with(1); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=55)
    assert done.returncode == 1


def test_no_more_workers_than_runs_are_asked_for(folder, tmp_path, monkeypatch):
    asked = []
    original = grid.pool

    def noting(count, *others):
        asked.append(count)
        return original(1, *others)

    monkeypatch.setattr(grid, "pool", noting)
    jobs = plan.read_grid(grid_of(tmp_path / "grid.toml", folder, epochs=1), tmp_path / "out")
    training.train(jobs[0].run, jobs[0].out)
    grid.run_all(jobs, workers=40)
    grid.run_all(jobs, workers=40)
    assert asked == [2, 1]


@pytest.fixture
def silent():
    """A port of this machine that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "tcp://", "silent"])
def test_an_address_without_a_scheduler_is_one_sentence_within_seconds(
    address, silent, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(workers, "_SCHEDULER_SECONDS", 2)
    path = grid_of(tmp_path / "grid.toml", folder, epochs=1)
    address = silent if address == "silent" else address
    start = time.monotonic()
    assert program.main(["grid", str(path), "--out", str(tmp_path / "out"), "--dask", address]) == 1
    assert time.monotonic() - start < 30
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metasp_lite: ")]
    assert len(shown) == 1
    assert f"no Dask scheduler answers at {address!r}" in shown[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("# \u00e4 x".encode("latin-1"), "grid.toml is no UTF-8 text (invalid continuation byte"),
        (b'{"streams": ["x"]}', "grid.toml is no TOML: "),
        (
            "streams = []".encode("utf-16"),
            "grid.toml is no UTF-8 text (invalid start byte at byte 0)",
        ),
        (b"x = " + b"[" * 100_000, "grid.toml is no TOML: "),
        (b"\x00\x01", "grid.toml is no TOML: "),
        (b"", "grid.toml: streams must be a list of names"),
        (None, "grid.toml cannot be read (No such file or directory); give the TOML file of a grid"),
    ],
)
def test_what_is_no_grid_ends_in_a_sentence(content, sentence, tmp_path, capsys):
    path = tmp_path / "grid.toml"
    if content is not None:
        path.write_bytes(content)
    assert program.main(["grid", str(path), "--out", str(tmp_path / "out")]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_grid_may_begin_with_a_byte_order_mark_and_be_called_anything(folder, tmp_path):
    path = grid_of(tmp_path / os.fsdecode(b"caf\xe9.toml"), folder, epochs=1)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(plan.read_grid(path, tmp_path / "out")) == 3


def test_a_grid_with_a_run_that_cannot_be_trained_or_kept_begins_none(folder, tmp_path):
    out = tmp_path / "out"
    jobs = plan.read_grid(grid_of(tmp_path / "grid.toml", folder, epochs=1), out)
    out.mkdir()
    jobs[2].out.touch()
    with pytest.raises(OSError, match="is no folder"):
        grid.run_all(jobs)
    assert list(out.iterdir()) == [jobs[2].out]
    jobs[2].out.unlink()
    small = {"streams": [str(folder)], "methods": ["fine-tune"], "seeds": [1], "set": {"size": 4}}
    with pytest.raises(ValueError, match="_fine-tune_seed-1: lite-cnn cannot take images of 4×4 pixels"):
        grid.run_all(plan.jobs({**small, "profile": "lite"}, out))
    assert not list(out.iterdir())
