"""Two-stage influence against closed forms, dense algebra by hand, and optima solved again with other weights.

Rounding: sums of at most a hundred float64 terms around 1 and two solves with condition numbers of about 100 (4000 for
the joint optimum of α = 0.01): differences near 1e-13, far below 1e-10 and that far below a wrong term.

Finite differences: 1e-4 of weight is a share h = 1e-4·M = 6e-3 of an example's; a central difference is off by a share
of about h², and 1e-14/1e-4 of noise is less.  1e-4 of the largest score leaves a factor of ten for the constant.
"""

import math

import pytest
import torch
from helpers import two_stages as by_hand
from helpers.analytic import randn
from helpers.two_stages import (
    FIRST,
    SECOND,
    TARGET,
    TEST,
    THETA,
    K,
    M,
    N,
    RidgeStages,
    U,
    W,
    curvatures,
    finetuned,
    pretrained,
)
from torch import nn
from torch.nn import functional as F

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Objective,
    SingleLoss,
    flatten_parameters,
    gradient,
    per_example_gradients,
)
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import ConjugateGradient, Exact, GaussNewton, Identity, LiSSA, Neumann, OuterProduct
from metasp_lite.influence.pseudo_update import SGDRule
from metasp_lite.networks import TABLE_A, two_stage
from metasp_lite.stages import fixed
from metasp_lite.stages.fixed import (
    embedding_size,
    fixed_embedding,
    fixed_sensitivity,
    head_objective,
    pretraining_influence,
)
from metasp_lite.stages.unrolled import Adam, ShortRun, unrolled_sensitivity
from metasp_lite.stages.updated import JointObjective, ProximalObjective, joint_influence, proximal_sensitivity

ROUNDING = 1e-10
DIFFERENCE = 1e-4
CHOSEN = [0, 11, 37, 59]
DAMPINGS = pytest.mark.parametrize("damping", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)], ids=str)


def assert_close(actual, expected, share=ROUNDING):
    expected = expected.detach()
    assert float(expected.abs().max()) > 1e-6  # zero would agree with much that is wrong
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * float(expected.abs().max()))


