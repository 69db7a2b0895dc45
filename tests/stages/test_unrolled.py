"""Runs of gradient steps and their derivatives against torch.optim and autograd through the whole run."""

import pytest
import torch
from helpers import two_stages as by_hand
from helpers.analytic import randn
from helpers.stage_oracles import CHOSEN, DIFFERENCE, assert_close, batches
from helpers.two_stages import SECOND, TARGET, THETA, W, curvatures, finetuned, pretrained
from torch import nn
from torch.nn import functional as F

from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.calculus.solvers import Exact
from metasp_lite.influence.pseudo_update import SGDRule
from metasp_lite.stages.fixed import pretraining_influence
from metasp_lite.stages.unrolled import Adam, ShortRun, unrolled_sensitivity


def sgd_by_hand(lr, momentum=0.0, weight_decay=0.0, nesterov=False):
    def step(theta, state, gradient, t):
        gradient = gradient + weight_decay * theta
        buffer = gradient if state is None else momentum * state + gradient
        return theta - lr * (gradient + momentum * buffer if nesterov else buffer), buffer

    return step


def adam_by_hand(lr, first, second, eps):
    """Kingma and Ba (2015), algorithm 1."""

    def step(theta, state, gradient, t):
        m, v = state or (0.0, 0.0)
        m, v = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient**2
        return theta - lr * (m / (1 - first**t)) / ((v / (1 - second**t)).sqrt() + eps), (m, v)

    return step


RULES = {
    "plain": (SGDRule(0.3), sgd_by_hand(0.3)),
    "momentum": (SGDRule(0.1, momentum=0.9), sgd_by_hand(0.1, 0.9)),
    "weight decay": (SGDRule(0.3, momentum=0.5, weight_decay=0.2), sgd_by_hand(0.3, 0.5, 0.2)),
    "nesterov": (
        SGDRule(0.1, momentum=0.9, weight_decay=0.2, nesterov=True),
        sgd_by_hand(0.1, 0.9, 0.2, nesterov=True),
    ),
    "adam": (Adam(0.05), adam_by_hand(0.05, 0.9, 0.999, 1e-8)),
    "adam, other settings": (Adam(0.1, betas=(0.5, 0.7), eps=0.1), adam_by_hand(0.1, 0.5, 0.7, 0.1)),
}


EVERY_RULE = pytest.mark.parametrize("rule", RULES)


def run_by_hand(step, theta, index):
    """The run written out, with the graph of every gradient."""
    state = None
    for t, batch in enumerate(index, start=1):
        loss = by_hand.f_losses(theta)[batch].mean() + by_hand.L2_F / 2 * (theta**2).sum()
        (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta, state = step(theta, state, slope, t)
    return theta


@EVERY_RULE
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_unrolled_sensitivity_is_autograd_through_the_whole_run(rule, steps):
    rule, hand = RULES[rule]
    run = ShortRun(by_hand.F, rule, batches(steps))
    embedding, head = pretrained()[:W], 0.5 * randn(THETA, seed=155)
    leaf = embedding.clone().requires_grad_()
    there = run_by_hand(hand, torch.cat([leaf, head]), run.batches)
    losses = by_hand.targets(there)
    expected = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses])
    assert_close(run(torch.cat([embedding, head])), there.detach())
    assert_close(unrolled_sensitivity(run, embedding, head, TARGET), expected)
    scalar = unrolled_sensitivity(run, embedding, head, SingleLoss(Objective(TARGET)))
    assert scalar.shape == (1, W)
    assert_close(scalar[0], expected.mean(dim=0))


def test_a_run_pulled_back_keeps_the_derivatives_of_the_head_too():
    run, theta = ShortRun(by_hand.F, Adam(0.05), batches(4)), finetuned() + 0.1 * randn(W + THETA, seed=156)
    assert_close(run.pull_back(theta, TARGET), torch.func.jacfwd(lambda t: by_hand.targets(run(t)))(theta))


