"""Retraining both stages against closed forms, other optimisers, other starts and a plain loop of torch's own.

Rounding: retraining stops at gradient norms of 1e-9; with eigenvalues of 0.008 and more in each stage parameters are
off by 1e-7 at most, and by far less where the last step overshoots.  Allowed is 1e-4 of the largest change, which is
above 1e-3.
"""

import copy
import math
from functools import cache

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
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import Exact
from metasp_lite.influence.pseudo_update import SGDRule
from metasp_lite.stages import retraining
from metasp_lite.stages.fixed import fixed_embedding, pretraining_influence
from metasp_lite.stages.unrolled import Adam, ShortRun, unrolled_sensitivity
from metasp_lite.stages.updated import JointObjective, ProximalObjective, joint_influence, proximal_sensitivity

CHOSEN = torch.tensor([3, 0, 50, 11, 3, 7, 8, 9, 30, 12, 20])  # not in order, one twice, more than one chunk of 8


def fixed(pretraining, finetuning, target, examples, **settings):
    """Both stages again."""
    return retraining.fixed(retraining.leave_out(pretraining, examples, **settings), finetuning, target)


def proximal(pretraining, finetuning, target, examples, **settings):
    return retraining.proximal(retraining.leave_out(pretraining, examples, **settings), finetuning, target)


def finetuned_by(run, pretraining, head, target, examples, **settings):
    return retraining.finetuned_by(retraining.leave_out(pretraining, examples, **settings), run, head, target)


def assert_close(actual, expected, share=1e-4):
    assert actual.shape == expected.shape
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * float(expected.abs().max()))


def without(example, fraction=1.0):
    """The weights ε that take a fraction of the example's weight away; (M,)."""
    weights = torch.zeros(M, dtype=torch.float64)
    weights[example] = -fraction / M
    return weights


def changes(changed, fraction=1.0):
    """What a function of the weights ε becomes beyond its value at ε = 0; (K, L)."""
    control = changed(torch.zeros(M, dtype=torch.float64))
    return torch.stack([changed(without(int(z), fraction)) - control for z in CHOSEN], dim=1)


# ------------------------------------------------------------------------------------------------- fixed embedding


@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_fixed_on_ridge_is_the_closed_form_without_that_weight(fraction):
    ridge = RidgeStages()
    pretraining, finetuning, target = ridge.curvatures(nn.Linear(5, 3, bias=False), nn.Sequential())
    answer = fixed(pretraining, finetuning, target, CHOSEN, fraction=fraction)
    # Both stages stop at 1e-9 over penalties of 0.1 or more, and a change is of the order of 0.1.
    assert_close(answer, changes(ridge.losses, fraction), 1e-6)


def fixed_after(weights):
    w = by_hand.weighted_optimum(weights)[:W]
    head = by_hand.settled(lambda head: by_hand.f_mean(torch.cat([w, head])), finetuned()[W:])
    return by_hand.targets(torch.cat([w, head]))


@pytest.mark.parametrize("example", [0, 13])
def test_fixed_is_training_both_stages_on_the_other_examples_from_another_start(example):
    x, y = by_hand.PRETRAINING
    kept = torch.arange(M) != example
    # (1/M) Σ_{i≠z} g_i + (λ/2)‖θ‖² is (M−1)/M times the mean over what is left with a penalty larger by M/(M−1).
    reduced = Objective(ExampleLosses(FIRST, x[kept], y[kept]), by_hand.L2_G * M / (M - 1))
    w = minimise(reduced, pretrained() + 0.2 * randn(W + U, seed=170))[:W]

    def finetuning(head):
        return by_hand.f_mean(torch.cat([w, head]))

    head = minimise(Objective(SingleLoss(finetuning)), finetuned()[W:] + 0.2 * randn(THETA, seed=171))
    expected = by_hand.targets(torch.cat([w, head])) - by_hand.targets(finetuned())
    answer = fixed(*curvatures(), TARGET, torch.tensor([example]))
    assert_close(answer[:, 0], expected)


# ----------------------------------------------------------------------- the other readings, and influence as limit


