"""What a run of each method costs: operations as torch counts them, and in proportion to a hand count."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from metasp_lite.continual.methods import METHODS
from metasp_lite.studies import method_cost


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(method_cost, "_PER_CLASS", 16)


@pytest.mark.parametrize("name", ["er", "metasp"])
def test_the_count_is_torchs_own(name):
    theirs, ours = FlopCounterMode(display=False), method_cost._Operations()
    method_cost._train(name, theirs)
    method_cost._train(name, ours)
    assert ours.total == theirs.get_total_flops() > 0


def test_fine_tuning_by_hand():
    """Five tasks of 32 images, 10 epochs, one batch each: forward and weights' gradients of all layers, inputs' of all
    but the first; two operations for each weight."""
    ours = method_cost._Operations()
    method_cost._train("fine-tune", ours)
    layers = [784 * 100, 100 * 100, 100 * 10]
    passes = 3 * sum(layers) - layers[0]
    assert ours.total == 2 * 5 * 10 * 32 * passes


def test_a_row_for_every_method_in_units_of_ers_run(monkeypatch):
    monkeypatch.setattr(method_cost, "METHODS", {name: METHODS[name] for name in ("fine-tune", "er", "gmed")})
    rows = {row["method"]: row for row in method_cost.study()}
    assert list(rows) == ["er", "fine-tune", "gmed"]
    assert rows["er"]["operations_in_er_runs"] == rows["er"]["cpu_seconds_in_er_runs"] == 1
    # ER's batch is twice as large once something is stored; GMED differentiates at the images, which no other does.
    assert 0.4 < rows["fine-tune"]["operations_in_er_runs"] < 0.6
    assert rows["gmed"]["operations_in_er_runs"] > 1
    assert all(row["cpu_seconds"] > 0 for row in rows.values())
