"""The check of a GPU, on the CPU: all of it runs, what it says is right there, and what is wrong is refused."""

import json
import shlex

import pytest
import torch

from metasp_lite import results, settings
from metasp_lite.__main__ import main
from metasp_lite.continual import plan
from metasp_lite.continual.methods import METHODS
from metasp_lite.studies import gpu


@pytest.fixture(autouse=True)
def threads():
    """The command chooses one thread for its process, which is here that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_on_the_cpu_the_check_runs_and_the_cpu_equals_itself(tmp_path, capsys):
    """In float64 to the last bit.  float32 keeps 1e-6 or so of a step: 1e-5 allows for another machine's order of sums,
    and 0 would mean that nothing was computed in float32.
    """
    path = tmp_path / "cpu.json"
    assert main(["gpu-check", "--device", "cpu", "--out", str(path)]) == 0
    found = results.read(path)
    assert [(row["method"], row["numbers"]) for row in found["steps"]] == [
        (name, numbers) for name in METHODS for numbers in ("float64", "float32")
    ]
    for row in found["steps"]:
        if row["numbers"] == "float64":
            assert (row["error"], row["same_memory"]) == (0, True)
        else:
            assert 0 < row["error"] <= 1e-5
    resumed = found["resumed"]
    assert resumed["went_on"]
    assert resumed["same_losses_and_accuracies"]
    assert resumed["difference"] == resumed["difference_of_whole_runs"] == 0
    assert {row["method"] for row in found["speed"]} == set(METHODS)
    assert found["full"] is None  # a small network on a CPU says nothing of them
    assert found["device"] == "cpu"
    assert found["within"]
    assert "commit" in found["obtained_with"]
    *_, stored, last = capsys.readouterr().out.splitlines()
    assert stored == f"stored in {path}"
    _, _, _, *words = shlex.split(last)
    assert words[0] == "grid"
    assert len(plan.read_grid(settings.PROJECT_DIR / words[1], tmp_path)) == 120


ROW = {"method": "er", "numbers": "float32", "error": 0.5, "bound": 1e-3, "same_memory": True, "within": False}
SPEED = {"method": "er", "precision": "float32", "ms_first": 3.0, "ms_middle": 2.0, "ms_last": 2.0}
FOUND = {
    "device": "a GPU",
    "network": "resnet18",
    "steps": [ROW],
    "resumed": {"killed_in_epoch": 6, "difference": 0.1, "difference_of_whole_runs": 0.0, "within": False},
    "convolutions": "tf32",
    "speed": [{**SPEED, "steps_per_second": 500.0, "idle": 0.625, "peak_mib": 1234}],
    "not_measured": ["metasp, compile"],
    "full": {
        "runs": [{"method": "er", "precision": "float32", "hours": 0.043, "mib": 1410}],
        **{"memory": 500, "memory_runs": 65, "memory_hours": 9.5, "grid_runs": 120, "grid_hours": 18.25},
    },
    "grid": "data/grids/full-cifar10.toml",
    "within": False,
}


def test_what_is_not_within_its_bounds_is_stored_told_and_ends_with_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "study", lambda device: FOUND)
    path = tmp_path / "gpu.json"
    assert main(["gpu-check", "--device", "cpu", "--out", str(path)]) == 1
    said = capsys.readouterr()
    for word in ("0.625", "1234", "0.043", "65 runs with a memory of 500: 9.5 hours", "not measured: metasp, compile"):
        assert word in said.out
    assert said.err == (
        "metasp_lite: a GPU is not within these bounds: er in float32, a run that is killed and goes on; "
        "train nothing on it\n"
    )
    assert json.loads(path.read_text(encoding="utf-8"))["steps"] == [ROW]


def test_a_check_of_the_cpu_is_not_stored_as_that_of_a_gpu(monkeypatch, tmp_path, capsys):
    kept = {**FOUND, "within": True}
    monkeypatch.setattr(gpu, "study", lambda device: kept)
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path)
    assert main(["gpu-check", "--device", "cpu"]) == 0
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == "not stored; --out FILE does"
    assert said[-1] == "python -m metasp_lite grid data/grids/full-cifar10.toml --out data/results/runs/full-cifar10"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what is said where there is no GPU")
def test_without_a_gpu_one_sentence_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "study", lambda device: pytest.fail("it ran"))
    monkeypatch.setattr(results, "RESULTS_DIR", tmp_path)
    assert main(["gpu-check"]) == 1
    assert capsys.readouterr().err == "metasp_lite: device='cuda' is not here; give one of: cpu\n"
    assert not list(tmp_path.iterdir())
