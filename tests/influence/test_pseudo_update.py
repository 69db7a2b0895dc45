"""The rule of SGD against torch.optim.SGD, steps of it differentiated by hand and by autograd, and the series' limit.

The code carries one derivative backwards through the steps.  The oracle here carries n forwards, one for each example,
with the gradient and Hessian of least squares written out.  Networks follow in test_metasp.

Rounding: a handful of steps on sums of at most twenty float64 terms around 1: differences near 1e-15.
"""

import math

import pytest
import torch
from helpers.analytic import mlp_with_validation, randn
from helpers.influence_truths import assert_close as assert_close_in_norm
from helpers.influence_truths import nan_validation

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import gradient
from metasp_lite.calculus.solvers import Exact, Identity, Neumann
from metasp_lite.influence.hessian import influence
from metasp_lite.influence.pseudo_update import (
    PseudoUpdate,
    SGDRule,
    mean_and_gradient,
    momentum_of,
    pseudo_update_influence,
)

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


def test_a_momentum_is_the_optimisers_own_and_none_before_its_first_step_or_without_any():
    moving, still = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [moving], "momentum": 0.9}, {"params": [still]}], lr=0.1)
    assert momentum_of(optimizer, moving) is None
    moving.grad, still.grad = torch.tensor([1.0, 2.0]), torch.ones(2)
    optimizer.step()
    assert torch.equal(momentum_of(optimizer, moving), torch.tensor([1.0, 2.0]))  # the first is the gradient itself
    assert momentum_of(optimizer, still) is None


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


# ------------------------------------------------------------------------------------- influence, away from optima


def by_autograd(training, validation, theta, step, steps):
    """Write the update out with the weights E as a leaf and differentiate the whole run: n ∂ℓ(V, θ_K)/∂E at E = 0."""
    n = len(training.losses)
    weights = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    theta = theta.clone().requires_grad_()
    for _ in range(steps):
        objective = training(theta) + weights.dot(training.losses(theta)) / n
        (gradient_,) = torch.autograd.grad(objective, theta, create_graph=True)
        theta = theta - step * gradient_
    return n * torch.autograd.grad(validation(theta), weights)[0]


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_pseudo_update_influence_equals_by_autograd(steps, l2):
    """From any θ, stationary or not."""
    training, validation, start = mlp_with_validation(l2)
    theta = start + randn(33, seed=90)  # nowhere near stationary
    assert gradient(training, theta).norm() > 0.1
    answer = pseudo_update_influence(training, validation, theta, step=0.5, steps=steps)
    assert_close_in_norm(answer, by_autograd(training, validation, theta, 0.5, steps))


def test_one_pseudo_update_uses_the_validation_gradient_where_it_leads():
    """K = 1: −a ∇L(θ) ∇ℓ(V, θ'), with the gradient at the moved θ' and the Jacobian at θ."""
    training, validation, start = mlp_with_validation()
    moved = start - 0.5 * gradient(training, start)
    expected = 0.5 * influence(
        training.losses, lambda t: validation(t - start + moved), Curvature(training, start), Identity()
    )
    answer = pseudo_update_influence(training, validation, start, step=0.5)
    assert_close_in_norm(answer, expected)
    unmoved = 0.5 * influence(training.losses, validation, Curvature(training, start), Identity())
    assert (answer - unmoved).norm() > 0.01 * unmoved.norm()  # the difference is one that the test can see


def test_one_small_pseudo_update_has_the_signs_of_identity():
    training, validation, theta = mlp_with_validation()
    limit = influence(training.losses, validation, Curvature(training, theta), Identity())
    error = []
    for step in (1e-4, 1e-6):
        answer = pseudo_update_influence(training, validation, theta, step=step)
        error.append(float((answer / step - limit).norm() / limit.norm()))
    assert torch.equal(answer.sign(), limit.sign())
    assert error[1] < 1e-5
    assert error[1] == pytest.approx(error[0] / 100, rel=0.01)  # the distance is of first order in the step


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_at_a_stationary_point_k_pseudo_updates_are_k_neumann_terms(trained, steps):
    training, validation, theta, curvature = trained
    step = 1 / curvature.largest_eigenvalue
    expected = influence(training.losses, validation, curvature, Neumann(steps, step))
    # K steps of size a move θ by at most Ka‖∇J‖, below 1e-10, and change the answer by a share of that order.
    assert steps * step * curvature.gradient.norm() < 1e-10
    answer = pseudo_update_influence(training, validation, theta, step=step, steps=steps)
    assert_close_in_norm(answer, expected, share=1e-10)


def test_away_from_a_stationary_point_they_are_not(trained):
    training, validation, theta, _ = trained
    theta = theta + 0.3 * randn(33, seed=91)
    curvature = Curvature(training, theta, damping=0.0)
    step = 0.5 / curvature.largest_eigenvalue
    series = influence(training.losses, validation, curvature, Neumann(5, step))
    answer = pseudo_update_influence(training, validation, theta, step=step, steps=5)
    assert (answer - series).norm() > 0.01 * series.norm()


def test_many_pseudo_updates_approach_the_exact_influence_as_fast_as_the_series(trained):
    training, validation, theta, curvature = trained
    step, steps = 1 / curvature.largest_eigenvalue, 300
    exact = influence(training.losses, validation, curvature, Exact())
    left = (1 - step * curvature.smallest_eigenvalue) ** steps
    assert left < 0.05
    answer = pseudo_update_influence(training, validation, theta, step=step, steps=steps)
    # The error −∇L (I − aH)^K H⁻¹∇ℓ(V) is at most (1 − aλmin)^K of the longest it can be.
    solution = Exact()(curvature, gradient(validation, theta))
    jacobian = torch.func.jacrev(training.losses)(theta)
    assert (answer - exact).norm() <= left * torch.linalg.matrix_norm(jacobian, 2) * solution.norm()


def test_pseudo_update_leaves_theta_and_the_model_alone():
    training, validation, theta = mlp_with_validation()
    kept = theta.clone()
    answer = pseudo_update_influence(training, validation, theta, step=0.5, steps=2)
    assert torch.equal(theta, kept)
    assert not answer.requires_grad
    assert all(parameter.grad is None for parameter in training.losses.model.parameters())


@pytest.mark.parametrize(("step", "steps"), [(0.0, 1), (-0.1, 1), (math.nan, 1), (0.1, 0), (0.1, -2)])
def test_pseudo_update_refuses_steps_that_are_none(step, steps):
    training, validation, theta = mlp_with_validation()
    with pytest.raises(ValueError, match="the step must be positive and there must be at least one"):
        pseudo_update_influence(training, validation, theta, step=step, steps=steps)


def test_a_pseudo_update_that_explodes_is_refused(fitted_ridge):
    data, _ = fitted_ridge
    with pytest.raises(FloatingPointError, match=r"after the pseudo-update is .* lower the step size"):
        pseudo_update_influence(data.objective, data.validation, randn(8, seed=6), step=1e9, steps=60)


def test_pseudo_update_refuses_a_validation_loss_that_is_not_finite(fitted_ridge):
    data, _ = fitted_ridge
    with pytest.raises(FloatingPointError, match="the gradient is nan"):
        pseudo_update_influence(data.objective, nan_validation(data), randn(8, seed=6), step=0.1)
