"""A run's own numbers, and the result that it leaves."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_stream import Stopped, make_folder, run_on, stop_at
from PIL import Image

from metasp_lite import files, results
from metasp_lite.continual import training
from metasp_lite.continual.run import completed, finished


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
    assert stored["run"]["settings"] == {"memory": 12, "memory_batch": 4, "late_epochs": 5, "rehearse_trusted": False}
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
    older = {**first, "obtained_with": {name: v for name, v in first["obtained_with"].items() if name != "sum"}}
    for odd in ({"a_inf": True}, {"a_inf": 5}, {"a_inf": 10**400}, {"a_inf": -0.1}, {"bwt": "x"}, {"bwt": 2}):
        spoilt = {**older, "class_incremental": {**first["class_incremental"], **odd}}
        (tmp_path / "result.json").write_text(json.dumps(spoilt))
        with pytest.raises(ValueError, match=r"result\.json is not the result of a run"):
            training.train(run, tmp_path)
    (tmp_path / "result.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"result\.json is not the result of a run"):
        training.train(run, tmp_path)


def test_a_finished_run_of_other_images_or_labels_is_not_returned(tmp_path):
    """One picture's pixels, then two pictures exchanged between classes: sizes, names and the sum of all stay."""
    folder = make_folder(tmp_path / "images")
    run, out = run_on(folder, "fine-tune"), tmp_path / "out"
    first = training.train(run, out)
    one, other = (folder / "train" / f"class{label}" / "00.png" for label in (0, 1))
    kept, exchanged = one.read_bytes(), other.read_bytes()
    changes = {one: np.zeros((8, 8, 3), np.uint8)}, {one: exchanged, other: kept}, {folder / "test/class0/00.png": kept}
    for change in changes:
        before = {path: path.read_bytes() for path in change}
        for path, content in change.items():
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                Image.fromarray(content).save(path)
        with pytest.raises(ValueError, match=r"result\.json is of another run \(images\.sum is .* there and .* here\)"):
            training.train(run, out)
        for path, content in before.items():
            path.write_bytes(content)
        assert training.train(run, out) == first


def test_labels_exchanged_between_stop_and_resume_are_seen(folder, stream, tmp_path):
    run = run_on(folder, "er")
    with pytest.raises(Stopped):
        training.train(run, tmp_path, stream=stream, checkpoint_seconds=0, watch=stop_at(2))
    labels = stream.labels.clone()
    labels[[0, 10]] = labels[[10, 0]]
    assert labels[0] != stream.labels[0]
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of another run \(images\.sum is "):
        training.train(run, tmp_path, stream=dataclasses.replace(stream, labels=labels))


def test_a_run_goes_on_and_is_finished_on_its_number_of_threads_alone(folder, stream, tmp_path):
    run = run_on(folder, "er")
    with pytest.raises(Stopped):
        training.train(run, tmp_path, stream=stream, checkpoint_seconds=0, threads=1, watch=stop_at(2))
    sentence = r"another run \(threads is 1 there and 2 here\); give another folder, or go on with --threads 1"
    with pytest.raises(ValueError, match=sentence):
        training.train(run, tmp_path, stream=stream, threads=2)
    before = torch.get_num_threads()
    first = training.train(run, tmp_path, stream=stream, threads=1)
    assert (first["threads"], first["device"]) == (1, stream.images.device.type)
    with pytest.raises(ValueError, match=sentence):
        training.train(run, tmp_path, stream=stream, threads=2)
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads=0 must be at least 1"):
        training.train(run, tmp_path, stream=stream, threads=0)


def test_an_older_result_is_finished_where_nothing_contradicts(folder, stream, tmp_path):
    """Of its images it says only the source; its threads and device stand with what it was obtained with."""
    run, path = run_on(folder, "fine-tune"), tmp_path / "result.json"
    result = training.train(run, tmp_path, stream=stream, threads=1)
    older = {name: value for name, value in result.items() if name not in ("images", "threads", "device")}
    del older["obtained_with"]["sum"]
    path.write_text(json.dumps(older))
    assert training.train(run, tmp_path, stream=stream, threads=1) == older
    with pytest.raises(ValueError, match=r"threads is 1 there and 2 here"):
        training.train(run, tmp_path, stream=stream, threads=2)
    with pytest.raises(ValueError, match=r"images\.source is .* there and 'elsewhere' here"):
        training.train(run, tmp_path, stream=dataclasses.replace(stream, source="elsewhere"), threads=1)
    del older["obtained_with"]  # older still
    path.write_text(json.dumps(older))
    assert training.train(run, tmp_path, stream=stream, threads=2) == older
    path.write_text(json.dumps({**older, "obtained_with": {"device": "other", "threads": 8}}))
    with pytest.raises(ValueError, match=r"device is 'other' there and"):
        training.train(run, tmp_path, stream=stream)


@pytest.mark.parametrize("path", sorted((results.RESULTS_DIR / "runs").glob("one-seed-*/*/result.json")), ids=str)
def test_a_stored_run_is_finished_where_it_was_computed(path, stream, tmp_path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    shutil.copy(path, tmp_path / "result.json")
    here = {**completed(stored["run"]), **{name: stored[name] for name in ("images", "device", "threads", "draws")}}
    assert finished(tmp_path, here) == stored
    with pytest.raises(ValueError, match="threads is"):
        finished(tmp_path, {**here, "threads": 64})


def test_a_result_from_before_a_setting_existed_had_its_default(folder, stream, tmp_path):
    """And one with another value of the setting is of another run; every setting that may be added has a default."""
    run, path = run_on(folder, "metasp"), tmp_path / "result.json"
    first = training.train(run, tmp_path, stream=stream)
    older = json.loads(json.dumps(first))
    for part, name in (("settings", "permuted"), ("stream", "trusted"), ("recipe", "bf16")):
        del older["run"][part][name]
    path.write_text(json.dumps({name: value for name, value in older.items() if name != "obtained_with"}))
    older = json.loads(path.read_text())
    assert training.train(run, tmp_path, stream=stream, watch=stop_at(1)) == older
    with pytest.raises(ValueError, match=r"is of another run \(settings.permuted is False there and True here\)"):
        training.train(run_on(folder, "metasp", permuted=True), tmp_path, stream=stream)


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
