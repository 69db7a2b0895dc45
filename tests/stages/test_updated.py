"""Eq. 15's two readings against dense algebra by hand, and optima solved again with other weights."""

import math

import pytest
import torch
from helpers import two_stages as by_hand
from helpers.analytic import randn
from helpers.stage_oracles import (
    CHOSEN,
    DIFFERENCE,
    assert_close,
    at_a_saddle,
    batches,
    eye,
    f_hessian,
    hand_joint,
    hand_proximal,
    joint_optimum,
    proximal_optimum,
)
from helpers.two_stages import SECOND, TARGET, TEST, THETA, K, M, N, U, W, curvatures, finetuned, pretrained
from torch import nn
from torch.nn import functional as F

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss, gradient, per_example_gradients
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import ConjugateGradient, Exact, GaussNewton, OuterProduct, SolverTraits
from metasp_lite.influence.pseudo_update import SGDRule
from metasp_lite.stages.fixed import fixed_embedding, fixed_sensitivity, pretraining_influence
from metasp_lite.stages.unrolled import ShortRun, unrolled_sensitivity
from metasp_lite.stages.updated import JointObjective, ProximalObjective, joint_influence, proximal_sensitivity

# ----------------------------------------------------------------------------------- eq. 15 read as proximal finetuning


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


# ------------------------------------------------------------------------------------------- eq. 15 read as one optimum


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
    for beyond in (-1, M + N):  # which the two stages, each on its own, would take for their first or last
        with pytest.raises(ValueError, match=f"index must hold one place or more between 0 and {M + N - 1}"):
            joint.losses(theta, torch.tensor([0, beyond]))
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


# ------------------------------------------------------------------------------------------------------------- refusals


def test_the_updated_embedding_readings_name_their_stage_too():
    theta_g, theta_f, _ = at_a_saddle()
    proximal = ProximalObjective(Objective(by_hand.F.losses), theta_f[:W], 1e-3)
    with pytest.raises(NegativeCurvatureError, match="in the finetuning stage"):
        proximal_sensitivity(Curvature(proximal, theta_f), TARGET, Exact())
    joint = JointObjective(Objective(by_hand.G.losses), Objective(by_hand.F.losses), 0.5)
    theta = torch.cat([theta_g, theta_f[W:]])
    with pytest.raises(NegativeCurvatureError, match="in the joint stage"):
        joint_influence(Curvature(joint, theta), TARGET, Exact())


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
            with pytest.raises(FloatingPointError, match="the gradient of an example is nan"):
                score(target)


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


def test_a_solver_from_elsewhere_serves_both_stages_unless_it_says_that_it_needs_a_plain_mean():
    joint, optimum = joint_optimum(0.3)
    curvature = Curvature(joint, optimum)

    class Plain(SolverTraits):
        needs_plain_mean = True

        def __call__(self, curvature, vector):
            return vector

    with pytest.raises(ValueError, match="Plain knows the examples of one stage only; take another solver"):
        joint_influence(curvature, TARGET, Plain())
    answer = joint_influence(curvature, TARGET, lambda curvature, vector: Exact()(curvature, vector))
    assert_close(answer, joint_influence(curvature, TARGET, Exact()))
