"""MetaSP as a method, and rehearsal selection: the right scores for the right examples, the right ones kept."""

import copy
from collections import Counter, defaultdict

import pytest
import torch
from helpers.made_up_streams import CPU, counted_stream, follow, memory_after_each_task, noise_stream, same
from scipy import stats
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import make_blobs
from torch.nn import functional as F

from metasp_lite.continual import streams
from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.base import MemorySettings, NoSettings, features_of
from metasp_lite.continual.methods.metasp import (
    MetaSP,
    MetaSPRehSel,
    MetaSPSettings,
    mean_influence,
    one_of_each_cluster,
)
from metasp_lite.continual.methods.replay import ER, ERLate, FineTune, Joint, LateSettings
from metasp_lite.influence import metasp

# A chi-square test fails a correct program for this share of the seeds; the seeds here are fixed and do not.
FALSE_ALARMS = 1e-4
BOTH = pytest.mark.parametrize("kind", [MetaSP, MetaSPRehSel])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the step ---------------------------------------------------------------------------------------------------------


def in_second_task(network="lite-cnn", kind=MetaSP, **changed):
    """A learner in the last epoch of its second task, with a memory of the first."""
    chosen = MetaSPSettings(**{"memory": 12, "memory_batch": 5, "late_epochs": 1, "validation": 4} | changed)
    learner = Learner(noise_stream(), Recipe(network, 2, batch=7, lr=0.05, momentum=0.5), seed=2)
    method = kind(learner, chosen)
    follow(learner, method, tasks=1)
    learner.task_number, learner.epoch = 1, 1
    return learner, method


