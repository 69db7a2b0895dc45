"""The rule of SGD against torch.optim.SGD, and steps of it differentiated: least squares, carried forwards by hand.

The code carries one derivative backwards through the steps.  The oracle here carries n forwards, one for each example,
with the gradient and Hessian of least squares written out.  Networks follow in test_metasp.

Rounding: a handful of steps on sums of at most twenty float64 terms around 1: differences near 1e-15.
"""

import math

import pytest
import torch
from helpers.analytic import randn

from metasp_lite.influence.pseudo_update import PseudoUpdate, SGDRule, mean_and_gradient

ROUNDING = 1e-12
RULES = {
    "plain": SGDRule(0.1),
    "momentum": SGDRule(0.1, momentum=0.9),
    "weight decay": SGDRule(0.2, weight_decay=0.3),
    "momentum, weight decay": SGDRule(0.1, momentum=0.7, weight_decay=0.3),
    "nesterov": SGDRule(0.1, momentum=0.9, nesterov=True),
    "nesterov, weight decay": SGDRule(0.1, momentum=0.7, weight_decay=0.3, nesterov=True),
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def assert_close(actual, expected, share=ROUNDING):
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * float(expected.abs().max()))


def torch_sgd(parameters, rule):
    return torch.optim.SGD(
        parameters, rule.lr, rule.momentum, weight_decay=rule.weight_decay, nesterov=rule.nesterov, foreach=False
    )


# ------------------------------------------------------------------------------------------------------------ rule


@EVERY_RULE
def test_three_steps_are_those_of_torch(rule):
    parameter = torch.nn.Parameter(randn(4, 3, seed=0))
    optimizer = torch_sgd([parameter], rule)
    theta, momentum = parameter.detach().clone(), torch.zeros(4, 3, dtype=torch.float64)
    for k in range(3):
        gradient = randn(4, 3, seed=k + 1)
        parameter.grad = gradient.clone()
        optimizer.step()
        theta, momentum = rule.step(theta, momentum, gradient)
        assert_close(theta, parameter.detach())
        if rule.momentum:
            assert_close(momentum, optimizer.state[parameter]["momentum_buffer"])


@EVERY_RULE
def test_adjoint_is_the_transpose_of_the_step(rule):
    before = tuple(randn(4, 3, seed=k).requires_grad_() for k in range(3))  # θ, m, g
    d_theta, d_momentum = randn(4, 3, seed=4), randn(4, 3, seed=5)
    expected = torch.autograd.grad(rule.step(*before), before, (d_theta, d_momentum), materialize_grads=True)
    d_gradient, d_earlier = rule.adjoint(d_theta, d_momentum)
    assert_close(d_gradient, expected[2])
    assert_close(torch.zeros_like(d_theta) if d_earlier is None else d_earlier, expected[1])
    assert (d_earlier is None) == (rule.momentum == 0)  # no memory for what is zero
    assert_close(d_theta + rule.weight_decay * d_gradient, expected[0])  # as the docstring has it


@pytest.mark.parametrize(
    "numbers",
    [
        {"lr": 0.0},
        {"lr": -0.1},
        {"lr": math.nan},
        {"lr": math.inf},
        {"lr": 0.1, "momentum": -0.5},
        {"lr": 0.1, "momentum": math.nan},
        {"lr": 0.1, "weight_decay": -1e-4},
        {"lr": 0.1, "weight_decay": math.inf},
    ],
    ids=str,
)
def test_numbers_that_are_no_descent_are_refused(numbers):
    name, value = list(numbers.items())[-1]
    with pytest.raises(ValueError, match=rf"{name}={value}.*must have a positive lr"):
        SGDRule(**numbers)


@EVERY_RULE
@pytest.mark.parametrize("convert", [float, torch.tensor], ids=["float", "tensor"])
def test_a_rule_is_read_from_the_group_of_an_optimiser(rule, convert):
    optimizer = torch_sgd([torch.nn.Parameter(torch.zeros(1))], rule)
    optimizer.param_groups[0]["lr"] = convert(rule.lr)
    read = SGDRule.of(optimizer.param_groups[0])
    assert read.lr == pytest.approx(rule.lr, rel=1e-7)  # a tensor's is rounded to single precision
    assert (read.momentum, read.weight_decay, read.nesterov) == (rule.momentum, rule.weight_decay, rule.nesterov)
    assert isinstance(read.lr, float)


@pytest.mark.parametrize("setting", [{"dampening": 0.5}, {"maximize": True}], ids=str)
def test_settings_that_are_not_followed_are_refused(setting):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9, **setting)
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name}={value} is not followed by a pseudo-update; leave it out"):
        SGDRule.of(optimizer.param_groups[0])


# ------------------------------------------------------------------------------------------------ steps, by hand

N = 6
X, Y, TARGET = randn(N, 5, seed=10), randn(N, seed=11), randn(5, seed=12)
THETA = (randn(2, seed=13), randn(3, seed=14))  # five parameters in two tensors
MOMENTA = (randn(2, seed=15), randn(3, seed=16))


def losses(parameters):
    """½ (x_iᵀθ − y_i)², with θ in two tensors."""
    return 0.5 * (X @ torch.cat(list(parameters)) - Y) ** 2


