"""The command that stores the studies of two stages."""

import json

import pytest
import torch

from metasp_lite import __main__, results, settings
from metasp_lite.calculus.curvature import NegativeCurvatureError
from metasp_lite.studies import multi_stage


@pytest.fixture(autouse=True)
def threads():
    """The command chooses one thread for its process, which is here that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_command_stores_each_study_and_refuses_one_that_is_not_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path)
    monkeypatch.setattr(settings, "PROJECT_DIR", tmp_path)
    monkeypatch.setitem(multi_stage.STUDIES, "tasks", lambda name: {"data": name})
    threads = torch.get_num_threads()
    assert __main__.main(["stages", "tasks", "--data", "mnist"]) == 0
    torch.set_num_threads(threads)
    stored = json.loads((tmp_path / "stages" / "tasks-mnist.json").read_text(encoding="utf-8"))
    assert stored["data"] == "mnist"
    assert "commit" in stored["obtained_with"]
    assert __main__.main(["stages", "more"]) == 1
    assert "there is no study 'more'; choose from leave-one-out, tasks" in capsys.readouterr().err


def test_a_study_that_does_not_converge_ends_in_one_sentence(monkeypatch, tmp_path, capsys):
    def fails(name):
        raise NegativeCurvatureError(-0.5)

    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path)
    monkeypatch.setitem(multi_stage.STUDIES, "tasks", fails)
    assert __main__.main(["stages", "tasks"]) == 1
    assert "metasp_lite: met curvature -0.5 with damping 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
