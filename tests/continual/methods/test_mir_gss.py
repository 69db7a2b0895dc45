"""MIR and GSS: what they choose, by hand, by loops and by real steps; and runs that remember."""

import copy
from collections import Counter

import pytest
import torch
from helpers.small_fashion import assert_learns, learner_in_second_task
from torch.nn import functional as F

from metasp_lite.calculus.losses import cross_entropy, losses_at
from metasp_lite.continual import methods
from metasp_lite.continual.learner import rehearse
from metasp_lite.continual.methods.base import virtual_step
from metasp_lite.continual.methods.mir_gss import (
    GSS,
    MIR,
    GSSSettings,
    MIRSettings,
    cosine_scores,
    greedy_placement,
    most_interfered,
    replaced_slot,
)

RULES = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.01},
    {"lr": 0.02, "momentum": 0.9},
    {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]


def snapshot(learner):
    return copy.deepcopy((learner.model.state_dict(), learner.optimizer.state_dict()))


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


# MIR


def test_most_interfered_by_hand():
    before = torch.tensor([5.0, 1.0, 2.0, 1.0, 0.0])
    after = torch.tensor([4.0, 2.0, 2.0, 4.0, 1.0])  # by −1, 1, 0, 3, 1
    assert most_interfered(before, after, 1).tolist() == [3]
    assert most_interfered(before, after, 3).tolist() == [3, 1, 4]
    assert most_interfered(before, after, 9).tolist() == [3, 1, 4, 2, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_refused(bad):
    fine, wrong = torch.tensor([1.0, 2.0]), torch.tensor([1.0, bad])
    for before, after in ((fine, wrong), (wrong, fine)):
        with pytest.raises(FloatingPointError, match="candidate"):
            most_interfered(before, after, 1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_the_virtual_step_is_the_optimisers_own(network, rule):
    """Taken for real on a copy.  float32, and another order of sums within the optimiser: 1e-6 of weights below 1."""
    learner, _, batch = learner_in_second_task(MIR, MIRSettings(memory=40), network=network, **rule)
    moved = virtual_step(learner, (batch.inputs, batch.labels))
    learner.descend(learner.loss(batch.inputs, batch.labels))
    for name, parameter in learner.model.named_parameters():
        torch.testing.assert_close(moved[name], parameter.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_trying_a_step_and_scoring_move_nothing(network):
    learner, _, batch = learner_in_second_task(MIR, MIRSettings(memory=40), network=network, momentum=0.9)
    before, gradients = snapshot(learner), [p.grad.clone() for p in learner.model.parameters()]
    moved = virtual_step(learner, (batch.inputs, batch.labels))
    losses_at(learner.model, moved, (batch.inputs, batch.labels))
    assert_same(snapshot(learner), before)
    assert_same([p.grad for p in learner.model.parameters()], gradients)
    assert learner.model.training


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_mir_rehearses_whom_a_real_step_harms_most(network, monkeypatch):
    """The step is taken on a copy of the network, and all of the memory scored before and after, in training mode."""
    learner, method, batch = learner_in_second_task(MIR, MIRSettings(memory=40, memory_batch=7), network=network)
    kept = method.buffer.read(method.buffer.filled)
    inputs = learner.stream.augmentation.normalise(kept.images)
    copied, losses = copy.deepcopy(learner.model), []
    optimizer = learner.new_optimizer(copied)
    for _ in range(2):
        with torch.no_grad():
            losses.append(cross_entropy(copy.deepcopy(copied)(inputs), kept.labels))
        optimizer.zero_grad()
        F.cross_entropy(copied(batch.inputs), batch.labels).backward()
        optimizer.step()
    harmed = (losses[1] - losses[0]).topk(7).indices
    rehearsed = []

    def remembered(learner, batch, images, labels):
        rehearsed.append((images, labels))
        return rehearse(learner, batch, images, labels)

    monkeypatch.setattr("metasp_lite.continual.methods.mir_gss.rehearse", remembered)
    assert torch.isfinite(method.step(learner, batch))
    ((images, labels),) = rehearsed
    assert_same(images, kept.images[harmed])
    assert_same(labels, kept.labels[harmed])


def test_mirs_real_step_moves_the_running_averages_once():
    learner, method, batch = learner_in_second_task(MIR, MIRSettings(memory=40), network="lite-cnn")
    before = snapshot(learner)[0]
    method.step(learner, batch)
    after = learner.model.state_dict()
    assert [int(after[n] - before[n]) for n in after if n.endswith("num_batches_tracked")] == [1, 1, 1]


def test_fewer_candidates_than_are_rehearsed_are_refused():
    with pytest.raises(ValueError, match="candidates=10"):
        MIRSettings(candidates=10, memory_batch=11)


# GSS


def test_cosine_scores_are_those_of_known_angles():
    """Directions at 0°, 100°, 180° against references at 30° and 90°, of any length: the nearer angle counts."""
    angles = torch.deg2rad(torch.tensor([[0.0, 100.0, 180.0], [30.0, 90.0, 0.0]], dtype=torch.float64))
    directions = torch.stack([angles.cos(), angles.sin()], dim=2)
    rows = directions[0] * torch.tensor([[1e-3], [1.0], [1e3]], dtype=torch.float64)
    nearest = torch.deg2rad(torch.tensor([30.0, 10.0, 90.0], dtype=torch.float64))
    found = cosine_scores(rows, 7 * directions[1, :2])
    torch.testing.assert_close(found, 1 + nearest.cos(), rtol=0, atol=1e-14)


def test_cosine_scores_of_equal_opposite_and_zero_gradients():
    rows = torch.tensor([[0.1, 0.2], [-0.1, -0.2], [0.0, 0.0]])
    found = cosine_scores(rows, rows[:1])
    torch.testing.assert_close(found, torch.tensor([2.0, 0.0, 1.0]), rtol=0, atol=1e-6)
    assert ((found >= 0) & (found <= 2)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_refused(bad):
    fine, wrong = torch.ones(1, 2), torch.tensor([[1.0, bad]])
    for rows, references in ((fine, wrong), (wrong, fine)):
        with pytest.raises(FloatingPointError, match="gradient"):
            cosine_scores(rows, references)


def test_replacement_follows_the_papers_probabilities():
    """Slot i falls with C_i/ΣC · C_i/(C_i + c).  20,000 draws: a frequency is off by 4σ < 0.0142 once in 10⁴."""
    stored, score, draws = torch.tensor([0.2, 1.0, 0.0, 1.8]), 0.6, 20_000
    generator = torch.Generator().manual_seed(0)
    counts = Counter(replaced_slot(stored, score, generator) for _ in range(draws))
    for slot, c in enumerate([0.2, 1.0, 0.0, 1.8]):
        assert abs(counts[slot] / draws - c / 3.0 * c / (c + 0.6)) < 0.0142
    assert sum(counts.values()) == draws


def test_what_is_not_unlike_the_memory_never_enters_it():
    generator = torch.Generator().manual_seed(0)
    for score in (1.0, 1.5, 2.0):
        assert {replaced_slot(torch.tensor([2.0, 2.0]), score, generator) for _ in range(50)} == {-1}
    assert replaced_slot(torch.zeros(3), 0.5, generator) == -1  # C_i / (C_i + c) is 0 in every slot


def test_an_example_opposite_to_all_always_enters():
    """c = 0: the chance is 1, and only slots with a positive score fall."""
    generator = torch.Generator().manual_seed(0)
    found = {replaced_slot(torch.tensor([0.0, 1.0, 0.5]), 0.0, generator) for _ in range(200)}
    assert found == {1, 2}


def test_empty_slots_are_taken_first_and_in_order():
    stored, free = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0, 2])
    placed = greedy_placement(stored, free, torch.tensor([1.9, 1.5, 1.2]), torch.Generator().manual_seed(0))
    assert placed == {0: 0, 2: 1}
    assert stored.tolist() == [0.0, 1.0, 0.0]


def test_a_new_score_counts_for_the_next_example():
    """An example that is opposite to all (c = 0) takes the one slot; with its score there the next has no chance."""
    one = torch.tensor([1.0])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        none = torch.zeros(0, dtype=torch.int64)
        assert greedy_placement(one, none, torch.tensor([0.0, 0.5]), generator) == {0: 0}


def test_of_two_examples_in_one_slot_the_later_stays():
    both = greedy_placement(
        torch.tensor([2.0]), torch.zeros(0, dtype=torch.int64), torch.tensor([1e-9, 0.0]), torch.Generator()
    )
    assert both == {0: 1}


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_gss_scores_are_those_of_gradients_taken_one_by_one(network):
    """Autograd on single images in evaluation mode, against all that is stored.  A cosine of 10⁵ float32: 1e-5."""
    learner, method, batch = learner_in_second_task(GSS, GSSSettings(memory=200, compared=12), network=network)
    method.buffer.drop(method.buffer.filled[12:])
    old = method.buffer.read(method.buffer.filled)
    model = copy.deepcopy(learner.model).eval()

    def directions(images, labels):
        inputs = learner.stream.augmentation.normalise(images)
        rows = []
        for x, y in zip(inputs, labels, strict=True):
            loss = F.cross_entropy(model(x[None]), y[None])
            row = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()
            rows.append(row / row.norm())
        return torch.stack(rows)

    cosines = directions(batch.images, batch.labels) @ directions(old.images, old.labels).T
    before = snapshot(learner)
    method.offer(learner, batch)
    assert_same(snapshot(learner), before)
    assert learner.model.training
    new = method.buffer.filled[12:]
    torch.testing.assert_close(method.buffer.columns["score"][new].double(), 1 + cosines.amax(dim=1), rtol=0, atol=1e-5)
    assert_same(method.buffer.read(new)[1:], (batch.images, batch.labels))
    assert method.buffer.tasks[new].unique().tolist() == [1]


def test_the_first_examples_score_as_if_at_a_right_angle():
    learner, method, batch = learner_in_second_task(GSS, GSSSettings(memory=40))
    method.buffer.drop(method.buffer.filled)
    method.offer(learner, batch)
    assert method.buffer.columns["score"][method.buffer.filled].tolist() == [1.0] * len(batch.labels)


def test_equal_gradients_score_two_and_never_more():
    """Rounding takes a cosine of float32 above 1 in about one of fifty."""
    rows = torch.randn(2000, 50, generator=torch.Generator().manual_seed(1))
    cosines = F.normalize(rows, dim=1).square().sum(dim=1)
    assert (1 + cosines > 2).any()
    found = torch.cat([cosine_scores(row[None], row[None]) for row in rows])
    assert ((found <= 2) & (found > 2 - 1e-6)).all()


def test_gss_draws_from_the_learners_generator_alone():
    held = []
    for seed in (1, 2):
        learner, method, batch = learner_in_second_task(GSS, GSSSettings(memory=40, compared=3))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        method.offer(learner, batch)
        assert torch.equal(torch.get_rng_state(), before)
        held.append((method.buffer.images, method.buffer.columns["score"]))
    assert_same(*held)


def test_gss_looks_at_an_example_once():
    """In later epochs of a task the memory stays as it is, though half of it is free."""
    learner, method, batch = learner_in_second_task(GSS, GSSSettings(memory=400))
    learner.epoch = 1
    stored = len(method.buffer)
    method.step(learner, batch)
    assert len(method.buffer) == stored


def test_a_full_memory_keeps_its_size_scores_and_labels_together():
    """After a run every slot holds an example of its task, with a score below 1 wherever one was replaced."""
    learner, method, _ = learner_in_second_task(GSS, GSSSettings(memory=30))
    for index in learner.batches(learner.task.train):
        method.step(learner, learner.batch(index))
    assert len(method.buffer) == 30
    assert torch.equal(method.buffer.labels // 2, method.buffer.tasks)
    pixels = {x.numpy().tobytes(): int(y) for x, y in zip(learner.stream.images, learner.stream.labels, strict=True)}
    assert [pixels[x.numpy().tobytes()] for x in method.buffer.images] == method.buffer.labels.tolist()
    later = method.buffer.tasks == 1
    assert later.any()
    assert (method.buffer.columns["score"][later] < 1).all()


def test_comparing_with_nothing_is_refused():
    with pytest.raises(ValueError, match="compared=0"):
        GSSSettings(compared=0)


# Both


@pytest.mark.parametrize("name", ["mir", "gss"])
def test_runs_remember(name, tmp_path):
    assert_learns(name, 0.3, tmp_path)


@pytest.mark.parametrize("name", ["mir", "gss"])
def test_a_step_with_batch_norm_is_finite(name):
    chosen = methods.METHODS[name].Settings(memory=40)
    learner, method, batch = learner_in_second_task(methods.METHODS[name], chosen, network="lite-cnn")
    assert torch.isfinite(method.step(learner, batch))
    assert all(torch.isfinite(value).all() for value in learner.model.state_dict().values())