@pytest.mark.parametrize("variant", ["official", "relative", "mixed", "printed"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_gives_metasp_its_sets_new_first_and_validation_without_crops(variant, steps):
    learner, method = in_second_task(variant=variant, pseudo_steps=steps)
    stream = learner.stream
    for index in learner.batches(method.examples(learner))[:3]:
        batch, draw = learner.batch(index), torch.Generator()
        draw.set_state(learner.generator.get_state())
        model = copy.deepcopy(learner.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        optimizer.load_state_dict(copy.deepcopy(learner.optimizer.state_dict()))
        kept, old = (torch.randperm(12, generator=draw)[:count] for count in (5, 4))
        new = learner.task.train[torch.randperm(20, generator=draw)][:4]
        images, labels = method.buffer.images, method.buffer.labels
        crops = stream.augmentation(images[kept], draw)
        expected = metasp.metasp_step(
            model,
            optimizer,
            (torch.cat([batch.inputs, crops]), torch.cat([batch.labels, labels[kept]])),
            (stream.augmentation.normalise(images[old]), labels[old]),
            (stream.augmentation.normalise(stream.images[new]), stream.labels[new]),
            variant=getattr(metasp, variant),
            pseudo_steps=steps,
        )
        shown = method.step(learner, batch)
        assert torch.equal(method.last_step.fusion.influence, expected.fusion.influence)
        assert torch.equal(shown, expected.losses.mean())
        assert same(learner.model, model)


@BOTH
def test_scores_are_the_running_sums_of_the_right_examples_and_slots(kind):
    """Kept by hand in a dictionary, from what each step says of its batch and of the slots it drew."""
    stream = noise_stream()
    learner = Learner(stream, Recipe("mlp", 3, batch=7, lr=0.05), seed=2)
    method = kind(learner, MetaSPSettings(memory=12, memory_batch=5, late_epochs=2, validation=4))
    new, old, drawn = defaultdict(list), defaultdict(list), []
    sample, put, step = method.buffer.sample, method.buffer.put, method.step

    def recorded_sample(count, draw):
        drawn.append(sample(count, draw))
        return drawn[-1]

    def recorded_put(slots, *rest):
        for slot in slots.tolist():
            old.pop(slot, None)
        put(slots, *rest)

    def recorded_step(learner, batch):
        drawn.clear()
        shown = step(learner, batch)
        if drawn:
            (kept,) = [memories for memories in drawn if len(memories.slots) == 5]
            scores = method.last_step.fusion.influence.tolist()
            assert len(scores) == len(batch.places) + 5
            for example, score in zip(batch.places.tolist(), scores, strict=False):
                new[example].append(score)
            for slot, score in zip(kept.slots.tolist(), scores[len(batch.places) :], strict=True):
                old[slot].append(score)
        return shown

    method.buffer.sample, method.buffer.put, method.step = recorded_sample, recorded_put, recorded_step
    follow(learner, method)
    assert set(new) == set(torch.cat([task.train for task in stream.tasks[1:]]).tolist())  # no step in the first task
    assert {len(scores) for scores in new.values()} == {2}  # once in each of the two late epochs
    assert method.scored.tolist() == [len(new[example]) for example in range(60)]
    assert method.buffer.columns["scored"].tolist() == [len(old[slot]) for slot in range(12)]
    # Sums of two to a few float32 numbers.
    sums = torch.tensor([sum(new[example]) for example in range(60)])
    torch.testing.assert_close(method.influence, sums, rtol=1e-5, atol=1e-9)
    sums = torch.tensor([sum(old[slot]) for slot in range(12)])
    torch.testing.assert_close(method.buffer.columns["influence"], sums, rtol=1e-5, atol=1e-9)


def test_early_epochs_and_the_first_task_are_plain():
    stream, recipe = noise_stream(), Recipe("mlp", 2, batch=7, lr=0.05)
    learners = [Learner(stream, recipe, seed=2) for _ in range(2)]
    method = MetaSP(learners[0], MetaSPSettings(memory=12, late_epochs=1))
    fine_tuning = FineTune(learners[1], NoSettings())
    follow(learners[0], method, tasks=1)
    follow(learners[1], fine_tuning, tasks=1)
    assert same(learners[0].model, learners[1].model)
    learners[1].generator.set_state(learners[0].generator.get_state())
    for learner, its in zip(learners, (method, fine_tuning), strict=True):
        learner.task_number, learner.epoch = 1, 0
        for index in learner.batches(its.examples(learner)):
            its.step(learner, learner.batch(index))
    assert same(learners[0].model, learners[1].model)
    assert not method.scored.any()
    assert method.last_step is None


@BOTH
def test_a_restored_method_goes_on_bit_for_bit(kind, tmp_path):
    learner, method = in_second_task(kind=kind)
    for index in learner.batches(method.examples(learner))[:2]:
        method.step(learner, learner.batch(index))
    torch.save((learner.state_dict(), method.state_dict()), tmp_path / "state.pt")
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    other = Learner(learner.stream, learner.recipe, seed=77)
    restored = kind(other, method.settings)
    other.load_state_dict(states[0])
    restored.load_state_dict(states[1])
    for one, its in ((learner, method), (other, restored)):
        for index in one.batches(its.examples(one)):
            its.step(one, one.batch(index))
        its.end_task(one)
    assert same(other.model, learner.model)
    assert torch.equal(restored.influence, method.influence)
    assert torch.equal(restored.scored, method.scored)
    for name, column in method.buffer.columns.items():
        assert torch.equal(restored.buffer.columns[name], column)
    assert torch.equal(restored.buffer.images, method.buffer.images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "best"}, "variant='best' does not exist; give one of: official, relative, mixed, printed"),
        ({"pseudo_steps": 0}, "pseudo_steps=0 must be at least 1"),
        ({"validation": -1}, "validation=-1"),
        ({"late_epochs": 0}, "late_epochs=0 must be at least 1"),
        ({"memory": 0}, "memory=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MetaSPSettings(**change)


def test_validation_sets_are_a_tenth_of_the_memory_unless_said_otherwise():
    assert [MetaSPSettings(memory=memory).validation_size for memory in (1, 9, 10, 300)] == [1, 1, 1, 30]
    assert MetaSPSettings(memory=300, validation=7).validation_size == 7


# --- clusters and ranking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 4, 9])
def test_of_each_separated_blob_the_example_with_the_lowest_harm_is_chosen(seed, count):
    centres = 20 * torch.randn(count, 8, generator=generator(seed), dtype=torch.float64)
    features, blob = make_blobs(120, 8, centers=centres.numpy(), cluster_std=0.1, random_state=seed)
    harm = torch.randn(120, generator=generator(seed + 100))
    expected = {min((i for i in range(120) if blob[i] == k), key=lambda i: harm[i].item()) for k in range(count)}
    assert set(one_of_each_cluster(torch.from_numpy(features), harm, count, generator(seed)).tolist()) == expected
    # scikit-learn's other k-means, which looks at a few examples at a time, finds the same clusters.
    found = MiniBatchKMeans(count, n_init=10, random_state=seed).fit_predict(features)
    assert {
        min((i for i in range(120) if found[i] == k), key=lambda i: harm[i].item()) for k in range(count)
    } == expected


def test_without_separated_blobs_each_cluster_of_k_means_gives_its_lowest_harm():
    features, harm = torch.rand(200, 5, generator=generator(1)), torch.randn(200, generator=generator(2))
    seed = int(torch.randint(0, 2**31 - 1, (), generator=generator(3)))
    found = KMeans(30, n_init=1, random_state=seed).fit_predict(features.double().numpy())
    expected = {min((i for i in range(200) if found[i] == k), key=lambda i: harm[i].item()) for k in range(30)}
    assert len(expected) == 30
    assert set(one_of_each_cluster(features, harm, 30, generator(3)).tolist()) == expected


@pytest.mark.parametrize("distinct", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 5, 12])
def test_equal_features_still_give_as_many_examples_as_are_asked_for(distinct, count):
    """12 examples in a few places: one of each place, then the lowest harm of all."""
    place, harm = torch.arange(12) % distinct, torch.randn(12, generator=generator(7))
    features = torch.eye(5)[place]
    chosen = one_of_each_cluster(features, harm, count, generator()).tolist()
    assert len(chosen) == len(set(chosen)) == count
    if count >= distinct:
        best = {min((i for i in range(12) if place[i] == k), key=lambda i: harm[i].item()) for k in range(distinct)}
        others = sorted((i for i in range(12) if i not in best), key=lambda i: harm[i].item())
        assert set(chosen) == best | set(others[: count - distinct])


def test_chance_decides_among_equal_harm():
    counts = torch.zeros(6)
    for seed in range(600):
        counts[one_of_each_cluster(torch.arange(6.0)[:, None], torch.zeros(6), 1, generator(seed))] += 1
    assert stats.chisquare(counts.tolist()).pvalue > FALSE_ALARMS


def test_mean_influence_by_hand_and_neutral_where_nothing_was_scored():
    total, count = torch.tensor([-6.0, 3.0, 0.0, 5.0]), torch.tensor([3.0, 2.0, 0.0, 1.0])
    assert mean_influence(total, count).tolist() == [-2.0, 1.5, 0.0, 5.0]


def test_an_example_never_scored_stands_between_helpful_and_harmful_ones():
    """In a blob the helpful one is preferred to it, and it to the harmful one."""
    blob = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    total = torch.tensor([0.0, -1e-6, 1.0, 0.5, 0.0, 0.2, 1e-6, 0.0])
    scored = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0, 0.0])
    for seed in range(5):
        chosen = one_of_each_cluster(torch.eye(3)[blob] * 50, mean_influence(total, scored), 3, generator(seed))
        assert set(chosen.tolist()) == {1, 4, 7}


