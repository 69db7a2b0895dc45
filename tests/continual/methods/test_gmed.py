"""GMED: the edit against finite differences, the step against a plain one written out, whole runs.

Rounding: two routes to a float64 gradient differ by about 1e-15 of it, to a float32 step by 1e-7; the tolerances lie a
thousand times above that.
"""

import copy

import pytest
import torch
from helpers.analytic import randn
from helpers.made_up_streams import noise_stream
from helpers.small_fashion import gain_over_fine_tuning, sixty_stream
from torch import nn
from torch.nn import functional as F

from metasp_lite.continual.buffer import Memories
from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.base import MemorySettings
from metasp_lite.continual.methods.gmed import GMED, GMEDSettings, edit
from metasp_lite.continual.methods.replay import ER
from metasp_lite.networks import toy_mlp

SETTINGS = GMEDSettings(memory=50, memory_batch=16)


@pytest.fixture(scope="module")
def stream():
    return sixty_stream()


@pytest.fixture(scope="module")
def moving(stream):
    """The same with crops and flips."""
    return sixty_stream(padding=2, flip=True)


def new(stream, chosen=SETTINGS, **recipe):
    """A learner and GMED after two steps: with a memory, edits in it, momentum and running averages."""
    learner = Learner(stream, Recipe(**{"network": "mlp", "epochs": 2, **recipe}), 5)
    method = GMED(learner, chosen)
    for index in stream.tasks[0].train[:32].split(16):
        method.step(learner, learner.batch(index))
    return learner, method


# ---------------------------------------------------------------------------------------------------------- the edit


def losses_of(seed, labels):
    model = toy_mlp(12, 5, 4, seed=seed)
    return lambda x: F.cross_entropy(model(x), labels, reduction="none")


def test_edit_is_a_step_along_the_finite_difference_of_the_interference():
    """Central differences of width 1e-5: their error, 1e-10, and the rounding of a loss near 1, 1e-11 of the slope."""
    inputs, labels = randn(3, 1, 3, 4, seed=1), torch.tensor([0, 3, 1])
    now, after = losses_of(1, labels), losses_of(2, labels)
    strides, beta, width = torch.tensor([0.5, 2.0, 0.0]).double(), 0.3, 1e-5

    def interference(x):
        return (after(x) - now(x) - beta * now(x)).detach()

    slopes = torch.zeros(3, 12).double()
    for k in range(12):
        step = torch.zeros(12).double()
        step[k] = width
        step = step.view(1, 3, 4)
        slopes[:, k] = (interference(inputs + step) - interference(inputs - step)) / (2 * width)
    expected = inputs + (strides[:, None] * slopes).view_as(inputs)
    torch.testing.assert_close(edit(inputs, now, after, strides, beta), expected, rtol=0, atol=1e-8)


def test_edited_examples_suffer_more_and_a_strong_regularisation_makes_them_easier():
    inputs, labels = randn(6, 12, seed=3), torch.arange(6) % 4
    now, after = losses_of(1, labels), losses_of(2, labels)
    strides = torch.full((6,), 0.01).double()
    edited = edit(inputs, now, after, strides, 0.0)
    assert (after(edited) - now(edited) > after(inputs) - now(inputs)).all()
    assert (now(edit(inputs, now, after, strides, 100.0)) < now(inputs)).all()


# ------------------------------------------------------------------------------------------------------- the pixels


def test_edited_pixels_are_in_units_of_each_channels_own_deviation():
    stream = noise_stream(shape=(3, 4, 4))
    learner = Learner(stream, Recipe(network="mlp", epochs=1), 5)
    method = GMED(learner, GMEDSettings(memory=6, memory_batch=6))
    method.offer(learner, learner.batch(stream.tasks[0].train[:6]))
    method.changes[:] = torch.randn(method.changes.shape, generator=torch.Generator().manual_seed(1))
    kept = method.buffer.read(torch.tensor([4, 1]))
    found = method.pixels(learner, kept)
    for row, slot in zip(found, (4, 1), strict=True):
        for channel, deviation in enumerate(stream.augmentation.std):
            expected = method.buffer.images[slot, channel] + method.changes[slot, channel] * deviation
            torch.testing.assert_close(row[channel], expected)
    assert len(set(stream.augmentation.std)) == 3


def test_a_new_example_begins_unedited_in_every_slot(stream):
    learner = Learner(stream, Recipe(network="mlp", epochs=1), 5)
    method = GMED(learner, GMEDSettings(memory=6, memory_batch=6))
    method.changes[:] = 1.0
    method.offer(learner, learner.batch(stream.tasks[0].train[:4]))
    assert method.buffer.filled.tolist() == [0, 1, 2, 3]
    assert method.changes.flatten(1).amax(dim=1).tolist() == [0.0] * 4 + [1.0] * 2


# ---------------------------------------------------------------------------------------------------------- the step