@cache
def proximal_problem(alpha=2.0):
    proximal = ProximalObjective(by_hand.F, pretrained()[:W], alpha)
    return Curvature(proximal, minimise(proximal, finetuned(), tolerance=1e-12))


@cache
def joint_problem(alpha=0.3):
    joint = JointObjective(by_hand.G, by_hand.F, alpha)
    start = torch.cat([pretrained(), finetuned()[W:]]) + 0.3 * randn(W + U + THETA, seed=171)
    return Curvature(joint, minimise(joint, start, tolerance=1e-12))


def short_run(rule=None, steps=6):
    generator = torch.Generator().manual_seed(7)
    index = torch.stack([torch.randperm(N, generator=generator)[:6] for _ in range(steps)])
    return ShortRun(by_hand.F, rule or Adam(0.1, eps=0.1), index)


HEAD = 0.5 * randn(THETA, seed=155)  # Θ_0, where a short run starts


def proximal_after(weights):
    w, start = by_hand.weighted_optimum(weights)[:W], proximal_problem().theta

    def held(theta):
        return by_hand.f_mean(theta) + ((theta[:W] - w) ** 2).sum()  # α/2 = 1

    return by_hand.targets(by_hand.settled(held, start))


def joint_after(weights):
    def whole(theta):
        first, second = theta[: W + U], torch.cat([theta[:W], theta[W + U :]])
        g = by_hand.g_mean(first) + weights @ by_hand.g_losses(first)
        return 0.3 * g + 0.7 * by_hand.f_mean(second)

    theta = by_hand.settled(whole, joint_problem().theta)
    return by_hand.targets(torch.cat([theta[:W], theta[W + U :]]))


def finetuned_after(weights):
    """Adam written out (Kingma and Ba, 2015, algorithm 1), with lr = ε = 0.1."""
    theta = torch.cat([by_hand.weighted_optimum(weights)[:W], HEAD])
    m = v = torch.zeros_like(theta)
    for t, index in enumerate(short_run().batches, start=1):

        def batch_mean(theta, index=index):
            return by_hand.f_losses(theta)[index].mean() + by_hand.L2_F / 2 * (theta**2).sum()

        slope = torch.func.grad(batch_mean)(theta)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        theta = theta - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 0.1)
    return by_hand.targets(theta)


def truth_of_fixed(target, **settings):
    return fixed(*curvatures(), target, CHOSEN, **settings)


def truth_of_proximal(target, **settings):
    return proximal(curvatures()[0], proximal_problem(), target, CHOSEN, **settings)


def truth_of_joint(target, **settings):
    return retraining.joint(joint_problem(), target, CHOSEN, **settings)


def truth_of_run(target, **settings):
    return finetuned_by(short_run(), curvatures()[0], HEAD, target, CHOSEN, **settings)


def score_of_proximal():
    return pretraining_influence(curvatures()[0], proximal_sensitivity(proximal_problem(), TARGET, Exact()), Exact())


def score_of_run():
    return pretraining_influence(
        curvatures()[0], unrolled_sensitivity(short_run(), pretrained()[:W], HEAD, TARGET), Exact()
    )


READINGS = {
    "fixed": (truth_of_fixed, fixed_after, lambda: fixed_embedding(*curvatures(), TARGET, Exact())),
    "proximal": (truth_of_proximal, proximal_after, score_of_proximal),
    "joint": (truth_of_joint, joint_after, lambda: joint_influence(joint_problem(), TARGET, Exact())),
    "finetuned by a run": (truth_of_run, finetuned_after, score_of_run),
}
EVERY_READING = pytest.mark.parametrize("name", READINGS)


@EVERY_READING
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_each_reading_is_retrained_to_what_is_solved_by_hand(name, fraction):
    truth, after, _ = READINGS[name]
    assert_close(truth(TARGET, fraction=fraction), changes(after, fraction))


@EVERY_READING
def test_the_less_is_left_out_the_closer_is_minus_the_score_over_m(name):
    truth, _, score = READINGS[name]
    predicted = -score()[:, CHOSEN] / M
    errors = []
    for fraction in (0.1, 0.01):
        error = truth(TARGET, fraction=fraction) / fraction - predicted
        errors.append(float(error.norm() / predicted.norm()))
    assert errors[1] < 0.01
    # The next term of the expansion is proportional to f, the one after it, to f²: a few percent of it at f = 0.1.
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


