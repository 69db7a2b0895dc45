"""Many runs: the product that a file asks for, on processes and a cluster; runs that fail and workers that die."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.clusters import cluster
from helpers.tiny_stream import SAME, SETTINGS, make_folder
from joblib.externals.loky import reusable_executor

from metasp_lite import __main__ as program
from metasp_lite.continual import grid, plan, training, workers
from metasp_lite.continual.run import Run

FEW = {name: SETTINGS[name] for name in ("epochs", "batch", "lr", "momentum")}


@pytest.fixture(autouse=True)
def lite(monkeypatch):
    monkeypatch.delenv("METASP_PROFILE", raising=False)


def file_of(path: Path, folder: Path, methods: list[str], seeds: list[int], **chosen: object) -> Path:
    """Write a grid over the tiny images."""
    lines = [f"streams = {json.dumps([str(folder)])}", f"methods = {json.dumps(methods)}", f"seeds = {seeds}"]
    lines += ["memory = [12]", "[set]", *(f"{name} = {json.dumps(value)}" for name, value in {**FEW, **chosen}.items())]
    path.write_text("\n".join(lines))
    return path


def description(**changed: object) -> dict[str, object]:
    return {"streams": ["split-fashion-mnist"], "methods": ["er", "metasp"], "seeds": [1, 2], **changed}


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory) -> dict[str, dict]:
    """What the three runs of ``three`` give, one after the other and never stopped."""
    out = tmp_path_factory.mktemp("alone")
    return {job.name: training.train(job.run, job.out) for job in plan.read_grid(three(out, folder), out)}


def three(at: Path, folder: Path) -> Path:
    """Write a grid of more runs than workers, each long enough to be killed in."""
    return file_of(at / "grid.toml", folder, ["er"], [1, 2, 3], epochs=6)


def check_same(jobs: list[plan.Job], expected: dict[str, dict]) -> int:
    """Hold every stored result against that of an uninterrupted run; return how often the runs were resumed."""
    resumed = 0
    for job in jobs:
        found = json.loads((job.out / "result.json").read_text())
        assert {key: found[key] for key in SAME} == {key: expected[job.name][key] for key in SAME}
        resumed += found["resumed"]
    return resumed


def when(condition: Callable[[], bool], action: Callable[[], None], seconds: float = 600) -> threading.Thread:
    """Do ``action`` as soon as ``condition`` holds, beside what runs here, however busy the machine is."""

    def watch() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError):  # a folder may go while it is listed
                if condition():
                    action()
                    return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize(("seconds", "workers"), [(float("nan"), 1), (-1.0, 1), (60.0, 0)])
def test_a_grid_that_cannot_be_run_as_asked_starts_nothing(seconds, workers, tmp_path):
    with pytest.raises(ValueError, match="must be"):
        grid.run_all(plan.jobs(description(), tmp_path), checkpoint_seconds=seconds, workers=workers)
    assert not list(tmp_path.iterdir())


def test_finished_runs_are_skipped_failed_ones_reported_and_the_rest_is_done(folder, tmp_path, capsys):
    path = file_of(tmp_path / "grid.toml", folder, ["fine-tune", "er"], [1, 2])
    out = tmp_path / "out"
    jobs = {job.name.partition("_")[2]: job for job in plan.read_grid(path, out)}
    training.train(jobs["fine-tune_seed-1"].run, jobs["fine-tune_seed-1"].out)
    broken = jobs["er_memory-12_seed-1"]
    broken.out.mkdir()
    (broken.out / "checkpoint.pt").write_bytes(b"damaged")
    command = ["grid", str(path), "--out", str(out), "--workers", "1"]
    threads = torch.get_num_threads()
    assert program.main(command) == 1
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr().out
    assert "4 runs: 2 finished, 1 skipped (finished before), 1 failed" in shown
    assert f"{broken.name} failed: {broken.out / 'checkpoint.pt'} is damaged" in shown
    assert broken.command in shown
    assert sorted(file.parent.name for file in out.glob("*/result.json")) == sorted(
        job.name for job in jobs.values() if job is not broken
    )
    (broken.out / "checkpoint.pt").unlink()
    assert program.main(command) == 0
    assert "4 runs: 1 finished, 3 skipped (finished before), 0 failed" in capsys.readouterr().out


def test_a_finished_run_of_other_images_is_not_skipped(tmp_path):
    images = make_folder(tmp_path / "images", classes=2)
    jobs = plan.read_grid(file_of(tmp_path / "grid.toml", images, ["fine-tune"], [1]), tmp_path / "out")
    assert [grid.run_all(jobs)[0].state for _ in range(2)] == ["finished", "skipped"]
    shutil.copy(images / "train" / "class1" / "00.png", images / "train" / "class0" / "00.png")
    (outcome,) = grid.run_all(jobs)
    assert outcome.state == "failed"
    assert "result.json is of another run (images.sum is " in outcome.error


def test_a_grid_on_two_threads_says_so_in_its_results_and_its_commands(folder, tmp_path):
    path = file_of(tmp_path / "grid.toml", folder, ["metasp-rehsel"], [1], epochs=1)
    (job,) = plan.read_grid(path, tmp_path / "out", threads=2)
    assert grid.run_all([job])[0].state == "finished"
    found = json.loads((job.out / "result.json").read_text())
    assert found["threads"] == 2
    words = shlex.split(job.command)[3:-1]
    assert program.main([*words, str(tmp_path / "alone")]) == 0
    alone = json.loads((tmp_path / "alone" / "result.json").read_text())
    assert {key: alone[key] for key in (*SAME, "threads")} == {key: found[key] for key in (*SAME, "threads")}


def test_a_defect_in_one_run_does_not_stop_the_others(folder, tmp_path, monkeypatch):
    jobs = plan.read_grid(file_of(tmp_path / "grid.toml", folder, ["fine-tune"], [1, 2, 3]), tmp_path / "out")
    original = grid.train

    def sometimes(run: Run, *positional: object, **named: object) -> dict:
        if run.seed == 2:
            raise RuntimeError("shapes differ")
        return original(run, *positional, **named)

    monkeypatch.setattr(grid, "train", sometimes)
    outcomes = grid.run_all(jobs)
    assert [outcome.state for outcome in outcomes] == ["finished", "failed", "finished"]
    assert outcomes[1].error == "RuntimeError: shapes differ"


def test_one_bar_counts_the_runs(folder, tmp_path, capsys):
    jobs = plan.read_grid(file_of(tmp_path / "grid.toml", folder, ["fine-tune"], [1, 2]), tmp_path / "out")
    grid.run_all(jobs, progress_bar=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "epoch" not in shown


@pytest.mark.slow
def test_two_processes_do_the_work_and_one_that_is_killed_loses_nothing(folder, tmp_path, expected):
    """joblib gives everything up when a worker dies; here what had begun goes on, and then the rest."""
    jobs = plan.read_grid(three(tmp_path, folder), tmp_path / "out")
    pids = []

    def begun() -> bool:
        """Two workers are there, and one of them has something to lose."""
        pids[:] = reusable_executor._executor._processes if reusable_executor._executor else []
        return len(pids) == 2 and any((tmp_path / "out").glob("*/checkpoint.pt"))

    killer = when(begun, lambda: os.kill(pids[0], signal.SIGKILL))
    outcomes = grid.run_all(jobs, workers=2, checkpoint_seconds=0)
    killer.join()
    reusable_executor._executor.shutdown(wait=True)
    assert len(pids) == 2
    assert [outcome.error for outcome in outcomes] == [""] * 3
    assert check_same(jobs, expected) >= 1


@pytest.mark.slow
def test_a_cluster_whose_worker_is_killed_loses_nothing(folder, tmp_path, expected, capsys):
    """Dask gives the dead worker's run to the other, where it goes on from its checkpoint."""
    path = three(tmp_path, folder)
    jobs = plan.read_grid(path, tmp_path / "out")
    with cluster(tmp_path) as (address, workers):
        victim, _ = workers(2)
        killer = when(lambda: len(list((tmp_path / "out").glob("*/checkpoint.pt"))) == 2, victim.kill)
        command = ["grid", str(path), "--out", str(tmp_path / "out"), "--dask", address, "--checkpoint-seconds", "0"]
        assert program.main(command) == 0
        killer.join()
        assert victim.wait(timeout=60) == -signal.SIGKILL
    assert "3 runs: 3 finished, 0 skipped (finished before), 0 failed" in capsys.readouterr().out
    assert check_same(jobs, expected) >= 1


def test_a_cluster_without_dask_says_what_to_install(folder, tmp_path, monkeypatch, capsys):
    path = file_of(tmp_path / "grid.toml", folder, ["er"], [1])
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None)
    assert program.main(["grid", str(path), "--out", str(tmp_path / "out"), "--dask", "tcp://127.0.0.1:1"]) == 1
    assert "pip install -e '.[dask]'" in capsys.readouterr().err


def test_nothing_is_started_with_no_workers(folder, tmp_path, capsys):
    path = file_of(tmp_path / "grid.toml", folder, ["er"], [1])
    assert program.main(["grid", str(path), "--out", str(tmp_path / "out"), "--workers", "0"]) == 1
    assert "--workers and --threads must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
