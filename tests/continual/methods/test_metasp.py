"""MetaSP as a method, and rehearsal selection: the right scores for the right examples, the right ones kept."""

import copy
from collections import Counter, defaultdict

import pytest
import torch
from helpers.made_up_streams import CPU, follow, noise_stream, same, same_state
from torch.nn import functional as F

from metasp_lite.continual import streams
from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods.base import MemorySettings, NoSettings, features_of
from metasp_lite.continual.methods.metasp import MetaSP, MetaSPSettings
from metasp_lite.continual.methods.replay import ER, ERLate, FineTune, Joint, LateSettings
from metasp_lite.continual.methods.selection import MetaSPRehSel
from metasp_lite.influence import metasp

BOTH = pytest.mark.parametrize("kind", [MetaSP, MetaSPRehSel])


# --- the step ---------------------------------------------------------------------------------------------------------


def in_second_task(network="lite-cnn", kind=MetaSP, **changed):
    """A learner in the last epoch of its second task, with a memory of the first."""
    chosen = kind.Settings(**{"memory": 12, "memory_batch": 5, "late_epochs": 1, "validation": 4} | changed)
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
        batch, draws = learner.batch(index), copy.deepcopy(learner.draws)
        model = copy.deepcopy(learner.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        optimizer.load_state_dict(copy.deepcopy(learner.optimizer.state_dict()))
        kept, old = torch.randperm(12, generator=draws.memory)[:5], torch.randperm(12, generator=draws.validation)[:4]
        new = learner.task.train[torch.randperm(20, generator=draws.validation)][:4]
        images, labels = method.buffer.images, method.buffer.labels
        crops = stream.augmentation(images[kept], draws.replays)
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
    method = kind(learner, kind.Settings(memory=12, memory_batch=5, late_epochs=2, validation=4))
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


def on_trusted(kind, **changed):
    """A learner in the last epoch of its second task, on a stream of which three examples a class stand aside."""
    stream = noise_stream(trusted=3)
    chosen = kind.Settings(**{"memory": 12, "memory_batch": 8, "late_epochs": 1} | changed)
    learner = Learner(stream, Recipe("mlp", 2, batch=7, lr=0.05), seed=2)
    method = kind(learner, chosen)
    follow(learner, method, tasks=1)
    learner.task_number, learner.epoch = 1, 1
    return learner, method


@pytest.mark.parametrize("kind", [ERLate, MetaSP])
def test_half_of_what_is_rehearsed_may_be_trusted_examples_of_the_tasks_so_far(kind):
    learner, method = on_trusted(kind, rehearse_trusted=True)
    stream, draws = learner.stream, copy.deepcopy(learner.draws)
    kept, images, labels = method.rehearsed(learner)
    assert torch.equal(kept.slots, torch.randperm(12, generator=draws.memory)[:4])
    pool = torch.cat([stream.tasks[0].trusted, stream.tasks[1].trusted])
    chosen = pool[torch.randperm(12, generator=draws.memory)[:4]]
    assert torch.equal(images, torch.cat([method.buffer.images[kept.slots], stream.images[chosen]]))
    assert torch.equal(labels, torch.cat([method.buffer.labels[kept.slots], stream.labels[chosen]]))
    for index in learner.batches(method.examples(learner)):
        method.step(learner, learner.batch(index))  # scores go to the slots alone
    if kind is MetaSP:
        assert len(method.last_step.losses) == len(index) + 8
        assert int(method.buffer.columns["scored"].sum()) == 4 * 2


def test_validation_sets_may_be_trusted_ones():
    learner, method = on_trusted(MetaSP, validate_on_trusted=True, validation=5)
    stream, draw = learner.stream, copy.deepcopy(learner.draws.validation)
    (old, old_labels), (new, new_labels) = method.validation_sets(learner)
    for inputs, labels, task in ((old, old_labels, stream.tasks[0]), (new, new_labels, stream.tasks[1])):
        index = task.trusted[torch.randperm(6, generator=draw)[:5]]
        assert torch.equal(inputs, stream.augmentation.normalise(stream.images[index]))
        assert torch.equal(labels, stream.labels[index])


@pytest.mark.parametrize("name", ["rehearse_trusted", "validate_on_trusted"])
def test_with_trusted_examples_the_first_task_has_late_epochs_too(name):
    """Before, nothing is stored that could be rehearsed or validated on: then they are plain (see above)."""
    stream = noise_stream(trusted=3)
    learner = Learner(stream, Recipe("mlp", 2, batch=7, lr=0.05), seed=2)
    method = MetaSP(learner, MetaSPSettings(memory=12, memory_batch=8, late_epochs=1, validation=5, **{name: True}))
    learner.epoch = 1
    draw = copy.deepcopy(learner.draws.validation)
    (old, old_labels), (new, _) = method.validation_sets(learner)
    trusted, train = stream.tasks[0].trusted, stream.tasks[0].train
    at = trusted[torch.randperm(6, generator=draw)[:5]]
    assert torch.equal(old, stream.augmentation.normalise(stream.images[at]))
    assert torch.equal(old_labels, stream.labels[at])
    pool = trusted if name == "validate_on_trusted" else train
    at = pool[torch.randperm(len(pool), generator=draw)[:5]]
    assert torch.equal(new, stream.augmentation.normalise(stream.images[at]))
    for index in learner.batches(method.examples(learner)):
        method.step(learner, learner.batch(index))
    assert (method.scored[train] == 1).all()
    assert len(method.last_step.losses) == len(index) + (4 if name == "rehearse_trusted" else 0)


# --- suspects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["loss", "influence"])
@BOTH
def test_suspects_get_no_weight_and_no_place_in_the_memory(kind, by):
    """A quarter of the task's 20 examples; who is suspected, and the step, by hand from the scores."""
    learner, method = in_second_task(kind=kind, variant="dosed", dose=1.0, leave_out=0.25, suspected_by=by)
    train = learner.task.train
    assert method.suspects(learner).tolist() == []  # nothing is scored yet
    for index in learner.batches(method.examples(learner)):
        batch = learner.batch(index)
        means = {k: float(getattr(method, by)[k] / method.scored[k]) for k in train.tolist() if method.scored[k]}
        worst = sorted(means, key=means.__getitem__, reverse=True)[:5]
        assert method.suspects(learner).tolist() == worst
        fusion_of_all = metasp.dosed(*(torch.linspace(-1, 1, 12) * sign for sign in (1, 2)), *torch.ones(2), dose=1.0)
        changed = method.weights(learner, batch)(*(torch.linspace(-1, 1, 12) * sign for sign in (1, 2)), *torch.ones(2))
        expected = fusion_of_all.weights.clone()
        out = [place for place, k in enumerate(batch.places.tolist()) if k in worst]
        expected[out] = 0
        # One sum of float32 numbers.
        torch.testing.assert_close(changed.weights, expected / expected.sum(), rtol=1e-5, atol=1e-7)
        method.step(learner, batch)
    out = set(method.suspects(learner).tolist())
    assert len(out) == 5
    images = learner.stream.images[sorted(out)]
    method.end_task(learner)
    stored = method.buffer.images[method.buffer.filled]
    assert not any(torch.equal(one, other) for one in stored for other in images)
    assert len(stored) == 12


def test_who_is_suspected_twice_is_left_out_of_the_second_late_epoch():
    """With a dose of 0 all others weigh alike, so the step is the plain one without the suspects."""
    learner, method = in_second_task("mlp", variant="dosed", dose=0.0, leave_out=0.25)
    first, *_ = learner.batches(method.examples(learner))
    method.loss[learner.task.train] = torch.arange(20.0).flip(0)  # the first five of the task have the highest loss
    method.scored[learner.task.train] = 1
    batch, draws, model = learner.batch(first), copy.deepcopy(learner.draws), copy.deepcopy(learner.model)
    kept = torch.randperm(12, generator=draws.memory)[:5]
    images, labels = method.buffer.images[kept], method.buffer.labels[kept]
    inputs = torch.cat([batch.inputs, learner.stream.augmentation(images, draws.replays)])
    stays = torch.isin(batch.places, learner.task.train[5:])
    assert 0 < int(stays.sum()) < 7
    stays = torch.cat([stays, torch.ones(5, dtype=torch.bool)])
    loss = F.cross_entropy(model(inputs)[stays], torch.cat([batch.labels, labels])[stays])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    method.step(learner, batch)
    for mine, gradient in zip(learner.model.parameters(), gradients, strict=True):
        # The same mean in float32, summed in another order.
        torch.testing.assert_close(mine.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["rehearse_trusted", "validate_on_trusted"])
def test_trust_needs_examples_that_stand_aside(name):
    with pytest.raises(ValueError, match=f"{name}=True: the stream has set no examples aside; give trusted"):
        MetaSP(Learner(noise_stream(), Recipe("mlp", 2), seed=2), MetaSPSettings(**{name: True}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.5}, r"gamma=1\.5 must be from 0, plasticity alone, to 1"),
        ({"dose": 1.0}, r"dose=1\.0 and variant=official: dosed needs a dose, no other has one"),
        ({"variant": "dosed"}, "dose=None and variant=dosed: dosed needs a dose"),
        ({"variant": "dosed", "dose": -1.0}, r"dose=-1\.0 must be 0 or more"),
        ({"variant": "best"}, "variant='best' does not exist; give one of: official, relative, mixed, printed, dosed"),
        ({"leave_out": 1.0, "variant": "dosed", "dose": 0.0}, r"leave_out=1\.0 must be a share from 0 to below 1"),
        ({"leave_out": 0.1}, r"leave_out=0\.1 needs weights that are not negative; give variant=dosed"),
        ({"suspected_by": "smell"}, "suspected_by='smell' does not exist; give loss or influence"),
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


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "lite-cnn", "resnet18-20"])
def test_features_are_what_the_last_layer_sees_in_evaluation_mode_and_nothing_moves(network):
    stream = noise_stream(shape=(3, 8, 8), per_class=90)
    learner = Learner(stream, Recipe(network, 1), seed=0)
    learner.descend(learner.loss(*stream_batch(learner)))  # running averages that are not those of the start
    before, draws = copy.deepcopy(learner.model), learner.draws.state_dict()
    index = torch.arange(530).flip(0)  # more than one piece
    features = features_of(learner, index)
    assert all(module.training for module in learner.model.modules())
    assert same(learner.model, before)
    assert same_state(learner.draws.state_dict(), draws)
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
    accuracy, method = final_accuracy(fashion, kind, kind.Settings(memory=100, late_epochs=2, variant=variant), lr)
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
