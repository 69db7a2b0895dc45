"""GDumb: the greedy rule against its definition, and the network that is trained on the memory alone."""

import copy
import dataclasses
import math

import pytest
import torch
from helpers.small_fashion import gain_over_fine_tuning, sixty_stream
from hypothesis import given, settings
from hypothesis import strategies as st

from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.gdumb import GDumb, GDumbSettings, greedy_slot
from metasp_lite.continual.training import score

SETTINGS = GDumbSettings(memory=50, dumb_epochs=20)


@pytest.fixture(scope="module")
def stream():
    return sixty_stream()


def new(stream, chosen=SETTINGS, **recipe):
    learner = Learner(stream, Recipe(**{"network": "mlp", "epochs": 2, **recipe}), 5)
    return learner, GDumb(learner, chosen)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------- the greedy rule


@settings(max_examples=100, deadline=None)
@given(st.integers(5, 13), st.lists(st.integers(0, 4), max_size=80))
def test_greedy_rule(capacity, labels):
    """Stored while the class has fewer than its share, for a free slot first, else for one of the largest class."""
    held, draw = [-1] * capacity, generator()
    for k, label in enumerate(labels):
        before = list(held)
        slot = greedy_slot(held, label, draw)
        assert held == before
        share = capacity / len(set(labels[: k + 1]))
        assert (slot is not None) == (before.count(label) < share)
        if slot is None:
            continue
        if -1 in before:
            assert before[slot] == -1
        else:
            assert before.count(before[slot]) == max(before.count(c) for c in set(before))
            assert before[slot] != label
        held[slot] = label
        largest = max(before.count(c) for c in {*before, label} - {-1})
        assert max(held.count(c) for c in {*held} - {-1}) <= max(math.ceil(share), largest)


@pytest.mark.parametrize("capacity", [10, 11, 12, 13, 30])
def test_classes_are_even_after_enough_of_each(capacity):
    """In any order, and class after class: the worst case for a memory that was full of the first."""
    for labels in ([c for c in range(4) for _ in range(capacity)], [i % 4 for i in range(4 * capacity)]):
        held, draw = [-1] * capacity, generator()
        for label in labels:
            slot = greedy_slot(held, label, draw)
            if slot is not None:
                held[slot] = label
        counts = [held.count(c) for c in range(4)]
        assert sum(counts) == capacity
        assert max(counts) - min(counts) <= 1


def test_each_example_of_the_largest_classes_is_as_likely_to_go():
    """Of 4,000 draws among four slots 1,000 each; 140 is five standard deviations."""
    held, draw = [0, 1, 1, 0, 2], generator()
    slots = torch.tensor([greedy_slot(held, 3, draw) for _ in range(4000)]).bincount(minlength=5)
    assert slots[4] == 0
    assert (slots[:4] - 1000).abs().max() < 140


# -------------------------------------------------------------------------------------------------------- the memory


def test_memory_is_even_after_each_task_and_holds_what_was_offered(stream):
    learner, method = new(stream)
    for number, task in enumerate(stream.tasks):
        learner.task_number = number
        for index in learner.batches(method.examples(learner)):
            method.step(learner, learner.batch(index))
        filled = method.buffer.filled
        counts = method.buffer.labels[filled].bincount(minlength=task.classes.stop)
        assert len(filled) == 50
        assert counts.max() - counts.min() <= 1
        for slot in filled:
            same = (stream.images == method.buffer.images[slot]).flatten(1).all(dim=1)
            assert (stream.labels[same] == method.buffer.labels[slot]).any()
            assert method.buffer.tasks[slot] == method.buffer.labels[slot] // 2


def test_of_two_examples_for_one_slot_the_later_stays(stream):
    """One slot, classes 0, 1, 0 in one batch: each new class drives out the last."""
    learner, method = new(stream, GDumbSettings(memory=1))
    index = torch.stack([(stream.labels == c).nonzero()[k, 0] for k, c in enumerate((0, 1, 0))])
    method.step(learner, learner.batch(index))
    assert method.buffer.labels.tolist() == [0]
    assert torch.equal(method.buffer.images[0], stream.images[index[2]])


def test_nothing_is_trained_or_offered_twice_while_examples_come(stream):
    learner, method = new(stream)
    before = copy.deepcopy(learner.model.state_dict())
    batch = learner.batch(stream.tasks[0].train[:8])
    assert method.step(learner, batch) == 0
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert len(method.examples(learner)) == 120
    learner.epoch = 1
    assert len(method.examples(learner)) == 0


