"""Stored results: whole or not at all, and never without what they were obtained with."""

import json
import math

import pytest
import torch

from metasp_lite import results, settings


def test_a_result_is_stored_with_commit_versions_and_threads(tmp_path):
    path = tmp_path / "deeper" / "run.json"
    results.write(path, {"settings": {"seed": 3}, "r": 0.5})
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["settings"] == {"seed": 3}
    assert stored["r"] == 0.5
    assert stored["obtained_with"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert stored["obtained_with"]["threads"] == torch.get_num_threads()
    head = settings.PROJECT_DIR / ".git"
    assert len(stored["obtained_with"]["commit"]) == 40 or not head.exists()


def test_every_object_of_a_list_is_stamped(tmp_path):
    path = tmp_path / "runs.json"
    results.write(path, [{"seed": 3}, {"seed": 4}])
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert [each["seed"] for each in stored] == [3, 4]
    assert all(each["obtained_with"]["versions"].keys() >= {"python", "torch"} for each in stored)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="nan"):
        results.write(path, [{"r": 0.5}, {"r": math.nan}])
    assert path.read_bytes() == before


def test_a_number_that_json_lacks_is_refused_and_the_old_result_stays(tmp_path):
    path = tmp_path / "run.json"
    results.write(path, {"r": 0.5})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="nan"):
        results.write(path, {"r": math.nan})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_stored_results_name_a_clean_commit():
    """A result obtained with uncommitted code could not be obtained again."""
    stored = sorted(results.RESULTS_DIR.rglob("*.json"))
    assert stored
    for path in stored:
        content = json.loads(path.read_text(encoding="utf-8"))
        objects = content if isinstance(content, list) else [content]
        assert objects, path.name
        for origin in (each["obtained_with"] for each in objects):
            assert len(origin["commit"]) == 40, path.name
            assert origin["uncommitted_changes"] is False, path.name
