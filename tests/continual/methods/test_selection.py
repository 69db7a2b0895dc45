"""Rehearsal selection: of each cluster the right example is stored, and the right ones give way."""

import copy

import pytest
import torch
from helpers.made_up_streams import counted_stream, follow, memory_after_each_task, noise_stream, same_state
from scipy import stats
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import make_blobs

from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.base import features_of
from metasp_lite.continual.methods.metasp import MetaSP
from metasp_lite.continual.methods.selection import MetaSPRehSel, RehSelSettings, mean_score, one_of_each_cluster

# A chi-square test fails a correct program for this share of the seeds; the seeds here are fixed and do not.
FALSE_ALARMS = 1e-4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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


def test_mean_score_by_hand_and_neutral_where_nothing_was_scored():
    total, count = torch.tensor([-6.0, 3.0, 0.0, 5.0]), torch.tensor([3.0, 2.0, 0.0, 1.0])
    assert mean_score(total, count).tolist() == [-2.0, 1.5, 0.0, 5.0]
    assert mean_score(total, count, neutral=7.0).tolist() == [-2.0, 1.5, 7.0, 5.0]


def test_an_example_never_scored_stands_between_helpful_and_harmful_ones():
    """In a blob the helpful one is preferred to it, and it to the harmful one."""
    blob = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    total = torch.tensor([0.0, -1e-6, 1.0, 0.5, 0.0, 0.2, 1e-6, 0.0])
    scored = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0, 0.0])
    for seed in range(5):
        chosen = one_of_each_cluster(torch.eye(3)[blob] * 50, mean_score(total, scored), 3, generator(seed))
        assert set(chosen.tolist()) == {1, 4, 7}


def remembered(kind, influence, scored, labels):
    """A method whose memory is full of examples with these labels and scores."""
    stream = counted_stream([10] * 4, 2)
    learner = Learner(stream, Recipe("mlp", 1), seed=0)
    method = kind(learner, kind.Settings(memory=len(labels)))
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
        learner.draws.storing.manual_seed(seed)
        method.make_room(learner, 1)
        dropped[method.buffer.free] += 1
    assert stats.chisquare(dropped.tolist()).pvalue > FALSE_ALARMS