class Double(nn.Sequential):
    """Layers that compute in float64 on inputs of any dtype."""

    def forward(self, inputs):
        return super().forward(inputs.double())


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_step_is_the_papers(stream, network):
    """Written out with copies: torch's own SGD for the look-ahead, an edit, a plain step on the edited examples.

    From the same pixels and in float64: where rounding, 1e-7 in float32, takes a unit over the kink of its ReLU or
    decides between equal maxima, the derivatives at the pixels around are others (47 of 12,544 on some processors).
    """
    settings = GMEDSettings(memory=50, memory_batch=16, stride=0.7, decay=0.5, regularisation=0.2)
    recipe = {"network": network, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    learner, method = new(stream, settings, **recipe)
    learner.epoch = 1  # nothing is offered
    learner.model = Double(*learner.model).double()
    for state in learner.optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].double()
    batch = learner.batch(stream.tasks[1].train[:16])
    twin, other = copy.deepcopy((learner, method))
    kept = other.buffer.sample(16, twin.draws.memory)
    assert set(other.buffer.columns["edits"][kept.slots].tolist()) == {0, 1}

    ahead, optimizer = copy.deepcopy((twin.model, twin.optimizer))
    optimizer.zero_grad()
    F.cross_entropy(ahead(batch.inputs), batch.labels).backward()
    optimizer.step()
    std = torch.tensor(stream.augmentation.std).view(1, -1, 1, 1)
    x = stream.augmentation.normalise(kept.images + other.changes[kept.slots] * std).requires_grad_()
    before = copy.deepcopy(twin.model)
    gain = sum(w * F.cross_entropy(model(x), kept.labels, reduction="sum") for w, model in ((1, ahead), (-1.2, before)))
    gain.backward()
    strides = 0.7 * 0.5 ** other.buffer.columns["edits"][kept.slots]
    change = other.changes[kept.slots] + strides.view(-1, 1, 1, 1) * x.grad
    inputs = torch.cat([batch.inputs, twin.replayed(kept.images + change * std)])
    loss = twin.descend(twin.loss(inputs, torch.cat([batch.labels, kept.labels])))

    assert float(method.step(learner, batch)) == pytest.approx(float(loss), rel=1e-4)
    torch.testing.assert_close(method.changes[kept.slots], change, rtol=0, atol=1e-4 * float(change.abs().max()))
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[kept.slots] = False
    assert torch.equal(method.changes[untouched], other.changes[untouched])
    assert torch.equal(method.buffer.columns["edits"] - other.buffer.columns["edits"], (~untouched).float())
    for (name, actual), expected in zip(
        learner.model.state_dict().items(), twin.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_without_a_stride_it_is_experience_replay_bit_for_bit(moving, network):
    """So the look-ahead and the edit move no parameter, no running average and no draw."""
    states = []
    for method in (GMED, ER):
        learner = Learner(moving, Recipe(network, 1, momentum=0.9), 5)
        chosen = GMEDSettings(memory=50, memory_batch=16, stride=0) if method is GMED else MemorySettings(50, 16)
        method = method(learner, chosen)
        for index in learner.batches(learner.task.train):
            method.step(learner, learner.batch(index))
        states.append({**learner.model.state_dict(), **learner.draws.state_dict()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_edits_move_with_the_image_and_black_comes_in_beside_them(moving):
    """An image that an edit makes white everywhere, on the scale of pixels; what a crop brings in is black."""
    learner = Learner(moving, Recipe("mlp", 1), 5)
    method = GMED(learner, SETTINGS)
    kept = Memories(torch.tensor([0]), method.buffer.images[:1], torch.tensor([0]))
    method.changes[0] = 255 / moving.augmentation.std[0]
    pixels = method.pixels(learner, kept)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 255))
    seen = torch.cat([learner.replayed(pixels) for _ in range(50)])
    black, white = ((value - moving.augmentation.mean[0]) / moving.augmentation.std[0] for value in (0, 255))
    is_black, is_white = ((seen - value).abs() < 1e-4 for value in (black, white))
    assert (is_black | is_white).all()
    assert is_black.any()


# -------------------------------------------------------------------------------------------------------- the memory


def test_a_new_example_begins_unedited_and_the_others_keep_their_edits(stream):
    learner, method = new(stream, GMEDSettings(memory=20, memory_batch=4))
    method.changes.fill_(1)
    method.buffer.columns["edits"].fill_(3)
    before = method.buffer.images.clone()
    learner.draws.storing.manual_seed(0)
    method.offer(learner, learner.batch(stream.tasks[0].train[60:100]))
    replaced = (method.buffer.images != before).flatten(1).any(dim=1)
    assert 0 < replaced.sum() < 20
    assert not replaced[-1]  # which a slot of -1, an example passed over, must not mean
    assert (method.changes[replaced] == 0).all()
    assert (method.buffer.columns["edits"][replaced] == 0).all()
    assert (method.changes[~replaced] == 1).all()
    assert (method.buffer.columns["edits"][~replaced] == 3).all()
    learner.epoch = 1
    state = copy.deepcopy(method.state_dict())
    method.offer(learner, learner.batch(stream.tasks[0].train[:40]))
    assert torch.equal(method.buffer.images, state["buffer"]["images"])


@pytest.mark.parametrize("wrong", [{"stride": -0.1}, {"decay": 0.0}, {"decay": 1.1}, {"regularisation": float("nan")}])
def test_settings_that_edit_the_wrong_way_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}="):
        GMEDSettings(**wrong)


# -------------------------------------------------------------------------------------------------------- whole runs


def test_it_learns_more_than_fine_tuning(stream, tmp_path):
    _, gain = gain_over_fine_tuning("gmed", SETTINGS, stream, tmp_path)
    assert gain > 0.1
