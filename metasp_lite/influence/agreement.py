"""How well one vector of influences agrees with another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metasp_lite.doors import Count, Seed, typed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SignConfusion:
    """Signs of approximate against true influences.  "Positive" means I > 0: the example raises the validation loss."""

    true_positive: int
    true_negative: int
    false_positive: int
    false_negative: int

    @property
    def total(self) -> int:
        """Return the number of examples."""
        return self.true_positive + self.true_negative + self.false_positive + self.false_negative

    @property
    def agreement(self) -> int:
        """Return the number of examples whose sign is right."""
        return self.true_positive + self.true_negative

    @property
    def baseline(self) -> int:
        """Return the agreement of the best constant guess, which looks at nothing."""
        positives = self.true_positive + self.false_negative
        return max(positives, self.total - positives)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the share of positives found and the share of negatives found, 0 to 1; a constant guess has 1/2.

        Raises:
            ValueError: when all true signs are the same, where one of the two shares does not exist.
        """
        positives = self.true_positive + self.false_negative
        negatives = self.true_negative + self.false_positive
        if positives == 0 or negatives == 0:
            raise ValueError(f"{positives} positives and {negatives} negatives: balanced accuracy needs both kinds")
        return (self.true_positive / positives + self.true_negative / negatives) / 2


@typed
def sign_confusion(true: Tensor, approximate: Tensor) -> SignConfusion:
    """Compare the signs of two influence vectors ``(n,)``; an influence of exactly 0 counts as not positive.

    Raises:
        ValueError: when the shapes differ, when there is nothing to compare, or when a number is NaN or infinite.
    """
    _check_pair(true, approximate)
    t, a = true > 0, approximate > 0
    return SignConfusion(
        true_positive=int((t & a).sum()),
        true_negative=int((~t & ~a).sum()),
        false_positive=int((~t & a).sum()),
        false_negative=int((t & ~a).sum()),
    )


@typed
def pearson(true: Tensor, approximate: Tensor) -> float:
    """Pearson's correlation r, −1 to 1, of two vectors ``(n,)``.

    Raises:
        ValueError: as ``sign_confusion``, and when a vector is constant, where r does not exist.
    """
    from scipy import stats  # here, because it takes a second that most uses can save

    return float(stats.pearsonr(*_varying(true, approximate)).statistic)


@typed
def spearman(true: Tensor, approximate: Tensor) -> float:
    """Spearman's rank correlation, −1 to 1, of two vectors ``(n,)``; raises as ``pearson``."""
    from scipy import stats  # as above

    return float(stats.spearmanr(*_varying(true, approximate)).statistic)


@typed
def linear_datamodelling_score(influences: Tensor, subsets: Tensor, outputs: Tensor) -> Tensor:
    """Rank correlation of summed influences with the losses of networks trained on subsets, for each query; ``(Q,)``.

    ``influences (n, Q)`` of each example on each query's loss, ``subsets (M, n)`` true where an example was trained on,
    ``outputs (M, Q)`` the queries' losses after training on each.  Spearman's correlation over the M subsets of
    Σ_{i in S} I_i with the loss, −1 to 1 (Park et al., TRAK, ICML 2023, who take a margin instead of the loss, which
    has the same ranks).  Only subsets of one size can be compared so.

    Raises:
        ValueError: when the shapes do not fit, when the subsets are not true or false or differ in size, and as
            ``pearson``.
    """
    if influences.dim() != 2 or outputs.shape != (len(subsets), influences.shape[1]):
        raise ValueError(
            f"influences {tuple(influences.shape)}, subsets {tuple(subsets.shape)}, outputs {tuple(outputs.shape)}: "
            "give (n, Q), (M, n) and (M, Q)"
        )
    if subsets.dtype != torch.bool or subsets.shape[1:] != influences.shape[:1]:
        raise ValueError(f"subsets are {tuple(subsets.shape)} and {subsets.dtype}: give (M, {len(influences)}) of bool")
    sizes = subsets.sum(dim=1)
    if bool((sizes != sizes[0]).any()):
        raise ValueError(f"the subsets have {int(sizes.min())} to {int(sizes.max())} examples; give all the same size")
    sums = subsets.to(influences) @ influences
    return torch.tensor([spearman(*pair) for pair in zip(outputs.T, sums.T, strict=True)], dtype=torch.float64)


