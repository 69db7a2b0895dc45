"""The shortest vector between two: never beaten by another route to it, whatever the lengths, scale and dtype.

The referee of length is exact: squared lengths are fractions, so that the tolerances stand for the rounding of
``min_norm_pair`` alone.  Its weights are quotients of inner products with the SHORTER vector of at most eight terms; so
a squared length is off by some ten rounding errors of 1e-16 times the shorter's, and 1e-13 times it is well above that.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.analytic import randn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from metasp_lite.calculus.min_norm import min_norm_pair

ROUNDING = 1e-13
GRID = [Fraction(k, 256) for k in range(257)]
EXAMPLES = settings(deadline=None, derandomize=True, max_examples=100)  # the first example pays for imports
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Many exact ties; entries between 1e-270 and 1e151, where a float64 has all of its digits.
ENTRIES = st.sampled_from([0.0, 1.0, -1.0, 0.5]) | st.floats(-1, 1).map(lambda x: x if abs(x) > 1e-100 else 0.0)
POWERS = st.just(0) | st.integers(-70, 70) | st.integers(-500, 500)


def vector(*entries, dtype=torch.float64):
    return torch.tensor(entries, dtype=dtype)


def vectors(smallest=1, largest=8):
    return st.lists(ENTRIES, min_size=smallest, max_size=largest).map(lambda entries: vector(*entries))


@st.composite
def pairs(draw):
    """Two unrelated vectors, or one and (nearly) a multiple of it: equal, opposite, parallel; of any length."""
    first = draw(vectors())
    second = draw(vectors(len(first), len(first)))
    if draw(st.booleans()):
        second = draw(st.sampled_from([1.0, -1.0, 3.0, -0.1])) * first + 2.0 ** draw(st.integers(-60, -1)) * second
    return first * 2.0 ** draw(POWERS), second * 2.0 ** draw(POWERS)


PAIRS = pairs()


def exact(values):
    return [Fraction(value) for value in values.tolist()]


def inner(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def between(gamma, first, second):
    """γ g₁ + (1−γ) g₂ in fractions."""
    return [gamma * x + (1 - gamma) * y for x, y in zip(first, second, strict=True)]


def lengths(first, second):
    """The length of the shorter, of the longer and of the difference."""
    first, second = first.tolist(), second.tolist()
    return *sorted([math.hypot(*first), math.hypot(*second)]), math.dist(first, second)  # whatever the scale


@EXAMPLES
@given(PAIRS)
def test_no_point_of_a_fine_grid_is_shorter(pair):
    gamma, point = min_norm_pair(*pair)
    first, second = map(exact, pair)
    shorter = min(inner(first, first), inner(second, second))
    # ‖γ g₁ + (1−γ) g₂‖² = ‖g₂‖² − 2γ (g₂−g₁)ᵀg₂ + γ² ‖g₂−g₁‖²
    difference = [y - x for x, y in zip(first, second, strict=True)]
    constant, slope, curvature = inner(second, second), inner(difference, second), inner(difference, difference)
    shortest = min(constant - 2 * g * slope + g * g * curvature for g in GRID)
    assert 0 <= gamma <= 1
    assert inner(exact(point), exact(point)) <= shortest + Fraction(ROUNDING) * shorter


@EXAMPLES
@given(PAIRS)
def test_the_point_is_the_one_that_gamma_names(pair):
    gamma, point = min_norm_pair(*pair)
    expected = between(Fraction(gamma.item()), *map(exact, pair))
    # 1−γ has no digits below 1e-16, which count as much as the longer vector is long.
    error = max(abs(x - y) for x, y in zip(exact(point), expected, strict=True))
    assert error <= ROUNDING * lengths(*pair)[1]


@EXAMPLES
@given(PAIRS)
def test_nonnegative_least_squares_finds_nothing_shorter(pair):
    # λ ≥ 0 that minimises ‖λ₁g₁ + λ₂g₂‖² + (λ₁+λ₂−1)² is a multiple of the weights with sum 1 that minimise the first
    # term: over the λ of sum t that term is t² times as large, for all of them alike.
    scale = max(vector.abs().max().item() for vector in pair)
    assume(scale > 0)
    matrix = np.stack([vector.numpy() / scale for vector in pair], axis=1)
    weights, _ = nnls(np.vstack([matrix, np.ones(2)]), np.append(np.zeros(len(matrix)), 1.0))
    first, second = map(exact, pair)
    theirs = between(Fraction(weights[0]) / Fraction(weights.sum()), first, second)
    ours = exact(min_norm_pair(*pair).point)
    shorter = min(inner(first, first), inner(second, second))
    assert inner(ours, ours) <= inner(theirs, theirs) + Fraction(ROUNDING) * shorter


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("length", [0.3, 1.0, 3.0])
def test_nonnegative_least_squares_has_the_same_gamma(seed, length):
    first, second = randn(2, 5, seed=seed) * vector(1.0, length)[:, None]
    system = np.vstack([np.stack([first.numpy(), second.numpy()], axis=1), np.ones(2)])
    weights, _ = nnls(system, np.append(np.zeros(5), 1.0))
    # Vectors of length around 2 that are as far from each other: nothing magnifies the rounding of 1e-16.
    assert min_norm_pair(first, second).gamma.item() == pytest.approx(weights[0] / weights.sum(), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [0.3, 1.0, 3.0])
def test_the_primal_problem_has_the_opposite_of_the_point_as_its_solution(seed, length):
    # min over (d, α) of α + ½‖d‖², where g₁ᵀd ≤ α and g₂ᵀd ≤ α: the steepest common descent.
    first, second = (randn(2, 4, seed=seed) * vector(1.0, length)[:, None]).numpy()
    gradients = np.stack([first, second])
    solution = minimize(
        lambda x: x[4] + x[:4] @ x[:4] / 2,
        np.append(np.zeros(4), 1.0),
        jac=lambda x: np.append(x[:4], 1.0),
        constraints={
            "type": "ineq",
            "fun": lambda x: x[4] - gradients @ x[:4],
            "jac": lambda x: np.column_stack([-gradients, np.ones(2)]),
        },
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )
    assert solution.success
    point = min_norm_pair(torch.from_numpy(first), torch.from_numpy(second)).point.numpy()
    # SLSQP stops when the objective moves by less than 1e-12, the square of an error of 1e-6 in d.
    np.testing.assert_allclose(solution.x[:4], -point, atol=1e-5)
    assert solution.x[4] == pytest.approx(-point @ point, abs=1e-5)
    assert solution.fun == pytest.approx(-point @ point / 2, abs=1e-9)  # no duality gap


@EXAMPLES
@given(PAIRS)
def test_the_optimality_conditions_of_the_primal_problem_hold(pair):
    gamma, point = min_norm_pair(*pair)
    shorter, longer, _ = map(Fraction, lengths(*pair))
    multipliers = Fraction(gamma.item()), 1 - Fraction(gamma.item())
    gradients = [exact(vector) for vector in pair]
    descent = [-x for x in exact(point)]
    alpha = -inner(descent, descent)
    # Stationarity in d, d* = −(λ₁g₁ + λ₂g₂), and in α, λ₁ + λ₂ = 1.  Rounding of γ counts times the longer vector.
    for x, y in zip(descent, between(multipliers[0], *gradients), strict=True):
        assert abs(x + y) <= Fraction(ROUNDING) * longer
    assert sum(multipliers) == 1
    assert min(multipliers) >= 0
    for multiplier, gradient, length in zip(multipliers, gradients, map(lengths_of, gradients), strict=True):
        # d* is right to 1e-16 times the shorter vector, and this enters times the vector it is multiplied with.
        tolerance = Fraction(ROUNDING) * shorter * length
        slack = alpha - inner(gradient, descent)
        assert slack >= -tolerance  # feasible: d* decreases either objective at the rate ‖d*‖² at least
        assert multiplier * slack <= tolerance  # complementary slackness: at that very rate, where its weight is not 0


def lengths_of(gradient):
    """An upper bound of the length of a vector of fractions, with no square root: Σ |x|."""
    return sum(map(abs, gradient))


@EXAMPLES
@given(PAIRS, st.integers(-300, 300))
def test_multiplying_both_by_a_power_of_two_leaves_every_bit_of_gamma(pair, power):
    first, second = pair
    factor = 2.0**power
    assume(all(x == 0 or abs(x * factor) > 1e-300 for x in torch.cat(pair).tolist()))  # else digits are lost
    gamma, point = min_norm_pair(first, second)
    scaled = min_norm_pair(factor * first, factor * second)
    assert torch.equal(scaled.gamma, gamma)
    torch.testing.assert_close(scaled.point, factor * point, rtol=0, atol=1e-300)  # products below it lose digits


@pytest.mark.parametrize(
    ("dtype", "factor", "tolerance"),
    [
        # A factor that is no power of two rounds every entry; 1e-14 and 1e-5 are some fifty such rounding errors.
        (torch.float64, 1e-200, 1e-14),
        (torch.float64, 1e200, 1e-14),
        (torch.float64, 1e307, 1e-14),
        (torch.float64, 1e-307, 1e-14),
        (torch.float32, 1e-30, 1e-5),
        (torch.float32, 1e30, 1e-5),
    ],
)
def test_scales_whose_squares_overflow_or_vanish_leave_gamma(dtype, factor, tolerance):
    first, second = vector(1.0, 2.0, dtype=dtype), vector(-1.0, 1.0, dtype=dtype)
    # (g₂−g₁)ᵀg₂ = (−2, −1)ᵀ(−1, 1) = 1, ‖g₂−g₁‖² = 5
    gamma, point = min_norm_pair(factor * first, factor * second)
    assert gamma.item() == pytest.approx(0.2, rel=tolerance)
    torch.testing.assert_close(point / factor, vector(-0.6, 1.2, dtype=dtype), rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_largest_numbers_of_a_dtype_do_not_overflow(dtype):
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    first, second = vector(largest, 0.0, dtype=dtype), vector(-largest, largest, dtype=dtype)
    # In units of the largest: (g₂−g₁)ᵀg₂ = (−2, 1)ᵀ(−1, 1) = 3, ‖g₂−g₁‖² = 5.  Some four operations, each rounded once.
    gamma, point = min_norm_pair(first, second)
    tolerance = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(gamma, torch.tensor(0.6, dtype=dtype), **tolerance)
    torch.testing.assert_close(point / largest, vector(0.2, 0.4, dtype=dtype), **tolerance)
    # The smallest beside the largest: their quotient is no number of this dtype.
    for arguments, weight in ((vector(smallest), vector(largest)), 1.0), ((vector(largest), vector(smallest)), 0.0):
        gamma, point = min_norm_pair(*(argument.to(dtype) for argument in arguments))
        assert (gamma.item(), point.item()) == (weight, smallest)


@EXAMPLES
@given(PAIRS)
def test_exchanging_the_two_gives_one_minus_gamma_and_the_same_point(pair):
    first, second = pair
    shorter, longer, distance = lengths(first, second)
    assume(distance > 0)
    here, there = min_norm_pair(first, second), min_norm_pair(second, first)
    # Nearly equal vectors leave γ nearly free: rounding of the inner products is divided by their squared distance.
    condition = shorter * longer / distance / distance if distance > 1e-150 * longer else math.inf
    assert there.gamma.item() == pytest.approx(1 - here.gamma.item(), abs=ROUNDING * max(1.0, condition))
    # …and moves the point along the difference, by that times its length, and at most from end to end.
    along = min(ROUNDING * condition, 1.0) * distance
    torch.testing.assert_close(there.point, here.point, rtol=0, atol=ROUNDING * shorter + along)


@EXAMPLES
@given(PAIRS, st.integers(0, 2**31 - 1))
@pytest.mark.parametrize("kind", ["rotation", "permutation"])
def test_gamma_does_not_depend_on_the_axes_and_the_point_turns_with_them(kind, pair, seed):
    first, second = pair
    shorter, longer, distance = lengths(first, second)
    assume(1e-3 * longer < distance)  # closer than that, the rounding of the rotation itself would move γ
    matrix = torch.linalg.qr(randn(len(first), len(first), seed=seed))[0]
    if kind == "permutation":
        matrix = torch.eye(len(first), dtype=torch.float64)[torch.argsort(matrix[0])]
    here, there = min_norm_pair(first, second), min_norm_pair(matrix @ first, matrix @ second)
    # ‖g₁‖‖g₂‖/‖g₂−g₁‖² is at most 1e6 here: the inner products' rounding of 1e-15, divided by the squared distance.
    condition = max(1.0, shorter / distance * (longer / distance))
    assert there.gamma.item() == pytest.approx(here.gamma.item(), abs=ROUNDING * condition)
    tolerance = ROUNDING * (shorter + condition * distance)
    torch.testing.assert_close(there.point, matrix @ here.point, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("first", "second", "gamma", "point"),
    [
        pytest.param((1.0, 0.0), (0.0, 2.0), 0.8, (0.8, 0.4), id="the first is weighted by gamma"),
        pytest.param((3.0, -4.0), (3.0, -4.0), 0.5, (3.0, -4.0), id="equal"),
        pytest.param((0.0, 0.0), (3.0, -4.0), 1.0, (0.0, 0.0), id="first zero"),
        pytest.param((3.0, -4.0), (0.0, 0.0), 0.0, (0.0, 0.0), id="second zero"),
        pytest.param((0.0, 0.0), (0.0, 0.0), 0.5, (0.0, 0.0), id="both zero"),
        pytest.param((0.0, 0.0), (-0.0, 0.0), 0.5, (0.0, 0.0), id="both zero, of either sign"),
        pytest.param((3.0, -4.0), (-3.0, 4.0), 0.5, (0.0, 0.0), id="opposite"),
        pytest.param((3.0, -4.0), (-9.0, 12.0), 0.75, (0.0, 0.0), id="opposite, second longer"),
        pytest.param((9.0, -12.0), (-3.0, 4.0), 0.25, (0.0, 0.0), id="opposite, first longer"),
        pytest.param((3.0, -4.0), (6.0, -8.0), 1.0, (3.0, -4.0), id="parallel, first shorter"),
        pytest.param((6.0, -8.0), (3.0, -4.0), 0.0, (3.0, -4.0), id="parallel, second shorter"),
        pytest.param((1.0, 0.0), (1.0, 1.0), 1.0, (1.0, 0.0), id="the nearest point is an end"),
        pytest.param((2.0,), (5.0,), 1.0, (2.0,), id="one entry, same sign"),
        pytest.param((2.0,), (-6.0,), 0.75, (0.0,), id="one entry, opposite sign"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cases_by_hand(first, second, gamma, point, dtype):
    result = min_norm_pair(vector(*first, dtype=dtype), vector(*second, dtype=dtype))
    # A handful of operations on small whole numbers: a few rounding errors.
    tolerance = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(result.gamma, torch.tensor(gamma, dtype=dtype), **tolerance)
    torch.testing.assert_close(result.point, vector(*point, dtype=dtype), **tolerance)


@EXAMPLES
@given(vectors(), POWERS)
def test_equal_vectors_give_one_half_and_themselves(g, power):
    g = g * 2.0**power
    gamma, point = min_norm_pair(g, g.clone())
    assert gamma.item() == 0.5
    assert torch.equal(point, g)


@EXAMPLES
@given(vectors(), POWERS)
def test_a_zero_vector_is_the_shortest(g, power):
    g = g * 2.0**power
    assume(g.any())
    zero = torch.zeros_like(g)
    for arguments, gamma in (((zero, g), 1.0), ((g, zero), 0.0)):
        result = min_norm_pair(*arguments)
        assert result.gamma.item() == gamma
        assert torch.equal(result.point, zero)


@EXAMPLES
@given(vectors(), st.floats(1.001, 1e100))
def test_of_parallel_vectors_the_shorter_is_returned_to_the_bit(g, factor):
    assume(g.any())
    for arguments, gamma in (((g, factor * g), 1.0), ((factor * g, g), 0.0)):
        result = min_norm_pair(*arguments)
        assert result.gamma.item() == gamma
        assert torch.equal(result.point, g)


@EXAMPLES
@given(vectors(), st.floats(1e-100, 1e100))
def test_opposite_vectors_meet_in_zero(g, factor):
    assume(g.any())
    gamma, point = min_norm_pair(g, -factor * g)
    assert gamma.item() == pytest.approx(factor / (1 + factor), rel=1e-14)  # a few rounding errors
    shorter, _, _ = lengths(g, factor * g)
    torch.testing.assert_close(point, torch.zeros_like(g), rtol=0, atol=ROUNDING * shorter)


@pytest.mark.parametrize("ratio", [1e-3, 1e-8, 1e-15, 1e-17, 1e-30, 1e-200])
def test_a_shorter_vector_is_not_lost_beside_a_much_longer_one(ratio):
    # g₁ = r (1, 1) and g₂ = (−1, 0): 1−γ = (g₁−g₂)ᵀg₁ / ‖g₂−g₁‖² = (r + 2r²) / (1 + 2r + 2r²), in fractions.
    r = Fraction(ratio)
    weight = (r + 2 * r * r) / (1 + 2 * r + 2 * r * r)
    expected = vector(float((1 - weight) * r - weight), float((1 - weight) * r))
    for arguments in ((vector(ratio, ratio), vector(-1.0, 0.0)), (vector(-1.0, 0.0), vector(ratio, ratio))):
        point = min_norm_pair(*arguments).point
        # A few rounding errors of the SHORTER vector; of the longer they would be 1e-16, more than all of it.
        torch.testing.assert_close(point, expected, rtol=0, atol=1e-15 * ratio)


@pytest.mark.parametrize("height", [1.0, 1e-8, 1e-16, 1e-100, 1e-300])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_nearly_equal_vectors_have_the_gamma_of_their_difference(height, share):
    # (1, (1−s) h) and (1, −s h): the segment is upright and (1, 0) its shortest point, so γ = s however small h is.
    gamma, point = min_norm_pair(vector(1.0, (1 - share) * height), vector(1.0, -share * height))
    assert gamma.item() == pytest.approx(share, rel=1e-15)  # the products are powers of two or rounded once
    torch.testing.assert_close(point, vector(1.0, 0.0), rtol=1e-15, atol=1e-15 * height)


@EXAMPLES
@given(vectors(), st.lists(st.integers(-3, 3), min_size=8, max_size=8))
def test_vectors_that_differ_by_rounding_give_a_point_between_them(g, steps):
    assume(g.any())
    other = g.clone()
    for i, step in enumerate(steps[: len(g)]):
        for _ in range(abs(step)):
            other[i] = torch.nextafter(other[i], torch.tensor(float(np.sign(step)) * math.inf, dtype=torch.float64))
    gamma, point = min_norm_pair(g, other)
    assert 0 <= gamma <= 1
    # Between the two, entry by entry, up to the rounding of one weighted sum.
    room = 4 * torch.finfo(torch.float64).eps * g.abs() + 1e-320
    assert bool((torch.minimum(g, other) - room <= point).all())
    assert bool((point <= torch.maximum(g, other) + room).all())


@pytest.mark.parametrize("seed", range(5))
def test_single_precision_gives_the_answer_of_double_precision(seed):
    first, second = randn(2, 64, seed=seed).float()
    single, double = min_norm_pair(first, second), min_norm_pair(first.double(), second.double())
    # Inner products of 64 terms around 1, divided by about 128: some ten rounding errors of 6e-8.
    torch.testing.assert_close(single.gamma.double(), double.gamma, rtol=0, atol=1e-6)
    torch.testing.assert_close(single.point.double(), double.point, rtol=0, atol=3e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_and_device_of_the_vectors(dtype, device):
    first, second = vector(1.0, 0.0, dtype=dtype).to(device), vector(0.0, 1.0, dtype=dtype).to(device)
    gamma, point = min_norm_pair(first, second)
    assert gamma.shape == ()
    assert point.shape == (2,)
    assert {gamma.dtype, point.dtype} == {dtype}
    assert {gamma.device, point.device} == {first.device}
    assert gamma.item() == 0.5  # halves are exact in every dtype


def test_the_vectors_are_left_as_they_were():
    first, second = randn(2, 5, seed=0)
    before = first.clone(), second.clone()
    min_norm_pair(first, second)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_number_that_is_not_finite_is_refused_and_its_vector_named(place, value):
    arguments = [vector(1.0, 2.0), vector(3.0, 4.0)]
    arguments[place][1] = value
    with pytest.raises(FloatingPointError, match=f"the {('first', 'second')[place]} vector is {value} at position 1"):
        min_norm_pair(*arguments)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(torch.zeros(2), torch.zeros(3), id="two lengths"),
        pytest.param(torch.zeros(1), torch.zeros(3), id="one entry is not broadcast"),
        pytest.param(torch.zeros(2, 2), torch.zeros(2, 2), id="matrices"),
        pytest.param(torch.zeros(2), torch.zeros(1, 2), id="a vector and a matrix"),
        pytest.param(torch.tensor(1.0), torch.tensor(2.0), id="numbers"),
        pytest.param(torch.zeros(0), torch.zeros(0), id="empty"),
    ],
)
def test_anything_but_two_vectors_of_one_length_is_refused(first, second):
    with pytest.raises(ValueError, match="two vectors of one length"):
        min_norm_pair(first, second)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.int64, torch.int64),
        (torch.float64, torch.int64),
        (torch.int64, torch.float64),
        (torch.complex128, torch.complex128),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
    ],
)
def test_dtypes_without_fractions_or_unlike_each_other_are_refused(dtypes):
    with pytest.raises(ValueError, match=f"dtypes {dtypes[0]} and {dtypes[1]}: give floating-point"):
        min_norm_pair(torch.ones(2, dtype=dtypes[0]), torch.ones(2, dtype=dtypes[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    """70,000 squares of one add up to more than float16 holds."""
    ones = torch.ones(70_000, dtype=dtype)
    gamma, point = min_norm_pair(ones, -ones)
    assert gamma.dtype == point.dtype == dtype
    assert float(gamma) == 0.5
    assert float(point.abs().max()) == 0