def remembered(kind, influence, scored, labels):
    """A method whose memory is full of examples with these labels and scores."""
    stream = counted_stream([10] * 4, 2)
    learner = Learner(stream, Recipe("mlp", 1), seed=0)
    method = kind(learner, MetaSPSettings(memory=len(labels)))
    images = torch.arange(len(labels)).to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    method.buffer.put(torch.arange(len(labels)), images, torch.tensor(labels), 0)
    method.buffer.columns["influence"].copy_(torch.tensor(influence))
    method.buffer.columns["scored"].copy_(torch.tensor(scored))
    return learner, method


def test_the_most_harmful_are_dropped_first_then_those_never_scored_then_the_helpful():
    influence, scored = [-4.0, 0.0, 6.0, 1.0, 0.0, -1.0], [2.0, 0.0, 2.0, 1.0, 0.0, 1.0]
    order = []
    for places in range(1, 7):
        learner, method = remembered(MetaSPRehSel, influence, scored, [0] * 6)
        method.make_room(learner, places)
        assert len(method.buffer.free) == places
        order += [slot for slot in method.buffer.free.tolist() if slot not in order]
    assert order[:2] == [2, 3]  # means 3 and 1
    assert set(order[2:4]) == {1, 4}  # never scored, in an order of chance
    assert order[4:] == [5, 0]  # means −1 and −2


def test_what_is_dropped_is_even_over_the_classes_whatever_the_harm():
    influence, labels = [9.0, 8.0, 7.0, 6.0, -1.0, -2.0, -3.0, -4.0], [0, 0, 0, 0, 1, 1, 1, 1]
    learner, method = remembered(MetaSPRehSel, influence, [1.0] * 8, labels)
    method.make_room(learner, 4)
    assert method.buffer.free.tolist() == [0, 1, 4, 5]


def test_without_rehearsal_selection_what_is_dropped_is_left_to_chance():
    dropped = torch.zeros(6)
    for seed in range(600):
        learner, method = remembered(MetaSP, [9.0, 0.0, 0.0, 0.0, 0.0, -9.0], [1.0] * 6, [0] * 6)
        learner.generator.manual_seed(seed)
        method.make_room(learner, 1)
        dropped[method.buffer.free] += 1
    assert stats.chisquare(dropped.tolist()).pvalue > FALSE_ALARMS


