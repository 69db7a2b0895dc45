"""The MetaSP step against plain autograd, real runs of torch.optim.SGD, plain training loops and counted operations."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from helpers.metasp_learners import (
    BATCH,
    NETWORKS,
    NEW,
    OLD,
    ROUNDING,
    RULES,
    assert_close,
    assert_identical,
    assert_same_state,
    by_finite_differences,
    cnn,
    cnn_with_batch_norm,
    examples,
    learner,
    loss_after,
    plain_step,
    seeded,
    snapshot,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metasp_lite.calculus.losses import cross_entropy
from metasp_lite.calculus.min_norm import min_norm_pair
from metasp_lite.influence.by_autograd import influences_by_autograd
from metasp_lite.influence.metasp import Fusion, metasp_gradient, metasp_step, mixed, official, printed, relative
from metasp_lite.networks import lite_cnn, resnet18

VARIANTS = (official, relative, mixed, printed)

# --------------------------------------------------------------------------------------- against plain autograd


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "later"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_metasp_equals_by_autograd(network, rule, warm, steps):
    """The influences, and the whole step against a plain one with the weights of the oracle."""
    begin = learner(network, rule, warm)
    (stability, plasticity), validation_losses = influences_by_autograd(*begin, BATCH, OLD, NEW, pseudo_steps=steps)
    for variant in VARIANTS:
        model, optimizer = copy.deepcopy(begin)
        reference = copy.deepcopy(begin)
        step = metasp_step(model, optimizer, BATCH, OLD, NEW, variant=variant, pseudo_steps=steps)
        fusion = variant(stability, plasticity, *validation_losses)
        assert_close(step.stability, stability)
        assert_close(step.plasticity, plasticity)
        torch.testing.assert_close(step.fusion.gamma, fusion.gamma, rtol=0, atol=ROUNDING)
        assert_close(step.fusion.influence, fusion.influence)
        assert_close(step.fusion.weights, fusion.weights)
        plain_step(*reference, BATCH, fusion.weights)
        assert_same_state((model, optimizer), reference)
        for parameter, wanted in zip(model.parameters(), reference[0].parameters(), strict=True):
            assert_close(parameter.grad, wanted.grad)


def test_the_gradient_is_what_the_step_takes():
    begin = learner(cnn_with_batch_norm, RULES["nesterov"])
    expected = metasp_gradient(*begin, BATCH, OLD, NEW)
    model, optimizer = copy.deepcopy(begin)
    taken = metasp_step(model, optimizer, BATCH, OLD, NEW)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected.gradient[name])
        assert torch.equal(taken.gradient[name], expected.gradient[name])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected.buffers[name])
    assert_close(expected.losses, cross_entropy(copy.deepcopy(begin[0])(BATCH[0]), BATCH[1]).detach())


def test_a_step_taken_keeps_its_gradient_where_torch_adds_the_momentum_in_place():
    """So it does with Nesterov momentum and no weight decay, where all parameters go in one call (default on CUDA)."""
    model, optimizer = learner(cnn, RULES["SGD"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, foreach=True)
    metasp_step(model, optimizer, BATCH, OLD, NEW)
    expected = metasp_gradient(model, optimizer, BATCH, OLD, NEW).gradient
    taken = metasp_step(model, optimizer, BATCH, OLD, NEW).gradient
    assert any(not torch.equal(parameter.grad, taken[name]) for name, parameter in model.named_parameters())
    optimizer.zero_grad(set_to_none=False)
    for name, gradient in taken.items():
        assert torch.equal(gradient, expected[name])


def test_many_steps_move_the_running_averages_as_a_plain_loop_does():
    """Five steps with the plain weights 1/n, by a variant that gives just these: of the other passes nothing stays."""

    def plain(stability, plasticity, stability_loss, plasticity_loss):
        return Fusion(torch.tensor(0.5), torch.zeros_like(stability), torch.full_like(stability, 1 / len(stability)))

    begin = learner(cnn_with_batch_norm, RULES["momentum"])
    reference = copy.deepcopy(begin)
    for k in range(5):
        batch = examples(8, (0, 1, 2, 3), 40 + k)
        metasp_step(*begin, batch, OLD, NEW, variant=plain, pseudo_steps=2)
        plain_step(*reference, batch, torch.full((8,), 1 / 8, dtype=torch.float64))
    assert_same_state(begin, reference)
    assert int(begin[0][1].num_batches_tracked) == 7


def test_another_loss():
    """Squared error of the logits against a label's own pattern, as the oracle has it."""

    def squared(logits, labels):
        return (logits - torch.eye(4, dtype=logits.dtype)[labels]).square().sum(dim=1)

    begin = learner(cnn, RULES["SGD"])
    (stability, plasticity), _ = influences_by_autograd(*begin, BATCH, OLD, NEW, loss=squared)
    step = metasp_gradient(*begin, BATCH, OLD, NEW, loss=squared)
    assert_close(step.stability, stability)
    assert_close(step.plasticity, plasticity)


