"""GEM and A-GEM: the projections against other solvers, and runs that remember."""

import numpy as np
import pytest
import torch
from helpers.analytic import randn
from helpers.small_fashion import assert_learns, learner_in_second_task, small_run, small_stream
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, minimize

from metasp_lite.continual import methods
from metasp_lite.continual.learner import Learner, Recipe
from metasp_lite.continual.methods import gem
from metasp_lite.continual.methods.gem import AGEM, GEM, GEMSettings, project_a_gem, project_gem, triangle

ROUNDING = 1e-10  # of float64 sums of at most ten numbers near 1, through a T×T problem that may square its condition


def vector(*entries):
    return torch.tensor(entries, dtype=torch.float64)


# GEM's projection


def conflict(seed, tasks=3, size=6):
    """A gradient and references of which at least one opposes it."""
    references = randn(tasks, size, seed=seed)
    return -references[0] + 0.7 * randn(size, seed=100 + seed), references


@pytest.mark.parametrize("margin", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(6))
def test_gem_solves_the_papers_dual_problem(seed, margin):
    """min ½‖Gᵀv + g‖² over v ≥ γ, by a solver of least squares with bounds on all P equations."""
    g, references = conflict(seed)
    dual = lsq_linear(references.numpy().T, -g.numpy(), bounds=(margin, np.inf), method="bvls", tol=1e-14)
    expected = g + references.T @ torch.as_tensor(dual.x)
    torch.testing.assert_close(project_gem(g, references, margin), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_gem_gives_the_nearest_direction_that_harms_no_task(seed, margin):
    """The primal problem, by sequential quadratic programming: its ftol of 1e-12 leaves ‖x − x*‖ near 1e-6."""
    g, references = conflict(seed)
    start, rows = (g + margin * references.sum(dim=0)).numpy(), references.numpy()
    nearest = minimize(
        lambda x: 0.5 * ((x - start) ** 2).sum(),
        np.zeros(len(start)),
        jac=lambda x: x - start,
        constraints={"type": "ineq", "fun": lambda x: rows @ x, "jac": lambda x: rows},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert nearest.success
    torch.testing.assert_close(project_gem(g, references, margin), torch.as_tensor(nearest.x), rtol=0, atol=1e-5)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([0.0, 0.5]), st.integers(-12, 12))
@settings(deadline=None, derandomize=True, max_examples=150)
def test_gem_meets_every_constraint_even_of_dependent_references(tasks, size, seed, margin, power):
    """Whole numbers −1, 0, 1: with up to six in a few dimensions most are equal, opposite or 0, or depend on others."""
    draw = torch.Generator().manual_seed(seed)
    references = torch.randint(-1, 2, (tasks, size), generator=draw).double()
    references *= 10.0 ** torch.randint(-abs(power), abs(power) + 1, (tasks, 1), generator=draw)
    g = torch.randint(-2, 3, (size,), generator=draw).double()
    projected = project_gem(g, references, margin)
    start = g + margin * references.sum(dim=0)
    slack = projected @ references.T
    tolerance = 1e-9 * (1 + start.norm()) * references.norm(dim=1)
    if (references @ g >= 0).all():
        assert torch.equal(projected, g)
        return
    assert (slack >= -tolerance).all()
    # The projection on a cone is where the remainder is at a right angle: (start − g̃)·g̃ = 0, and start − g̃ is −Gᵀu.
    assert abs(float((start - projected) @ projected)) <= 1e-9 * (1 + start.norm() ** 2)


def test_gem_leaves_a_gradient_without_conflict_as_it_is():
    g = vector(1.0, 2.0)
    assert project_gem(g, torch.stack([vector(1.0, 0.0), vector(-2.0, 1.0)])) is g


def test_gem_by_hand():
    """g = (−1, 1) against (2, 0): the conflict is removed; γ = ½ adds half of (2, 0), and g = (0, 1) is free of it."""
    g, references = vector(-1.0, 1.0), vector(2.0, 0.0)[None]
    torch.testing.assert_close(project_gem(g, references, 0.0), vector(0.0, 1.0), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(project_gem(g, references, 0.5), vector(0.0, 1.0), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(project_gem(g, references, 2.0), vector(3.0, 1.0), rtol=0, atol=ROUNDING)


def test_gem_is_not_changed_by_references_that_say_nothing_new():
    g, references = conflict(0)
    expected = project_gem(g, references, 0.0)
    more = torch.cat([references, references[:1], 5 * references[1:2], torch.zeros(1, 6).double(), references[:2]])
    torch.testing.assert_close(project_gem(g, more, 0.0), expected, rtol=0, atol=ROUNDING)
    assert project_gem(g, torch.zeros(2, 6).double()) is g


def test_gem_between_opposite_references_keeps_what_is_at_a_right_angle_to_both():
    g, a = randn(6, seed=1), randn(6, seed=2)
    expected = g - (g @ a) / (a @ a) * a
    torch.testing.assert_close(project_gem(g, torch.stack([a, -a])), expected, rtol=0, atol=ROUNDING)


def test_gem_with_one_reference_and_no_margin_is_a_gem():
    g, references = conflict(4, tasks=1)
    expected = project_a_gem(g, references[0])
    torch.testing.assert_close(project_gem(g, references, 0.0), expected, rtol=0, atol=ROUNDING)


def test_projections_of_single_precision_use_double_inside():
    """10⁵ float32 entries: the constraints hold up to the rounding of the result, 6e-8 of each entry."""
    g, references = (x.float() for x in conflict(5, tasks=4, size=100_000))
    projected = project_gem(g, references, 0.0)
    assert projected.dtype == torch.float32
    cosines = (references.double() @ projected.double()) / references.double().norm(dim=1) / projected.double().norm()
    assert (cosines > -1e-7).all()


def test_triangle_keeps_lengths_and_angles_in_pieces(monkeypatch):
    monkeypatch.setattr(gem, "_CHUNK", 7)
    rows = randn(3, 50, seed=0)
    found = triangle(rows)
    torch.testing.assert_close(found.T @ found, rows @ rows.T, rtol=0, atol=1e-13)
    assert triangle(rows.float()).dtype == torch.float64


def test_projections_are_the_same_in_pieces(monkeypatch):
    g, references = randn(50, seed=1), randn(4, 50, seed=2)
    whole = project_gem(g, references), project_a_gem(g, -g + references[0])
    assert not any(torch.equal(each, g) for each in whole)
    monkeypatch.setattr(gem, "_CHUNK", 7)
    for each, again in zip(whole, (project_gem(g, references), project_a_gem(g, -g + references[0])), strict=True):
        torch.testing.assert_close(again, each, rtol=0, atol=ROUNDING)


def test_gem_by_hand_with_a_reference_that_is_zero():
    """(−2, 0) pushed by half the sum of the rows is (−42, 55); (0, 10), (10, 10) and (10, −10) leave the ray of
    (1, 1), on which (6.5, 6.5) is nearest."""
    references = torch.stack(
        [vector(0.0, 10.0), vector(-100.0, 100.0), vector(0.0, 0.0), vector(10.0, 10.0), vector(10.0, -10.0)]
    )
    projected = project_gem(vector(-2.0, 0.0), references, 0.5)
    torch.testing.assert_close(projected, vector(6.5, 6.5), rtol=0, atol=ROUNDING)


def unit(rows):
    """Rows of length 1, whatever their scale; rows of zeros stay."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    return torch.nn.functional.normalize(rows, dim=1)


@given(
    st.integers(2, 6),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from(["zero", "tiny", "far apart", "nearly equal", "nearly opposite"]),
    st.integers(3, 17),
)
@settings(deadline=None, derandomize=True, max_examples=400)
def test_gem_meets_every_constraint_of_degenerate_references(tasks, size, seed, kind, power):
    """The first row is 0, tiny, or as good as a multiple of the second; or all lengths are very different.

    A constraint may be broken by δ‖start‖ = 6e-8 ‖start‖ where rows are nearly opposite; g̃ is never the longer.
    """
    draw = torch.Generator().manual_seed(seed)
    references = torch.randint(-1, 2, (tasks, size), generator=draw).double()
    small = 10.0**-power
    if kind == "far apart":
        references *= 10.0 ** torch.randint(-140, 5, (tasks, 1), generator=draw).double()
    elif kind in ("nearly equal", "nearly opposite"):
        sign = 1 if kind == "nearly equal" else -1
        references[0] = sign * references[1] + small * torch.randint(-2, 3, (size,), generator=draw)
    else:
        references[0] *= 0 if kind == "zero" else small**9
    g = torch.randint(-2, 3, (size,), generator=draw).double()
    projected, start = project_gem(g, references, 0.5), g + 0.5 * references.sum(dim=0)
    if (unit(references) @ g >= 0).all():
        assert torch.equal(projected, g)
        return
    bound = 6e-8 if "opposite" in kind else 1e-9
    assert (unit(references) @ projected >= -bound * (1 + start.norm())).all()
    assert projected.norm() <= (1 + 1e-9) * start.norm() + 1e-12


def test_a_gem_of_a_reference_whose_square_vanishes():
    tiny = project_a_gem(vector(-1.0, 2.0), vector(1e-200, 0.0))
    torch.testing.assert_close(tiny, vector(0.0, 2.0), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_projections_refuse_what_is_not_finite(bad):
    fine, wrong = vector(1.0, 2.0), vector(1.0, bad)
    for g, reference, name in ((fine, wrong, "memory"), (wrong, fine, "new examples")):
        with pytest.raises(FloatingPointError, match=name):
            project_gem(g, reference[None])
        with pytest.raises(FloatingPointError, match=name):
            project_a_gem(g, reference)


# A-GEM's projection


def test_a_gem_by_hand():
    g = vector(-3.0, 1.0)
    torch.testing.assert_close(
        project_a_gem(g, vector(2.0, 2.0)), vector(-2.0, 2.0), rtol=0, atol=1e-15
    )  # g·r = −4, r·r = 8
    assert project_a_gem(g, vector(1.0, 3.0)) is g  # a right angle
    assert project_a_gem(g, vector(-1.0, 0.0)) is g  # agreement
    assert project_a_gem(g, vector(0.0, 0.0)) is g


def test_a_gem_removes_a_tiny_reference_as_well():
    """In single precision 1e-30² is 0; the inner products are not taken there."""
    g = torch.tensor([-3.0, 1.0])
    torch.testing.assert_close(project_a_gem(g, torch.tensor([1e-30, 0.0])), torch.tensor([0.0, 1.0]), rtol=0, atol=0)


# The methods


def memory_loss(learner, method, task=None):
    slots = method.buffer.filled if task is None else (method.buffer.tasks == task).nonzero()[:, 0]
    kept = method.buffer.read(slots)
    with torch.no_grad():
        return float(learner.loss(learner.replayed(kept.images), kept.labels))


@pytest.mark.parametrize(
    ("method_type", "chosen"), [(GEM, GEMSettings(margin=0.0)), (AGEM, AGEM.Settings(memory_batch=200))]
)
def test_a_step_in_conflict_does_not_raise_the_memorys_loss(method_type, chosen):
    """To first order: so a step of 0.001 changes it by far less than the plain step, which raises it."""
    learner, method, batch = learner_in_second_task(method_type, chosen)
    learner.optimizer.param_groups[0]["lr"] = 0.001
    before, start = memory_loss(learner, method), learner.state_dict()
    start = {name: value.clone() for name, value in start["model"].items()}
    learner.descend(learner.loss(batch.inputs, batch.labels))
    harm = memory_loss(learner, method) - before
    assert harm > 0.001
    learner.model.load_state_dict(start)
    with torch.no_grad():
        expected = learner.loss(batch.inputs, batch.labels)
    shown = method.step(learner, batch)
    assert memory_loss(learner, method) - before < 0.02 * harm
    with torch.no_grad():
        assert learner.loss(batch.inputs, batch.labels) < expected - 0.001  # and yet the new examples are learnt
    torch.testing.assert_close(shown, expected)


def test_gem_with_a_margin_lowers_the_memorys_loss():
    """A margin well above the v that merely removes the conflict, which is between 2 and 3 here."""
    learner, method, batch = learner_in_second_task(GEM, GEMSettings(margin=8.0))
    learner.optimizer.param_groups[0]["lr"] = 0.003
    before = memory_loss(learner, method)
    method.step(learner, batch)
    assert memory_loss(learner, method) < before - 0.001


@pytest.mark.parametrize("memory_batch", [1000, 5])
def test_gem_has_one_constraint_for_each_past_task(memory_batch, monkeypatch):
    """Each row is the gradient of one task's memory, or of a few examples of it."""
    learner, method, _ = learner_in_second_task(GEM, GEMSettings(memory=50, memory_batch=memory_batch))
    method.end_task(learner)
    learner.task_number = 2
    batch = learner.batch(learner.task.train[:8])
    expected, seen, sizes = [], [], []
    for task in (0, 1):
        kept = method.buffer.read((method.buffer.tasks == task).nonzero()[:, 0])
        assert set(kept.labels.tolist()) == set(learner.stream.tasks[task].classes)
        expected.append(learner.gradient(learner.loss(learner.replayed(kept.images), kept.labels)))
    loss = learner.loss

    def counted(inputs, labels):
        sizes.append(len(labels))
        return loss(inputs, labels)

    def remembered(gradient, references, margin):
        seen.append(references)
        return project_gem(gradient, references, margin)

    monkeypatch.setattr(learner, "loss", counted)
    monkeypatch.setattr("metasp_lite.continual.methods.gem.project_gem", remembered)
    method.step(learner, batch)
    assert sizes == [min(10, memory_batch)] * 2 + [8]
    assert seen[0].shape == (2, sum(p.numel() for p in learner.model.parameters()))
    assert (memory_batch == 1000) == torch.allclose(seen[0], torch.stack(expected), rtol=0, atol=1e-6)


def test_which_examples_stand_for_a_task_is_drawn_from_the_learners_generator():
    learner, method, _ = learner_in_second_task(GEM, GEMSettings(memory=50, memory_batch=5))
    found = []
    for seed in (0, 0, 1):
        learner.draws.memory.manual_seed(seed)
        found.append(method.reference(learner, 0))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_task_with_as_many_examples_as_may_stand_for_it_is_taken_whole():
    """Nothing is drawn then: what a draw more or less would do to all later ones."""
    learner, method, _ = learner_in_second_task(GEM, GEMSettings(memory=50, memory_batch=10))
    assert (method.buffer.tasks == 0).sum() == 10
    taken, learner.loss = [], lambda inputs, labels, loss=learner.loss: taken.append(labels) or loss(inputs, labels)
    method.reference(learner, 0)
    assert torch.equal(taken[0], method.buffer.labels[method.buffer.tasks == 0])


@pytest.mark.parametrize("name", ["gem", "a-gem"])
def test_each_past_task_has_an_equal_share_of_the_memory(name, tmp_path):
    seen = []

    def watch(learner, method):
        seen.append(method.buffer.tasks[method.buffer.filled].bincount(minlength=5).tolist())
        labels = method.buffer.labels[method.buffer.filled]
        assert torch.equal(labels // 2, method.buffer.tasks[method.buffer.filled])
        assert set(labels.bincount().tolist()) <= {4}  # 8 places a task, even over its two classes

    small_run(name, tmp_path, epochs=1, watch=watch, memory=43)
    assert seen == [[8] * t + [0] * (5 - t) for t in range(5)]


@pytest.mark.parametrize("method_type", [GEM, AGEM])
def test_a_memory_smaller_than_the_number_of_tasks_is_refused(method_type):
    learner = Learner(small_stream(), Recipe("mlp", 1), seed=0)
    with pytest.raises(ValueError, match="at least 5"):
        method_type(learner, method_type.Settings(memory=4))


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")])
def test_margins_that_mean_nothing_are_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        GEMSettings(margin=margin)


@pytest.mark.parametrize(("name", "margin"), [("gem", 0.2), ("a-gem", 0.05)])
def test_runs_remember(name, margin, tmp_path):
    assert_learns(name, margin, tmp_path)


@pytest.mark.parametrize("name", ["gem", "a-gem"])
def test_batch_norms_running_averages_move_with_new_and_remembered_examples(name):
    """Two batches a step, the memory's and the new one's, so batch-norm counts two."""
    chosen = methods.METHODS[name].Settings(memory=50)
    learner, method, batch = learner_in_second_task(methods.METHODS[name], chosen, network="lite-cnn")
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    assert torch.isfinite(method.step(learner, batch))
    after = learner.model.state_dict()
    counts = [int(after[n] - before[n]) for n in after if n.endswith("num_batches_tracked")]
    assert counts == [2, 2, 2]
    assert all(torch.isfinite(value).all() for value in after.values())
