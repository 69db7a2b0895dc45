"""The memory: slots stay put, reservoir sampling is fair, and classes are as even as they can be."""

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metasp_lite.continual.buffer import Buffer, balanced_choice

CPU = torch.device("cpu")
# A chi-square test fails a correct program for this share of the seeds; the seeds here are fixed and do not.
FALSE_ALARMS = 1e-4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def marked(numbers):
    """Images that say which example they are: every pixel is its number; the label is the number too."""
    numbers = torch.as_tensor(numbers, dtype=torch.int64)
    return numbers.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 3), numbers


def filled_buffer(capacity=5, count=3, **options):
    buffer = Buffer(capacity, (1, 2, 3), CPU, **options)
    buffer.put(torch.arange(count), *marked(range(count)), task=0)
    return buffer


def assert_fair(counts, draws, chosen):
    """Each of n examples is in a sample of ``chosen`` without replacement equally often, over ``draws`` samples.

    The counts have covariance draws·p(1−p)·n/(n−1)·(1 − 11ᵀ/n), so their scaled squares are chi-square with n−1.
    """
    counts, n = counts.double(), len(counts)
    p = chosen / n
    statistic = float(((counts - draws * p) ** 2).sum() / (draws * p * (1 - p) * n / (n - 1)))
    assert stats.chi2.sf(statistic, n - 1) > FALSE_ALARMS
    assert stats.chi2.cdf(statistic, n - 1) > FALSE_ALARMS  # nor more even than chance


# --- slots ------------------------------------------------------------------------------------------------------------


def test_a_new_memory_is_empty_with_all_its_slots_free():
    buffer = Buffer(4, (3, 5, 6), CPU)
    assert (len(buffer), buffer.capacity) == (0, 4)
    assert buffer.free.tolist() == [0, 1, 2, 3]
    assert buffer.filled.tolist() == []
    assert (buffer.images.shape, buffer.images.dtype) == ((4, 3, 5, 6), torch.uint8)
    assert len(buffer.sample(3, generator()).slots) == 0


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_memory_without_slots_is_refused(capacity):
    with pytest.raises(ValueError, match="give at least 1"):
        Buffer(capacity, (1, 2, 3), CPU)


def test_what_is_put_lies_in_its_slot_until_another_is_put_there():
    buffer = Buffer(5, (1, 2, 3), CPU)
    buffer.put(torch.tensor([4, 1]), *marked([7, 8]), task=2)
    buffer.put(torch.tensor([0]), *marked([9]), task=3)
    buffer.put(torch.tensor([1]), *marked([6]), task=4)
    assert buffer.filled.tolist() == [0, 1, 4]
    assert buffer.free.tolist() == [2, 3]
    assert buffer.labels[[0, 1, 4]].tolist() == [9, 6, 7]
    assert buffer.tasks[[0, 1, 4]].tolist() == [3, 4, 2]
    read = buffer.read(torch.tensor([4, 0]))
    assert read.slots.tolist() == [4, 0]
    assert read.labels.tolist() == [7, 9]
    assert torch.equal(read.images, marked([7, 9])[0])


def test_a_dropped_slot_is_free_and_the_others_stay_where_they_were():
    buffer = filled_buffer(5, 4)
    buffer.drop(torch.tensor([0, 2]))
    assert buffer.free.tolist() == [0, 2, 4]
    assert buffer.labels[buffer.filled].tolist() == [1, 3]
    assert torch.equal(buffer.images[buffer.filled], marked([1, 3])[0])
    assert buffer.tasks.tolist() == [-1, 0, -1, 0, -1]


def test_what_is_stored_is_a_copy():
    images, labels = (t.clone() for t in marked([3, 4]))
    buffer = Buffer(2, (1, 2, 3), CPU)
    buffer.put(torch.arange(2), images, labels, task=0)
    images.zero_()
    sample = buffer.sample(2, generator())
    sample.images.zero_()
    assert torch.equal(buffer.images, marked([3, 4])[0])