# ------------------------------------------------------------------------------------- against real runs of torch's SGD


def smooth():
    """Batch-norm without a kink: a finite difference must not step over one."""
    body = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2)
    return seeded(*body, nn.Conv2d(4, 3, 2), nn.GroupNorm(1, 3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 4))


def without_affine():
    body = nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4, affine=False), nn.Tanh()
    return seeded(*body, nn.Flatten(), nn.Linear(36, 4))


def with_tied_layers():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return seeded(nn.Flatten(), nn.Linear(128, 6), nn.Tanh(), first, nn.Tanh(), second, nn.Tanh(), nn.Linear(6, 4))


def with_frozen_batch_norm():
    """Two steps in training mode, so that the averages are no longer 0 and 1, then evaluation mode for that layer."""
    model, optimizer = learner(smooth, RULES["nesterov"])
    model[1].eval()
    return model, optimizer


def in_evaluation_mode():
    model, optimizer = learner(smooth, RULES["momentum"])
    return model.eval(), optimizer


def with_groups():
    model = learner(smooth, RULES["SGD"])[0]
    head, body = list(model[-1].parameters()), list(model[:-1].parameters())
    groups = [
        {"params": head, "lr": 0.2, "weight_decay": 0.3, "nesterov": False},
        {"params": body, "lr": 0.02, "momentum": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    plain_step(model, optimizer, NEW, torch.full((5,), 0.2, dtype=torch.float64))
    return model, optimizer


def with_a_frozen_layer_outside():
    model = smooth()
    model[0].requires_grad_(False)
    return model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **RULES["nesterov"])


def with_a_frozen_layer_inside():
    """Trained for two steps and frozen then, with a momentum and a gradient left over from them."""
    model, optimizer = learner(smooth, RULES["nesterov"])
    model[4].requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    return model, optimizer


LEARNERS = {
    "momentum": lambda: learner(smooth, RULES["momentum"]),
    "nesterov": lambda: learner(smooth, RULES["nesterov"]),
    "first step": lambda: learner(smooth, RULES["nesterov"], warm=False),
    "batch-norm without affine": lambda: learner(without_affine, RULES["weight decay"]),
    "frozen batch-norm": with_frozen_batch_norm,
    "evaluation mode": in_evaluation_mode,
    "tied layers": lambda: learner(with_tied_layers, RULES["momentum"]),
    "parameter groups": with_groups,
    "frozen layer, not in the optimiser": with_a_frozen_layer_outside,
    "frozen layer, in the optimiser": with_a_frozen_layer_inside,
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("begin", LEARNERS.values(), ids=LEARNERS)
def test_influences_are_what_real_runs_show_and_the_step_is_a_plain_one(begin, steps):
    model, optimizer = begin()
    reference = copy.deepcopy((model, optimizer))  # without the gradients, which deepcopy leaves out
    step = metasp_step(model, optimizer, BATCH, OLD, NEW, pseudo_steps=steps)
    for influence, validation in ((step.stability, OLD), (step.plasticity, NEW)):
        assert_close(influence, by_finite_differences(reference, validation, steps), share=1e-8)
    plain_step(*reference, BATCH, step.fusion.weights)
    assert_same_state((model, optimizer), reference)


def test_an_example_lowers_the_old_loss_when_its_weight_is_raised_if_its_influence_is_negative():
    begin = learner(cnn_with_batch_norm, RULES["SGD"])
    influence = metasp_gradient(*begin, BATCH, OLD, NEW).stability
    plain = torch.full((8,), 1 / 8, dtype=torch.float64)
    before = loss_after(begin, plain, OLD, 1)
    lowers = []
    for i in range(8):
        raised = plain.clone()
        raised[i] *= 1.0001
        lowers.append(loss_after(begin, raised, OLD, 1) < before)
    assert lowers == (influence < 0).tolist()
    assert any(lowers)
    assert not all(lowers)


# ------------------------------------------------------------------------------------------------------- variants


def relative_loss(losses, extra):
    """Each ε is a relative weight: (1/n) Σ (1 + ε_i) ℓ_i."""
    return ((1 + extra) * losses).mean()


def printed_loss(losses, extra):
    """ℓ(B) + EᵀL(B): the mean is divided by n, E is not."""
    return losses.mean() + extra @ losses


@pytest.mark.parametrize(
    ("variant", "perturbed", "taken"),
    [
        (relative, relative_loss, relative_loss),
        (printed, printed_loss, printed_loss),
        (mixed, relative_loss, printed_loss),  # as its name says: one scale in the derivative, another in the step
    ],
)
def test_the_scale_of_a_variant_is_that_of_its_loss(variant, perturbed, taken):
    """By autograd from the loss as it is written: θ' − a∇(loss at E), ∂/∂E there, and the real gradient at E = −I*."""
    model, optimizer = learner(cnn, RULES["SGD"])
    lr = optimizer.param_groups[0]["lr"]
    theta = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def losses(point, examples):
        return cross_entropy(torch.func.functional_call(model, point, examples[0]), examples[1])

    extra = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(perturbed(losses(theta, BATCH), extra), theta.values(), create_graph=True)
    moved = {name: p - lr * g for (name, p), g in zip(theta.items(), slope, strict=True)}
    old, new = (torch.autograd.grad(losses(moved, V).mean(), extra, retain_graph=True)[0] for V in (OLD, NEW))
    gamma, fused = min_norm_pair(old, new)
    gradient = torch.autograd.grad(taken(losses(theta, BATCH), -fused), theta.values())

    step = metasp_gradient(model, optimizer, BATCH, OLD, NEW, variant=variant)
    assert_close(step.fusion.gamma, gamma)
    assert_close(step.fusion.influence, fused)
    for name, wanted in zip(theta, gradient, strict=True):
        assert_close(step.gradient[name], wanted)


def test_from_scale_to_scale_the_correction_is_n_times_as_large():
    begin = learner(cnn, RULES["SGD"])
    corrections = [
        8 * metasp_gradient(*begin, BATCH, OLD, NEW, variant=variant).fusion.weights - 1
        for variant in (relative, mixed, printed)
    ]
    assert_close(corrections[1], 8 * corrections[0], share=1e-12)  # a difference to 1 of 1e-3 keeps 13 digits
    assert_close(corrections[2], 64 * corrections[0], share=1e-12)


def test_the_weights_have_a_bound_unless_it_is_given_up():
    begin = learner(cnn, RULES["SGD"])
    weights = [
        metasp_gradient(*begin, BATCH, OLD, NEW, **given).fusion.weights for given in ({}, {"variant": official})
    ]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], metasp_gradient(*begin, BATCH, OLD, NEW, variant=relative).fusion.weights)


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("variant", "influence", "weights"),
    [
        (relative, (0.8, 0.4), (0.1, 0.3)),  # (1 − I*)/2
        (mixed, (0.8, 0.4), (-0.3, 0.1)),  # ½ − I*
        (printed, (1.6, 0.8), (-1.1, -0.3)),  # ½ − 2I*
    ],
)
def test_each_scale_by_hand(variant, influence, weights):
    """I_S = (1, 0), I_P = (0, 2): γ* = 4/5 by equal inner products, I* = (4/5, 2/5), n = 2."""
    fusion = variant(vector(1, 0), vector(0, 2), vector(7).squeeze(), vector(8).squeeze())
    assert float(fusion.gamma) == pytest.approx(0.8, rel=1e-14)
    assert_close(fusion.influence, vector(*influence))
    assert_close(fusion.weights, vector(*weights))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-200, 1e200])