def by_hand(rules, momenta, steps):
    """θ_K (5,) and ∂θ_K/∂E (5, N), carried forwards with the numbers of each parameter's own rule."""

    def column(name):
        return torch.cat([torch.full_like(t, float(getattr(r, name))) for r, t in zip(rules, THETA, strict=True)])

    lr, mu, decay, nesterov = (column(name) for name in ("lr", "momentum", "weight_decay", "nesterov"))
    theta, m = torch.cat(THETA), torch.cat(momenta)
    d_theta, dm = torch.zeros(5, N, dtype=torch.float64), torch.zeros(5, N, dtype=torch.float64)
    hessian = X.T @ X / N
    for _ in range(steps):
        residual = X @ theta - Y
        g = X.T @ residual / N + decay * theta
        dg = X.T * residual / N + hessian @ d_theta + decay[:, None] * d_theta  # ε_i weighs example i by (1 + ε_i)/N
        m, dm = mu * m + g, mu[:, None] * dm + dg
        theta = theta - lr * (nesterov * (g + mu * m) + (1 - nesterov) * m)
        d_theta = d_theta - lr[:, None] * (nesterov[:, None] * (dg + mu[:, None] * dm) + (1 - nesterov[:, None]) * dm)
    return theta, d_theta


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("started", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(
    "rules",
    [*((rule, rule) for rule in RULES.values()), (RULES["nesterov, weight decay"], RULES["plain"])],
    ids=[*RULES, "two rules"],
)
def test_steps_and_their_derivatives_by_hand(rules, started, steps):
    momenta = MOMENTA if started else tuple(map(torch.zeros_like, MOMENTA))
    pseudo = PseudoUpdate(losses, THETA, rules, MOMENTA if started else (None, None), steps=steps)
    theta, derivative = by_hand(rules, momenta, steps)
    assert_close(torch.cat(pseudo.parameters), theta)
    targets = TARGET.split((2, 3)), theta.split((2, 3))  # ∇ℓ of two losses at θ_K, TARGETᵀθ and ½‖θ‖²
    first, second = pseudo.influences(*targets)
    assert_close(first, TARGET @ derivative)
    assert_close(second, theta @ derivative)


def test_one_plain_step_is_the_formula():
    """−(a/n) ∇L(θ) ∇ℓ(θ'): n, the step and the sign each in its place."""
    pseudo = PseudoUpdate(losses, THETA, (SGDRule(0.1), SGDRule(0.1)), (None, None))
    jacobian = (X @ torch.cat(THETA) - Y)[:, None] * X
    (answer,) = pseudo.influences(TARGET.split((2, 3)))
    assert_close(answer, -0.1 / N * jacobian @ TARGET)


def test_the_gradient_is_of_the_weighted_losses_where_the_steps_began():
    pseudo = PseudoUpdate(losses, THETA, (SGDRule(0.1), SGDRule(0.1)), (None, None), steps=3)
    weights = randn(N, seed=17)
    residual = X @ torch.cat(THETA) - Y
    pseudo.influences(TARGET.split((2, 3)))
    assert_close(torch.cat(pseudo.gradient(weights)), X.T @ (weights * residual))
    assert_close(pseudo.losses, residual**2 / 2)


def test_mean_and_gradient():
    mean, gradient = mean_and_gradient(losses, THETA)
    residual = X @ torch.cat(THETA) - Y
    assert_close(mean, (residual**2 / 2).mean())
    assert_close(torch.cat(gradient), X.T @ residual / N)
    assert not mean.requires_grad


def test_what_is_given_stays_as_it_is():
    given = [*THETA, *MOMENTA]
    before = [tensor.clone() for tensor in given]
    rule = RULES["nesterov, weight decay"]
    pseudo = PseudoUpdate(losses, THETA, (rule, rule), MOMENTA, steps=3)
    targets = TARGET.split((2, 3))
    pseudo.influences(targets)
    pseudo.gradient(torch.ones(N, dtype=torch.float64))
    assert all(map(torch.equal, given, before))
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in given)
    assert torch.equal(torch.cat(targets), TARGET)


# -------------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps}: take at least one pseudo-step"):
        PseudoUpdate(losses, THETA, (SGDRule(0.1), SGDRule(0.1)), (None, None), steps=steps)


def test_a_mean_instead_of_the_losses_is_refused():
    with pytest.raises(ValueError, match=r"losses have the shape \(\): give one for each example"):
        PseudoUpdate(lambda parameters: losses(parameters).mean(), THETA, (SGDRule(0.1),) * 2, (None, None))


def test_numbers_that_are_not_finite_are_refused():
    rules, momenta = (SGDRule(0.1), SGDRule(0.1)), (None, None)
    with pytest.raises(FloatingPointError, match="the loss of an example is nan at position 4"):
        PseudoUpdate(lambda p: losses(p).index_fill(0, torch.tensor(4), math.nan), THETA, rules, momenta)
    with pytest.raises(FloatingPointError, match=r"a parameter after the pseudo-update is (inf|nan).*lower the step"):
        PseudoUpdate(losses, THETA, (SGDRule(1e200),) * 2, momenta, steps=3)
    target = (torch.zeros(2, dtype=torch.float64), torch.full((3,), math.nan, dtype=torch.float64))
    for steps in (1, 2):
        with pytest.raises(FloatingPointError, match="derivative is nan at position 0"):
            PseudoUpdate(losses, THETA, rules, momenta, steps=steps).influences(target)
