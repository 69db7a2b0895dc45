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


def test_a_stored_result_is_read_as_it_was_written_with_or_without_a_mark(tmp_path):
    path = tmp_path / "run.json"
    results.write(path, {"name": "λ", "r": 0.5})
    assert results.read(path)["name"] == "λ"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert results.read(path)["r"] == 0.5


@pytest.mark.parametrize(("old", "new"), [('"r": 0.5', '"r": 0.6'), ('"r"', '"s"'), ('"sum": "', '"sum": "0')])
def test_another_number_or_name_in_a_result_is_noticed(tmp_path, old, new):
    path = tmp_path / "runs.json"
    results.write(path, [{"name": "λ", "r": 0.1, "of": {2: (1, None), 10: []}}, {"r": 0.5}])
    text = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(text), indent=4), encoding="utf-8")  # another layout says the same
    assert results.read(path) == json.loads(text)
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=r"runs\.json cannot be read as a result \(it is not as it was written"):
        results.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"3", b'"text"', b"null", b"[1, 2]", b'[{"r": 1}, 2]', b'{"r": NaN}', b'{"r": Infinity}',
        b"\xff\xfe{\x00", b"\x00", b"[" * 100_000, b"r = 1", b'{"r": 1} {"r": 2}', b"PK\x03\x04",
    ],
)  # fmt: skip
def test_a_foreign_file_in_a_results_place_is_named(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json (cannot be read as|is not) a result.*; move it away"):
        results.read(path)
    assert path.read_bytes() == content


def test_a_result_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no result .*run\.json; measure it first"):
        results.read(tmp_path / "run.json")


def test_the_place_of_a_result_is_refused_where_nothing_can_be_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path / "results")
    assert results.place("bench/toy.json") == tmp_path / "results" / "bench" / "toy.json"
    assert not list(tmp_path.iterdir())
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*toy\.json"):
        results.place("bench/toy.json")
    monkeypatch.setattr(settings, "PROJECT_DATA_DIR", tmp_path / "site-packages" / "data")
    with pytest.raises(FileNotFoundError, match=r"is not there to store bench/toy\.json in; use a checkout"):
        results.place("bench/toy.json")


def test_a_long_computation_keeps_the_commit_that_it_began_with(monkeypatch):
    """Its code was loaded then; a commit made meanwhile is of other code."""
    answers = {"status": "", "rev-parse": "a" * 40}
    monkeypatch.setattr(results, "_git", lambda command, *_: answers[command])
    results._code.cache_clear()
    try:
        results.place("bench/toy.json")
        answers.update({"status": " M metasp_lite/results.py", "rev-parse": "b" * 40})
        origin = results.provenance()
        assert (origin["commit"], origin["uncommitted_changes"]) == ("a" * 40, False)
    finally:
        results._code.cache_clear()


def test_git_is_asked_without_a_lock(monkeypatch):
    """A run that is killed meanwhile would leave the lock behind, and nobody could commit."""
    asked, real = [], results.subprocess.run

    def noted(words, **named):
        asked.append(words)
        return real(words, **named)

    monkeypatch.setattr(results.subprocess, "run", noted)
    results._git("status", "--porcelain")
    assert asked[0][:2] == ["git", "--no-optional-locks"]
