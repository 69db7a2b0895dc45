"""The studies of two stages: each stores what it says, computed again by another route."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.small_stages import SMALL_STAGES, small_stages

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.optimum import adam
from metasp_lite.calculus.solvers import Exact, GaussNewton
from metasp_lite.course.two_stages import SETUPS, Setup, TwoStages
from metasp_lite.stages import retraining
from metasp_lite.stages.fixed import fixed_embedding, pretraining_influence
from metasp_lite.stages.unrolled import Adam, unrolled_sensitivity
from metasp_lite.studies import multi_stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def trained_once():
    """A study and its test train the same first stage, to the last bit; ``tests/course`` holds what it comes to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TwoStages, "pretrained", cache(TwoStages.pretrained))
        yield


def test_the_ablations_spoil_what_they_say():
    """Each against Theorem 1 written out with dense inverses; two solves of condition 1e3 leave 1e-10."""
    problem, pretrained, finetuned = small_stages()
    scores = multi_stage.ablations(problem, pretrained, finetuned)
    w, theta = problem.embedding, finetuned.theta
    G, F = (torch.func.hessian(stage.objective)(stage.theta) for stage in (pretrained, finetuned))
    f, g = torch.func.jacfwd(problem.test)(theta), torch.func.jacfwd(problem.pretraining.losses)(pretrained.theta)

    def theorem(first, second, reaction=1.0):
        t = f[:, :w] - reaction * f[:, w:] @ torch.linalg.solve(second, F[w:, :w])
        return -torch.cat([t, t.new_zeros(len(t), len(G) - w)], dim=1) @ torch.linalg.solve(first, g.T)

    def eye(matrix, scale=1.0):
        return scale * torch.eye(len(matrix), dtype=matrix.dtype)

    head = F[w:, w:]
    expected = {
        "both Hessians": theorem(G, head),
        "damping 0.01 and 1e-08 (the paper's for MNIST)": theorem(G + eye(G, 1e-2), head + eye(head, 1e-8)),
        "damping 1e-08 and 1e-06 (the paper's for CIFAR)": theorem(G + eye(G, 1e-8), head + eye(head, 1e-6)),
        "identity matrices": theorem(eye(G), eye(head)),
        "without the Θ-term": theorem(G, head, reaction=0.0),
    }
    for name, score in expected.items():
        torch.testing.assert_close(scores.pop(name), score, rtol=0, atol=1e-9 * score.abs().max().item())
    (name,) = scores
    assert name == "Gauss–Newton matrices"  # test_solvers has the matrix
    assert torch.equal(scores[name], fixed_embedding(pretrained, finetuned, problem.test, GaussNewton()))


def test_an_unfinished_first_stage_is_damped_no_more_than_it_needs(monkeypatch):
    """Early in training G'' has negative eigenvalues; the score must still come out, with a damping that helps."""
    problem, tried = TwoStages(replace(SMALL_STAGES, l2=0.001)), []
    original = Curvature.__init__

    def spy(self, objective, theta, damping=0.0):
        if objective is problem.pretraining:
            tried.append(damping)
        original(self, objective, theta, damping)

    monkeypatch.setattr(Curvature, "__init__", spy)
    scores, damping = multi_stage.unfinished(problem, 20)
    assert scores.isfinite().all()
    refused, taken = tried[-2:]
    assert tried[:2] == [0.0, 1e-3]
    assert taken == damping
    there = Curvature(problem.pretraining, multi_stage.adam(problem.pretraining, problem.first_start, 20))
    assert refused < -there.smallest_eigenvalue < taken


def test_the_protocols_are_those_of_the_papers_experiments():
    mnist, own = multi_stage.protocols(SETUPS["mnist"]).values()
    assert (mnist.steps, mnist.batch, mnist.matched) == ((100, 100), 512, True)
    assert own == replace(mnist, matched=False)
    cifar = multi_stage.protocols(SETUPS["cifar10"])
    assert list(cifar) == [
        "100 steps of Adam on shared batches (the paper's for MNIST)",
        "6000 and 3000 steps of Adam on shared batches (the paper's for CIFAR)",
        "100 steps of Adam on own batches (the paper's for MNIST)",
    ]
    assert list(cifar.values()) == [mnist, replace(mnist, steps=(6000, 3000), batch=128), own]


