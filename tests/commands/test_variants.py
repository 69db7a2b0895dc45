"""The command of MetaSP's variants: which studies it runs, and where each is stored."""

import json

import pytest
import torch

from metasp_lite import __main__, results, settings
from metasp_lite.studies import variants

FILES = {
    "weights": "split-fashion-mnist.json",
    "rivals": "rivals-split-fashion-mnist.json",
}


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """What the studies would have been asked for; a row of each stands for its results."""
    calls, threads = [], torch.get_num_threads()
    for name, function in {"weights": "study", "rivals": "rivals"}.items():
        monkeypatch.setattr(variants, function, lambda name=name: calls.append(name) or [{"of": name}])
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path)
    monkeypatch.setattr(settings, "PROJECT_DIR", tmp_path)
    yield calls
    torch.set_num_threads(threads)  # the command chooses one for its process, which is here that of all tests


@pytest.mark.parametrize(
    ("asked", "run"),
    [([], [*FILES]), (["rivals"], ["rivals"]), (["rivals", "weights"], ["weights", "rivals"])],
)
def test_the_studies_that_are_asked_for_run_and_each_has_its_file(asked, run, ran, tmp_path, capsys):
    assert __main__.main(["variants", *asked]) == 0
    assert ran == run
    stored = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "variants").iterdir()}
    assert {name: rows[0]["of"] for name, rows in stored.items()} == {FILES[name]: name for name in run}
    assert capsys.readouterr().out.splitlines() == [f"stored in variants/{FILES[name]}" for name in run]


def test_a_study_that_is_not_there_is_refused_before_any_runs(ran, tmp_path, capsys):
    assert __main__.main(["variants", "weights", "weight"]) == 1
    expected = "metasp_lite: there is no study 'weight'; choose from weights, rivals\n"
    assert capsys.readouterr().err == expected
    assert not ran
    assert not list(tmp_path.iterdir())