# ------------------------------------------------------------------------------------------------- the fresh network


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_network_is_trained_from_scratch_on_the_memory_alone(stream, network):
    """Neither the last network nor what the stream has beside the memory matters; the memory is learnt."""
    learner, method = new(stream, network=network, momentum=0.5)
    method.step(learner, learner.batch(stream.tasks[0].train[::3]))
    black = dataclasses.replace(stream, images=torch.zeros_like(stream.images))
    twin = Learner(black, learner.recipe, 6)
    twin.draws.load_state_dict(learner.draws.state_dict())
    other = GDumb(twin, SETTINGS)
    other.load_state_dict(method.state_dict())
    old = learner.model
    for parameter in twin.model.parameters():
        parameter.data.fill_(math.nan)
    for each, its in ((method, learner), (other, twin)):
        each.end_task(its)
    assert learner.model is not old
    expected = twin.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in learner.model.state_dict().items())
    optimized = [p for group in learner.optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(optimized, learner.model.parameters(), strict=True))
    kept = method.buffer.read(method.buffer.filled)
    logits = learner.model.eval()(stream.augmentation.normalise(kept.images))
    assert (logits.argmax(dim=1) == kept.labels).float().mean() > 0.9


def _first(model):
    return next(model.parameters())


def test_two_networks_begin_from_different_weights(stream):
    learner, method = new(stream, GDumbSettings(memory=50, dumb_epochs=1), lr=1e-30)
    method.step(learner, learner.batch(stream.tasks[0].train[:32]))
    starts = [_first(learner.model).detach().clone()]
    for _ in range(2):
        method.end_task(learner)
        starts.append(_first(learner.model).detach().clone())
    assert not any(torch.equal(starts[i], starts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_memory_comes_in_batches_of_its_own_size(stream, monkeypatch):
    learner, method = new(stream, GDumbSettings(memory=20, memory_batch=8, dumb_epochs=3))
    method.offer(learner, learner.batch(stream.tasks[0].train[:60]))
    sizes, read = [], method.buffer.read
    monkeypatch.setattr(method.buffer, "read", lambda slots: sizes.append(len(slots)) or read(slots))
    method.end_task(learner)
    assert sizes == [8, 8, 4] * 3


def test_rate_follows_half_a_cosine(stream, monkeypatch):
    """One batch an epoch: 1, (2+√2)/4, 1/2, (2−√2)/4 of the recipe's."""
    learner, method = new(stream, GDumbSettings(memory=20, dumb_epochs=4))
    method.step(learner, learner.batch(stream.tasks[0].train[:40]))
    rates, descend = [], learner.descend
    monkeypatch.setattr(
        learner, "descend", lambda loss: rates.append(learner.optimizer.param_groups[0]["lr"]) or descend(loss)
    )
    method.end_task(learner)
    assert rates == pytest.approx([0.1, 0.1 * (2 + 2**0.5) / 4, 0.05, 0.1 * (2 - 2**0.5) / 4], rel=1e-12)


def test_divergence_is_reported(stream):
    learner, method = new(stream, lr=1e20)
    method.step(learner, learner.batch(stream.tasks[0].train[:40]))
    with pytest.raises(FloatingPointError, match=r"the loss on the memory is .*lower the step size"):
        method.end_task(learner)


def test_settings_that_train_nothing_are_refused():
    with pytest.raises(ValueError, match="dumb_epochs=0 must be at least 1"):
        GDumbSettings(dumb_epochs=0)


# -------------------------------------------------------------------------------------------------------- whole runs


def test_it_learns_more_than_fine_tuning(stream, tmp_path):
    result, gain = gain_over_fine_tuning("gdumb", SETTINGS, stream, tmp_path)
    assert gain > 0.2
    assert all(value is not None for row in [result["accuracy_class_incremental"][1]] for value in row[:2])
    assert result["epoch_losses"] == [0.0] * 15
    assert result["steps"] == 5 * 4


def test_scores_are_those_of_the_new_network(stream):
    learner, method = new(stream)
    for index in learner.batches(learner.task.train):
        method.step(learner, learner.batch(index))
    assert score(learner)[0][0] < 0.8
    method.end_task(learner)
    assert score(learner)[0][0] > 0.9