def eye(size):
    return torch.eye(size, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- the oracles


def g_hessian(theta):
    return torch.func.hessian(by_hand.g_mean)(theta)


def f_hessian(theta):
    return torch.func.hessian(by_hand.f_mean)(theta)


def theorem_1(inverse_g, inverse_f):
    """−g'(z)ᵀ A_G [f_W − F_WΘ A_F f_Θ; 0] with matrices A in the place of the inverse Hessians; (K, M)."""
    f = torch.func.jacrev(by_hand.targets)(finetuned())
    mixed = f_hessian(finetuned())[:W, W:]
    sensitivity = f[:, :W] - f[:, W:] @ inverse_f.T @ mixed.T
    jacobian = torch.func.jacrev(by_hand.g_losses)(pretrained())
    return -(F.pad(sensitivity, (0, U)) @ inverse_g.T @ jacobian.T)


def damped_hessians(damping):
    g, f = g_hessian(pretrained()), f_hessian(finetuned())[W:, W:]
    return g + damping[0] * eye(W + U), f + damping[1] * eye(THETA)


def test_the_networks_by_hand_are_those_of_the_package():
    assert (embedding_size(FIRST), len(flatten_parameters(FIRST)), len(flatten_parameters(SECOND))) == (
        W,
        W + U,
        W + THETA,
    )
    for objective, hand in ((by_hand.G, by_hand.g_mean), (by_hand.F, by_hand.f_mean)):
        theta = randn(len(flatten_parameters(objective.losses.model)), seed=150)
        torch.testing.assert_close(objective(theta), hand(theta), rtol=1e-14, atol=0)  # one number, few roundings
    torch.testing.assert_close(TARGET(finetuned()), by_hand.targets(finetuned()), rtol=1e-13, atol=0)


def test_the_head_alone_has_the_gradient_and_the_hessian_of_the_whole_objective():
    theta = randn(W + THETA, seed=150)
    head = head_objective(by_hand.F, theta[:W])
    assert_close(gradient(head, theta[W:]), torch.func.grad(by_hand.f_mean)(theta)[W:])
    assert_close(Curvature(head, theta[W:]).dense(), f_hessian(theta)[W:, W:])
    penalty = by_hand.L2_F / 2 * theta[:W].dot(theta[:W])
    torch.testing.assert_close(head(theta[W:]) + penalty, by_hand.f_mean(theta), rtol=1e-14, atol=0)


# ---------------------------------------------------------------------------------------------- ridge, closed form


@pytest.mark.parametrize("embedding", [nn.Linear(5, 3, bias=False), nn.Sequential(nn.Linear(5, 3, bias=False))])
@pytest.mark.parametrize("empty", [nn.Identity(), nn.Sequential()], ids=["identity", "empty"])
def test_theorem_1_on_ridge_in_both_stages_is_the_derivative_of_the_closed_form(embedding, empty):
    ridge = RidgeStages()
    pretraining, finetuning, target = ridge.curvatures(embedding, empty)
    assert max(pretraining.gradient.norm(), finetuning.gradient[15:].norm()) < 1e-14  # both closed forms are optima
    expected = torch.func.jacrev(ridge.losses)(torch.zeros(M, dtype=torch.float64))
    assert_close(fixed_embedding(pretraining, finetuning, target, Exact()), expected)


def test_on_ridge_the_movements_of_both_stages_are_those_written_out_by_hand():
    """dW*/dε = −r xᵀA⁻¹ and dΘ*/dε = −F_ΘΘ⁻¹ F_ΘW dW*/dε, each factor from the normal equations."""
    ridge = RidgeStages()
    w, zero = ridge.embedding(), torch.zeros(M, dtype=torch.float64)
    theta, features = ridge.head(w), ridge.x_f @ w.T
    residual, residual_f = ridge.x @ w.T - ridge.y, features @ theta - ridge.y_f
    z = 7
    d_w = -torch.outer(residual[z], torch.linalg.solve(ridge.x.T @ ridge.x / M + 0.2 * eye(5), ridge.x[z]))
    d_features = ridge.x_f @ d_w.T
    # F_Θ = Φᵀr/N + λΘ with Φ = X Wᵀ: its change with W at a fixed Θ
    d_slope = (d_features.T @ residual_f + features.T @ (d_features @ theta)) / N
    d_theta = -torch.linalg.solve(features.T @ features / N + 0.1 * eye(3), d_slope)
    assert_close(torch.func.jacfwd(ridge.embedding)(zero)[..., z], d_w)
    assert_close(torch.func.jacfwd(lambda e: ridge.head(ridge.embedding(e)))(zero)[..., z], d_theta)
    outcome = ridge.x_t @ w.T @ theta - ridge.y_t
    d_loss = outcome * (ridge.x_t @ (d_w.T @ theta + w.T @ d_theta))
    answer = fixed_embedding(*ridge.curvatures(nn.Linear(5, 3, bias=False), nn.Identity()), Exact())
    assert_close(answer[:, z], d_loss)


# ------------------------------------------------------------------------------------------------------ theorem 1


@DAMPINGS
def test_theorem_1_is_its_dense_algebra_with_the_damping_of_each_stage(damping):
    inverses = [torch.linalg.inv(hessian) for hessian in damped_hessians(damping)]
    answer = fixed_embedding(*curvatures(*damping), TARGET, Exact())
    assert answer.shape == (K, M)
    assert_close(answer, theorem_1(*inverses))


@DAMPINGS
def test_theorem_1_is_the_slope_of_the_target_as_both_optima_move(damping):
    def changed(weights):
        w, start = by_hand.weighted_optimum(weights, damping[0])[:W], finetuned()[W:]

        def held(head):
            return by_hand.f_mean(torch.cat([w, head])) + damping[1] / 2 * ((head - start) ** 2).sum()

        return by_hand.targets(torch.cat([w, by_hand.settled(held, start)]))

    answer = fixed_embedding(*curvatures(*damping), TARGET, Exact())
    assert_close(answer[:, CHOSEN], by_hand.central_differences(changed, CHOSEN), DIFFERENCE)


def test_theorem_1_on_convolutions_of_table_a_is_its_dense_algebra():
    """At any θ: the formula does not ask for an optimum once the dampings make both matrices positive definite."""
    first, second = (
        two_stage(TABLE_A["mnist"], (1, 5, 6), classes, width=16, pooling=nn.AvgPool2d, seed=seed)
        for classes, seed in ((4, 0), (3, 1))
    )
    w = embedding_size(first)
    theta_g = flatten_parameters(first)
    theta_f = torch.cat([theta_g[:w], flatten_parameters(second)[w:]])
    g = Objective(ExampleLosses(first, randn(16, 1, 5, 6, seed=1), torch.arange(16) % 4), 0.1)
    f = Objective(ExampleLosses(second, randn(12, 1, 5, 6, seed=2), torch.arange(12) % 3), 0.1)
    target = ExampleLosses(second, randn(3, 1, 5, 6, seed=3), torch.arange(3))
    hessian_f = torch.func.hessian(f)(theta_f)
    slopes = torch.func.jacrev(target)(theta_f)
    solved = torch.linalg.solve(hessian_f[w:, w:] + 0.5 * eye(len(theta_f) - w), slopes[:, w:].T)
    sensitivity = slopes[:, :w] - (hessian_f[:w, w:] @ solved).T
    padded = F.pad(sensitivity, (0, len(theta_g) - w))
    solved = torch.linalg.solve(torch.func.hessian(g)(theta_g) + 0.5 * eye(len(theta_g)), padded.T)
    expected = -(torch.func.jacrev(g.losses)(theta_g) @ solved).T
    answer = fixed_embedding(Curvature(g, theta_g, 0.5), Curvature(f, theta_f, 0.5), target, Exact(), batch=9)
    assert_close(answer, expected)


def test_with_identity_for_both_inverses_the_score_is_the_ablation():
    f = torch.func.jacrev(by_hand.targets)(finetuned())
    mixed = f_hessian(finetuned())[:W, W:]
    sensitivity = f[:, :W] - f[:, W:] @ mixed.T
    expected = -(torch.func.jacrev(by_hand.g_losses)(pretrained())[:, :W] @ sensitivity.T).T
    assert_close(fixed_embedding(*curvatures(0.3, 0.2), TARGET, Identity()), expected)
    assert_close(fixed_sensitivity(curvatures()[1], TARGET, Identity()), sensitivity)


def inverse(hessian, gradients, l2, damping):
    return torch.linalg.inv(hessian)


def damped_fisher_inverse(hessian, gradients, l2, damping):
    fisher = sum(torch.outer(g, g) for g in gradients) / len(gradients)
    return torch.linalg.inv(fisher + (l2 + damping) * eye(len(hessian)))


def seven_terms(share):
    def series(hessian, gradients, l2, damping):
        step = share / float(torch.linalg.eigvalsh(hessian)[-1])
        return step * sum(torch.linalg.matrix_power(eye(len(hessian)) - step * hessian, k) for k in range(7))

    return series


SOLVERS = {
    "exact": (Exact(), inverse, ROUNDING),
    "identity": (Identity(), lambda hessian, gradients, l2, damping: eye(len(hessian)), ROUNDING),
    "outer-product": (OuterProduct(), damped_fisher_inverse, ROUNDING),
    # λmax by Lanczos has four digits where P ≥ 20; a step off by 1e-4 changes seven terms by a share of 7e-4 at most
    "neumann-7": (Neumann(7), seven_terms(1.0), 2e-3),
    # (1 − λmin/λmax)^150 with λmin ≥ 0.4 and λmax ≤ 2 is below 1e-14
    "neumann-150": (Neumann(150), inverse, ROUNDING),
    "cg": (ConjugateGradient(200, tolerance=1e-13), inverse, ROUNDING),
    # (1 − λmin/2λmax)^40 is below 1e-3; batches are all of F and 40 of the 60 of G, which scatter by some percent
    "lissa": (LiSSA(40, batch=N, repeats=6), inverse, 0.05),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_gives_theorem_1_with_its_own_matrix_for_each_inverse(name):
    solver, matrix, share = SOLVERS[name]
    hessian_g, hessian_f = damped_hessians((0.5, 0.4))
    gradients_f = torch.func.jacrev(by_hand.f_losses)(finetuned())[:, W:]
    gradients_g = torch.func.jacrev(by_hand.g_losses)(pretrained())
    expected = theorem_1(
        matrix(hessian_g, gradients_g, by_hand.L2_G, 0.5), matrix(hessian_f, gradients_f, by_hand.L2_F, 0.4)
    )
    assert_close(fixed_embedding(*curvatures(0.5, 0.4), TARGET, solver), expected, share)


# -------------------------------------------------------------------------------------------- targets and batches


def test_the_score_of_a_mean_is_the_mean_of_the_scores():
    answer = fixed_embedding(*curvatures(), SingleLoss(Objective(TARGET)), Exact())
    assert answer.shape == (1, M)
    assert_close(answer[0], fixed_embedding(*curvatures(), TARGET, Exact()).mean(dim=0))


@pytest.mark.parametrize("targets", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 7, 59, 60, 1000])
def test_neither_the_batch_nor_the_number_of_targets_changes_a_score(targets, batch):
    """Two targets or fewer go forwards through the network, more share the examples' gradients."""
    every = fixed_embedding(*curvatures(), TARGET, Exact())
    fewer = ExampleLosses(SECOND, TEST[0][:targets], TEST[1][:targets])
    assert_close(fixed_embedding(*curvatures(), fewer, Exact(), batch=batch), every[:targets])


@pytest.mark.parametrize(("targets", "route"), [(1, "forwards"), (2, "forwards"), (3, "gradients")])
def test_few_targets_go_forwards_and_many_share_the_gradients(monkeypatch, targets, route):
    taken = []
    for name, kind in (("loss_directional_derivatives", "forwards"), ("per_example_gradients", "gradients")):
        original = getattr(fixed, name)
        monkeypatch.setattr(
            fixed, name, lambda *given, kind=kind, original=original: taken.append(kind) or original(*given)
        )
    pretraining_influence(curvatures()[0], randn(targets, W, seed=151), Exact(), batch=M // 2)
    assert taken == [route] * (2 * targets if route == "forwards" else 2)


def test_the_curvature_may_come_from_a_sample_of_the_examples_that_are_scored():
    x, y = by_hand.PRETRAINING
    sample = Curvature(Objective(ExampleLosses(FIRST, x[:10], y[:10]), 0.1), pretrained(), 0.3)
    sensitivity = randn(K, W, seed=151)

    def of_sample(theta):
        return by_hand.g_losses(theta)[:10].mean() + 0.05 * theta.dot(theta)

    hessian = torch.func.hessian(of_sample)(pretrained()) + 0.3 * eye(W + U)
    jacobian = torch.func.jacrev(by_hand.g_losses)(pretrained())
    expected = -(jacobian @ torch.linalg.solve(hessian, F.pad(sensitivity, (0, U)).T)).T
    answer = pretraining_influence(sample, sensitivity, Exact(), losses=by_hand.G.losses, batch=7)
    assert answer.shape == (K, M)
    assert_close(answer, expected)
    assert_close(pretraining_influence(sample, sensitivity, Exact()), expected[:, :10])


# ------------------------------------------------------------------------------- eq. 15 read as proximal finetuning


def proximal_optimum(alpha):
    """[W; Θ] at the minimum of F + (α/2)‖W − W*‖² that the fixed embedding's leads to."""
    proximal = ProximalObjective(by_hand.F, pretrained()[:W], alpha)
    return proximal, by_hand.settled(hand_proximal(alpha, pretrained()[:W]), minimise(proximal, finetuned()))


def hand_proximal(alpha, center):
    return lambda theta: by_hand.f_mean(theta) + alpha / 2 * ((theta[:W] - center) ** 2).sum()


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_the_proximal_sensitivity_is_its_dense_algebra(damping):
    proximal, theta = proximal_optimum(0.5)
    held = torch.zeros(W + THETA, dtype=torch.float64)
    held[:W] = 0.5
    matrix = f_hessian(theta) + torch.diag(held) + damping * eye(W + THETA)
    jacobian = torch.linalg.solve(matrix, 0.5 * eye(W + THETA)[:, :W])  # J = (…)⁻¹ [αI; 0]
    answer = proximal_sensitivity(Curvature(proximal, theta, damping), TARGET, Exact())
    assert_close(answer, torch.func.jacrev(by_hand.targets)(theta) @ jacobian)


@pytest.mark.parametrize("solver", [Exact(), ConjugateGradient(500, tolerance=1e-13), OuterProduct()], ids=type)
def test_proximal_sensitivity_solves_with_the_penalty_of_the_embedding_alone(solver):
    proximal, theta = proximal_optimum(0.5)
    held = torch.full((W + THETA,), by_hand.L2_F, dtype=torch.float64)
    held[:W] += 0.5
    if isinstance(solver, OuterProduct):
        gradients = torch.func.jacrev(by_hand.f_losses)(theta)
        matrix = gradients.T @ gradients / N + torch.diag(held)
    else:
        matrix = torch.func.hessian(lambda t: by_hand.f_losses(t).mean())(theta) + torch.diag(held)
    expected = 0.5 * torch.linalg.solve(matrix, torch.func.jacrev(by_hand.targets)(theta).T)[:W].T
    assert_close(proximal_sensitivity(Curvature(proximal, theta), TARGET, solver), expected)


@pytest.mark.parametrize("alpha", [0.01, 2.0])
def test_proximal_influence_is_the_slope_of_the_target_as_its_own_two_optima_move(alpha):
    proximal, theta = proximal_optimum(alpha)

    def changed(weights):
        w = by_hand.weighted_optimum(weights)[:W]
        return by_hand.targets(by_hand.settled(hand_proximal(alpha, w), theta))

    sensitivity = proximal_sensitivity(Curvature(proximal, theta), TARGET, Exact())
    answer = pretraining_influence(curvatures()[0], sensitivity, Exact())
    assert_close(answer[:, CHOSEN], by_hand.central_differences(changed, CHOSEN), DIFFERENCE)


def test_a_strong_proximal_term_gives_the_fixed_sensitivity_with_an_error_of_order_one_over_alpha():
    fixed = fixed_sensitivity(curvatures()[1], TARGET, Exact())
    errors = []
    for alpha in (1e3, 1e5):
        theta = minimise(ProximalObjective(by_hand.F, pretrained()[:W], alpha), finetuned(), tolerance=1e-9)
        curvature = Curvature(ProximalObjective(by_hand.F, pretrained()[:W], alpha), theta)
        errors.append(float((proximal_sensitivity(curvature, TARGET, Exact()) - fixed).norm() / fixed.norm()))
    assert errors[1] < 1e-4
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.02)  # the term after it is of order 1/α² : 1e-3 of it


def test_a_weak_proximal_term_gives_zero_in_proportion_to_alpha():
    sizes = []
    for alpha in (1e-4, 1e-6):
        proximal, theta = proximal_optimum(alpha)
        sizes.append(float(proximal_sensitivity(Curvature(proximal, theta), TARGET, Exact()).norm()))
    assert sizes[1] < 1e-3
    # λ holds all parameters beside, and the smallest eigenvalue is 0.01: α over it, 1e-2 and less, is the next term's.
    assert sizes[1] == pytest.approx(sizes[0] / 100, rel=0.02)
    proximal = ProximalObjective(by_hand.F, pretrained()[:W], 0.0)
    assert torch.equal(
        proximal_sensitivity(Curvature(proximal, theta, 0.1), TARGET, Exact()), torch.zeros(K, W, dtype=torch.float64)
    )


def test_a_proximal_objective_is_finetuning_and_a_distance_on_any_batch():
    theta, center, index = randn(W + THETA, seed=152), randn(W, seed=153), torch.tensor([3, 17])
    proximal = ProximalObjective(by_hand.F, center, 0.7)
    distance = 0.35 * ((theta[:W] - center) ** 2).sum()
    # One number, the sum of a hundred terms: a few roundings.
    torch.testing.assert_close(proximal(theta), by_hand.f_mean(theta) + distance, rtol=1e-13, atol=0)
    expected = by_hand.f_losses(theta)[index].mean() + by_hand.L2_F / 2 * (theta**2).sum() + distance
    torch.testing.assert_close(proximal(theta, index), expected, rtol=1e-13, atol=0)


# ------------------------------------------------------------------------------------- eq. 15 read as one optimum


def hand_joint(theta, alpha, weights=None):
    """α(G + Σ ε_z g(z)) + (1 − α) F at [W; U; Θ]."""
    first, second = theta[: W + U], torch.cat([theta[:W], theta[W + U :]])
    added = 0.0 if weights is None else weights @ by_hand.g_losses(first)
    return alpha * (by_hand.g_mean(first) + added) + (1 - alpha) * by_hand.f_mean(second)


def joint_optimum(alpha):
    joint = JointObjective(by_hand.G, by_hand.F, alpha)
    # From the two stages' own optimum L-BFGS runs into a saddle, where two tanh units are one.
    start = torch.cat([pretrained(), finetuned()[W:]]) + 0.3 * randn(W + U + THETA, seed=171)
    return joint, by_hand.settled(lambda theta: hand_joint(theta, alpha), minimise(joint, start))


def test_the_joint_objective_is_the_weighted_sum_and_its_losses_average_to_it():
    joint, theta = JointObjective(by_hand.G, by_hand.F, 0.3), randn(W + U + THETA, seed=154)
    # One number, the sum of a hundred float64 terms.  A penalty in single precision would be off by 1e-8.
    torch.testing.assert_close(joint(theta), hand_joint(theta, 0.3), rtol=1e-14, atol=0)
    assert_close(gradient(joint, theta), torch.func.grad(hand_joint)(theta, 0.3))
    scale = (0.3 * (M + N) / M, 0.7 * (M + N) / N)
    first, second = joint.stages(theta)
    losses = torch.cat([scale[0] * by_hand.g_losses(first), scale[1] * by_hand.f_losses(second)])
    assert len(joint.losses) == M + N
    assert_close(joint.losses(theta), losses)
    index = torch.tensor([M + N - 1, 0, M - 1, M, 3])  # of both stages, and the last and the first of each
    assert_close(joint.losses(theta, index), losses[index])
    penalty = joint(theta) - losses.mean()
    torch.testing.assert_close(joint(theta, index), losses[index].mean() + penalty, rtol=1e-13, atol=0)


def test_joint_losses_have_gradients_one_by_one():
    joint, theta = JointObjective(by_hand.G, by_hand.F, 0.3), randn(W + U + THETA, seed=154)
    assert_close(per_example_gradients(joint.losses, theta), torch.func.jacfwd(joint.losses)(theta))


def test_the_joint_penalty_has_the_dtype_of_the_network():
    def single(losses):
        return Objective(ExampleLosses(losses.model.float(), losses.inputs.float(), losses.labels), 0.1)

    first = by_hand.network(nn.Linear(3, 3)), by_hand.network(nn.Linear(3, 2))
    x = randn(6, 5, seed=1)
    g, f = (single(ExampleLosses(model, x, torch.arange(6) % 2)) for model in first)
    joint, theta = JointObjective(g, f, 0.3), randn(W + U + 8, seed=154).float()
    assert joint.l2.dtype == joint(theta).dtype == torch.float32
    assert joint.l2.dtype == (Curvature(joint, theta) @ theta).dtype


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("alpha", [0.3, 0.01])
def test_joint_influence_is_the_slope_of_the_target_as_the_one_optimum_moves(alpha, damping):
    joint, there = joint_optimum(alpha)

    def changed(weights):
        def held(theta):
            return hand_joint(theta, alpha, weights) + damping / 2 * ((theta - there) ** 2).sum()

        theta = by_hand.settled(held, there)
        return by_hand.targets(torch.cat([theta[:W], theta[W + U :]]))

    answer = joint_influence(Curvature(joint, there, damping), TARGET, Exact(), batch=10)
    assert answer.shape == (K, M)
    assert_close(answer[:, CHOSEN], by_hand.central_differences(changed, CHOSEN), DIFFERENCE)


def test_joint_influence_is_its_dense_algebra():
    joint, theta = joint_optimum(0.3)
    hessian = torch.func.hessian(hand_joint)(theta, 0.3) + 0.2 * eye(W + U + THETA)
    f = torch.func.jacrev(by_hand.targets)(torch.cat([theta[:W], theta[W + U :]]))
    f = torch.cat([f[:, :W], torch.zeros(K, U, dtype=torch.float64), f[:, W:]], dim=1)
    g = F.pad(torch.func.jacrev(by_hand.g_losses)(theta[: W + U]), (0, THETA))
    expected = -0.3 * f @ torch.linalg.solve(hessian, g.T)
    curvature = Curvature(joint, theta, 0.2)
    assert_close(joint_influence(curvature, TARGET, Exact()), expected)
    assert_close(joint_influence(curvature, SingleLoss(Objective(TARGET)), Exact())[0], expected.mean(dim=0))
    solver = ConjugateGradient(500, tolerance=1e-13)
    assert_close(joint_influence(curvature, TARGET, solver), expected)


# ------------------------------------------------------------------------------------------------------- unrolled


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


def batches(steps, size=6):
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randperm(N, generator=generator)[:size] for _ in range(steps)])


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


