"""HAL: what an anchor is learnt for and the penalty it gives, against finite differences; the step written out; runs.

Central differences of width 1e-5 in float64: their error is 1e-10, the rounding of a number near 1 gives 1e-11.
"""

import copy
import math

import pytest
import torch
from helpers.analytic import randn
from helpers.small_fashion import gain_over_fine_tuning, sixty_stream
from torch.func import functional_call
from torch.nn import functional as F

from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.base import MemorySettings
from metasp_lite.continual.methods.hal import HAL, HALSettings, drift, forgetting
from metasp_lite.continual.methods.replay import ER
from metasp_lite.networks import lite_cnn, toy_mlp

SETTINGS = HALSettings(memory=50, memory_batch=16, anchor_steps=10)


@pytest.fixture(scope="module")
def stream():
    return sixty_stream()


def new(stream, tasks=1, chosen=SETTINGS, **recipe):
    """A learner and HAL after ``tasks`` tasks of a few steps, at the start of the next."""
    learner = Learner(stream, Recipe(**{"network": "mlp", "epochs": 2, **recipe}), 5)
    method = HAL(learner, chosen)
    for number in range(tasks):
        learner.task_number = number
        for index in learner.task.train[::2].split(16):
            method.step(learner, learner.batch(index))
        method.end_task(learner)
        learner.task_number = number + 1
    return learner, method


# ------------------------------------------------------------------------------------------------- an anchor's worth


def by_hand(weights, tuned, x, y, centre, strength):
    """The same in plain numbers: a tanh layer, a linear one, log-sum-exp."""

    def loss(w1, b1, w2, b2):
        hidden = torch.tanh(w1 @ x + b1)
        logits = (w2 @ hidden + b2).tolist()
        return math.log(sum(math.exp(v) for v in logits)) - logits[y], hidden

    (before, hidden), (after, _) = loss(*weights), loss(*tuned)
    return after - before - strength * sum(d * d for d in (hidden - centre).tolist())


