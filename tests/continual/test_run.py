"""A run's own numbers, and the result that it leaves."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_stream import run_on, stop_at

from metasp_lite import files, results
from metasp_lite.continual import training


def test_a_result_holds_what_is_needed_to_read_and_repeat_it(folder, stream, tmp_path):
    returned = training.train(run_on(folder, "er-late"), tmp_path, stream=stream)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored == returned
    for setting in ("class_incremental", "task_incremental"):
        rows = stored[f"accuracy_{setting}"]
        assert [[value is None for value in row] for row in rows] == [[k > t for k in range(3)] for t in range(3)]
        a = np.array(rows, dtype=float)  # None becomes NaN
        assert stored[setting]["a1"] == pytest.approx(np.diag(a).mean())
        assert stored[setting]["a_inf"] == pytest.approx(a[-1].mean())
        assert stored[setting]["a_m"] == pytest.approx(np.mean([np.nanmean(row) for row in a]))
        assert stored[setting]["bwt"] == pytest.approx((a[-1] - np.diag(a))[:-1].mean())
    assert stored["steps"] == 3 * 3 * 5  # tasks, epochs, batches of 4 out of 20 examples
    assert len(stored["epoch_losses"]) == 9
    assert len(stored["seconds_per_task"]) == 3
    assert sum(stored["seconds_per_task"]) == pytest.approx(stored["wall_seconds"], abs=0.01)  # rounded
    assert stored["steps_per_second"] == pytest.approx(45 / stored["wall_seconds"], rel=0.02)  # rounded
    assert stored["peak_memory_mib"] > 50  # torch alone is more
    assert stored["run"]["recipe"]["momentum"] == 0.9
    assert stored["run"]["settings"] == {"memory": 12, "memory_batch": 4, "late_epochs": 5}
    for origin in (stored["begun_with"], stored["obtained_with"]):
        assert origin["commit"]
        assert origin["versions"]["torch"]


def test_joint_training_has_scores_after_the_last_task_only(folder, stream, tmp_path):
    result = training.train(run_on(folder, "joint"), tmp_path, stream=stream)
    assert result["accuracy_class_incremental"][:2] == [[None] * 3] * 2
    assert None not in result["accuracy_class_incremental"][2]
    assert result["class_incremental"]["a_inf"] is not None
    assert result["class_incremental"]["a1"] is result["class_incremental"]["bwt"] is None
    assert result["steps"] == 3 * 15  # one task's epochs over all 60 examples


def test_a_finished_run_is_returned_without_training(folder, stream, tmp_path):
    run = run_on(folder, "fine-tune")
    first = training.train(run, tmp_path, stream=stream)
    assert training.train(run, tmp_path, watch=stop_at(1)) == first
    with pytest.raises(ValueError, match=r"result.json is of another run \(recipe.lr is 0.02 there and 0.1 here\)"):
        training.train(run_on(folder, "fine-tune", lr=0.1), tmp_path)
    (tmp_path / "result.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"result\.json is not the result of a run"):
        training.train(run, tmp_path)


def test_a_result_that_cannot_be_written_is_written_by_the_next_start(folder, stream, tmp_path, monkeypatch):
    run, original = run_on(folder, "er"), files.write_atomically

    def full(path: Path, content: str | bytes) -> None:
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(results, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            training.train(run, tmp_path, stream=stream)
    assert training.train(run, tmp_path, stream=stream, watch=stop_at(1))["steps"] == 45


def test_a_run_refuses_numbers_that_are_none(folder):
    run = run_on(folder, "er")
    with pytest.raises(ValueError, match="momentum=nan must be a finite number"):
        dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, momentum=float("nan")))
    with pytest.raises(ValueError, match="metasp takes MetaSPSettings, not MemorySettings"):
        dataclasses.replace(run, method="metasp")
