"""The benchmark: that it measures the steps it names, and that what it stores can be read."""

from functools import partial

import pytest
import torch
from torch import nn

from metasp_lite import networks
from metasp_lite.studies import process, step_cost
from metasp_lite.studies.step_cost import STEPS, Case


def double_arguments(network):
    """A step's arguments in float64, so that rounding does not hide a difference."""
    model, _, *sets = step_cost.arguments(network.double(), Case("tiny", n=6, v=8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, *((images.double(), labels) for images, labels in sets)


def state_after(variant, spoil=()):
    """Parameters and buffers after one step; the argument sets numbered in ``spoil`` are noise instead."""
    model, optimizer, *sets = double_arguments(networks.lite_cnn(widths=(2, 3, 4)))
    for k in spoil:
        sets[k] = (torch.rand_like(sets[k][0]), sets[k][1])
    STEPS[variant](model, optimizer, *sets)
    return model.state_dict()


def difference(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("rival", ["oracle", "oracle-shared"])
def test_the_rivals_take_the_step_that_metasp_takes(rival):
    """To float64 rounding: entries are about 1, and a few hundred sums are taken in other orders."""
    step = state_after("metasp")
    assert difference(step, state_after(rival)) < 1e-13
    assert difference(step, state_after("er")) > 1e-6  # influence does something


@pytest.mark.parametrize("variant", ["metasp", "oracle", "oracle-shared"])
@pytest.mark.parametrize("validation_set", [1, 2])
def test_both_validation_sets_matter_to_the_weighted_steps_alone(variant, validation_set):
    assert difference(state_after(variant), state_after(variant, spoil=[validation_set])) > 1e-9
    assert difference(state_after("er"), state_after("er", spoil=[validation_set])) == 0


def test_fine_tuning_sees_the_new_half_of_the_batch_alone():
    model, optimizer, (images, labels), *_ = double_arguments(networks.lite_cnn(widths=(2, 3, 4)))
    nn.functional.cross_entropy(model(images[:3]), labels[:3]).backward()
    optimizer.step()
    assert difference(model.state_dict(), state_after("sgd")) < 1e-14
    assert difference(model.state_dict(), state_after("er")) > 1e-3


@pytest.mark.parametrize(
    ("variant", "passes", "in_the_first_layer"),
    [
        ("sgd", (1.5, 0), (1, 0)),
        ("er", (3, 0), (2, 0)),
        ("metasp", (9, 3), (5, 2)),  # on the batch 3 for the pseudo-update, 4 for two tangents, 2 for the gradient
        ("oracle", (13, 3), (8, 2)),  # twice 3 for the pseudo-update and 2 for its derivative, 3 for the real step
        ("oracle-shared", (10, 3), (6, 2)),  # 3, twice 2, and 3
    ],
)
def test_operations_are_those_counted_by_hand(variant, passes, in_the_first_layer):
    """In passes for each of the batch and of the validation sets; one pass is 2 · inputs · outputs operations.

    The images need no derivative, so the first layer spares the backward pass to them and the tangent from them.
    Layers are linear: twice differentiated convolutions cost torch more.
    """
    n, v = 6, 10
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5), nn.Tanh(), nn.Linear(5, 7), nn.Linear(7, 10))
    first, others = 2 * 3072 * 5, 2 * (5 * 7 + 7 * 10)
    step = partial(STEPS[variant], *step_cost.arguments(network, Case("linear", n=n, v=v)))
    (batch, validation), (batch_first, validation_first) = passes, in_the_first_layer
    by_hand = (batch * n + validation * v) * others + (batch_first * n + validation_first * v) * first
    assert step_cost.operations(step) == by_hand


def test_times_are_medians_over_repetitions_in_turn(monkeypatch):
    """A clock that moves only inside the steps: by 1, 2, 9 seconds in plain steps, by thrice that in the other."""
    now, taken = [0.0], []

    def step_of(name, factor):
        def step(*_):
            taken.append(name)
            now[0] += factor * {2: 1, 3: 2, 4: 9}.get(taken.count(name), 100)  # the first is the counted warm-up

        return step

    monkeypatch.setattr(step_cost, "STEPS", {"er": step_of("er", 1), "other": step_of("other", 3)})
    monkeypatch.setattr(step_cost, "_NETWORKS", {"tiny": lambda: nn.Linear(1, 1)})
    monkeypatch.setattr(step_cost, "operations", lambda step: step() or 1)
    monkeypatch.setattr(step_cost.time, "process_time", lambda: now[0])
    er, other = step_cost.operations_and_seconds(Case("tiny", n=2, v=2, repetitions=3, variants=("er", "other")))
    assert taken == ["er", "other"] * 4
    assert (er["cpu_seconds"], other["cpu_seconds"], other["cpu_ratio_to_er"]) == (2, 6, 3)
    assert (er["cpu_seconds_min"], other["cpu_seconds_min"]) == (1, 3)


def test_the_peak_grows_by_what_the_backward_pass_keeps():
    """Tensors that the graph holds are counted here one by one; gradients in transit come on top."""
    case, kept = Case("lite-cnn", n=256), {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model, _, (images, labels), *_ = step_cost.arguments(networks.lite_cnn(), case)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        nn.functional.cross_entropy(model(images), labels)
    there_before = {tensor.untyped_storage().data_ptr() for tensor in (images, labels, *model.parameters())}
    mib = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in there_before) / 2**20
    assert mib > 50
    assert mib < process.in_fresh_process(step_cost.peak_extra_mib, "er", case) < 1.4 * mib
