"""The comparison of a device with the CPU notices what is wrong; ``tests/commands`` runs all of it where nothing is."""

from pathlib import Path

import pytest
import torch

from metasp_lite.continual.draws import Draws
from metasp_lite.continual.methods import METHODS
from metasp_lite.continual.place import CHECKPOINT
from metasp_lite.studies import gpu

CPU = torch.device("cpu")


def test_a_device_that_rehearses_something_else_is_noticed(monkeypatch):
    """Its replayed images are a hundredth brighter in float32; fine-tuning replays none."""
    replayed = gpu._Learner.replayed

    def brighter(learner, images):
        single = torch.get_default_dtype() is torch.float32
        return replayed(learner, images) * (1.01 if single else 1)

    monkeypatch.setattr(gpu._Learner, "replayed", brighter)
    monkeypatch.setattr(gpu, "METHODS", {name: METHODS[name] for name in ("fine-tune", "er")})
    rows = {(row["method"], row["numbers"]): row for row in gpu.equal_steps(CPU)}
    wrong = ("er", "float32")
    assert not rows[wrong]["within"]
    assert all(row["within"] for name, row in rows.items() if name != wrong)


def test_a_device_that_stores_something_else_is_noticed(monkeypatch):
    """In float64, where the numbers that choose are the same; float32 may choose between equals otherwise."""
    one_step_more = gpu._one_step_more
    calls = []

    def other(*arguments):
        calls.append(1)
        numbers, kept = one_step_more(*arguments)
        return numbers, kept if len(calls) == 1 else [each.flip(0) for each in kept]

    monkeypatch.setattr(gpu, "_one_step_more", other)
    monkeypatch.setattr(gpu, "METHODS", {"er": METHODS["er"]})
    double, single = gpu.equal_steps(CPU)
    assert (double["error"], double["same_memory"], double["within"]) == (0, False, False)
    assert (single["same_memory"], single["within"]) == (False, True)


def test_convolutions_multiply_in_full_for_a_while_alone():
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [kind.fp32_precision for kind in kinds]
    with gpu._without_tf32():
        assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
    assert [kind.fp32_precision for kind in kinds] == before


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("forgets", [False, True])
def test_a_run_that_goes_on_with_other_draws_is_noticed(forgets, monkeypatch):
    """The kill is an exception here; ``tests/commands`` has a process that ends."""

    def end(_):
        raise Killed

    def in_this_process(run, out, device):
        with pytest.raises(Killed):
            gpu.killed(run, out, str(device))

    monkeypatch.setattr(gpu.os, "_exit", end)
    monkeypatch.setattr(gpu, "_killed_in_a_child", in_this_process)
    if forgets:
        monkeypatch.setattr(Draws, "load_state_dict", lambda draws, state: None)
    row = gpu.goes_on_after_a_kill(CPU)
    assert row["went_on"]
    assert row["difference_of_whole_runs"] == 0
    assert (row["difference"] > 0) == forgets
    assert row["within"] != forgets


@pytest.mark.parametrize(
    ("noise", "difference", "within"), [(0, 0, True), (0, 1e-6, False), (1e-6, 9e-6, True), (1e-6, 2e-5, False)]
)
def test_where_whole_runs_differ_a_resumed_one_may_be_ten_times_as_far(noise, difference, within, monkeypatch):
    told = {"accuracy_class_incremental": [], "accuracy_task_incremental": [], "epoch_losses": [], "steps": 1}
    ends = iter([(0.0, 0), (noise, 0), (difference, 1)])  # a weight, how often the run was resumed

    def trained(*_):
        weight, resumed = next(ends)
        return torch.tensor([weight]), {**told, "resumed": resumed}

    def leaves_a_checkpoint(run, out: Path, device):
        out.mkdir()
        (out / CHECKPOINT).touch()

    monkeypatch.setattr(gpu, "_trained", trained)
    monkeypatch.setattr(gpu, "_killed_in_a_child", leaves_a_checkpoint)
    assert gpu.goes_on_after_a_kill(CPU)["within"] == within
