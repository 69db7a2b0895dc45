"""The learner: its steps are a plain torch loop's, its batches cover a task once, its networks fit the images."""

import copy
import shutil

import pytest
import torch
from helpers.made_up_streams import noise_stream, same, same_state
from torch import nn
from torch.nn import functional as F

from metasp_lite.continual.draws import Draws
from metasp_lite.continual.learner import Learner, Recipe, rehearse, shuffled
from metasp_lite.networks import NETWORKS

RULES = {
    "plain": {"lr": 0.1},
    "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "nesterov": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
}
EACH_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def parameters(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "vgg"}, "network='vgg' does not exist; give one of: mlp, lite-cnn, resnet18"),
        ({"epochs": 0}, "epochs=0 and batch=32 must be at least 1"),
        ({"batch": 0}, "epochs=1 and batch=0 must be at least 1"),
        ({"lr": 0.0}, "lr=0.0 must be positive and finite"),
        ({"lr": float("nan")}, "lr=nan must be positive"),
        ({"lr": float("inf")}, "lr=inf must be positive"),
    ],
)
def test_a_recipe_that_no_training_can_follow_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"network": "mlp", "epochs": 1} | change)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 20)], ids=str)
def test_the_network_fits_the_images_is_in_training_mode_and_depends_on_the_seed_alone(network, shape):
    stream = noise_stream(shape=shape, per_class=1)
    torch.manual_seed(1)
    first = Learner(stream, Recipe(network, 1), seed=4).model
    torch.manual_seed(2)
    assert same(Learner(stream, Recipe(network, 9, lr=0.5), seed=4).model, first)
    assert not same(Learner(stream, Recipe(network, 1), seed=5).model, first)
    assert all(module.training for module in first.modules())
    assert first(torch.zeros(2, *shape)).shape == (2, 6)


@EACH_RULE
def test_the_optimizer_follows_the_recipe(rule):
    learner = Learner(noise_stream(), Recipe("mlp", 1, **rule), seed=0)
    (group,) = learner.optimizer.param_groups
    assert type(learner.optimizer) is torch.optim.SGD
    defaults = {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False, "dampening": 0, "maximize": False}
    assert {name: group[name] for name in (*rule, *defaults)} == defaults | rule
    assert [id(p) for p in group["params"]] == [id(p) for p in learner.model.parameters()]


@pytest.mark.parametrize("size", [1, 6, 7, 20, 100])
def test_batches_cover_all_once_in_an_order_of_chance(size):
    learner = Learner(noise_stream(), Recipe("mlp", 1, batch=6), seed=0)
    index = torch.arange(100, 120)
    pieces = shuffled(index, size, learner.draws.order)
    lengths = [len(piece) for piece in pieces]
    assert lengths[:-1] == [size] * (len(pieces) - 1)
    assert 0 < lengths[-1] <= size
    assert sorted(torch.cat(pieces).tolist()) == index.tolist()
    assert torch.cat(pieces).tolist() != index.tolist()
    assert torch.cat(shuffled(index, size, learner.draws.order)).tolist() != torch.cat(pieces).tolist()
    again = Learner(noise_stream(), Recipe("mlp", 1, batch=size), seed=0)
    assert torch.equal(torch.cat(again.batches(index)), torch.cat(pieces))
    assert [len(piece) for piece in again.batches(index)] == lengths


def test_nothing_has_no_batches():
    assert Learner(noise_stream(), Recipe("mlp", 1), seed=0).batches(torch.zeros(0, dtype=torch.int64)) == []


def test_a_batch_holds_what_lies_at_its_places():
    stream = noise_stream()
    learner = Learner(stream, Recipe("mlp", 1), seed=3)
    index = torch.tensor([50, 3, 17])
    batch = learner.batch(index)
    assert torch.equal(batch.places, index)
    assert torch.equal(batch.images, stream.images[index])
    assert torch.equal(batch.labels, stream.labels[index])
    assert torch.equal(batch.inputs, stream.augmentation(stream.images[index], Draws.of(3).crops))


def test_rehearsal_puts_new_examples_first_and_draws_crops_for_the_remembered_ones():
    stream = noise_stream()
    learner = Learner(stream, Recipe("mlp", 1), seed=3)
    batch = learner.batch(torch.tensor([50, 3]))
    inputs, labels = rehearse(learner, batch, stream.images[:3], stream.labels[[9, 19, 29]])
    assert torch.equal(inputs, torch.cat([batch.inputs, stream.augmentation(stream.images[:3], Draws.of(3).replays)]))
    assert labels.tolist() == [5, 0, 0, 1, 2]


