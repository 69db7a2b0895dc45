"""The command that stores the studies of two stages."""

import json

import pytest
import torch

from metasp_lite import __main__, results, settings
from metasp_lite.calculus.curvature import NegativeCurvatureError
from metasp_lite.studies import gpu, multi_stage, step_cost, toy_cost, training_cost, uses, variants


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


@pytest.mark.parametrize(
    "line",
    ["stages tasks", "stages optima tasks", "bench toy", "bench", "uses", "uses labels", "variants", "gpu-check"],
)
@pytest.mark.parametrize("surroundings", ["no place", "no profile", "no project"])
def test_what_could_not_be_stored_is_refused_before_it_is_computed(monkeypatch, tmp_path, capsys, line, surroundings):
    def no_run(*_, **__):
        pytest.fail("it ran")

    for name in multi_stage.STUDIES:
        monkeypatch.setitem(multi_stage.STUDIES, name, no_run)
    for module in (toy_cost, step_cost, training_cost, variants, gpu):
        monkeypatch.setattr(module, "study", no_run)
    for name in ("halves", "removal", "labels"):
        monkeypatch.setattr(uses, name, no_run)
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path / "results")
    if surroundings == "no place":
        (tmp_path / "results").write_text("in the way")
    elif surroundings == "no profile":
        monkeypatch.setenv("METASP_PROFILE", "huge")
    else:
        monkeypatch.setattr(settings, "PROJECT_DATA_DIR", tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    assert __main__.main(line.split()) == 1
    told = {"no place": "cannot write", "no profile": "METASP_PROFILE='huge'", "no project": "use a checkout"}
    assert told[surroundings] in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
