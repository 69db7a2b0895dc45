"""Paired comparisons: the textbook's numbers, simulated power, and other libraries' tests."""

import itertools

import numpy as np
import pytest
import scipy.stats

from metasp_lite.studies.comparison import detectable, holm, paired


@pytest.mark.parametrize("pairs", [2, 3, 10, 100])
def test_paired_is_scipys_test_of_two_related_samples(pairs):
    one, other = np.random.default_rng(pairs).normal(size=(2, pairs))
    found = paired(one.tolist(), other.tolist())
    test = scipy.stats.ttest_rel(one, other)
    assert (found.pairs, found.difference) == (pairs, pytest.approx((one - other).mean()))
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.spread == pytest.approx((one - other).std(ddof=1))


def test_equal_arms_differ_by_nothing_and_a_constant_difference_is_certain():
    assert (paired([1, 2, 3], [1, 2, 3]).p, paired([1, 2, 3], [1, 2, 3]).detectable) == (1, 0)
    assert paired([0.1, 0.2, 0.3], [0.1 + 1e-16, 0.2, 0.3]).p == 1  # but for rounding
    assert (paired([2, 3, 4], [1, 2, 3]).p, paired([2, 3, 4], [1, 2, 3]).difference) == (0, 1)


@pytest.mark.parametrize("pairs", [2, 5, 10, 30])
def test_in_simulated_tables_the_detectable_difference_is_found_four_times_in_five(pairs):
    """20,000 tables: 0.8 to within 0.01, three and a half standard errors."""
    draws = np.random.default_rng(0).normal(detectable(1.5, pairs), 1.5, size=(20_000, pairs))
    found = (scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert abs(found - 0.8) < 0.01


def test_detectable_differences_of_a_textbook_table():
    """Cohen's table for one sample's t-test at .05, two-sided, power .80: d = 0.5 needs 33 or 34 pairs."""
    assert detectable(1.0, 33) > 0.5 > detectable(1.0, 34)
    assert detectable(2.0, 34) == pytest.approx(2 * detectable(1.0, 34))
    assert detectable(0.0, 5) == 0


def test_holm_by_hand_and_in_any_order():
    """Of .01, .04 and .03: 3 × .01, then 2 × .03, and .04 cannot fall below that."""
    by_hand = {0.01: 0.03, 0.03: 0.06, 0.04: 0.06}
    for order in itertools.permutations(by_hand):
        assert holm(order) == pytest.approx([by_hand[p] for p in order])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_holm_keeps_its_promise_where_nothing_differs():
    """Ten tests of nothing: some p below .05 in at most one table of twenty; 4,000 tables, three standard errors."""
    p = np.random.default_rng(0).uniform(size=(4000, 10))
    wrong = np.mean([min(holm(row.tolist())) < 0.05 for row in p])
    assert wrong < 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5
    assert wrong > 0.03  # and it is not much too careful


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired([1], [2]), r"shapes \(1,\) and \(1,\): give as many numbers of both, from two seeds"),
        (lambda: paired([1, 2], [1, 2, 3]), "give as many numbers of both"),
        (lambda: paired([1, float("nan")], [1, 2]), "a number is not finite"),
        (lambda: detectable(1.0, 1), "pairs=1: a spread needs two"),
        (lambda: detectable(float("nan"), 3), "spread=nan"),
        (lambda: detectable(1.0, 3, power=1.0), "power=1.0"),
        (lambda: holm([0.5, 1.5]), "p=1.5 lies outside 0 to 1"),
        (lambda: holm([float("nan")]), "p=nan lies outside 0 to 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
