"""H⁻¹v as a power series in I − aH: Neumann's with the whole Hessian, and LiSSA's with one of a batch at every step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import Penalised
from metasp_lite.calculus.solving import Iterative, right_hand_side, safe_step
from metasp_lite.doors import Count, Seed, typed


@typed
@dataclass(frozen=True)
class Neumann(Iterative):
    """a Σ_{j<K} (I − aH)ʲ v, the first ``terms`` terms K of the Neumann series (Lorraine et al., 2020).

    ``step`` is a, 0 < a < 2/λmax; None takes 1/λmax.  Costs K − 1 products, beside those that find λmax.

    Raises:
        ValueError: when v is not like θ, or for a step outside (0, 2/λmax): the series would diverge.
        NegativeCurvatureError: when a term grows, which no positive definite H allows.
    """

    terms: Count
    step: float | None = None

    def iterates(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[Tensor]:
        """Yield the sum after each term ``(P,)``."""
        vector = right_hand_side(curvature, vector)
        step = safe_step("neumann", self.step, curvature)
        term = vector.clone()
        total = step * term
        yield total.clone()
        for _ in range(self.terms - 1):
            product = curvature @ term
            following = term - step * product
            if following.norm() > term.norm() * (1 + _rounding(vector)):  # |1 − aλ| ≤ 1 for every λ in [0, 2/a]
                # The quotient of this one term may still be positive; λmin is what the damping has to exceed.
                raise NegativeCurvatureError(curvature.smallest_eigenvalue, curvature.damping)
            term = following
            total = total + step * term
            yield total.clone()


@typed
@dataclass(frozen=True)
class LiSSA(Iterative):
    """The Neumann recursion s ← a v + (I − aH_B)s on random batches B, averaged over repeats (Agarwal et al., 2017).

    ``step`` is a, 0 < a < 2/λmax of the whole Hessian (a batch's own λmax is larger: stay well below); None takes
    1/(2λmax).  Costs repeats · (depth − 1) · batch/n products.  ``seed`` draws the batches.

    The mean over all draws leaves at most ‖v‖ of v, as |1 − aλ| ≤ 1.  An answer that leaves more
    (``Curvature.residual``) is further from solving than 0 is, made of the batches' scatter: it is refused.
    ``iterates`` yields it.

    Raises:
        ValueError: when v is not like θ, for a step outside (0, 2/λmax), a batch larger than n, or a step too large for
            the batches.
        NegativeCurvatureError: when the recursion grows a thousandfold beyond a·depth·‖v‖, its bound for
            0 ⪯ aH_B ⪯ 2, and meets negative curvature there.
    """

    depth: Count
    batch: Count
    repeats: Count = 1
    step: float | None = None
    seed: Seed = 0

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the average over the repeats ``(P,)``."""
        solution = super().__call__(curvature, vector)
        if self.depth > 1 and self.batch < len(curvature.objective.losses):
            left = curvature.residual(solution, vector)
            if not left.norm() <= vector.norm() * (1 + _rounding(vector)):
                raise ValueError(
                    f"lissa: batches of {self.batch} scatter more than they tell: ‖v − Hs‖ is "
                    f"{float(left.norm() / vector.norm()):.2g} ‖v‖, and 0 would leave ‖v‖; lower the step, enlarge the "
                    "batch, or average over more repeats"
                )
        return solution

    def iterates(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[Tensor]:
        """Yield, after each step of the last repeat, the average over the repeats so far ``(P,)``."""
        n = len(curvature.objective.losses)
        if self.batch > n:
            raise ValueError(f"lissa: batch={self.batch} is larger than the {n} examples; lower it")
        vector = right_hand_side(curvature, vector).clone()
        step = safe_step("lissa", self.step, curvature, default=0.5)
        generator = torch.Generator().manual_seed(self.seed)
        finished = torch.zeros_like(vector)
        for repeat in range(1, self.repeats + 1):
            estimate = step * vector
            for depth in range(1, self.depth + 1):
                if depth > 1:
                    index = torch.randperm(n, generator=generator)[: self.batch].to(vector.device)
                    product = curvature.on_batch(estimate, index)
                    if estimate.norm() > 1e3 * step * depth * vector.norm():
                        quotient = float(estimate.dot(product) / estimate.dot(estimate))
                        if quotient < 0:
                            raise NegativeCurvatureError(quotient, curvature.damping)
                        raise ValueError(
                            f"lissa diverges: step {step:.3g} is too large for batches of {self.batch}, "
                            f"where curvature {quotient:.3g} was met; lower the step or enlarge the batch"
                        )
                    estimate = step * vector + estimate - step * product
                if repeat == self.repeats:
                    yield (finished + estimate) / repeat
            finished = finished + estimate


def _rounding(vector: Tensor) -> float:
    """1e-9 in float64 and 1e-4 in float32: far above what rounding adds to a norm in one step."""
    return torch.finfo(vector.dtype).eps ** 0.575