@EACH_RULE
@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_descend_and_gradient_with_apply_are_plain_torch_steps_bit_for_bit(network, rule):
    stream = noise_stream()
    recipe = Recipe(network, 1, **rule)
    one, two = Learner(stream, recipe, seed=1), Learner(stream, recipe, seed=1)
    plain = copy.deepcopy(one.model)
    optimizer = torch.optim.SGD(plain.parameters(), **rule)
    for step in range(4):
        inputs = stream.augmentation.normalise(stream.images[step * 9 : step * 9 + 8])
        labels = stream.labels[step * 9 : step * 9 + 8]
        loss = F.cross_entropy(plain(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown = one.descend(one.loss(inputs, labels))
        before = parameters(two.model)
        gradient = two.gradient(two.loss(inputs, labels))
        assert all(torch.equal(a, b) for a, b in zip(before, two.model.parameters(), strict=True))
        assert torch.equal(gradient, torch.cat([p.grad.flatten() for p in plain.parameters()]))
        two.apply(gradient)
        assert torch.equal(shown, loss.detach())
        assert not shown.requires_grad
    assert same(one.model, plain)
    assert same(two.model, plain)


def test_apply_follows_the_vector_that_it_is_given():
    learner = Learner(noise_stream(), Recipe("lite-cnn", 1, lr=0.25), seed=0)
    before = nn.utils.parameters_to_vector(learner.model.parameters()).detach()
    vector = torch.arange(len(before)) / 1024
    learner.apply(vector)
    after = nn.utils.parameters_to_vector(learner.model.parameters()).detach()
    # A quarter of the vector is exact; the subtraction is the optimiser's own.
    assert torch.equal(after, before - 0.25 * vector)


def test_a_learner_knows_its_task_and_how_many_epochs_are_left():
    stream = noise_stream()
    learner = Learner(stream, Recipe("mlp", 3), seed=0)
    assert learner.task is stream.tasks[0]
    assert learner.epochs_left == 3  # the running one counts
    learner.task_number, learner.epoch = 2, 2
    assert learner.task is stream.tasks[2]
    assert learner.epochs_left == 1


@EACH_RULE
def test_a_restored_learner_goes_on_bit_for_bit(rule):
    stream, recipe = noise_stream(), Recipe("lite-cnn", 2, batch=8, **rule)

    def follow(learner):
        for index in learner.batches(learner.task.train):
            batch = learner.batch(index)
            learner.descend(learner.loss(batch.inputs, batch.labels))

    learner = Learner(stream, recipe, seed=1)
    follow(learner)
    learner.task_number, learner.epoch = 1, 1
    state = copy.deepcopy(learner.state_dict())
    other = Learner(stream, recipe, seed=99)
    other.load_state_dict(state)
    assert (other.task_number, other.epoch) == (1, 1)
    follow(learner)
    follow(other)
    assert same(other.model, learner.model)
    assert same_state(other.draws.state_dict(), learner.draws.state_dict())


FAST = {"channels_last": True, "bf16": True}


@pytest.mark.parametrize("network", ["mlp", "lite-cnn"])
def test_bf16_and_channels_last_change_the_speed_and_no_more_than_the_last_digits(network):
    stream = noise_stream(shape=(3, 16, 16))
    plain, fast = (Learner(stream, Recipe(network, 1, **options), seed=4) for options in ({}, FAST))
    assert same(fast.model, plain.model)  # the names of the weights too: checkpoints look alike
    batch = plain.batch(torch.arange(20))
    exact, rounded = (learner.loss(batch.inputs, batch.labels) for learner in (plain, fast))
    assert rounded.dtype == torch.float32
    # bfloat16 keeps 8 bits, so each layer errs by about 2⁻⁹ of its values; and it must be seen to have been used
    assert 0 < abs(exact - rounded) < 0.02 * exact
    expected, found = plain.gradient(exact), fast.gradient(rounded)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(expected, found, dim=0) > 0.99  # a few roundings of 2⁻⁹, some of them amplified
    fast.descend(fast.loss(batch.inputs, batch.labels))
    assert all(parameter.dtype == torch.float32 for parameter in fast.model.parameters())


def test_channels_last_lies_in_memory_as_it_says():
    learner = Learner(noise_stream(shape=(3, 16, 16)), Recipe("lite-cnn", 1, channels_last=True), seed=0)
    seen = []
    learner.model[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    batch = learner.batch(torch.arange(5))
    learner.loss(batch.inputs, batch.labels)
    for tensor in (learner.model[0].weight, seen[0]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_learner_takes_the_same_steps_also_with_a_new_network():
    stream = noise_stream()
    plain, compiled = (Learner(stream, Recipe("mlp", 1, compile=choice), seed=0) for choice in (False, True))
    for seed in (0, 1):
        for learner in (plain, compiled):
            learner.model = learner.new_network(seed)
            learner.optimizer = learner.new_optimizer(learner.model)
            batch = learner.batch(torch.arange(12))
            learner.descend(learner.loss(batch.inputs, batch.labels))
        for mine, yours in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-6)  # float32, sums in another order
    assert compiled._compiled is not None


def test_batches_of_one_are_a_recipe_and_nesterov_without_momentum_is_none():
    assert Recipe("mlp", 1, batch=1).batch == 1
    assert Recipe("mlp", 1, momentum=1.0, nesterov=True).nesterov
    with pytest.raises(ValueError, match="nesterov=True needs momentum; give momentum above 0"):
        Recipe("mlp", 1, nesterov=True)