@EVERY_READING
def test_the_readings_take_a_scalar_target_and_refuse_one_that_is_not_finite(name):
    truth = READINGS[name][0]
    assert_close(truth(SingleLoss(Objective(TARGET))), truth(TARGET).mean(dim=0, keepdim=True), 1e-10)
    x, y = (part.clone() for part in TEST)
    x[1, 1] = math.nan
    with pytest.raises(FloatingPointError, match="a change of a target is nan"):
        truth(ExampleLosses(SECOND, x, y))


def test_the_joint_optimum_without_an_example_is_that_of_the_objective_on_the_others():
    x, y = by_hand.PRETRAINING
    kept = torch.arange(M) != 5
    reduced = Objective(ExampleLosses(FIRST, x[kept], y[kept]), by_hand.L2_G * M / (M - 1))
    # α(M−1)/M of the mean over the others: the same ratio to (1−α) F, up to a factor of the whole, by another α.
    first = 0.3 * (M - 1) / M
    other = JointObjective(reduced, by_hand.F, first / (first + 0.7))
    there = joint_problem().theta
    theta = minimise(other, there + 0.05 * randn(len(there), seed=172))
    expected = by_hand.targets(other.stages(theta)[1]) - by_hand.targets(other.stages(there)[1])
    assert_close(retraining.joint(joint_problem(), TARGET, torch.tensor([5]))[:, 0], expected)


def test_a_run_of_sgd_is_retrained_too():
    run = short_run(SGDRule(0.1, momentum=0.9, nesterov=True))
    answer = finetuned_by(run, curvatures()[0], HEAD, TARGET, CHOSEN)
    ends = []
    for weights in (torch.zeros(M, dtype=torch.float64), *(without(int(z)) for z in CHOSEN)):
        model = copy.deepcopy(SECOND)
        nn.utils.vector_to_parameters(torch.cat([by_hand.weighted_optimum(weights)[:W], HEAD]), model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=by_hand.L2_F, nesterov=True)
        x, y = by_hand.FINETUNING
        for index in run.batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
        ends.append(F.cross_entropy(model(TEST[0]), TEST[1], reduction="none").detach())
    assert_close(answer, (torch.stack(ends[1:]) - ends[0]).T)


# ---------------------------------------------------------------------------------------------- the paper's protocol


def squares(module):
    return sum((parameter**2).sum() for parameter in module.parameters())


def plain_loop(rule, removed, first_batches, second_batches):
    """Both stages of one retraining by torch.optim.Adam on the networks themselves; the losses of the test examples."""
    first, second = copy.deepcopy(FIRST), copy.deepcopy(SECOND)
    nn.utils.vector_to_parameters(pretrained().clone(), first.parameters())
    nn.utils.vector_to_parameters(finetuned().clone(), second.parameters())
    x, y = by_hand.PRETRAINING
    optimizer = torch.optim.Adam(first.parameters(), rule.lr, rule.betas, rule.eps)
    for index in first_batches:
        index = index[index != removed]
        optimizer.zero_grad()
        (F.cross_entropy(first(x[index]), y[index]) + by_hand.L2_G / 2 * squares(first)).backward()
        optimizer.step()
    second.embedding.load_state_dict(first.embedding.state_dict())
    x, y = by_hand.FINETUNING
    optimizer = torch.optim.Adam(second.head.parameters(), rule.lr, rule.betas, rule.eps)
    for index in second_batches:
        optimizer.zero_grad()
        (F.cross_entropy(second(x[index]), y[index]) + by_hand.L2_F / 2 * squares(second.head)).backward()
        optimizer.step()
    return F.cross_entropy(second(TEST[0]), TEST[1], reduction="none").detach()