@typed
def bootstrap_pearson(
    true: Tensor, approximate: Tensor, *, resamples: Count = 2000, confidence: float = 0.95, seed: Seed = 0
) -> tuple[float, float]:
    """Interval of Pearson's r over all pairs of two tables ``(K, L)``, by the percentile bootstrap.

    Rows and columns are drawn anew, each as a whole: pairs that share one are not independent of each other.

    Raises:
        ValueError: as ``pearson``, for anything but two tables, or when a draw of rows and columns is constant.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, both excluded")
    if true.dim() != 2 or true.shape != approximate.shape:
        raise ValueError(f"shapes {tuple(true.shape)} and {tuple(approximate.shape)}: give two tables of one shape")
    pearson(true.flatten(), approximate.flatten())
    draw = np.random.default_rng(seed)
    tables, found = [_array(table) for table in (true, approximate)], []
    for _ in range(resamples):
        rows, columns = (draw.integers(0, size, size) for size in tables[0].shape)
        drawn = [table[rows][:, columns].ravel() for table in tables]
        if min(np.ptp(values) for values in drawn) == 0:
            raise ValueError(
                f"a draw from a {' by '.join(map(str, true.shape))} table is constant; give a larger table"
            )
        found.append(np.corrcoef(*drawn)[0, 1])
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@typed
def comparison_table(
    exact: Tensor, approximations: Mapping[str, Tensor], published: Mapping[str, SignConfusion]
) -> "pd.DataFrame":
    """One row for each approximation (n,) of ``exact`` (n,), one for the best constant guess, and the published ones.

    Published rows are marked "(paper)" and have no correlation: only their counts were printed.
    """
    rows = {name: (sign_confusion(exact, values), pearson(exact, values)) for name, values in approximations.items()}
    majority_is_positive = bool((exact > 0).double().mean() > 0.5)
    guess = exact.abs() if majority_is_positive else -exact.abs()
    rows["constant guess"] = (sign_confusion(exact, guess), float("nan"))
    rows |= {f"{name} (paper)": (signs, float("nan")) for name, signs in published.items()}
    columns = ["TP", "TN", "FP", "FN", "agreement", "balanced accuracy", "Pearson r"]
    import pandas as pd  # here, because it takes most of a second that whoever only trains can save

    return pd.DataFrame(
        [
            (
                *(s.true_positive, s.true_negative, s.false_positive, s.false_negative),
                *(s.agreement, s.balanced_accuracy, r),
            )
            for s, r in rows.values()
        ],
        index=list(rows),
        columns=columns,
    )


def _varying(true: Tensor, approximate: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both vectors as arrays; refuses a pair that has no correlation."""
    _check_pair(true, approximate)
    for name, vector in (("true", true), ("approximate", approximate)):
        if bool((vector == vector[0]).all()):
            raise ValueError(f"the {name} values are all {vector[0].item()}: a correlation does not exist")
    return _array(true), _array(approximate)


def _array(table: Tensor) -> np.ndarray:
    """Return it as NumPy has it, without its history; bfloat16, which that lacks, as float32."""
    return (table.float() if table.dtype == torch.bfloat16 else table).detach().cpu().numpy()


def _check_pair(true: Tensor, approximate: Tensor) -> None:
    if true.is_complex() or approximate.is_complex():
        raise ValueError(f"true is {true.dtype}, approximate {approximate.dtype}: give real numbers")
    if true.shape != approximate.shape or true.dim() != 1 or len(true) == 0:
        raise ValueError(f"shapes {tuple(true.shape)} and {tuple(approximate.shape)}: give two vectors of one length")
    if not (true.isfinite().all() and approximate.isfinite().all()):
        where = "true" if not true.isfinite().all() else "approximate"
        raise ValueError(
            f"an influence is NaN or infinite among the {where}; look at how it was computed before comparing it"
        )