def test_official_by_hand(scale):
    """Whatever its scale, I_S is rescaled to length 1 and I_P to length 2; the rest is as above."""
    fusion = official(vector(3, 0) * scale, vector(0, 5), vector(1).squeeze(), vector(2).squeeze())
    assert float(fusion.gamma) == pytest.approx(0.8, rel=1e-14)
    assert_close(fusion.influence, vector(0.8, 0.4))
    assert_close(fusion.weights, vector(0.2, 0.6) / 0.8)


def test_official_weights_sum_to_one_and_may_be_negative():
    influence = vector(4, -1, -1, 1)
    fusion = official(influence, influence, vector(3).squeeze(), vector(3).squeeze())
    assert float(fusion.weights.sum()) == pytest.approx(1, rel=1e-14)
    assert_close(fusion.influence, influence * 3 / math.sqrt(19))
    assert fusion.weights[0] < 0 < fusion.weights[1]


@pytest.mark.parametrize(("old_loss", "new_loss", "gamma"), [(1.0, 2.0, 0.999), (2.0, 1.0, 0.001)])
def test_official_keeps_a_thousandth_of_each(old_loss, new_loss, gamma):
    """Of parallel vectors the shorter one would be taken alone."""
    influence = vector(1, -2, 2)
    fusion = official(influence, 3 * influence, vector(old_loss).squeeze(), vector(new_loss).squeeze())
    assert float(fusion.gamma) == gamma
    length = gamma * old_loss + (1 - gamma) * new_loss
    assert_close(fusion.influence, influence / 3 * length)