def test_forgetting_and_its_slope_are_those_of_plain_numbers():
    model, tuned = toy_mlp(6, 5, 3, seed=1), toy_mlp(6, 5, 3, seed=2)
    anchors, labels, centres = randn(2, 1, 2, 3, seed=3), torch.tensor([2, 0]), randn(2, 5, seed=4)
    leaves = anchors.clone().requires_grad_()
    worth = forgetting(leaves, labels, model, tuned, centres, 0.7)
    (slope,) = torch.autograd.grad(worth.sum(), leaves)
    w, t = ([p.detach() for p in m.parameters()] for m in (model, tuned))
    for i in range(2):
        x, y = anchors[i].flatten(), int(labels[i])
        assert worth[i].item() == pytest.approx(by_hand(w, t, x, y, centres[i], 0.7), rel=1e-12)
        for k in range(6):
            step = torch.zeros(6).double()
            step[k] = 1e-5
            ends = [by_hand(w, t, x + sign * step, y, centres[i], 0.7) for sign in (1, -1)]
            assert float(slope[i].flatten()[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


# ------------------------------------------------------------------------------------------------------- the penalty


@pytest.mark.parametrize("network", [lambda s: toy_mlp(64, 4, 3, seed=s), lambda s: lite_cnn(3, channels=1, seed=s)])
def test_drift_is_the_mean_squared_difference_of_the_logits_and_moves_nothing(network):
    model, other = network(1).double(), network(2).double()
    model(randn(8, 1, 8, 8, seed=3))  # running averages that are not 0 and 1
    before = copy.deepcopy(model.state_dict())
    anchors = randn(3, 1, 8, 8, seed=4)
    moved = {name: parameter.detach() for name, parameter in other.named_parameters()}
    penalty = drift(model, moved, anchors)
    averages = dict(model.named_buffers())
    with torch.no_grad():
        here = copy.deepcopy(model).eval()(anchors)
        there = functional_call(copy.deepcopy(other).eval(), {**moved, **averages}, (anchors,))
    assert penalty.item() == pytest.approx(float((here - there).pow(2).sum()) / 9, rel=1e-12)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert drift(model, dict(model.named_parameters()), anchors).item() == 0


def test_drift_pulls_towards_where_the_step_leads_and_holds_that_fixed():
    """∇ is that of a finite difference in θ alone, although θ' here depends on the same parameters."""
    model = toy_mlp(4, 3, 2, seed=1)
    anchors = randn(3, 4, seed=5)
    moved = {name: 0.5 * parameter for name, parameter in model.named_parameters()}
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(drift(model, moved, anchors), parameters)
    fixed = {name: value.detach() for name, value in moved.items()}
    with torch.no_grad():
        for parameter, slope in zip(parameters, gradient, strict=True):
            for k in range(parameter.numel()):
                ends = []
                for change in (1e-5, -2e-5):
                    parameter.view(-1)[k] += change
                    ends.append(float(drift(model, fixed, anchors)))
                parameter.view(-1)[k] += 1e-5
                assert float(slope.flatten()[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


# ---------------------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_step_is_the_papers(stream, network):
    """Written out: θ' by torch's own SGD on a copy, then one step on the loss and the penalty.  float32, so to 1e-4."""
    recipe = {"network": network, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    chosen = HALSettings(memory=50, memory_batch=16, anchor_steps=10, anchoring=0.8)
    learner, method = new(stream, chosen=chosen, **recipe)
    assert len(method.anchors) == 2
    batch = learner.batch(learner.task.train[:16])
    twin, other = copy.deepcopy((learner, method))
    kept = other.buffer.sample(16, twin.draws.memory)
    inputs = torch.cat([batch.inputs, twin.replayed(kept.images)])
    labels = torch.cat([batch.labels, kept.labels])

    ahead, optimizer = copy.deepcopy((twin.model, twin.optimizer))
    optimizer.zero_grad()
    F.cross_entropy(ahead(inputs), labels).backward()
    optimizer.step()
    loss = F.cross_entropy(twin.model(inputs), labels)
    plain = copy.deepcopy(twin.model)
    ahead.load_state_dict({**ahead.state_dict(), **dict(twin.model.named_buffers())})
    with torch.no_grad():
        target = ahead.eval()(other.anchors)
    penalty = F.mse_loss(twin.model.eval()(other.anchors), target)
    twin.model.train()
    twin.descend(loss + 0.8 * penalty)

    assert float(method.step(learner, batch)) == pytest.approx(loss.item(), rel=1e-5)
    actual, expected = learner.model.state_dict(), twin.model.state_dict()
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert penalty.item() > 1e-3  # there was something to see
    assert any(not torch.equal(value, plain.state_dict()[name]) for name, value in actual.items())


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_before_there_are_anchors_it_is_experience_replay_bit_for_bit(stream, network):
    states = []
    for method in (HAL, ER):
        learner = Learner(stream, Recipe(network, 1, momentum=0.9), 5)
        method = method(learner, SETTINGS if method is HAL else MemorySettings(50, 16))
        for index in learner.batches(learner.task.train):
            method.step(learner, learner.batch(index))
        states.append({**learner.model.state_dict(), **learner.draws.state_dict()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


# ------------------------------------------------------------------------------------------------------- the anchors


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_each_task_adds_an_anchor_a_class_and_leaves_the_network_as_it_was(stream, network):
    learner, method = new(stream, network=network, momentum=0.9)
    first = method.anchors.clone()
    for index in learner.task.train[::2].split(16):
        method.step(learner, learner.batch(index))
    assert torch.equal(method.anchors, first)
    before = copy.deepcopy({"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()})
    method.end_task(learner)
    assert method.anchors.shape == (4, *stream.images.shape[1:])
    assert torch.equal(method.anchors[:2], first)
    assert learner.model.training
    assert not method.anchors.requires_grad
    assert all(torch.equal(value, before["model"][name]) for name, value in learner.model.state_dict().items())
    for k, state in learner.optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], before["optimizer"]["state"][k]["momentum_buffer"])


def test_ascent_raises_what_an_anchor_is_learnt_for(stream):
    """From the same examples, by the same networks: ten small steps are better than none, for each class."""
    worth = []
    for steps in (0, 10):
        chosen = HALSettings(memory=50, memory_batch=16, anchor_steps=steps, anchor_lr=0.01)
        learner, method = new(stream, tasks=1, chosen=chosen)  # no penalty before the first anchors
        learner.task_number = 0
        train, body = learner.task.train, learner.model[:-1]
        features = body(stream.augmentation.normalise(stream.images[train]))
        centres = torch.stack([features[stream.labels[train] == c].mean(dim=0) for c in (0, 1)])
        learner.draws.own.manual_seed(0)
        tuned = method.tuned(learner)
        worth.append(forgetting(method.anchors, torch.tensor([0, 1]), learner.model, tuned, centres, 0.1))
    assert (worth[1] > worth[0]).all()


def test_a_step_of_the_ascent_has_the_length_that_is_asked_for(stream):
    """From the same examples, by the same networks: √ of the mean square over the pixels; inputs have deviation 1."""
    still, moved = (
        new(stream, chosen=HALSettings(memory=50, memory_batch=16, anchor_steps=steps, anchor_lr=0.03))[1].anchors
        for steps in (0, 1)
    )
    lengths = (moved - still).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(lengths, torch.full((2,), 0.03), rtol=1e-4, atol=0)  # a difference of float32 near 1


def test_a_strong_regularisation_takes_anchors_to_the_mean_embedding_of_their_class(stream):
    """Nearer to it than to the mean of the whole task, and nearer than most of the class's own examples are."""
    chosen = HALSettings(memory=50, memory_batch=16, anchor_steps=60, embedding=1e3)
    learner, method = new(stream, chosen=chosen)
    with torch.no_grad():
        body, train = learner.model[:-1], stream.tasks[0].train
        features = body(stream.augmentation.normalise(stream.images[train]))
        for label, anchor in enumerate(body(method.anchors)):
            own = features[stream.labels[train] == label]
            distance = (anchor - own.mean(dim=0)).norm()
            assert distance < (anchor - features.mean(dim=0)).norm()
            assert distance < (own - own.mean(dim=0)).norm(dim=1).median()


@pytest.mark.parametrize("current", [1, 0], ids=["earlier tasks", "the first task"])
def test_the_tuned_network_sees_earlier_tasks_only_unless_there_are_none(stream, current):
    learner, method = new(stream, network="lite-cnn")
    for index in learner.task.train[::2].split(16):
        method.step(learner, learner.batch(index))
    learner.task_number = current
    buffer = method.buffer
    assert set(buffer.tasks.tolist()) == {0, 1}
    if current == 0:
        buffer.drop((buffer.tasks == 1).nonzero()[:, 0])
    twin, other = copy.deepcopy((learner, method))
    other.buffer.images[buffer.tasks == 1] = 0
    other.buffer.labels[buffer.tasks == 1] = 7 if current else -1
    tuned, same = method.tuned(learner), other.tuned(twin)
    for (name, value), expected in zip(tuned.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    assert not torch.equal(tuned[-1].weight, learner.model[-1].weight)
    kept = buffer.read((buffer.tasks == 0).nonzero()[:, 0])
    inputs = stream.augmentation.normalise(kept.images)
    with torch.no_grad():
        losses = [F.cross_entropy(copy.deepcopy(m)(inputs), kept.labels) for m in (learner.model, tuned)]
    assert losses[1] < losses[0]


def test_anchors_that_run_away_are_reported(stream):
    chosen = HALSettings(memory=50, anchor_lr=1e38, anchor_steps=30)
    with pytest.raises(FloatingPointError, match=r"an anchor is .*lower the step size"):
        new(stream, chosen=chosen)


@pytest.mark.parametrize(
    "wrong",
    [{"anchoring": -1.0}, {"embedding": float("inf")}, {"anchor_lr": 0.0}, {"anchor_steps": -1}, {"tuning_epochs": 0}],
)
def test_settings_that_learn_no_anchor_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}=.*(must|at least)"):
        HALSettings(**wrong)


# -------------------------------------------------------------------------------------------------------- whole runs


def test_it_learns_more_than_fine_tuning(stream, tmp_path):
    _, gain = gain_over_fine_tuning("hal", SETTINGS, stream, tmp_path)
    assert gain > 0.1
