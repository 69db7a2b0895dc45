"""Accuracy matrices: the five numbers are the formulas', and the paper's own tables obey them."""

import itertools

import numpy as np
import pytest

from metasp_lite.continual.accuracy import Summary, summarise


def test_three_tasks_by_hand():
    summary = summarise([[0.9, None, None], [0.5, 0.8, None], [0.3, 0.4, 0.7]])
    assert summary.a1 == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert summary.a_inf == pytest.approx((0.3 + 0.4 + 0.7) / 3)
    assert summary.a_m == pytest.approx((0.9 + 0.65 + 1.4 / 3) / 3)
    assert summary.bwt == pytest.approx(((0.3 - 0.9) + (0.4 - 0.8)) / 2)
    assert summary.forgetting == pytest.approx(-summary.bwt)  # nothing rose in between


def test_forgetting_counts_from_the_best_there_ever_was_before_the_end():
    rows = [[0.5, None, None], [0.9, 0.8, None], [0.6, 0.85, 0.7]]
    assert summarise(rows).forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.85)) / 2)
    assert summarise(rows).bwt == pytest.approx(((0.6 - 0.5) + (0.85 - 0.8)) / 2)


@pytest.mark.parametrize("size", [2, 3, 5, 10])
def test_a_random_matrix_by_numpy(size):
    a = np.random.default_rng(size).random((size, size))
    lower = np.tril(np.ones((size, size)))
    expected = (
        np.trace(a) / size,
        a[-1].mean(),
        ((a * lower).sum(axis=1) / lower.sum(axis=1)).mean(),
        (a[-1] - a.diagonal())[:-1].mean(),
        ((a * lower)[:-1, :-1].max(axis=0) - a[-1, :-1]).mean(),
    )
    summary = summarise(a.tolist())
    # Sums of at most ten numbers below 1.
    found = [summary.a1, summary.a_inf, summary.a_m, summary.bwt, summary.forgetting]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15 * 10)


def test_what_lies_above_the_diagonal_says_nothing():
    rows = [[0.9, None, None], [0.5, 0.8, None], [0.3, 0.4, 0.7]]
    assert summarise(rows) == summarise([[0.9, 0.1, 0.2], [0.5, 0.8, 0.3], [0.3, 0.4, 0.7]])


def test_one_task_has_no_backward_transfer():
    assert summarise([[0.25]]) == Summary(0.25, 0.25, 0.25, None, None)


def test_nothing_forgotten_and_all_forgotten():
    assert summarise([[1.0, None], [1.0, 1.0]]) == Summary(1.0, 1.0, 1.0, 0.0, 0.0)
    assert summarise([[1.0, None], [0.0, 1.0]]) == Summary(1.0, 0.5, 0.75, -1.0, 1.0)


# which numbers need which entry (row, column) of a matrix of three tasks
NEEDS = {
    "a1": {(0, 0), (1, 1), (2, 2)},
    "a_inf": {(2, 0), (2, 1), (2, 2)},
    "a_m": {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)},
    "bwt": {(0, 0), (1, 1), (2, 0), (2, 1)},
    "forgetting": {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)},
}


@pytest.mark.parametrize("missing", list(itertools.product(range(3), range(3))), ids=str)
def test_a_number_is_none_where_an_entry_that_it_needs_is(missing):
    rows = np.random.default_rng(0).random((3, 3)).tolist()
    full = summarise(rows)
    rows[missing[0]][missing[1]] = None
    summary = summarise(rows)
    for name, needed in NEEDS.items():
        assert getattr(summary, name) == (None if missing in needed else getattr(full, name))


def test_joint_training_has_its_end_alone():
    assert summarise([[None, None], [0.5, 0.75]]) == Summary(None, 0.625, None, None, None)


@pytest.mark.parametrize(
    "matrix", [[], [[0.5, 0.5]], [[0.5], [0.5]], [[0.5, None], [0.5]], [[0.5, 0.5], [0.5, 0.5, 0.5]]]
)
def test_what_is_not_square_is_refused(matrix):
    with pytest.raises(ValueError, match="is square, not rows of"):
        summarise(matrix)


@pytest.mark.parametrize("value", [-0.01, 1.01, 93.0, float("nan"), float("inf")])
def test_what_is_no_accuracy_is_refused(value):
    with pytest.raises(ValueError, match="outside 0 to 1"):
        summarise([[0.5, None], [value, 0.5]])


# Appendix C of the paper, per cent: tasks, A_1, A_∞, BWT of rows of tables 2 (5 tasks) and 3 (10 tasks).
PRINTED = {
    "class-incremental CIFAR-10, ER": (5, 96.73, 34.19, -78.18),
    "class-incremental CIFAR-10, GMED": (5, 96.65, 38.12, -73.17),
    "class-incremental CIFAR-10, Ours": (5, 96.87, 42.42, -68.07),
    "class-incremental CIFAR-10, Ours+RehSel": (5, 96.85, 43.76, -66.37),
    "task-incremental CIFAR-10, HAL": (5, 91.41, 79.90, -14.39),
    "class-incremental CIFAR-100, GEM": (10, 85.28, 15.91, -77.07),
    "class-incremental CIFAR-100, MIR": (10, 87.38, 13.49, -82.10),
    "class-incremental CIFAR-100, Ours": (10, 88.13, 18.96, -76.85),
    "class-incremental CIFAR-100, Ours+RehSel": (10, 87.81, 19.28, -76.14),
    "task-incremental CIFAR-100, ER": (10, 87.29, 66.82, -22.74),
    "task-incremental CIFAR-100, Ours": (10, 88.94, 70.03, -21.01),
}


@pytest.mark.parametrize("row", PRINTED)
def test_the_papers_rows_obey_the_formulas(row):
    """Whatever the matrix, A_∞ − A_1 = BWT (T−1)/T: the last task's entry is in both means."""
    tasks, a1, a_inf, bwt = PRINTED[row]
    draw = np.random.default_rng(0).uniform(-0.005, 0.005, (2, tasks))
    last, diagonal = draw - draw.mean(axis=1, keepdims=True)
    diagonal += a1 / 100
    last[-1] = diagonal[-1]
    last[:-1] += (tasks * a_inf / 100 - last.sum()) / (tasks - 1)  # so that its mean is the one printed
    matrix = [[None] * tasks for _ in range(tasks)]
    for k in range(tasks):
        matrix[k][k], matrix[-1][k] = diagonal[k], abs(last[k])
    summary = summarise(matrix)
    assert 100 * summary.a1 == pytest.approx(a1, abs=1e-9)
    assert 100 * summary.a_inf == pytest.approx(a_inf, abs=1e-9)
    # Three printed numbers, each rounded by up to 0.005, two of them times T/(T−1) ≤ 1.25: 0.0175 together.
    assert 100 * summary.bwt == pytest.approx(bwt, abs=0.0175)