@pytest.mark.parametrize("exchanged", [False, True])
def test_official_leaves_a_mixture_of_both_as_it_is(exchanged):
    """I_S = (1, 0) and I_P = (0, ℓ) with ℓ = 100: γ* = ℓ²/(1 + ℓ²) = 0.9999, a share that no limit touches."""
    one, other = (vector(1, 0), 1.0), (vector(0, 1), 100.0)
    first, second = (other, one) if exchanged else (one, other)
    fusion = official(first[0], second[0], vector(first[1]).squeeze(), vector(second[1]).squeeze())
    larger = 1e4 / (1 + 1e4)
    assert float(fusion.gamma) == pytest.approx(1 - larger if exchanged else larger, rel=1e-11)


def test_an_influence_of_zero_stays_zero():
    zero, other, loss = vector(0, 0), vector(1, -1), vector(1).squeeze()
    for variant in VARIANTS:
        both = variant(zero, zero, loss, loss)
        assert torch.equal(both.influence, zero)
        assert torch.equal(both.weights, vector(0.5, 0.5))
    for variant in (relative, mixed, printed):
        assert torch.equal(variant(zero, other, loss, loss).weights, vector(0.5, 0.5))
    assert_close(official(zero, other, loss, loss).influence, 0.001 * other / math.sqrt(2))
    assert_close(official(other, zero, loss, loss).influence, 0.001 * other / math.sqrt(2))


@pytest.mark.parametrize("loss", [2.0, 3.0], ids=["zero", "negative"])
def test_official_refuses_weights_that_do_not_sum_to_something_positive(loss):
    """Four equal influences of length ℓ sum to 2ℓ; 4 − 2ℓ is the total."""
    influence = torch.ones(4, dtype=torch.float64)
    total = 4 - 2 * loss
    with pytest.raises(
        FloatingPointError, match=rf"sum to {total:.3g} .* losses {loss:.3g} .* a batch of 4.*'relative'"
    ):
        official(influence, influence, vector(loss).squeeze(), vector(loss).squeeze())


