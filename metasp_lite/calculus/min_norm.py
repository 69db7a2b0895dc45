"""The common descent direction of two objectives: the shortest vector between two (MGDA for two; MetaSP, eq. 11)."""

from typing import NamedTuple

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.doors import typed


class _MinNormPoint(NamedTuple):
    """The shortest vector γ g₁ + (1−γ) g₂ of the segment between two vectors."""

    gamma: Tensor  # (), between 0 and 1; the weight of the FIRST vector
    point: Tensor  # (n,)


@typed
def min_norm_pair(first: Tensor, second: Tensor) -> _MinNormPoint:
    """γ* = argmin ‖γ g₁ + (1−γ) g₂‖² over 0 ≤ γ ≤ 1, in closed form: clip((g₂−g₁)ᵀg₂ / ‖g₂−g₁‖², 0, 1).

    Source: MetaSP, eq. 11 and appendix I; Désidéri 2012.  ``first`` g₁ and ``second`` g₂ are ``(n,)`` floats.
    Degenerate cases: equal vectors leave γ free, and 0.5 is returned; a zero vector is itself the shortest; opposite
    vectors meet in the point 0, where no direction improves both.  Both vectors are divided by their largest entry
    first, so that no square overflows or vanishes; sums of half-precision squares are taken in float32.

    Raises:
        ValueError: when the two are not floating-point vectors of one length and one dtype.
        FloatingPointError: when an entry is NaN or infinite.
    """
    if first.dim() != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)}: give two vectors of one length")
    if not first.is_floating_point() or first.dtype != second.dtype:
        raise ValueError(f"dtypes {first.dtype} and {second.dtype}: give floating-point vectors of one dtype")
    check_finite(first, "the first vector")
    check_finite(second, "the second vector")
    scale = torch.maximum(first.abs().max(), second.abs().max())
    scale = torch.where(scale > 0, scale, 1.0)
    precise = torch.promote_types(first.dtype, torch.float32)
    unit_first, unit_second = (first / scale).to(precise), (second / scale).to(precise)
    difference = unit_second - unit_first
    size = difference.abs().max()
    direction = difference / torch.where(size > 0, size, 1.0)
    squared = size * (direction @ direction)
    # γ = (g₂−g₁)ᵀg₂ / ‖g₂−g₁‖² and 1−γ = (g₁−g₂)ᵀg₁ / ‖g₂−g₁‖².  Computed is the weight of the longer vector, and the
    # other as 1 − it: the other way round, a rounding error of 1e-16 times the longer could swamp the shorter.
    of_first = (direction @ unit_second / squared).clamp(0.0, 1.0)
    of_second = (-(direction @ unit_first) / squared).clamp(0.0, 1.0)
    first_is_longer = unit_first.norm() > unit_second.norm()
    gamma = torch.where(first_is_longer, of_first, 1 - of_second)
    rest = torch.where(first_is_longer, 1 - of_first, of_second)
    gamma, rest = (torch.where(size > 0, weight, 0.5).to(first) for weight in (gamma, rest))  # 0/0: they are equal
    return _MinNormPoint(gamma, gamma * first + rest * second)