def test_columns_are_reset_by_a_new_example_only():
    buffer = filled_buffer(4, 3, columns=("influence", "scored"))
    for column in buffer.columns.values():
        column += 5
    buffer.put(torch.tensor([1]), *marked([9]), task=1)
    buffer.drop(torch.tensor([2]))
    buffer.put(torch.tensor([2]), *marked([8]), task=1)
    for column in buffer.columns.values():
        assert column.tolist() == [5, 0, 0, 5]


def test_reservoir_resets_the_columns_of_the_slots_it_fills():
    buffer = filled_buffer(3, 0, columns=("influence",))
    buffer.reservoir(*marked(range(3)), task=0, generator=generator())
    buffer.columns["influence"] += 5
    slots = buffer.reservoir(*marked(range(3, 9)), task=1, generator=generator(1))
    overwritten = {slot for slot in slots.tolist() if slot >= 0}
    assert 0 < len(overwritten) < 3
    assert buffer.columns["influence"].tolist() == [0 if slot in overwritten else 5 for slot in range(3)]


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_a_sample_has_no_example_twice_and_all_where_there_are_fewer():
    buffer = filled_buffer(9, 6)
    buffer.drop(torch.tensor([2]))
    for count in range(8):
        sample = buffer.sample(count, generator(count))
        assert len(set(sample.slots.tolist())) == len(sample.slots) == min(count, 5)
        assert set(sample.slots.tolist()) <= {0, 1, 3, 4, 5}
        assert torch.equal(sample.labels, sample.slots)  # slot k holds example k
        assert torch.equal(sample.images, marked(sample.slots)[0])


def test_every_stored_example_is_drawn_equally_often():
    buffer, draw, counts = filled_buffer(12, 10), generator(3), torch.zeros(10)
    for _ in range(3000):
        counts[buffer.sample(3, draw).slots] += 1
    assert_fair(counts, draws=3000, chosen=3)


def offer(buffer, numbers, sizes, draw):
    """Offer the examples in batches of these sizes, one after another."""
    slots = [
        buffer.reservoir(*marked(part), 0, draw) for part in torch.as_tensor(numbers, dtype=torch.int64).split(sizes)
    ]
    return torch.cat(slots)


def test_reservoir_keeps_every_example_ever_offered_with_the_same_probability():
    draw, counts = generator(4), torch.zeros(30)
    for _ in range(2000):
        buffer = Buffer(6, (1, 2, 3), CPU)
        offer(buffer, range(30), [4, 7, 1, 18], draw)
        counts[buffer.labels] += 1
    assert counts.sum() == 2000 * 6
    assert_fair(counts, draws=2000, chosen=6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 9), max_size=6), st.integers(0, 2**31))
def test_reservoir_is_vitters_algorithm_r_whatever_the_batches(capacity, sizes, seed):
    buffer, slots = Buffer(capacity, (1, 2, 3), CPU), torch.zeros(0, dtype=torch.int64)
    if sizes:
        slots = offer(buffer, range(sum(sizes)), sizes, generator(seed))
    memory, put, draw = [], [], generator(seed)
    for number in range(sum(sizes)):  # one example at a time, in a plain list
        if len(memory) < capacity:
            place = len(memory)
            memory.append(number)
        else:
            place = int(torch.randint(number + 1, (1,), generator=draw))
            if place < capacity:
                memory[place] = number
        put.append(place if place < capacity else -1)
    assert buffer.labels[: len(memory)].tolist() == memory
    assert buffer.images[: len(memory), 0, 0, 0].tolist() == memory
    assert len(buffer) == len(memory)
    assert slots.tolist() == put
    assert buffer.offered == sum(sizes)