@pytest.mark.parametrize(
    ("memory", "sizes", "classes"), [(2, [4] * 5, 1), (10, [7] * 6, 2), (9, [2, 3, 9, 9, 1, 2], 2)]
)
def test_selection_gives_the_task_its_places_and_loses_none(memory, sizes, classes):
    stream = counted_stream(sizes, classes)
    learner = Learner(stream, Recipe("mlp", 1), seed=0)
    method, seen = MetaSPRehSel(learner, RehSelSettings(memory=memory)), 0
    held = memory_after_each_task(stream, method, learner)
    for number, ((before, after), task) in enumerate(zip(held, stream.tasks, strict=True)):
        seen += len(task.train)
        assert len(set(after.values())) == len(after) == min(memory, seen)
        new = set(after.values()) & set(task.train.tolist())
        assert len(new) == min(max(memory // (number + 1), memory - len(before)), len(task.train))


def test_the_task_stores_of_each_cluster_of_its_features_what_helped_most():
    learner, method = after_second_task()
    train = learner.task.train
    features, harm = features_of(learner, train).double().numpy(), method.influence[train] / method.scored[train]
    seed = int(torch.randint(0, 2**31 - 1, (), generator=copy.deepcopy(learner.draws.storing)))
    found = KMeans(6, n_init=1, random_state=seed).fit_predict(features)
    expected = {
        int(train[min((i for i in range(20) if found[i] == k), key=lambda i: harm[i].item())]) for k in range(6)
    }
    assert set(method.choose(learner, 6).tolist()) == expected


# --- taken apart ------------------------------------------------------------------------------------------------------


def after_second_task(**changed):
    """A learner at the end of its second task, of 20 examples of two classes, before the task is closed."""
    chosen = RehSelSettings(**{"memory": 12, "memory_batch": 5, "late_epochs": 1, "validation": 4} | changed)
    learner = Learner(noise_stream(), Recipe("lite-cnn", 2, batch=7, lr=0.05, momentum=0.5), seed=2)
    method = MetaSPRehSel(learner, chosen)
    follow(learner, method, tasks=1)
    learner.task_number, learner.epoch = 1, 1
    for index in learner.batches(method.examples(learner)):
        method.step(learner, learner.batch(index))
    return learner, method


def test_by_chance_from_the_classes_alone_it_is_metasp_bit_for_bit():
    stream, ends = noise_stream(), []
    for kind, chosen in ((MetaSP, {}), (MetaSPRehSel, {"clusters": "class", "store": "chance", "drop": "chance"})):
        learner = Learner(stream, Recipe("lite-cnn", 2, batch=7, lr=0.05), seed=2)
        method = kind(learner, kind.Settings(memory=12, memory_batch=5, late_epochs=1, validation=4, **chosen))
        follow(learner, method)
        ends.append((learner.state_dict(), method.state_dict()))
    assert same_state(*ends)


@pytest.mark.parametrize("by", ["influence", "loss"])
def test_without_clusters_the_lowest_of_the_task_are_stored_and_with_classes_those_of_each_class(by):
    learner, method = after_second_task(clusters="none", store=by)
    train, labels = learner.task.train, learner.stream.labels[learner.task.train]
    harm = (getattr(method, by)[train] / method.scored[train]).tolist()
    ranked = sorted(range(20), key=lambda i: harm[i])
    assert set(method.choose(learner, 6).tolist()) == {int(train[i]) for i in ranked[:6]}
    learner, method = after_second_task(clusters="class", store=by)
    harm = (getattr(method, by)[train] / method.scored[train]).tolist()
    ranked = sorted(range(20), key=lambda i: harm[i])
    best = [i for label in labels.unique() for i in [i for i in ranked if labels[i] == label][:3]]
    assert set(method.choose(learner, 6).tolist()) == {int(train[i]) for i in best}


@pytest.mark.parametrize("clusters", ["features", "pixels"])
def test_the_nearest_to_the_centre_of_each_cluster_is_stored(clusters):
    learner, method = after_second_task(clusters=clusters, store="centre")
    train = learner.task.train
    pixels = clusters == "pixels"
    vectors = learner.stream.images[train].flatten(1) if pixels else features_of(learner, train)
    seed = int(torch.randint(0, 2**31 - 1, (), generator=copy.deepcopy(learner.draws.storing)))
    means = KMeans(6, n_init=1, random_state=seed).fit(vectors.double().numpy())
    distance = means.transform(vectors.double().numpy()).min(axis=1)  # to its own centre, which is the nearest
    chosen = [train.tolist().index(i) for i in method.choose(learner, 6).tolist()]
    assert {int(means.labels_[i]) for i in chosen} == set(range(6))
    for i in chosen:  # of two in a cluster both are the nearest, but for rounding
        assert distance[i] <= distance[means.labels_ == means.labels_[i]].min() * (1 + 1e-9)


@pytest.mark.parametrize("store", ["influence", "chance", "centre", "loss"])
@pytest.mark.parametrize("places", [0, 1, 5, 6, 19, 20])
def test_clusters_of_each_class_are_even_over_the_classes(store, places):
    learner, method = after_second_task(clusters="class-features", store=store)
    chosen = method.choose(learner, places)
    assert len(set(chosen.tolist())) == len(chosen) == places
    counts = learner.stream.labels[chosen].bincount(minlength=4)[2:4]
    assert abs(int(counts[0] - counts[1])) <= 1


def test_stored_examples_give_way_by_loss_or_by_chance():
    influence, loss, dropped = [9.0, 0.0, 0.0, 0.0], [1.0, 6.0, 2.0, 3.0], {}
    for by in ("influence", "loss", "chance"):
        learner = Learner(counted_stream([10] * 4, 2), Recipe("mlp", 1), seed=0)
        method = MetaSPRehSel(learner, RehSelSettings(memory=4, drop=by))
        images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
        method.buffer.put(torch.arange(4), images, torch.zeros(4, dtype=torch.int64), 0)
        for name, values in {"influence": influence, "loss": loss, "scored": [1.0, 2.0, 1.0, 0.0]}.items():
            method.buffer.columns[name].copy_(torch.tensor(values))
        harm = method.harm_of_stored(torch.arange(4))
        dropped[by] = None if harm is None else harm.tolist()
    assert dropped["influence"] == [9, 0, 0, 0]
    assert dropped["loss"] == [1, 3, 2, 3]  # never scored: as the mean of all, (1 + 6 + 2 + 3) / 4
    assert dropped["chance"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": "k-means"}, "clusters='k-means' does not exist; give one of: features, pixels, class-features,"),
        ({"store": "best"}, "store='best' does not exist; give one of: influence, chance, centre, loss"),
        ({"drop": "centre"}, "drop='centre' does not exist; give one of: influence, chance, loss"),
        ({"store": "centre", "clusters": "class"}, "store=centre and clusters=class: only k-means has centres"),
    ],
)
def test_selections_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RehSelSettings(**change)