EASY = replace(SMALL_STAGES, first=(0, 5), first_per_class=60, second_per_class=20, l2=0.06)


def test_the_study_of_leaving_out_stores_what_its_correlations_are_of(monkeypatch):
    """With fewer steps of each protocol, which the test before the last holds: what is stored is what they give."""
    short = {
        name: replace(protocol, steps=(10, 5)) for name, protocol in multi_stage.protocols(SETUPS["mnist"]).items()
    }
    monkeypatch.setattr(multi_stage, "protocols", lambda setup: short)
    monkeypatch.setitem(SETUPS, "fashion-mnist", EASY)
    monkeypatch.setattr(TwoStages, "left_out", lambda self: torch.arange(0, 60, 15))
    one = multi_stage.against_retraining("fashion-mnist")
    assert one["r"] > 0.8  # leaving out one of 120 is a large step: no more can be asked for
    assert one["r_tenth_of_weight"] > 0.999
    low, high = one["r_interval"]
    assert low < one["r"] < high
    for truth, by_score in one["r_by_truth"].items():
        for score, r in by_score.items():
            pair = (np.array(tables).ravel() for tables in (one["true"][truth], one["predicted"][score]))
            assert r == pytest.approx(scipy.stats.pearsonr(*pair).statistic, abs=1e-12)
    problem = TwoStages(EASY)
    pretrained = problem.pretrained()
    stages = pretrained, problem.finetuned(pretrained.theta), problem.test
    matched, own = (
        retraining.by_protocol(
            retraining.Protocol(Adam(), matched=same, steps=(10, 5)), *stages, torch.arange(0, 60, 15)
        )
        for same in (True, False)
    )
    assert one["true"]["100 steps of Adam on shared batches (the paper's for MNIST)"] == matched.tolist()
    assert one["true"]["100 steps of Adam on own batches (the paper's for MNIST)"] == own.tolist()
    exact = fixed_embedding(*stages, Exact())[:, 0:60:15] / -120
    assert one["predicted"]["both Hessians"] == exact.tolist()
    cost = one["cost"]
    share = cost["seconds_of_scoring"] / cost["seconds_of_solves"] * 1000 / 120
    assert cost["share_per_thousand"] == pytest.approx(share, rel=0.1)  # seconds are stored to four places


def test_the_study_of_tasks_scores_the_same_task_and_an_unrelated_one(monkeypatch):
    monkeypatch.setitem(SETUPS, "fashion-mnist", EASY)
    monkeypatch.setitem(multi_stage.TASKS, "fashion-mnist", multi_stage.Tasks((0, 5), (7, 8)))
    rows = multi_stage.tasks("fashion-mnist", seeds=[1], per_class=40)["rows"]
    setups = [Setup(**row["setup"]) for row in rows]
    assert [(row["task"], setup.second) for row, setup in zip(rows, setups, strict=True)] == [
        ("same", (0, 5)), ("unrelated", (7, 8))
    ]  # fmt: skip
    assert {(s.first, s.skip, s.seed) for s in setups} == {((0, 5), 40, 1)}
    assert {(s.first_per_class, s.second_per_class) for s in setups} == {(40, 40)}
    pretrained = TwoStages(setups[0]).pretrained()  # of both, as has just been seen
    for row, setup in zip(rows, setups, strict=True):
        problem = TwoStages(setup)
        scores = fixed_embedding(pretrained, problem.finetuned(pretrained.theta), problem.test, Exact())
        assert row["score"] == float(scores.abs().mean())
        share = [float((scores <= value).double().mean()) for value in row["percentiles"]]
        np.testing.assert_allclose(share, np.linspace(0, 1, 101), atol=0.02)  # stored to five digits


def test_the_distributions_are_those_of_the_papers_four_models(monkeypatch):
    """A and B differ in the task, C and D in examples and steps at once; one network."""
    asked = []
    for study in ("tasks", "amounts"):
        monkeypatch.setattr(
            multi_stage, study, lambda *given, study=study: {"rows": asked.append((study, *given)) or [study]}
        )
    found = multi_stage.models_a_to_d("mnist")
    assert asked == [("tasks", "mnist", [0]), ("amounts", "mnist", [0], [(1, 1), (3, 3)])]
    assert found == {"tasks": ["tasks"], "amounts": ["amounts"]}