def test_reservoir_remembers_the_task():
    buffer = Buffer(4, (1, 2, 3), CPU)
    buffer.reservoir(*marked([1, 2]), task=0, generator=generator())
    buffer.reservoir(*marked([3, 4]), task=1, generator=generator())
    assert buffer.tasks.tolist() == [0, 0, 1, 1]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_restored_memory_goes_on_as_the_stored_one():
    buffer = Buffer(5, (1, 2, 3), CPU, columns=("influence",))
    offer(buffer, range(9), [4, 5], generator(1))
    buffer.columns["influence"] += torch.rand(5, generator=generator(2))
    buffer.drop(torch.tensor([3]))
    state = copy.deepcopy(buffer.state_dict())
    other = Buffer(5, (1, 2, 3), CPU, columns=("influence",))
    other.load_state_dict(state)
    for memory in (buffer, other):
        offer(memory, range(20, 40), [20], generator(5))
    for name in ("images", "labels", "tasks"):
        assert torch.equal(getattr(other, name), getattr(buffer, name))
    assert torch.equal(other.columns["influence"], buffer.columns["influence"])
    assert other.offered == buffer.offered == 29
    assert not torch.equal(other.labels, state["labels"])  # the state that was loaded is not shared


@pytest.mark.parametrize(
    "other", [Buffer(4, (1, 2, 3), CPU), Buffer(5, (3, 2, 3), CPU), Buffer(5, (1, 2, 3), CPU, ("a",))]
)
def test_the_state_of_another_memory_is_refused_with_both_described(other):
    buffer = Buffer(5, (1, 2, 3), CPU)
    with pytest.raises(
        ValueError, match=r"the stored memory has shape and columns .* this one \(\(5, 1, 2, 3\), \[\]\)"
    ):
        buffer.load_state_dict(other.state_dict())


# --- choosing ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=25), st.data())
def test_classes_are_as_even_as_they_can_be_and_the_lowest_scores_come_first(labels, data):
    count = data.draw(st.integers(0, len(labels)))
    scores = data.draw(st.none() | st.lists(st.integers(-3, 3), min_size=len(labels), max_size=len(labels)))
    tensors = torch.tensor(labels, dtype=torch.int64), None if scores is None else torch.tensor(scores).float()
    chosen = balanced_choice(tensors[0], count, tensors[1], generator(data.draw(st.integers(0, 999)))).tolist()
    assert len(chosen) == len(set(chosen)) == count
    taken, there = Counter(labels[i] for i in chosen), Counter(labels)
    for one in there:  # a class that has fewer than another by two or more has given all it has
        assert taken[one] >= max((taken[k] for k in there), default=0) - 1 or taken[one] == there[one]
    if scores is not None:
        for label in there:
            inside = [scores[i] for i in chosen if labels[i] == label]
            outside = [scores[i] for i in range(len(labels)) if labels[i] == label and i not in chosen]
            assert not inside or not outside or max(inside) <= min(outside)


def test_one_more_goes_to_the_classes_whose_next_example_has_the_lowest_score():
    labels, scores = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0.0, 9.0, 5.0, 6.0, 1.0, 7.0])
    for seed in range(5):
        assert set(balanced_choice(labels, 4, scores, generator(seed)).tolist()) == {0, 2, 4, 3}
        assert set(balanced_choice(labels, 2, scores, generator(seed)).tolist()) == {0, 4}


def test_chance_decides_among_equals():
    """Which of three classes gives two of four, and which of its examples: all equally often, also at equal scores."""
    labels, draws = torch.tensor([0] * 4 + [1] * 4 + [2] * 4), 3000
    for scores in (None, torch.zeros(12)):
        draw, counts, pairs = generator(6), torch.zeros(12), torch.zeros(3)
        for _ in range(draws):
            chosen = balanced_choice(labels, 4, scores, draw)
            counts[chosen] += 1
            pairs[torch.bincount(labels[chosen], minlength=3) == 2] += 1
        assert pairs.sum() == draws
        assert stats.chisquare(pairs.tolist()).pvalue > FALSE_ALARMS
        for label in range(3):
            # Given how many a class gave in each draw, its own examples are equally likely: at most 2 of 4 a draw, so
            # the counts vary less than a multinomial's and the test is on the safe side.
            assert stats.chisquare(counts[labels == label].tolist()).pvalue > FALSE_ALARMS