@pytest.mark.parametrize(
    "shapes", [((2,), (3,)), ((0,), (0,)), ((2, 1), (2, 1)), ((), ())], ids=["lengths", "empty", "columns", "numbers"]
)
def test_official_refuses_what_are_no_two_vectors_of_one_length(shapes):
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="give two vectors of one length"):
        official(*(torch.ones(shape) for shape in shapes), one, one)


def test_official_takes_a_batch_of_one_and_losses_of_zero():
    zero = torch.tensor(0.0)
    assert official(torch.ones(1), torch.ones(1), 0.5 + zero, 0.5 + zero).weights.tolist() == [1.0]
    found = official(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0]), zero, zero)
    assert found.weights.tolist() == [0.5, 0.5]  # of validation examples that are learnt no example is better


@pytest.mark.parametrize("losses", [(-1.0, 2.0), (2.0, -1.0)])
def test_official_refuses_to_turn_influences_round(losses):
    """Rescaled to a negative length, what harms would gain weight."""
    with pytest.raises(
        ValueError, match=r"loss of (old|new) is -1 .* add a constant to the loss, or use .* 'relative'"
    ):
        official(vector(1, -1), vector(1, -1), *(vector(loss).squeeze() for loss in losses))


def test_the_weights_of_official_have_the_bound_that_its_docstring_gives():
    """Random influences, and a fan of unit vectors between e₀ and the diagonal, where the sum of 1 − I* is least."""
    n, loss = 9, 2.5
    draw = torch.Generator().manual_seed(0)
    bound = (1 + loss) / (n - math.sqrt(n) * loss)
    angles = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)[:, None]
    e0, others = torch.eye(n, dtype=torch.float64)[0], torch.ones(n, dtype=torch.float64) / math.sqrt(n - 1)
    others[0] = 0
    fan = angles.cos() * e0 + angles.sin() * others
    random = torch.randn(200, n, generator=draw, dtype=torch.float64)
    weights = [official(v, v, *vector(loss, loss)).weights.abs().max() for v in (*fan, *random)]
    assert bound / 4 < max(weights) <= bound


# ---------------------------------------------------------------------------------------- nothing moves that should not


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "later"])
def test_computing_the_gradient_changes_nothing(warm, steps):
    model, optimizer = learner(cnn_with_batch_norm, RULES["nesterov"], warm)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = snapshot(model, optimizer)
    for variant in VARIANTS:
        metasp_gradient(model, optimizer, BATCH, OLD, NEW, variant=variant, pseudo_steps=steps)
    assert_identical(snapshot(model, optimizer), before)


@dataclass
class Situation:
    """A step about to be taken, for a test to spoil."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: tuple
    old: tuple
    new: tuple
    settings: dict


def spoilt(which):
    """A NaN in the third example of a set."""

    def spoil(situation):
        inputs, labels = getattr(situation, which)
        inputs = inputs.clone()
        inputs[2, 0, 0, 0] = math.nan
        setattr(situation, which, (inputs, labels))

    return spoil


def group(**settings):
    return lambda situation: situation.optimizer.param_groups[0].update(settings)


def emptied(situation):
    situation.old = (OLD[0][:0], OLD[1][:0])


def without_a_label(situation):
    situation.new = (NEW[0], NEW[1][:-1])


def with_adam(situation):
    situation.optimizer = torch.optim.Adam(situation.model.parameters())


def lacking(situation):
    *most, _, _ = situation.model.parameters()
    situation.optimizer = torch.optim.SGD(most, lr=0.1)


def foreign(situation):
    situation.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 3))]})


def all_frozen(situation):
    situation.model.requires_grad_(False)


def with_dropout(situation):
    situation.model.append(nn.Dropout(0.3))


class Noise(nn.Module):
    """Not a dropout layer, but random all the same."""

    def forward(self, x):
        return x + torch.randn_like(x)


def with_noise(situation):
    situation.model.append(Noise())


class Unused(nn.Module):
    """A parameter that no loss depends on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        return x


