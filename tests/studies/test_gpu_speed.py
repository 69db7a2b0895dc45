"""Speeds on a device, and the arithmetic that makes the time of full runs of them."""

import time

import pytest
import torch

from metasp_lite.continual.methods import METHODS
from metasp_lite.studies import gpu_speed

CPU = torch.device("cpu")
STEPS = 5 * 50 * 313  # of a full run: tasks, epochs, batches of 32 of 10,000 images


def row(method, precision="float32", first=36.0, middle=36.0, last=36.0, fills_at_once=True):
    named = {"method": method, "precision": precision, "ms_first": first, "ms_middle": middle, "ms_last": last}
    return {**named, "peak_mib": 1000, "fills_at_once": fills_at_once}


def test_the_time_of_full_runs_is_that_of_their_steps():
    """By hand: a step takes 36 ms, so that 100,000 take an hour; MetaSP's rehearsing ones take ten times as long."""
    rows = {name: row(name) for name in METHODS}
    rows["metasp"] = row("metasp", last=360.0, fills_at_once=False)
    rows["gem"] = row("gem", first=72.0, middle=72.0, last=72.0, fills_at_once=False)
    rows["gdumb"] = row("gdumb", middle=0.0, last=0.0)
    full = gpu_speed.full_runs([*rows.values(), row("er", "bf16", 18.0, 18.0, 18.0), row("fine-tune", "bf16")])
    hours = {(each["method"], each["precision"]): each["hours"] for each in full["runs"]}
    plain = STEPS / 100_000
    expected = {(name, "float32"): plain for name in METHODS} | {
        ("metasp", "float32"): plain + 9 * 4 * 5 * 313 / 100_000,  # in the last 5 epochs of all tasks but the first
        ("gem", "float32"): plain * (1 + 2 * 4) / 5,  # the first task has nothing to respect
        ("gdumb", "float32"): (5 * 313 + 5 * 100 * 16) / 100_000,  # one epoch; 100 over 500 examples after each task
        ("er", "bf16"): plain / 2,
        ("fine-tune", "bf16"): plain,
    }
    assert hours == pytest.approx(expected, abs=6e-4)  # they are rounded to three digits
    single = {name: expected[name, "float32"] for name in METHODS}
    assert (full["memory_runs"], full["grid_runs"]) == (65, 120)
    assert full["memory_hours"] == pytest.approx(5 * sum(single.values()), abs=0.05)
    twice = 2 * sum(single.values()) - single["fine-tune"] - single["joint"]  # which have no memory of either size
    assert full["grid_hours"] == pytest.approx(5 * twice, abs=0.1)
    assert {each["mib"] for each in full["runs"]} == {1000 + 176}  # 60,000 images of 3,072 bytes


@pytest.mark.parametrize(("name", "at_once"), [("er", True), ("metasp", False)])
def test_steps_are_timed_with_what_a_method_remembers(name, at_once):
    found = gpu_speed.timed_steps(name, "bf16", CPU, gpu_speed.SMALL)
    assert found["fills_at_once"] is at_once
    assert found["ms_last"] > 0
    assert found["steps_per_second"] == pytest.approx(1000 / found["ms_last"], rel=0.01)  # rounded
    assert 0 <= found["idle"] < 1


def test_steps_that_warm_up_do_not_count():
    begun = iter([0.2, 0, 0, 0])
    seconds = gpu_speed.median_seconds(lambda: time.sleep(next(begun)), CPU, repetitions=3, warm_up=1)
    assert seconds < 0.1
    assert not list(begun)


def test_waiting_is_not_work():
    def step():
        time.sleep(0.5)
        return torch.ones(100) + 1

    assert 0 < gpu_speed.busy_seconds(step, CPU) < 0.25


@pytest.mark.parametrize(("spent", "compiled"), [(0, ["fine-tune", "er"]), (1000, [])])
def test_compilation_is_left_out_where_the_time_is_spent(spent, compiled, monkeypatch):
    monkeypatch.setattr(gpu_speed, "timed_steps", lambda name, precision, device, size: row(name, precision))
    monkeypatch.setattr(gpu_speed.request, "check", lambda run: None)
    found = gpu_speed.study(CPU, gpu_speed.PAPER, time.perf_counter() - spent)
    measured = [(each["method"], each["precision"]) for each in found["speed"]]
    assert measured[:13] == [(name, "float32") for name in METHODS]
    assert [name for name, precision in measured if precision == "compile"] == compiled
    assert len(measured) + len(found["not_measured"]) == 13 + 4 * 3
    assert found["network"] == "resnet18"
    assert len(found["full"]["runs"]) == len(measured)


def test_where_nothing_can_be_compiled_the_reason_is_told(monkeypatch):
    def refuse(run):
        assert run.recipe.compile
        raise ValueError("no compiler")

    monkeypatch.setattr(gpu_speed, "timed_steps", lambda name, precision, device, size: row(name, precision))
    monkeypatch.setattr(gpu_speed.request, "check", refuse)
    found = gpu_speed.study(CPU, gpu_speed.PAPER, time.perf_counter())
    told = "metasp, compile (its own passes are not compiled)"
    assert found["not_measured"] == ["fine-tune, compile (no compiler)", "er, compile (no compiler)", told]
