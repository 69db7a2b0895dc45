"""Metrics: counted by hand, compared with other libraries, and refused where they do not exist."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from helpers.analytic import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from metasp_lite.influence.agreement import (
    SignConfusion,
    bootstrap_pearson,
    linear_datamodelling_score,
    pearson,
    sign_confusion,
    spearman,
)

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False) | st.sampled_from([0.0, -0.0, 5e-324])
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40).map(
    lambda pairs: tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
)
CORRELATIONS = pytest.mark.parametrize("correlation", [pearson, spearman])


def counts(c):
    return c.true_positive, c.true_negative, c.false_positive, c.false_negative


def test_sign_confusion_counts_by_hand():
    true = torch.tensor([1.0, 2.0, 3.0, -1.0, -2.0, -3.0, -4.0, 5.0, 0.0, 0.0, 1.0])
    guess = torch.tensor([0.5, 2.0, -1.0, -1.0, -9.0, 4.0, 0.0, 0.0, 1.0, -1.0, 7.0])
    #                     TP   TP    FN    TN    TN   FP   TN   FN   FP    TN   TP
    confusion = sign_confusion(true, guess)
    assert counts(confusion) == (3, 4, 2, 2)
    assert confusion.total == 11
    assert confusion.agreement == 7
    assert confusion.baseline == 6  # five positives, six others: "never positive" is the better constant guess
    assert confusion.balanced_accuracy == pytest.approx((3 / 5 + 4 / 6) / 2, rel=1e-15)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_an_influence_of_zero_counts_as_not_positive_on_either_side(zero):
    one, nought = torch.tensor([1.0]), torch.tensor([zero])
    assert counts(sign_confusion(nought, nought)) == (0, 1, 0, 0)
    assert counts(sign_confusion(nought, one)) == (0, 0, 1, 0)
    assert counts(sign_confusion(one, nought)) == (0, 0, 0, 1)


def test_table_6_of_the_paper_has_its_baseline_and_balanced_accuracy():
    ours = SignConfusion(true_positive=650, true_negative=315, false_positive=15, false_negative=20)
    assert (ours.total, ours.agreement, ours.baseline) == (1000, 965, 670)
    assert ours.balanced_accuracy == pytest.approx((650 / 670 + 315 / 330) / 2, rel=1e-15)


@settings(deadline=None)  # the first example pays for imports
@given(PAIRS)
def test_sign_confusion_agrees_with_scikit_learn(pair):
    true, guess = pair
    (tn, fp), (fn, tp) = confusion_matrix(true.numpy() > 0, guess.numpy() > 0, labels=[False, True])
    confusion = sign_confusion(true, guess)
    assert counts(confusion) == (tp, tn, fp, fn)
    assert confusion.total == len(true)
    assert confusion.baseline == max((true > 0).sum(), (true <= 0).sum())
    if tp + fn and tn + fp:
        expected = balanced_accuracy_score(true.numpy() > 0, guess.numpy() > 0)
        assert confusion.balanced_accuracy == pytest.approx(expected, rel=1e-14)  # two divisions and a mean


@settings(deadline=None)
@given(PAIRS)
def test_swapping_the_arguments_swaps_the_two_errors(pair):
    tp, tn, fp, fn = counts(sign_confusion(*pair))
    assert counts(sign_confusion(*reversed(pair))) == (tp, tn, fn, fp)


@settings(deadline=None)
@given(PAIRS)
def test_turning_every_sign_swaps_positive_and_negative(pair):
    true, guess = (torch.where(vector == 0, 1.0, vector) for vector in pair)  # zero has no sign to turn
    tp, tn, fp, fn = counts(sign_confusion(true, guess))
    assert counts(sign_confusion(-true, -guess)) == (tn, tp, fn, fp)
    assert counts(sign_confusion(true, -guess)) == (fn, fp, tn, tp)


@pytest.mark.parametrize("true", [torch.ones(3), -torch.ones(3), torch.zeros(3)])
def test_balanced_accuracy_needs_both_kinds(true):
    confusion = sign_confusion(true, torch.tensor([1.0, -1.0, 1.0]))
    assert confusion.baseline == 3
    with pytest.raises(ValueError, match="needs both kinds"):
        _ = confusion.balanced_accuracy


def test_a_constant_guess_has_the_baselines_agreement_and_balanced_accuracy_one_half():
    true = torch.tensor([1.0, 1.0, 1.0, -1.0])
    confusion = sign_confusion(true, torch.ones(4))
    assert confusion.agreement == confusion.baseline == 3
    assert confusion.balanced_accuracy == 0.5


def test_correlations_agree_with_other_libraries():
    true = randn(50, seed=0)
    guess = 0.5 * true + randn(50, seed=1)
    guess[:10] = guess[0]  # ties, which ranks have to share
    # One sum of fifty products in another order: about fifty rounding errors of 1e-16.
    assert pearson(true, guess) == pytest.approx(np.corrcoef(true.numpy(), guess.numpy())[0, 1], abs=1e-14)
    ranks = [scipy.stats.rankdata(vector.numpy()) for vector in (true, guess)]
    assert spearman(true, guess) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-14)
    frame = pd.DataFrame({"true": true.numpy(), "guess": guess.numpy()})
    assert pearson(true, guess) == pytest.approx(frame.corr("pearson").loc["true", "guess"], abs=1e-14)
    assert spearman(true, guess) == pytest.approx(frame.corr("spearman").loc["true", "guess"], abs=1e-14)


def test_pearson_sees_straight_lines_and_spearman_any_rising_curve():
    true = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert pearson(true, 3 * true + 1) == pytest.approx(1, abs=1e-14)
    assert pearson(true, -true) == pytest.approx(-1, abs=1e-14)
    assert spearman(true, true.exp()) == pytest.approx(1, abs=1e-14)
    assert pearson(true, true.exp()) < 0.95


def test_correlations_take_single_precision():
    true, guess = randn(50, seed=0), randn(50, seed=1)
    # 1e-7 is the rounding of float32 itself, and fifty of them average out in the sums.
    assert pearson(true.float(), guess.float()) == pytest.approx(pearson(true, guess), abs=1e-6)


@CORRELATIONS
@pytest.mark.parametrize("constant", ["true", "approximate"])
def test_correlation_with_a_constant_does_not_exist(correlation, constant):
    pair = {"true": randn(4, seed=0), "approximate": randn(4, seed=1), constant: torch.full((4,), 2.5)}
    with pytest.raises(ValueError, match=f"the {constant} values are all 2.5"):
        correlation(**pair)


@CORRELATIONS
def test_correlation_of_one_pair_does_not_exist(correlation):
    with pytest.raises(ValueError, match="does not exist"):
        correlation(torch.ones(1), torch.ones(1))


@pytest.mark.parametrize("metric", [sign_confusion, pearson, spearman])
@pytest.mark.parametrize(
    ("true", "approximate"),
    [
        (torch.ones(3), torch.ones(4)),
        (torch.ones(3), torch.ones(1)),  # broadcasting would answer, wrongly
        (torch.ones(3, 1), torch.ones(3, 1)),
        (torch.ones(()), torch.ones(())),
        (torch.ones(0), torch.ones(0)),
    ],
)
def test_anything_but_two_vectors_of_one_length_is_refused(metric, true, approximate):
    with pytest.raises(ValueError, match="two vectors of one length"):
        metric(true, approximate)


@pytest.mark.parametrize("metric", [sign_confusion, pearson, spearman])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(metric, place, value):
    pair = [randn(3, seed=0), randn(3, seed=1)]
    pair[place][1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric(*pair)


def test_the_bootstrap_interval_is_that_of_resampled_rows_and_columns():
    true = randn(6, 9, seed=3)
    noisy = true + 0.5 * randn(6, 9, seed=4)
    low, high = bootstrap_pearson(true, noisy, resamples=300)
    assert low < pearson(true.flatten(), noisy.flatten()) < high
    assert bootstrap_pearson(true, noisy, resamples=300) == (low, high)
    assert bootstrap_pearson(true, 3 * true, resamples=50) == pytest.approx((1, 1))
    narrow, wide = (bootstrap_pearson(true, noisy, resamples=300, confidence=c) for c in (0.5, 0.95))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    no_width = bootstrap_pearson(true, noisy, resamples=300, confidence=1e-12)  # both ends are the median
    assert no_width[0] == pytest.approx(no_width[1], abs=1e-9)


def test_pairs_that_share_a_row_do_not_count_as_independent():
    """Ten columns that repeat one: the interval is that of the rows alone, not that of ten times as many pairs."""
    rows, noise = randn(20, 1, seed=5), randn(20, 1, seed=6)
    once = bootstrap_pearson(rows.expand(-1, 2), (rows + noise).expand(-1, 2), resamples=500)
    often = bootstrap_pearson(rows.expand(-1, 50), (rows + noise).expand(-1, 50), resamples=500)
    # both are of 20 independent numbers; 500 draws leave the ends uncertain by a few hundredths
    assert often == pytest.approx(once, abs=0.1)


@pytest.mark.parametrize("shape", [(1, 2), (2, 2)])
def test_the_bootstrap_refuses_tables_of_which_a_draw_is_constant(shape):
    table = torch.arange(float(shape[0] * shape[1])).view(shape)
    with pytest.raises(ValueError, match=r"is constant; give a larger table"):
        bootstrap_pearson(table, table)


def test_the_bootstrap_refuses_what_are_no_two_tables():
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(12,\): give two tables of one shape"):
        bootstrap_pearson(torch.rand(3, 4), torch.rand(12))


PAIRS_OF_THREE = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])


def test_the_linear_datamodelling_score_by_hand():
    influences = torch.tensor([[1.0, -1.0], [2.0, -2.0], [4.0, -4.0]])  # sums 3, 5, 6 and -3, -5, -6
    losses = torch.tensor([[0.1, 0.1], [0.3, 0.2], [0.2, 0.9]])  # ranks 1, 3, 2 and 1, 2, 3
    # 1 - 6 Σ d² / (3·8): the ranks of the first query differ by 0, 1, 1, those of the second run backwards
    expected = torch.tensor([1 - 6 * 2 / 24, -1.0], dtype=torch.float64)
    found = linear_datamodelling_score(influences, PAIRS_OF_THREE, losses)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # rounding of three products


def test_a_score_that_is_the_truths_own_slope_has_one_and_a_shift_of_a_query_changes_nothing():
    influences, draw = randn(30, 4, seed=7), torch.Generator().manual_seed(0)
    subsets = torch.stack([torch.randperm(30, generator=draw) < 15 for _ in range(20)])
    losses = subsets.double() @ influences
    for truth in (losses, losses + randn(4, seed=8), losses.exp()):
        score = linear_datamodelling_score(influences, subsets, truth)
        torch.testing.assert_close(score, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"influences": torch.ones(3)}, r"give \(n, Q\), \(M, n\) and \(M, Q\)"),
        ({"outputs": torch.rand(3, 3)}, r"outputs \(3, 3\): give"),
        ({"subsets": PAIRS_OF_THREE.double()}, "of bool"),
        ({"subsets": PAIRS_OF_THREE[:, :2]}, r"give \(M, 3\) of bool"),
        ({"subsets": torch.tensor([[True, True, True], *PAIRS_OF_THREE[1:].tolist()])}, "2 to 3 examples"),
        ({"influences": torch.zeros(3, 2)}, "a correlation does not exist"),
    ],
)
def test_the_linear_datamodelling_score_refuses_what_has_none(change, sentence):
    sound = {"influences": torch.rand(3, 2), "subsets": PAIRS_OF_THREE, "outputs": torch.rand(3, 2)}
    with pytest.raises(ValueError, match=sentence):
        linear_datamodelling_score(**{**sound, **change})