@pytest.mark.parametrize(
    ("memory", "sizes", "classes"), [(2, [4] * 5, 1), (10, [7] * 6, 2), (9, [2, 3, 9, 9, 1, 2], 2)]
)
def test_selection_gives_the_task_its_places_and_loses_none(memory, sizes, classes):
    stream = counted_stream(sizes, classes)
    learner = Learner(stream, Recipe("mlp", 1), seed=0)
    method, seen = MetaSPRehSel(learner, MetaSPSettings(memory=memory)), 0
    held = memory_after_each_task(stream, method, learner)
    for number, ((before, after), task) in enumerate(zip(held, stream.tasks, strict=True)):
        seen += len(task.train)
        assert len(set(after.values())) == len(after) == min(memory, seen)
        new = set(after.values()) & set(task.train.tolist())
        assert len(new) == min(max(memory // (number + 1), memory - len(before)), len(task.train))


def test_the_task_stores_of_each_cluster_of_its_features_what_helped_most():
    learner, method = in_second_task(kind=MetaSPRehSel)
    for index in learner.batches(method.examples(learner)):
        method.step(learner, learner.batch(index))
    train = learner.task.train
    features, harm = features_of(learner, train).double().numpy(), method.influence[train] / method.scored[train]
    draw = torch.Generator()
    draw.set_state(learner.generator.get_state())
    seed = int(torch.randint(0, 2**31 - 1, (), generator=draw))
    found = KMeans(6, n_init=1, random_state=seed).fit_predict(features)
    expected = {
        int(train[min((i for i in range(20) if found[i] == k), key=lambda i: harm[i].item())]) for k in range(6)
    }
    assert set(method.choose(learner, 6).tolist()) == expected


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "lite-cnn", "resnet18-20"])
def test_features_are_what_the_last_layer_sees_in_evaluation_mode_and_nothing_moves(network):
    stream = noise_stream(shape=(3, 8, 8), per_class=90)
    learner = Learner(stream, Recipe(network, 1), seed=0)
    learner.descend(learner.loss(*stream_batch(learner)))  # running averages that are not those of the start
    before, draws = copy.deepcopy(learner.model), learner.generator.get_state()
    index = torch.arange(530).flip(0)  # more than one piece
    features = features_of(learner, index)
    assert all(module.training for module in learner.model.modules())
    assert same(learner.model, before)
    assert torch.equal(learner.generator.get_state(), draws)
    assert not features.requires_grad
    inputs = stream.augmentation.normalise(stream.images[index])
    with torch.no_grad():
        logits = before.eval()(inputs)
    head = list(learner.model.children())[-1]
    # One linear layer in float32, in batches of another size.
    torch.testing.assert_close(F.linear(features, head.weight, head.bias), logits, rtol=1e-4, atol=1e-4)
    assert features.shape == (530, head.in_features)


def stream_batch(learner):
    batch = learner.batch(torch.arange(0, 540, 9))
    return batch.inputs, batch.labels


# --- the stream of the course -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion():
    """The lite stream with a tenth of its images."""
    chosen = streams.StreamSettings("fashion-mnist", 2, per_class=100, source="bundled")
    return streams.make(chosen, device=CPU)


def final_accuracy(stream, kind, chosen, lr=0.1):
    """Class-incremental accuracy over all test images at the end."""
    learner = Learner(stream, Recipe("mlp", 8, lr=lr), seed=1231)
    method = kind(learner, chosen)
    follow(learner, method)
    with torch.no_grad():
        right = learner.model(stream.augmentation.normalise(stream.test_images)).argmax(dim=1) == stream.test_labels
    return right.double().mean().item(), method


@pytest.fixture(scope="module")
def fine_tuned(fashion):
    return final_accuracy(fashion, FineTune, NoSettings())[0]


def test_fine_tuning_knows_its_last_task_at_most(fine_tuned):
    assert 0.15 < fine_tuned < 0.25  # two classes of ten


@pytest.mark.parametrize("kind", [MetaSP, MetaSPRehSel])
@pytest.mark.parametrize(("variant", "lr"), [("mixed", 0.03), ("official", 0.1)])  # at 0.1, mixed may run away
def test_metasp_beats_fine_tuning_and_chance(fashion, fine_tuned, kind, variant, lr):
    accuracy, method = final_accuracy(fashion, kind, MetaSPSettings(memory=100, late_epochs=2, variant=variant), lr)
    assert accuracy > fine_tuned + 0.2  # 2,000 test images: a standard error of a percentage point
    assert len(method.buffer) == 100
    by_task = Counter(method.buffer.tasks.tolist())
    assert by_task[4] == 20  # |M|/5
    if kind is MetaSP:
        assert set(Counter(method.buffer.labels.tolist()).values()) == {10}


REFERENCES = {
    "er": (ER, MemorySettings(memory=100)),
    "er-late": (ERLate, LateSettings(memory=100, late_epochs=2)),
    "joint": (Joint, NoSettings()),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_rehearsal_and_joint_training_beat_fine_tuning_and_chance(fashion, fine_tuned, name):
    assert final_accuracy(fashion, *REFERENCES[name])[0] > fine_tuned + 0.2