def test_the_stored_first_optimum_is_one(monkeypatch):
    monkeypatch.setitem(SETUPS, "fashion-mnist", SMALL_STAGES)
    found = multi_stage.first_optimum("fashion-mnist")
    assert Setup(**found["setup"]) == SMALL_STAGES
    there = Curvature(TwoStages(SMALL_STAGES).pretraining, torch.tensor(found["theta"], dtype=torch.float64))
    assert there.gradient.norm() < 1e-9
    assert there.smallest_eigenvalue > 0


def test_the_study_of_amounts_scores_runs_of_the_examples_and_steps_it_says(monkeypatch):
    monkeypatch.setitem(SETUPS, "fashion-mnist", SMALL_STAGES)
    settings = {"seeds": [1], "cases": [(1, 1), (2, 2)], "per_class": 5, "least_steps": 20}
    rows = multi_stage.amounts("fashion-mnist", **settings)["rows"]
    pretrained = TwoStages(replace(SMALL_STAGES, seed=1)).pretrained()  # of both, as is seen below
    for row, (examples, steps) in zip(rows, [(5, 20), (10, 40)], strict=True):
        setup = Setup(**row["setup"])
        assert (setup.second_per_class, setup.seed, row["seed"]) == (examples, 1, 1)
        assert setup == replace(SMALL_STAGES, seed=1, second_per_class=examples)
        problem = TwoStages(setup)
        run = problem.short_run(steps)
        t = unrolled_sensitivity(run, pretrained.theta[: problem.embedding], problem.head_start, problem.test)
        assert row["score"] == float(pretraining_influence(pretrained, t, Exact()).abs().mean())


def test_the_study_of_updated_embeddings_predicts_each_scores_own_truth(monkeypatch):
    monkeypatch.setitem(SETUPS, "fashion-mnist", EASY)
    monkeypatch.setattr(TwoStages, "left_out", lambda self: torch.arange(0, 60, 15))
    found = multi_stage.updated("fashion-mnist", alpha=0.3, steps=5, alphas=(0.3, 30.0))
    assert min(found["r_own"].values()) > 0.8  # as above
    assert found["r_real"]["unrolled"] == found["r_own"]["unrolled"]
    near, stiff = found["by_alpha"]
    assert near["r_real"] == pytest.approx(found["r_real"]["eq. 15, proximal"], abs=1e-9)
    assert stiff["difference_from_theorem_1"] < near["difference_from_theorem_1"] / 5  # as 1/α in the limit


def test_the_study_of_optima_tells_a_minimum_from_what_is_none(monkeypatch):
    monkeypatch.setitem(SETUPS, "fashion-mnist", replace(SMALL_STAGES, first=(0, 5), first_per_class=20, l2=0.06))
    monkeypatch.setattr(multi_stage, "adam", lambda objective, theta, steps: adam(objective, theta, steps // 4))
    rows = {row["variant"]: row for row in multi_stage.optima("fashion-mnist")["rows"]}
    here = rows["as in the notebook"]
    assert here["gradient_norm"] < 1e-5  # L-BFGS stops at 1e-7 of each of a few hundred entries
    assert here["not_positive"] == 0
    problem = TwoStages(Setup(**here["setup"]))
    theta = multi_stage.minimise(problem.pretraining, problem.first_start, adam_steps=100)
    spectrum = torch.linalg.eigvalsh(torch.func.hessian(problem.pretraining)(theta))
    assert here["eigenvalues"] == pytest.approx([float(spectrum[0]), float(spectrum[-1])], rel=1e-3)  # at 1e-5 from θ̂
    assert rows["maxima"]["setup"]["pooling"] == "maxima"
    assert rows["maxima"]["loss"] != here["loss"]
    assert rows["a tenth of the penalty"]["loss"] < here["loss"]
    for row in rows.values():
        assert (row["not_positive"] > 0) == (row["eigenvalues"][0] <= 0), row["variant"]
