"""Theorem 1 against closed forms, dense algebra by hand, and optima solved again with other weights."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
from helpers import two_stages as by_hand
from helpers.analytic import randn
from helpers.stage_oracles import CHOSEN, DIFFERENCE, ROUNDING, assert_close, at_a_saddle, eye, f_hessian, g_hessian
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
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss, gradient
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.calculus.solvers import ConjugateGradient, Exact, Identity, LiSSA, Neumann, OuterProduct
from metasp_lite.networks import TABLE_A, two_stage
from metasp_lite.stages import fixed
from metasp_lite.stages.fixed import (
    embedding_size,
    fixed_embedding,
    fixed_sensitivity,
    head_objective,
    pretraining_influence,
    same_embedding,
)

DAMPINGS = pytest.mark.parametrize("damping", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)], ids=str)


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


# ------------------------------------------------------------------------------------------------------------- refusals


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


def test_a_pretraining_example_that_is_not_finite_is_refused():
    x, y = (part.clone() for part in by_hand.PRETRAINING)
    x[4, 1] = math.nan
    bad = ExampleLosses(FIRST, x, y)
    for targets in (1, 3):  # both routes
        with pytest.raises(FloatingPointError, match=r"of an example('s loss)? is nan at position"):
            pretraining_influence(curvatures()[0], randn(targets, W, seed=1), Exact(), losses=bad)


@pytest.mark.parametrize("shape", [(2, W - 1), (2, W + 1), (2, W + U), (W,), (0, W)], ids=str)
def test_a_sensitivity_that_is_not_one_row_of_w_numbers_a_target_is_refused(shape):
    with pytest.raises(ValueError, match=rf"has the shape .* give \(K, {W}\), one row a target"):
        pretraining_influence(curvatures()[0], randn(*shape, seed=152), Exact())


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


def test_a_frozen_embedding_is_refused_with_the_reason():
    frozen = copy.deepcopy(FIRST)
    frozen.get_submodule("embedding").requires_grad_(False)
    with pytest.raises(ValueError, match="the embedding is frozen, but a pretraining example acts through it alone"):
        embedding_size(frozen)


def test_a_partly_frozen_embedding_counts_what_is_trained_and_must_be_the_same_in_both_stages():
    torch.manual_seed(0)
    first, second = (
        nn.Sequential(OrderedDict(embedding=nn.Sequential(nn.Linear(3, 2), nn.Tanh()), head=nn.Linear(2, 2))).double()
        for _ in range(2)
    )
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        model.embedding[0].bias.requires_grad_(False)
    x, y = randn(9, 3, seed=1), torch.arange(9) % 2
    stages = [Curvature(Objective(ExampleLosses(m, x, y), 0.1), flatten_parameters(m), 1.0) for m in (first, second)]
    assert same_embedding(*stages) == embedding_size(first) == 6
    target = ExampleLosses(second, x[:2], y[:2])
    theta, w = stages[1].theta, 6
    hessian = torch.func.hessian(stages[1].objective)(theta)
    slope = torch.func.jacrev(target)(theta)
    inner = hessian[w:, w:] + torch.eye(len(theta) - w).double()
    t = slope[:, :w] - slope[:, w:] @ torch.linalg.solve(inner, hessian[w:, :w])
    first_hessian = torch.func.hessian(stages[0].objective)(stages[0].theta) + torch.eye(len(theta)).double()
    padded = torch.cat([t, t.new_zeros(2, len(theta) - w)], dim=1)
    rows = torch.func.jacrev(stages[0].objective.losses)(stages[0].theta)
    expected = -padded @ torch.linalg.solve(first_hessian, rows.T)
    assert_close(fixed_embedding(*stages, target, Exact()), expected)
    with torch.no_grad():
        second.embedding[0].bias.add_(1.0)
    with pytest.raises(ValueError, match="is not the pretrained one"):
        same_embedding(*stages)
