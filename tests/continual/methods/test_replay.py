"""Fine-tuning, joint training, ER and ER-late: plain torch loops step by step, on the schedule that they promise."""

import copy
import math
from collections import Counter

import pytest
import torch
from helpers.made_up_streams import counted_stream, follow, memory_after_each_task, noise_stream, same, same_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from metasp_lite.continual.draws import Draws
from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.base import MemorySettings, Method, NoSettings, plain_step
from metasp_lite.continual.methods.replay import ER, ERLate, FineTune, Joint, LateSettings
from metasp_lite.networks import NETWORKS


def by_hand(stream, recipe, seed, index_of_task, memory=0, memory_batch=0):
    """A loop in plain torch: (network, stored images, stored labels) after the last task.

    ``index_of_task(t)`` are the examples of task t; with a ``memory`` it is ER, whose memory is a list.
    """
    draws = Draws.of(seed)
    model = NETWORKS[recipe.network](stream.images.shape[1:], len(stream.classes), seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    stored, offered = [], 0
    for number in range(len(stream.tasks)):
        train = index_of_task(number)
        for epoch in range(recipe.epochs):
            order = train[torch.randperm(len(train), generator=draws.order)]
            for start in range(0, len(order), recipe.batch):
                index = order[start : start + recipe.batch]
                inputs, labels = stream.augmentation(stream.images[index], draws.crops), stream.labels[index]
                if stored:
                    kept = [stored[i] for i in torch.randperm(len(stored), generator=draws.memory)[:memory_batch]]
                    old = stream.augmentation(stream.images[kept], draws.replays)
                    inputs, labels = torch.cat([inputs, old]), torch.cat([labels, stream.labels[kept]])
                loss = F.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for example in index.tolist() if memory and epoch == 0 else ():
                    offered += 1
                    if len(stored) < memory:
                        stored.append(example)
                    elif (place := int(torch.randint(offered, (1,), generator=draws.storing))) < memory:
                        stored[place] = example
    return model, stored


NETWORK = pytest.mark.parametrize("network", ["mlp", "lite-cnn"])


@NETWORK
def test_fine_tuning_is_a_plain_loop_over_the_tasks(network):
    stream, recipe = noise_stream(), Recipe(network, 2, batch=7, lr=0.05, momentum=0.5)
    learner = Learner(stream, recipe, seed=2)
    follow(learner, FineTune(learner, NoSettings()))
    expected, _ = by_hand(stream, recipe, 2, lambda number: stream.tasks[number].train)
    assert same(learner.model, expected)


@NETWORK
def test_joint_training_is_a_plain_loop_over_everything_in_place_of_the_last_task(network):
    stream, recipe = noise_stream(), Recipe(network, 2, batch=7, lr=0.05, momentum=0.5)
    learner = Learner(stream, recipe, seed=2)
    follow(learner, Joint(learner, NoSettings()))
    nothing, everything = torch.zeros(0, dtype=torch.int64), torch.arange(len(stream.images))
    expected, _ = by_hand(stream, recipe, 2, lambda number: everything if number == 2 else nothing)
    assert same(learner.model, expected)


def test_joint_training_sees_every_example_once_an_epoch_at_the_end_and_nothing_before():
    stream = noise_stream(classes_per_task=3)
    learner = Learner(stream, Recipe("mlp", 3, batch=8), seed=2)
    method, seen = Joint(learner, NoSettings()), []
    assert Joint.scores_last_only
    plain = method.step
    method.step = lambda learner, batch: (
        seen.append((learner.task_number, learner.epoch, batch.places)) or plain(learner, batch)
    )
    follow(learner, method)
    for epoch in range(3):
        index = torch.cat([index for number, e, index in seen if (number, e) == (1, epoch)])
        assert sorted(index.tolist()) == list(range(len(stream.images)))
    assert {number for number, _, _ in seen} == {1}


@NETWORK
@pytest.mark.parametrize(("memory", "memory_batch"), [(9, 4), (5, 8), (100, 6)])
def test_er_is_a_plain_loop_with_a_reservoir(network, memory, memory_batch):
    stream, recipe = noise_stream(), Recipe(network, 2, batch=7, lr=0.05, momentum=0.5)
    learner = Learner(stream, recipe, seed=2)
    method = ER(learner, MemorySettings(memory, memory_batch))
    follow(learner, method)
    expected, stored = by_hand(stream, recipe, 2, lambda number: stream.tasks[number].train, memory, memory_batch)
    filled = method.buffer.filled
    assert torch.equal(method.buffer.images[filled], stream.images[stored])
    assert torch.equal(method.buffer.labels[filled], stream.labels[stored])
    assert same(learner.model, expected)


@NETWORK
def test_an_er_step_with_an_empty_memory_is_a_plain_one_and_draws_nothing(network):
    stream, recipe = noise_stream(), Recipe(network, 2, batch=7, lr=0.05, momentum=0.5)
    learner, other = (Learner(stream, recipe, seed=2) for _ in range(2))
    method = ER(learner, MemorySettings(9, 4))
    learner.epoch = 1  # in a later epoch nothing is offered, so the memory stays empty
    for index in stream.tasks[0].train.split(7):
        batch = learner.batch(index)
        before = learner.draws.state_dict()
        loss = method.step(learner, batch)
        assert same_state(learner.draws.state_dict(), before)
        assert torch.equal(loss, plain_step(other, other.batch(index)))
    assert len(method.buffer) == 0
    assert same(learner.model, other.model)


def test_er_offers_every_example_of_every_task_once():
    stream = noise_stream()
    learner = Learner(stream, Recipe("mlp", 3, batch=7), seed=2)
    method = ER(learner, MemorySettings(memory=1000))
    follow(learner, method)
    assert method.buffer.offered == len(method.buffer) == len(stream.images)
    # A copy of each: the same bytes, in another order.
    assert sorted(x.numpy().tobytes() for x in method.buffer.images[method.buffer.filled]) == sorted(
        x.numpy().tobytes() for x in stream.images
    )
    assert method.buffer.tasks[:20].tolist() == [0] * 20


# --- ER-late ----------------------------------------------------------------------------------------------------------


@NETWORK
@pytest.mark.parametrize("late", [1, 2, 9])
def test_er_late_is_a_plain_loop_that_rehearses_in_the_last_epochs(network, late):
    """Task by task: from the state in which a task begins, with the memory that it finds."""
    stream, epochs = noise_stream(), 3
    learner = Learner(stream, Recipe(network, epochs, batch=7, lr=0.05), seed=2)
    method = ERLate(learner, LateSettings(memory=12, memory_batch=5, late_epochs=late))
    for number, task in enumerate(stream.tasks):
        learner.task_number, learner.epoch = number, 0
        draws = copy.deepcopy(learner.draws)
        model = NETWORKS[network](stream.images.shape[1:], 6, 0)
        model.load_state_dict(learner.model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        images, labels = method.buffer.images.clone(), method.buffer.labels.clone()
        for epoch in range(epochs):
            for index in learner.batches(method.examples(learner)):
                method.step(learner, learner.batch(index))
            learner.epoch += 1
            for index in task.train[torch.randperm(len(task.train), generator=draws.order)].split(7):
                x, y = stream.augmentation(stream.images[index], draws.crops), stream.labels[index]
                if number > 0 and epoch >= epochs - late:
                    kept = torch.randperm(12, generator=draws.memory)[:5]
                    x = torch.cat([x, stream.augmentation(images[kept], draws.replays)])
                    y = torch.cat([y, labels[kept]])
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            assert same(learner.model, model)
        method.end_task(learner)


def test_er_late_shows_remembered_examples_in_the_last_epochs_of_later_tasks_only():
    learner = Learner(noise_stream(), Recipe("mlp", 5, batch=20), seed=2)  # one batch an epoch
    method, sizes = ERLate(learner, LateSettings(memory=12, memory_batch=5, late_epochs=2)), []
    learner.model.register_forward_hook(lambda *call: sizes.append(len(call[-1])))
    follow(learner, method)
    assert sizes == [20] * 5 + [20, 20, 20, 25, 25] * 2


def assert_as_even_as_can_be(taken, there):
    """A class that has fewer than another by two or more has given all it has."""
    most = max((taken[k] for k in there), default=0)
    assert all(taken[k] >= most - 1 or taken[k] == there[k] for k in there)


def check_places(stream, memory, held):
    """What holds whatever the sizes: returns the class counts after each task."""
    counts, seen = [], 0
    for number, ((before, after), task) in enumerate(zip(held, stream.tasks, strict=True)):
        seen += len(task.train)
        assert len(after) == min(memory, seen)  # no place is empty while there is an example for it
        assert len(set(after.values())) == len(after)
        mine = set(task.train.tolist())
        new = [example for example in after.values() if example in mine]
        share = max(memory // (number + 1), memory - len(before))  # |M|/t, and what is empty
        assert len(new) == min(share, len(task.train))
        assert all(before.get(slot) == example for slot, example in after.items() if example not in mine)
        was, old = Counter(stream.labels[list(before.values())].tolist()), Counter()
        old.update(stream.labels[[e for e in after.values() if e not in mine]].tolist())
        assert_as_even_as_can_be(old, was)
        counts.append((Counter(stream.labels[new].tolist()), old))
    return counts


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_places_go_to_the_new_task_and_none_is_lost(data):
    """Any sizes of classes, any memory (more tasks than places too), any number of classes in a task."""
    tasks, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    sizes = data.draw(st.lists(st.integers(1, 13), min_size=tasks * classes, max_size=tasks * classes))
    memory = data.draw(st.integers(1, 40))
    stream = counted_stream(sizes, classes)
    learner = Learner(stream, Recipe("mlp", 1), seed=data.draw(st.integers(0, 99)))
    method = ERLate(learner, LateSettings(memory=memory))
    held = memory_after_each_task(stream, method, learner)
    for task, (new, _) in zip(stream.tasks, check_places(stream, memory, held), strict=True):
        assert_as_even_as_can_be(new, {label: sizes[label] for label in task.classes})


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 30), st.integers(0, 99))
def test_class_counts_differ_by_at_most_one_where_classes_have_examples_enough(tasks, classes, memory, seed):
    """Enough: a class can fill its share of the memory in the first task, ⌈|M|/c⌉.

    With |M| = qt + r the new task gets q and t−1 old ones q(t−1) + r, so each of c(t−1) old classes and each of c new
    ones has ⌊q/c⌋ or one more, as r ≤ t−1.
    """
    stream = counted_stream([math.ceil(memory / classes)] * (tasks * classes), classes)
    learner = Learner(stream, Recipe("mlp", 1), seed=seed)
    method = ERLate(learner, LateSettings(memory=memory))
    held = memory_after_each_task(stream, method, learner)
    for number, (new, old) in enumerate(check_places(stream, memory, held)):
        counts = [(new + old)[label] for label in range((number + 1) * classes)]
        assert sum(counts) == memory
        assert max(counts) - min(counts) <= 1


def test_a_seed_decides_what_is_stored():
    def stored(seed):
        learner = Learner(counted_stream([20] * 4, 2), Recipe("mlp", 1), seed=seed)
        method = ERLate(learner, LateSettings(memory=10))
        return [sorted(after.values()) for _, after in memory_after_each_task(learner.stream, method, learner)]

    assert stored(1) == stored(1)
    assert stored(1) != stored(2)


# --- settings and state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MemorySettings, LateSettings])
@pytest.mark.parametrize("change", [{"memory": 0}, {"memory_batch": 0}, {"memory": -3}])
def test_a_memory_that_holds_or_shows_nothing_is_refused(kind, change):
    with pytest.raises(ValueError, match=r"memory=.* and memory_batch=.* must be at least 1"):
        kind(**change)


def test_a_schedule_that_never_rehearses_is_refused():
    with pytest.raises(ValueError, match="late_epochs=0 must be at least 1"):
        LateSettings(late_epochs=0)


def test_a_method_without_a_step_is_none():
    learner = Learner(noise_stream(), Recipe("mlp", 1), seed=0)
    with pytest.raises(NotImplementedError):
        Method(learner, NoSettings()).step(learner, learner.batch(torch.tensor([0])))


@pytest.mark.parametrize(
    ("kind", "chosen"), [(ER, MemorySettings(8, 4)), (ERLate, LateSettings(8, 4, 1)), (FineTune, NoSettings())]
)
def test_a_restored_method_goes_on_bit_for_bit(kind, chosen, tmp_path):
    stream, recipe = noise_stream(), Recipe("mlp", 2, batch=7, momentum=0.5)
    learner = Learner(stream, recipe, seed=2)
    method = kind(learner, chosen)
    follow(learner, method, tasks=2)
    torch.save((learner.state_dict(), method.state_dict()), tmp_path / "state.pt")
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    other = Learner(stream, recipe, seed=77)
    restored = kind(other, chosen)
    other.load_state_dict(states[0])
    restored.load_state_dict(states[1])
    for one, its in ((learner, method), (other, restored)):
        one.task_number, one.epoch = 2, 1
        for index in one.batches(its.examples(one)):
            its.step(one, one.batch(index))
        its.end_task(one)
    assert same(other.model, learner.model)
    if kind is not FineTune:
        assert torch.equal(restored.buffer.images, method.buffer.images)
        assert torch.equal(restored.buffer.labels, method.buffer.labels)
