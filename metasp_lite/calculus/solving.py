"""What all solvers have in common: how one is called, what it says of itself and which right-hand sides it takes."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import Penalised
from metasp_lite.calculus.parameters import require_vector
from metasp_lite.doors import typed


class Solver(Protocol):
    """Anything that approximates (H + δI)⁻¹v."""

    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return an approximation of (H + δI)⁻¹v ``(P,)``."""
        ...


class Preconditioner(Protocol):
    """A solver whose answer is linear in v and symmetric positive definite, and cheap once it is prepared."""

    def inverse(self, curvature: Curvature[Penalised]) -> Callable[[Tensor], Tensor]:
        """Return it as a function of v ``(P,)``."""
        ...


class SolverTraits:
    """What a solver says of itself; the plain case."""

    takes_columns: ClassVar[bool] = False  # v may be several columns (P, K), for the price of about one
    needs_plain_mean: ClassVar[bool] = False  # its matrix is made from the examples of one mean, all of equal weight


class Iterative(SolverTraits):
    """A solver whose answer is the last of its iterates."""

    def iterates(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[Tensor]:
        """Yield the approximation after each product ``(P,)``."""
        raise NotImplementedError

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the last iterate ``(P,)``."""
        return deque(self.iterates(curvature, vector), maxlen=1)[0]


@typed
def solve_each(solver: Solver, curvature: Curvature[Penalised], vectors: Tensor) -> Tensor:
    """(H + δI)⁻¹v for each row v of ``vectors (K, P)``; (K, P).  All rows share one factor or one gradient graph.

    Raises:
        ValueError: when the vectors are no rows like θ.
    """
    if vectors.dim() != 2 or len(vectors) == 0:
        raise ValueError(f"the right-hand sides have the shape {tuple(vectors.shape)}: give rows (K, P), at least one")
    if isinstance(solver, SolverTraits) and solver.takes_columns:
        return solver(curvature, vectors.T).T
    return torch.stack([solver(curvature, vector) for vector in vectors])


def right_hand_side(curvature: Curvature[Penalised], vector: Tensor, *, columns: bool = False) -> Tensor:
    """Return v without its history, ``(P,)``; with ``columns`` it may be ``(P, K)``.  The door of every solver.

    Raises:
        ValueError: when v is not like θ: another shape, dtype or device.
        FloatingPointError: when a number in it is NaN or infinite.
    """
    require_vector(vector, curvature.theta, "the right-hand side", columns=columns)
    return check_finite(vector.detach(), "the right-hand side")


def standard_normal(like: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers of a ``shape``, the same on every device and of every dtype."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(like)


def safe_step(solver: str, step: float | None, curvature: Curvature[Penalised], default: float = 1.0) -> float:
    """Return the step size a, ``default``/λmax where it is None.

    Raises:
        ValueError: for a step outside (0, 2/λmax), with which a series diverges.
        NegativeCurvatureError: when no eigenvalue is positive.
    """
    largest = curvature.largest_eigenvalue
    if largest <= 0:
        raise NegativeCurvatureError(largest, curvature.damping)
    if step is None:
        return default / largest
    if not 0 < step < 2 / largest:
        raise ValueError(
            f"{solver} diverges: step {step:.3g} must lie between 0 and 2/λmax = {2 / largest:.3g}; "
            "choose one inside, or None for a safe one"
        )
    return step