@pytest.fixture
def drawn(monkeypatch):
    """The batches of both stages that a call draws, each ``(runs, T, B)``."""
    kept, original = [], retraining._batches

    def recorded(*arguments):
        kept.append(original(*arguments))
        return kept[-1]

    monkeypatch.setattr(retraining, "_batches", recorded)
    return kept


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("batch", [2, 7, 512])
def test_the_protocol_is_a_plain_loop_of_adam_over_both_stages(drawn, matched, batch):
    protocol = retraining.Protocol(Adam(0.02, eps=1e-3), steps=(9, 9), batch=batch, matched=matched, seed=3)
    answer = retraining.by_protocol(protocol, *curvatures(), TARGET, CHOSEN)
    first, second = drawn
    assert first.shape == (1 + len(CHOSEN), 9, min(batch, M))
    assert second.shape == (1 + len(CHOSEN), 9, min(batch, N))
    assert bool((first == first[0]).all()) == bool((second == second[0]).all()) == matched
    control = plain_loop(protocol.rule, -1, first[0], second[0])
    losses = [plain_loop(protocol.rule, int(z), first[run], second[run]) for run, z in enumerate(CHOSEN, start=1)]
    # Nine steps with the same operations in another order.  (ε = 1e-8 would turn rounding into steps: at an optimum a
    # batch of all examples has gradients of 1e-14, and Adam takes the same step whatever their size.)
    assert_close(answer, (torch.stack(losses) - control).T, 1e-9)


def test_batches_hold_no_example_twice_and_depend_on_the_seed_alone(drawn):
    def draw(seed):
        protocol = retraining.Protocol(Adam(0.02), steps=(4, 4), batch=7, seed=seed)
        retraining.by_protocol(protocol, *curvatures(), TARGET, torch.tensor([0]))
        first, second = drawn[-2:]
        return torch.cat([first[0], second[0]])

    torch.manual_seed(1)
    one, state = draw(0), torch.get_rng_state()
    torch.manual_seed(2)
    again, other = draw(0), draw(1)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert all(len(batch.unique()) == 7 for batch in one)


def test_matched_batches_of_which_none_holds_the_example_leave_no_change(drawn):
    protocol = retraining.Protocol(Adam(0.02), steps=(2, 2), batch=3)
    answer = retraining.by_protocol(protocol, *curvatures(), TARGET, torch.arange(M))
    seen = torch.zeros(M, dtype=torch.bool)
    seen[drawn[0][0].flatten()] = True
    assert 0 < seen.sum() < M
    # The control is the same run in another place of the same vmap.
    assert answer[:, ~seen].abs().max() <= 1e-14
    assert answer[:, seen].abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------- refusals


def moved(curvature, by):
    return Curvature(curvature.objective, curvature.theta + by)


def test_a_stage_that_is_not_at_its_optimum_is_refused():
    first, second = curvatures()
    beside = torch.zeros(W + THETA, dtype=torch.float64)
    beside[W:] = 1e-4
    with pytest.raises(RuntimeError, match="of finetuning is above 1e-09: train to an optimum first"):
        fixed(first, moved(second, beside), TARGET, CHOSEN)
    with pytest.raises(RuntimeError, match="of finetuning is above 1e-09: train to an optimum first"):
        proximal(first, moved(proximal_problem(), 1e-4), TARGET, CHOSEN)
    beside = torch.zeros(W + U, dtype=torch.float64)
    beside[W:] = 1e-4
    elsewhere = moved(first, beside)
    for retrain in (
        lambda: fixed(elsewhere, second, TARGET, CHOSEN),
        lambda: proximal(elsewhere, proximal_problem(), TARGET, CHOSEN),
        lambda: retraining.joint(moved(joint_problem(), 1e-4), TARGET, CHOSEN),
        lambda: finetuned_by(short_run(), elsewhere, HEAD, TARGET, CHOSEN),
    ):
        with pytest.raises(RuntimeError, match="above 1e-09: train to an optimum first"):
            retrain()