# ------------------------------------------------------------------------------------------------------- refusals


def at_a_saddle():
    """Curvatures without penalties far from any optimum, and the smallest eigenvalues of G'' and F_ΘΘ there."""
    theta_g, theta_f = 2 * randn(W + U, seed=160), 2 * randn(W + THETA, seed=161)
    theta_f[:W] = theta_g[:W]
    g = torch.func.hessian(lambda t: by_hand.g_losses(t).mean())(theta_g)
    f = torch.func.hessian(lambda t: by_hand.f_losses(t).mean())(theta_f)
    lowest = [float(torch.linalg.eigvalsh(hessian)[0]) for hessian in (g, f[W:, W:])]
    assert max(lowest) < -0.01
    return theta_g, theta_f, lowest


@pytest.mark.parametrize("solver", [Exact(), ConjugateGradient(200)], ids=type)
def test_negative_curvature_is_refused_with_the_name_of_its_stage(solver):
    theta_g, theta_f, lowest = at_a_saddle()
    g, f = Objective(by_hand.G.losses), Objective(by_hand.F.losses)
    for damping, stage, expected in (
        ((0.0, 0.0), "finetuning", lowest[1]),
        ((0.0, 5.0), "pretraining", lowest[0]),
        ((5.0, 0.001), "finetuning", lowest[1] + 0.001),
    ):
        with pytest.raises(NegativeCurvatureError, match=f"not positive definite in the {stage} stage;") as caught:
            fixed_embedding(Curvature(g, theta_g, damping[0]), Curvature(f, theta_f, damping[1]), TARGET, solver)
        assert caught.value.damping == (damping[0] if stage == "pretraining" else damping[1])
        if isinstance(solver, Exact):  # which names the smallest eigenvalue, by Lanczos to four digits
            assert caught.value.curvature == pytest.approx(expected, rel=2e-4)
    fine = fixed_embedding(Curvature(g, theta_g, 5.0), Curvature(f, theta_f, 5.0), TARGET, solver)
    assert fine.isfinite().all()