def with_an_unused_parameter(situation):
    situation.model.append(Unused())
    situation.optimizer.add_param_group({"params": [situation.model[-1].weight]})


def with_a_negative_loss(situation):
    situation.settings["loss"] = lambda logits, labels: cross_entropy(logits, labels) - 30


def with_a_layer_twice(situation):
    situation.model.insert(1, situation.model[0])


def pseudo_steps(number):
    return lambda situation: situation.settings.update(pseudo_steps=number)


def exploding(situation):
    """The first step ends at numbers that can still be written, the second does not."""
    situation.settings["pseudo_steps"] = 2
    situation.optimizer.param_groups[0]["lr"] = 1e200


def with_mean_loss(situation):
    situation.settings["loss"] = nn.functional.cross_entropy


def with_infinite_weights(situation):
    situation.settings["variant"] = lambda s, p, *_: Fusion(torch.tensor(0.5), s, torch.full_like(s, math.inf))


def with_weights_that_cancel(situation):
    """A pseudo-update of that size makes the validation losses larger than the batch has examples."""
    situation.settings["variant"] = official
    situation.optimizer.param_groups[0]["lr"] = 1e6


REFUSED = {
    "NaN in the batch": (spoilt("batch"), FloatingPointError, "the loss of an example is nan at position"),
    "NaN in old": (spoilt("old"), FloatingPointError, "the mean loss of old after the pseudo-update is nan"),
    "NaN in new": (spoilt("new"), FloatingPointError, "the mean loss of new after the pseudo-update is nan"),
    "explosion": (group(lr=1e200), FloatingPointError, "loss of old after the pseudo-update is .* lower the step size"),
    "explosion in two steps": (
        exploding,
        FloatingPointError,
        "a parameter after the pseudo-update is .* lower the step",
    ),
    "no weights": (with_weights_that_cancel, FloatingPointError, "lower the learning rate, enlarge the batch or use"),
    "infinite weights": (with_infinite_weights, FloatingPointError, "largest entry of a parameter's gradient is"),
    "empty set": (emptied, ValueError, "old has 0 inputs and 0 labels; give as many, at least one"),
    "a label missing": (without_a_label, ValueError, "new has 5 inputs and 4 labels; give as many"),
    "Adam": (with_adam, ValueError, "Adam is not followed by a pseudo-update; use torch.optim.SGD"),
    "a parameter lacks": (
        lacking,
        ValueError,
        r"lacks \['10.weight', '10.bias'\] .*8 parameters.*give it all.*or freeze",
    ),
    "a foreign parameter": (foreign, ValueError, r"holds tensors of shape \[\(2, 3\)\] .*SGD\(model.parameters\(\)"),
    "all frozen": (all_frozen, ValueError, "of the 0 parameters that require a gradient; give it .* one at least"),
    "dampening": (group(dampening=0.5), ValueError, "dampening=0.5 is not followed by a pseudo-update; leave it out"),
    "maximize": (group(maximize=True), ValueError, "maximize=True is not followed by a pseudo-update; leave it out"),
    "zero lr": (group(lr=0.0), ValueError, "lr=0.0.*must have a positive lr"),
    "dropout": (with_dropout, ValueError, "draw random numbers at every call.*set the p of dropout layers to 0 or put"),
    "noise": (with_noise, ValueError, "draw random numbers at every call"),
    "an unused parameter": (with_an_unused_parameter, ValueError, r"\[\(8, \(3,\)\)\]; freeze .* requires_grad_"),
    "a negative loss": (with_a_negative_loss, ValueError, "mean loss of old is -2.* or use the variant 'relative'"),
    "a layer twice": (with_a_layer_twice, ValueError, "layers '0' and '1' are one; give it one name and call it twice"),
    "no step": (pseudo_steps(0), ValueError, "steps=0: take at least one pseudo-step"),
    "mean loss": (with_mean_loss, ValueError, r"losses have the shape \(\): give one for each example"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_a_step_that_is_refused_moves_nothing_and_says_why(spoil, error, message):
    situation = Situation(*learner(cnn_with_batch_norm, RULES["momentum"]), BATCH, OLD, NEW, {})
    spoil(situation)
    model, optimizer = situation.model, situation.optimizer
    before = snapshot(model, optimizer)
    randomness = torch.get_rng_state()
    with pytest.raises(error, match=message):
        metasp_step(model, optimizer, situation.batch, situation.old, situation.new, **situation.settings)
    assert_identical(snapshot(model, optimizer), before)
    assert torch.equal(torch.get_rng_state(), randomness)


def test_dropout_in_evaluation_mode_is_no_obstacle():
    model, optimizer = learner(cnn, RULES["SGD"])
    expected = metasp_gradient(model, optimizer, BATCH, OLD, NEW)
    model.append(nn.Dropout(0.3).eval())
    assert torch.equal(metasp_gradient(model, optimizer, BATCH, OLD, NEW).stability, expected.stability)


# ------------------------------------------------------------------------------------------------- precision, cost


def test_single_precision_agrees_with_double_and_stays_single():
    """24 bits are 6e-8; through a network, batch-norm and a difference of two influences a hundred times that."""
    steps = []
    for dtype in (torch.float64, torch.float32):
        model, optimizer = learner(cnn_with_batch_norm, RULES["nesterov"])  # the same state, rounded
        for parameter in model.parameters():
            momentum = optimizer.state[parameter]["momentum_buffer"]
            optimizer.state[parameter]["momentum_buffer"] = momentum.to(dtype)
        model.to(dtype)
        sets = [(inputs.to(dtype), labels) for inputs, labels in (BATCH, OLD, NEW)]
        steps.append(metasp_step(model, optimizer, *sets, variant=official, pseudo_steps=2))
        floating = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        assert all(tensor.dtype == dtype for tensor in [*model.parameters(), *floating])
    double, single = steps
    for name in ("losses", "stability", "plasticity"):
        assert getattr(single, name).dtype == torch.float32
        assert_close(getattr(single, name).double(), getattr(double, name), share=1e-5)
    for actual, expected in zip(single.fusion, double.fusion, strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual.double(), expected, share=1e-4)
    for name, gradient in single.gradient.items():
        assert gradient.dtype == torch.float32
        assert_close(gradient.double(), double.gradient[name], share=1e-4)


def operations(function):
    """Multiplications and additions of convolutions and matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("network", [lite_cnn, lambda: resnet18(width=4)], ids=["lite CNN", "ResNet-18"])
def test_a_step_costs_nine_passes_of_the_batch_and_three_of_the_validation_sets(network):
    """Counted in forward passes F of an example; F₁ is the first layer's, which needs no derivative in the images.

    Pseudo-update 3n, validation 3v, two tangents 4n, last backward 2n.  Experience replay takes 3n; so n = 64 and
    v = 50 + 50 give (9·64 + 3·100) / (3·64) = 4.56 times that, less what F₁ saves.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    batch, old, new = (
        (torch.randn(n, 3, 16, 16, generator=draw), torch.randint(10, (n,), generator=draw)) for n in (64, 50, 50)
    )
    every = operations(lambda: model(batch[0])) // 64
    first = operations(lambda: model[0](batch[0]) if isinstance(model[0], nn.Conv2d) else model[0][0](batch[0])) // 64
    replay = operations(lambda: cross_entropy(model(batch[0]), batch[1]).mean().backward())
    assert replay == 64 * (3 * every - first)
    step = operations(lambda: metasp_gradient(model, optimizer, batch, old, new))
    n, v = 64, 100
    assert step == (9 * n + 3 * v) * every - (4 * n + v) * first
    assert step < 4.57 * replay
    sets = [operations(lambda s=s: influences_by_autograd(model, optimizer, batch, s)) for s in (old, new)]
    assert sum(sets) + replay > 7 * replay  # one double backward for each set, and the step; what is saved