@pytest.mark.parametrize("count", [-1, 4])
def test_more_than_there_are_cannot_be_chosen(count):
    with pytest.raises(ValueError, match=f"{count} of 3 examples cannot be chosen"):
        balanced_choice(torch.zeros(3, dtype=torch.int64), count, None, generator())


@pytest.mark.parametrize("count", [-1, -5, 2.0, True])
def test_a_sample_of_no_possible_size_is_refused(count):
    with pytest.raises(ValueError, match=f"a sample of {count} examples cannot be drawn"):
        filled_buffer().sample(count, generator())


IMAGES, LABELS = marked([1, 2])
SLOTS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("slots", "images", "labels", "sentence"),
    [
        (torch.tensor([3, 3]), IMAGES, LABELS, r"one slot cannot hold two examples; name each of \[3, 3\] once"),
        (torch.tensor([0, 5]), IMAGES, LABELS, r"slots are in 0\.\.5; pass 0\.\.4"),
        (torch.tensor([-1, 2]), IMAGES, LABELS, r"slots are in -1\.\.2; pass 0\.\.4"),
        (torch.tensor([0.0, 1.0]), IMAGES, LABELS, r"slots are torch\.float32 \(2,\); pass int64"),
        (torch.tensor([True, True]), IMAGES, LABELS, r"slots are torch\.bool"),
        (torch.tensor(1), IMAGES, LABELS, r"slots are torch\.int64 \(\); pass int64 \(k,\)"),
        (SLOTS, IMAGES[:1], LABELS, r"images are torch\.uint8 \(1, 1, 2, 3\); pass uint8 \(2, 1, 2, 3\)"),
        (SLOTS, IMAGES[..., :2], LABELS, r"images are torch\.uint8 \(2, 1, 2, 2\)"),
        (SLOTS, IMAGES[:, :, :1], LABELS, r"images are torch\.uint8 \(2, 1, 1, 3\)"),
        (SLOTS, IMAGES.float(), LABELS, r"images are torch\.float32"),
        (SLOTS, IMAGES, LABELS[:1], r"labels are torch\.int64 \(1,\); pass int64 \(2,\)"),
        (SLOTS, IMAGES, LABELS.double(), r"labels are torch\.float64"),
        (SLOTS, IMAGES, LABELS - 3, r"labels must be 0 or more, not -2"),
    ],
)
def test_what_cannot_be_put_is_refused_and_the_memory_stays_as_it_was(slots, images, labels, sentence):
    buffer = filled_buffer()
    before = copy.deepcopy(buffer.state_dict())
    with pytest.raises(ValueError, match=sentence):
        buffer.put(slots, images, labels, task=1)
    if "slot" not in sentence:
        with pytest.raises(ValueError, match=r"pass|must be"):
            buffer.reservoir(images, labels, 1, generator())
    after = buffer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in ("images", "labels", "tasks"))
    assert before["offered"] == after["offered"]


@pytest.mark.parametrize("slots", [torch.tensor([5]), torch.tensor([-1]), torch.tensor([1.0])])
def test_slots_that_do_not_exist_are_neither_read_nor_emptied(slots):
    for act in (filled_buffer().read, filled_buffer().drop):
        with pytest.raises(ValueError, match="slots are"):
            act(slots)


@pytest.mark.parametrize("capacity", [2.0, True, "3"])
def test_a_memory_of_no_whole_number_of_slots_is_refused(capacity):
    with pytest.raises(ValueError, match="give a whole number"):
        Buffer(capacity, (1, 2, 3), CPU)