def test_the_updated_embedding_readings_name_their_stage_too():
    theta_g, theta_f, _ = at_a_saddle()
    proximal = ProximalObjective(Objective(by_hand.F.losses), theta_f[:W], 1e-3)
    with pytest.raises(NegativeCurvatureError, match="in the finetuning stage"):
        proximal_sensitivity(Curvature(proximal, theta_f), TARGET, Exact())
    joint = JointObjective(Objective(by_hand.G.losses), Objective(by_hand.F.losses), 0.5)
    theta = torch.cat([theta_g, theta_f[W:]])
    with pytest.raises(NegativeCurvatureError, match="in the joint stage"):
        joint_influence(Curvature(joint, theta), TARGET, Exact())


def test_fixed_embedding_refuses_a_finetuned_network_with_another_embedding():
    moved = finetuned().clone()
    moved[3] += 1e-9
    with pytest.raises(ValueError, match="the embedding of the finetuned network is not the pretrained one"):
        fixed_embedding(Curvature(by_hand.G, pretrained()), Curvature(by_hand.F, moved), TARGET, Exact())
    narrow = by_hand.parted(nn.Sequential(nn.Linear(5, 2), nn.Tanh()), nn.Linear(2, 3))
    other = Curvature(Objective(ExampleLosses(narrow, *by_hand.PRETRAINING)), flatten_parameters(narrow))
    with pytest.raises(ValueError, match="the embedding of the finetuned network is not the pretrained one"):
        fixed_embedding(other, curvatures()[1], TARGET, Exact())


class NotSequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Linear(5, 3), nn.Linear(3, 2)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.ModuleDict({"head": nn.Linear(3, 2), "embedding": nn.Linear(5, 3)})),
        NotSequential(),
        nn.Linear(5, 3),
    ],
    ids=["unnamed", "nested", "not sequential", "one layer"],
)
def test_a_network_without_an_embedding_and_a_head_in_this_order_is_refused(model):
    with pytest.raises(ValueError, match=r"build it as nn\.Sequential of an 'embedding' and a 'head'"):
        embedding_size(model)


def test_the_head_has_to_follow_the_embedding():
    model = by_hand.parted(nn.Linear(5, 3), nn.Linear(3, 2))
    turned = nn.Sequential()
    turned.add_module("head", model.head)
    turned.add_module("embedding", model.embedding)
    with pytest.raises(ValueError, match=r"the parts \['head', 'embedding'\]"):
        embedding_size(turned)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_a_proximal_alpha_that_is_negative_or_not_finite_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be a finite number of at least 0"):
        ProximalObjective(by_hand.F, torch.zeros(W), alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_a_joint_alpha_that_leaves_one_stage_out_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must lie between 0 and 1"):
        JointObjective(by_hand.G, by_hand.F, alpha)


def test_a_target_that_is_not_finite_is_refused_by_every_score():
    x, y = (part.clone() for part in TEST)
    x[2, 0] = math.nan
    bad = ExampleLosses(SECOND, x, y)
    proximal, theta = proximal_optimum(0.5)
    joint, there = joint_optimum(0.3)
    run = ShortRun(by_hand.F, SGDRule(0.1), batches(2))
    for target in (bad, SingleLoss(Objective(bad))):
        for score in (
            lambda target: fixed_embedding(*curvatures(), target, Exact()),
            lambda target: proximal_sensitivity(Curvature(proximal, theta), target, Exact()),
            lambda target: joint_influence(Curvature(joint, there), target, Exact()),
            lambda target: unrolled_sensitivity(run, theta[:W], theta[W:], target),
        ):
            with pytest.raises(FloatingPointError, match="the gradient of a target is nan"):
                score(target)


def test_a_pretraining_example_that_is_not_finite_is_refused():
    x, y = (part.clone() for part in by_hand.PRETRAINING)
    x[4, 1] = math.nan
    bad = ExampleLosses(FIRST, x, y)
    for targets in (1, 3):  # both routes
        with pytest.raises(FloatingPointError, match="an influence is nan at position 4"):
            pretraining_influence(curvatures()[0], randn(targets, W, seed=1), Exact(), losses=bad)


@pytest.mark.parametrize("shape", [(2, W - 1), (2, W + 1), (2, W + U), (W,), (0, W)], ids=str)
def test_a_sensitivity_that_is_not_one_row_of_w_numbers_a_target_is_refused(shape):
    with pytest.raises(ValueError, match=rf"has the shape .* give \(K, {W}\), one row a target"):
        pretraining_influence(curvatures()[0], randn(*shape, seed=152), Exact())


@pytest.mark.parametrize("size", [W - 1, W + 1, W + THETA])
def test_a_proximal_center_that_is_no_embedding_is_refused(size):
    with pytest.raises(ValueError, match=rf"shape \({size},\); give the embedding W\* \({W},\)"):
        ProximalObjective(by_hand.F, randn(size, seed=153), 0.5)


def test_the_curvature_of_another_objective_is_refused():
    proximal, optimum = proximal_optimum(0.5)
    with pytest.raises(ValueError, match="of ProximalObjective: give that of the Objective of finetuning"):
        fixed_sensitivity(Curvature(proximal, optimum), TARGET, Exact())
    with pytest.raises(ValueError, match="of Objective: give that of a ProximalObjective at its optimum"):
        proximal_sensitivity(curvatures()[1], TARGET, Exact())


@pytest.mark.parametrize("solver", [OuterProduct(), GaussNewton()], ids=["outer product", "Gauss–Newton"])
def test_a_matrix_of_one_stages_examples_is_refused_for_both(solver):
    joint, optimum = joint_optimum(0.3)
    with pytest.raises(ValueError, match="knows the examples of one stage only; take another solver"):
        joint_influence(Curvature(joint, optimum), TARGET, solver)


def test_many_targets_on_a_large_network_take_fewer_examples_at_once(monkeypatch):
    """50 million numbers of gradients: of 7 examples at a time, if each had a seventh of that."""
    sizes = []
    original = fixed.per_example_gradients
    monkeypatch.setattr(fixed, "per_example_gradients", lambda *given: sizes.append(len(given[0])) or original(*given))
    losses, theta = by_hand.G.losses, pretrained()
    directions = randn(3, len(theta), seed=154)
    expected = fixed.directional_derivatives(losses, theta, directions, batch=M)

    class Large(type(theta)):
        def __len__(self):
            return 50_000_000 // 7

    sizes.clear()
    large = theta.as_subclass(Large)
    assert_close(fixed.directional_derivatives(losses, large, directions, batch=M).as_subclass(torch.Tensor), expected)
    assert max(sizes) == 7


def test_a_batch_of_no_example_is_refused():
    with pytest.raises(ValueError, match="batch=0: score at least one example at a time"):
        fixed_embedding(*curvatures(), TARGET, Exact(), batch=0)
