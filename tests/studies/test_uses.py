"""The studies of what scores are good for: each stored number is found again by another route, on smaller problems."""

import pytest
import torch

from metasp_lite import results
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import Objective, SingleLoss, gradient
from metasp_lite.calculus.optimum import lbfgs, minimise
from metasp_lite.course import problems
from metasp_lite.studies import uses

HEAVY = 0.1  # a penalty that leaves a small network one optimum near the start's


@pytest.fixture(autouse=True)
def small(monkeypatch):
    def toy(seed=1, l2=HEAVY):
        return problems.toy(train_per_class=6, test_per_class=6, hidden=3, pooling=4, l2=l2, seed=seed)

    monkeypatch.setattr(uses, "small_toy", toy)
    monkeypatch.setattr(uses, "L2", HEAVY)
    return toy


def weighted_optimum(problem, theta, weights):
    """Where L-BFGS leads on Σ w_i ℓ_i / Σ w_i and the penalty, without cutting anything."""
    losses = problem.objective.losses

    def objective(at):
        return (weights * losses(at)).sum() / weights.sum() + 0.5 * HEAVY * at @ at

    return lbfgs(Objective(SingleLoss(objective)), theta, 600)


def test_the_halves_are_halves_and_no_two_are_the_same():
    halves = uses.random_halves(20, 60)
    assert (halves.sum(dim=1) == 30).all()
    assert len({tuple(row.tolist()) for row in halves}) == 20


def test_the_banks_hold_the_queries_losses_of_networks_trained_on_the_halves(small):
    found, problem = uses.halves(3, 2, 2), small()
    theta = minimise(problem.objective, problem.start)
    assert found["objective"] == pytest.approx(float(problem.objective(theta)), abs=1e-6)
    assert [len(bank) for bank in found["losses"].values()] == [3, 2, 2]
    queries = torch.tensor(found["queries"])
    assert problem.validation.losses.labels[queries].bincount().tolist() == [5] * 10
    for row, stored in zip(found["halves"], found["losses"]["continued"], strict=True):
        weights = torch.tensor([float(each) for each in row], dtype=torch.float64)
        true = problem.validation.losses(weighted_optimum(problem, theta, weights), queries)
        # the study takes fewer steps, and the penalty alone has a curvature of 0.1: a loss is known to about 1e-3
        torch.testing.assert_close(torch.tensor(stored, dtype=torch.float64), true, rtol=0, atol=1e-3)
    a, b = (found["losses"][f"new weights, bank {name}"] for name in "AB")
    assert a != b
    assert len(found["whole_set_losses"]) == len(found["whole_set_validation"]) == 2


def test_what_is_removed_is_what_the_ranking_has_first(small):
    found, problem = uses.removal((5,), 1), small()
    theta = minimise(problem.objective, problem.start)
    losses = problem.objective.losses
    queries = uses.cut(problem.validation.losses, torch.tensor(found["queries"]))
    torch.testing.assert_close(torch.tensor(found["before"]).double(), queries(theta), rtol=0, atol=1e-4)
    ranks = uses.rankings(losses, queries, Curvature(problem.objective, theta))
    for name in ("exact", "random"):
        weights = torch.ones(len(losses), dtype=torch.float64)
        weights[ranks[name][:5, 0]] = 0
        true = queries(weighted_optimum(problem, theta, weights))[0]
        assert found["losses"][name][0][0] == pytest.approx(float(true), abs=1e-3)  # as above


def test_rankings_by_class_have_its_examples_first_and_by_distance(small):
    problem = small()
    losses, queries = problem.objective.losses, uses.cut(problem.validation.losses, torch.arange(0, 60, 7))
    theta = minimise(problem.objective, problem.start)
    ranks = uses.rankings(losses, queries, Curvature(problem.objective, theta))
    for q, label in enumerate(queries.labels):
        for name in ("nearest of its class", "random of its class"):
            assert (losses.labels[ranks[name][:6, q]] == label).all()
        own = ranks["nearest of its class"][:6, q]
        distances = (losses.inputs[own] - queries.inputs[q]).norm(dim=1)
        assert (distances.diff() >= 0).all()
    assert all(torch.equal(order.sort(dim=0).values[:, 0], torch.arange(60)) for order in ranks.values())


def test_as_many_labels_are_wrong_as_asked_for_and_all_of_those():
    right = torch.arange(10).repeat(10)
    labels, wrong = uses.spoil(right, 0.3, torch.Generator().manual_seed(0))
    assert wrong.sum() == 30
    assert torch.equal(labels != right, wrong)
    assert labels.min() >= 0
    assert labels.max() <= 9


def test_suspicions_are_counted_against_the_labels_that_are_wrong(small):
    spoiled = uses.Mislabelled.of(small(), 0.1, seed=0)
    scores = spoiled.suspicions()
    for score in scores.values():
        pairs = score[spoiled.wrong][:, None] - score[~spoiled.wrong]
        by_hand = ((pairs > 0).double() + 0.5 * (pairs == 0)).mean()
        assert spoiled.auc(score) == pytest.approx(float(by_hand), abs=1e-12)
        curve = spoiled.curve(score)
        assert (curve[0], curve[-1], len(curve)) == (0, 1, 21)
        assert curve == sorted(curve)
    # an example's influence on itself, by a product with the Hessian instead of its factor
    curvature, index = Curvature(spoiled.objective, spoiled.theta), torch.tensor([4])
    g = gradient(lambda theta: spoiled.losses(theta, index).sum(), spoiled.theta)
    step = curvature.solve(g)
    torch.testing.assert_close(curvature @ step, g, rtol=0, atol=1e-9)
    assert float(g @ step) == pytest.approx(float(scores["self-influence"][4]), rel=1e-8)


def test_the_study_of_labels_has_a_row_a_network():
    rows = uses.labels(2, (0.1,), (HEAVY,))["rows"]
    assert [(row["l2"], row["rate"], row["seed"]) for row in rows] == [(HEAVY, 0.1, 0), (HEAVY, 0.1, 1)]
    assert rows[0]["auc"].keys() == rows[0]["found"].keys()
    assert rows[0]["auc"] != rows[1]["auc"]


@pytest.mark.parametrize("name", ["halves", "removal", "labels"])
def test_the_stored_studies_are_of_these_settings(name):
    stored = results.read(results.RESULTS_DIR / "uses" / f"{name}.json")
    assert stored["settings"]["threads"] == 1
    assert stored["obtained_with"]["uncommitted_changes"] is False
