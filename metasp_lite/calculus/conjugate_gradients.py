"""H⁻¹v by conjugate gradients, and when their answer means nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError, NotConvergedError
from metasp_lite.calculus.losses import Penalised
from metasp_lite.calculus.solving import Iterative, Preconditioner, right_hand_side
from metasp_lite.doors import Count, typed


@dataclass
class _State:
    """An iterate and what is known of it for nothing."""

    solution: Tensor
    residual: Tensor  # v − Hs, carried along
    largest: float = 0.0  # the largest ‖Hp‖/‖p‖ met, λmax from below
    norm: float = 0.0  # the largest ‖s‖ met


@typed
@dataclass(frozen=True)
class ConjugateGradient(Iterative):
    """Conjugate gradients: the best approximation, in the norm of H, that K products allow.

    Stops after ``iterations`` products.  With a ``tolerance``, 0 < tolerance < 1, it stops as soon as
    ‖v − Hs‖ ≤ tolerance·‖v‖.  Where v has a part outside the range of a singular H there is no solution, and the
    iterates grow without end; an answer that shows it is refused, ``iterates`` yields it.  Where rounding may have
    parted the residual that is carried along from v − Hs, it is computed anew (``Curvature.residual``).

    With a ``preconditioner`` M⁻¹ near H⁻¹ (``KFAC``, ``EKFAC``, ``Nystrom``) the eigenvalues that count are those of
    M⁻¹H, which lie closer together, so that fewer products get as near.  What it costs to prepare stands in
    ``curvature.products``, too.

    Raises:
        ValueError: when v is not like θ, for a tolerance that is not between 0 and 1, or for a preconditioner that is
            not positive definite.
        NegativeCurvatureError: when it meets a direction p with pᵀHp ≤ 0, to rounding.
        NotConvergedError: when ``iterations`` products did not reach ``tolerance``, or left more than ‖v‖ along flat
            directions.
    """

    iterations: Count
    tolerance: float | None = None
    preconditioner: Preconditioner | None = None

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the last iterate ``(P,)``."""
        before = curvature.products
        for state in self._states(curvature, vector):  # noqa: B007 the last one is wanted
            pass
        size, left = float(vector.norm()), float(state.residual.norm())
        if size == 0:
            return state.solution
        # The residual that is carried along leaves v − Hs by about eps·λmax·‖s‖ (Greenbaum, 1997).
        drift = torch.finfo(vector.dtype).eps * state.largest * state.norm / size
        if drift > (self.tolerance or 0.01):
            left = float(curvature.residual(state.solution, vector).norm())
            if self.tolerance and left > 2 * self.tolerance * size:
                raise NotConvergedError(
                    f"conjugate gradients cannot reach the tolerance {self.tolerance:.2g}: rounding in {vector.dtype} "
                    f"leaves ‖v − Hs‖ at {left / size:.2g} ‖v‖; use float64, raise the l2 regularisation or the damping"
                )
        # sᵀHs = sᵀv: how flat H is along the answer, in parts of λmax
        flat = float(state.solution.dot(vector)) / (state.largest * float(state.solution.norm()) ** 2)
        # At most 150 on the way to the toy's optimum (notebook 02), 290 at its saddle after 5 products; answers above
        # 50 times the pseudo-inverse's in 10 singular problems of rank 6 and 10 had at least 800.
        if not math.isfinite(left) or (left > size and left > 500 * flat * size):
            raise NotConvergedError(
                f"conjugate gradients: after {curvature.products - before:.0f} products ‖v − Hs‖ is "
                f"{left / size:.2g} ‖v‖, where 0 would leave ‖v‖, and s lies in directions of {flat:.1g} λmax: the "
                "Hessian is singular there or nearly so, and v outside its range; raise the l2 regularisation or the "
                "damping, or allow more iterations"
            )
        return state.solution

    def iterates(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[Tensor]:
        """Yield the approximation after each product ``(P,)``."""
        for state in self._states(curvature, vector):
            yield state.solution.clone()

    def _states(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[_State]:
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(
                f"tolerance={self.tolerance} must be above 0 and below 1, the share of ‖v‖ that may be left (0 solves "
                "to 1), or None to run all the iterations"
            )
        if isinstance(self.preconditioner, type):
            raise ValueError(f"preconditioner={self.preconditioner.__name__} is a class: give one, called with ()")
        vector = right_hand_side(curvature, vector)
        state = _State(torch.zeros_like(vector), vector.clone())
        eps = torch.finfo(vector.dtype).eps
        # Below this the residual is rounding: going on would divide noise by noise.
        target = (self.tolerance or eps) * vector.norm()
        if vector.norm() <= target:
            yield state
            return
        inverse = self.preconditioner.inverse(curvature) if self.preconditioner else torch.clone
        direction = inverse(vector)
        square = vector.dot(direction)  # rᵀM⁻¹r
        for _ in range(self.iterations):
            product = curvature @ direction
            slope, length = direction.dot(product), direction.dot(direction)
            state.largest = max(state.largest, float(product.norm() / length.sqrt()))
            flat = len(vector) ** 0.5 * eps * state.largest  # as rounding leaves of an eigenvalue that should be zero
            quotient = float(slope / length)
            if quotient <= flat:
                raise NegativeCurvatureError(quotient if quotient < -flat else 0.0, curvature.damping)
            step = square / slope
            state.solution = state.solution + step * direction
            state.residual = state.residual - step * product
            state.norm = max(state.norm, float(state.solution.norm()))
            yield state
            if state.residual.norm() <= target:
                return
            turned = inverse(state.residual)
            previous, square = square, state.residual.dot(turned)
            if not square > 0:
                raise ValueError(
                    f"conjugate gradients: rᵀM⁻¹r = {float(square):.3g} with {self.preconditioner}, which is not "
                    "positive definite; take another preconditioner"
                )
            direction = turned + (square / previous) * direction
        if self.tolerance is not None:
            raise NotConvergedError(
                f"conjugate gradients reached {float(state.residual.norm() / vector.norm()):.2g} in {self.iterations} "
                f"products, not the tolerance {self.tolerance:.2g}; allow more iterations or raise the damping"
            )