def test_a_damped_curvature_of_either_stage_is_refused():
    first, second = curvatures()
    damped = Curvature(by_hand.G, pretrained(), 0.1), Curvature(by_hand.F, finetuned(), 0.2)
    near, joint = proximal_problem(), joint_problem()
    for damping, retrain in (
        (0.1, lambda: fixed(damped[0], second, TARGET, CHOSEN)),
        (0.2, lambda: fixed(first, damped[1], TARGET, CHOSEN)),
        (0.1, lambda: proximal(damped[0], near, TARGET, CHOSEN)),
        (0.3, lambda: proximal(first, Curvature(near.objective, near.theta, 0.3), TARGET, CHOSEN)),
        (0.3, lambda: retraining.joint(Curvature(joint.objective, joint.theta, 0.3), TARGET, CHOSEN)),
        (0.1, lambda: finetuned_by(short_run(), damped[0], HEAD, TARGET, CHOSEN)),
    ):
        with pytest.raises(ValueError, match=f"damping={damping}: give the undamped curvature"):
            retrain()


def test_stages_with_different_embeddings_are_refused():
    other = torch.cat([finetuned()[:W] + 1e-9, finetuned()[W:]])
    second = Curvature(by_hand.F, other)
    with pytest.raises(ValueError, match="the second stage does not have the embedding of the first"):
        fixed(curvatures()[0], second, TARGET, CHOSEN)
    with pytest.raises(ValueError, match="the embedding of the finetuned network is not the pretrained one"):
        retraining.by_protocol(retraining.Protocol(Adam()), curvatures()[0], second, TARGET, CHOSEN)
    near = Curvature(ProximalObjective(by_hand.F, other[:W], 0.5), proximal_problem().theta)
    with pytest.raises(ValueError, match="the second stage does not have the embedding of the first"):
        proximal(curvatures()[0], near, TARGET, CHOSEN)


@pytest.mark.parametrize("examples", [[M], [0, -1], []], ids=str)
def test_an_example_that_pretraining_does_not_have_is_refused(examples):
    examples, first = torch.tensor(examples, dtype=torch.long), curvatures()[0]
    for retrain in (
        lambda: fixed(*curvatures(), TARGET, examples),
        lambda: proximal(first, proximal_problem(), TARGET, examples),
        lambda: retraining.joint(joint_problem(), TARGET, examples),  # where finetuning's follow it
        lambda: finetuned_by(short_run(), first, HEAD, TARGET, examples),
        lambda: retraining.by_protocol(retraining.Protocol(Adam()), *curvatures(), TARGET, examples),
    ):
        with pytest.raises(ValueError, match=f"at least one index between 0 and {M - 1}"):
            retrain()


@pytest.mark.parametrize("examples", [torch.ones(M, dtype=torch.bool), torch.tensor([0.5, 3.0]), torch.tensor(3)])
def test_examples_that_are_no_vector_of_indices_are_refused(examples):
    """A mask would be read as the examples 0 and 1, and a fraction as none."""
    first = curvatures()[0]
    for retrain in (
        lambda: retraining.leave_out(first, examples),
        lambda: retraining.joint(joint_problem(), TARGET, examples),
        lambda: retraining.by_protocol(retraining.Protocol(Adam()), *curvatures(), TARGET, examples),
    ):
        with pytest.raises(ValueError, match=r"give a vector of indices, such as mask.nonzero\(\)"):
            retrain()


@pytest.mark.parametrize(("steps", "batch"), [((0, 5), 4), ((5, -1), 4), ((3, 3), 1), ((3, 3), 0)])
def test_a_protocol_without_steps_or_with_an_example_alone_in_its_batch_is_refused(steps, batch):
    with pytest.raises(ValueError, match="take at least one step, on two examples or more"):
        retraining.Protocol(Adam(), steps=steps, batch=batch)


def test_a_second_stage_at_a_saddle_is_refused():
    """At Θ = 0 the cross-entropy of as many examples of both classes is stationary, and not convex once Θ is small."""
    x, y = by_hand.FINETUNING
    balanced = torch.cat([(y == label).nonzero().flatten()[:6] for label in (0, 1)])
    finetuning = Objective(ExampleLosses(SECOND, x[balanced], y[balanced]))
    theta = torch.cat([pretrained()[:W], torch.zeros(THETA, dtype=torch.float64)])
    with pytest.raises(NegativeCurvatureError):
        fixed(curvatures()[0], Curvature(finetuning, theta), TARGET, CHOSEN)
