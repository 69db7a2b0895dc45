"""Two arms from the same seeds: what a paired test says of their difference, and what it could have found."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats

from metasp_lite.doors import typed


@dataclass(frozen=True)
class _Comparison:
    """Differences of pairs, first arm minus second."""

    pairs: int
    difference: float  # mean
    spread: float  # standard deviation of the differences
    low: float  # of the 95 % interval of the mean
    high: float
    p: float  # of a two-sided paired t-test; 1 where no pair differs
    detectable: float  # the true difference that such a test finds in 4 of 5 tries at a level of 5 %


@typed
def paired(first: Sequence[float], second: Sequence[float]) -> _Comparison:
    """Compare two arms by their numbers from the same seeds, in the same order, with a paired t-test.

    Raises:
        ValueError: when the two are not as many, are fewer than two, or hold a number that is not finite.
    """
    one, other = _numbers(first, "first"), _numbers(second, "second")
    if one.ndim != 1 or one.shape != other.shape or len(one) < 2:
        raise ValueError(f"shapes {one.shape} and {other.shape}: give as many numbers of both, from two seeds at least")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("a number is not finite; leave out the seeds from which one of the two has none")
    gain = one - other
    mean, spread = float(gain.mean()), float(gain.std(ddof=1))
    if spread <= 1e-12 * max(np.abs(one).max(), np.abs(other).max()):  # but for rounding, the same in every pair
        return _Comparison(len(gain), mean, 0.0, mean, mean, 1.0 if abs(mean) <= spread else 0.0, 0.0)
    test = scipy.stats.ttest_1samp(gain, 0)
    low, high = test.confidence_interval(0.95)
    return _Comparison(
        len(gain), mean, spread, float(low), float(high), float(test.pvalue), detectable(spread, len(gain))
    )


@typed
def detectable(spread: float, pairs: int, power: float = 0.8, level: float = 0.05) -> float:
    """Return the mean difference that a paired t-test of so many pairs finds with probability ``power``.

    ``spread`` is the standard deviation of the differences, in their unit.  With the noncentral t distribution
    (Cohen 1988, chapter 2); the other tail, below 1e-3 of the power, is left out.

    Raises:
        ValueError: for fewer than two pairs, or a spread, power or level that is none.
    """
    if pairs < 2:
        raise ValueError(f"pairs={pairs}: a spread needs two, at least")
    if not (0 <= spread < np.inf and 0 < level < power < 1):
        raise ValueError(f"spread={spread}, power={power}, level={level}: give 0 ≤ spread and 0 < level < power < 1")
    critical = scipy.stats.t.ppf(1 - level / 2, pairs - 1)

    def too_strong(shift: float) -> float:
        return float(scipy.stats.nct.sf(critical, pairs - 1, shift)) - power

    highest = 10.0
    while too_strong(highest) < 0:  # few pairs
        highest *= 2
    return float(scipy.optimize.brentq(too_strong, 0, highest)) * spread / pairs**0.5


@typed
def holm(p_values: Iterable[float]) -> list[float]:
    """Correct p-values for their number, so that the chance that luck alone brings any below a level is that level.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.

    Raises:
        ValueError: for a value outside 0 to 1.
    """
    values = _numbers([*p_values], "p_values").tolist()
    if odd := [p for p in values if not 0 <= p <= 1]:
        raise ValueError(f"p={odd[0]} lies outside 0 to 1")
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def _numbers(values: Sequence[float], what: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} holds something else than numbers ({error}); give one number for each") from error