def test_unrolled_influence_is_the_slope_of_the_target_after_pretraining_moved_and_the_run_was_taken_again():
    head, index = 0.5 * randn(THETA, seed=155), batches(8)
    rule, hand = RULES["adam, other settings"]

    def changed(weights):
        start = torch.cat([by_hand.weighted_optimum(weights)[:W], head]).requires_grad_()
        return by_hand.targets(run_by_hand(hand, start, index)).detach()

    sensitivity = unrolled_sensitivity(ShortRun(by_hand.F, rule, index), pretrained()[:W], head, TARGET)
    answer = pretraining_influence(curvatures()[0], sensitivity, Exact())
    assert_close(answer[:, CHOSEN], by_hand.central_differences(changed, CHOSEN), DIFFERENCE)


@pytest.mark.parametrize(
    "rule", [Adam(0.1), Adam(0.02, betas=(0.5, 0.7), eps=0.1), Adam(0.3, betas=(0.0, 0.99))], ids=str
)
def test_the_adam_rule_is_that_of_torch_step_by_step(rule):
    parameter = nn.Parameter(randn(6, seed=0))
    optimizer = torch.optim.Adam([parameter], rule.lr, rule.betas, rule.eps)
    theta, state = parameter.detach().clone(), None
    for k in range(8):
        slope = randn(6, seed=k + 1)
        slope[0] = 0.0  # never moves
        slope[1] *= k > 2  # moves from the fourth step on
        slope[2] *= k < 2  # drifts on by its momentum
        parameter.grad = slope.clone()
        optimizer.step()
        theta, state = rule.step(theta, state, slope)
        # The same handful of operations in another order.
        torch.testing.assert_close(theta, parameter.detach(), rtol=1e-14, atol=1e-14)
    assert theta[0] == randn(6, seed=0)[0]
    first, second = (optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq"))
    torch.testing.assert_close(state[0], first, rtol=1e-13, atol=0)
    torch.testing.assert_close(state[1], second, rtol=1e-13, atol=0)


@pytest.mark.parametrize("steps", [1, 5])
def test_an_input_that_finetuning_never_sees_leaves_its_weights_and_a_finite_derivative(steps):
    x, y = by_hand.FINETUNING
    unseen = x.clone()
    unseen[:, 2] = 0.0
    run = ShortRun(Objective(ExampleLosses(SECOND, unseen, y)), Adam(0.05, eps=1e-3), batches(steps))
    embedding, head = pretrained()[:W], finetuned()[W:]
    moved, places = run(finetuned())[:W], torch.arange(15).view(3, 5)[:, 2]
    assert torch.equal(moved[places], embedding[places])
    answer = unrolled_sensitivity(run, embedding, head, TARGET)
    differences = []
    for place in (*places.tolist(), 0, 8):
        unit = torch.zeros_like(finetuned())
        unit[place] = 1e-6
        differences.append(by_hand.targets(run(finetuned() + unit)) - by_hand.targets(run(finetuned() - unit)))
    # 1e-12 of third derivatives up to 1/eps² = 1e6, and 1e-16/1e-6 of noise
    expected = torch.stack(differences, dim=1) / 2e-6
    assert_close(answer[:, [*places.tolist(), 0, 8]], expected, 1e-5)


@pytest.mark.parametrize("rule", ["nesterov", "adam"])
def test_a_short_run_is_that_of_torch_on_the_network_itself(rule):
    rule = RULES[rule][0]
    model, index = by_hand.network(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))), batches(10)
    start = 0.5 * randn(W + THETA, seed=157)
    nn.utils.vector_to_parameters(start.clone(), model.parameters())
    if isinstance(rule, Adam):
        optimizer = torch.optim.Adam(model.parameters(), rule.lr, rule.betas, rule.eps)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), rule.lr, rule.momentum, weight_decay=rule.weight_decay, nesterov=True
        )
    x, y = by_hand.FINETUNING
    for batch in index:
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    answer = ShortRun(Objective(by_hand.F.losses), rule, index)(start)
    assert_close(answer, flatten_parameters(model))
