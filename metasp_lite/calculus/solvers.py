"""Approximations of H⁻¹v: exact, identity, outer product, Kronecker factors, Neumann, conjugate gradients, LiSSA.

Every solver is a frozen dataclass of its settings and is called as ``solver(curvature, v)`` with v ``(P,)``, giving an
approximation of (H + δI)⁻¹v ``(P,)``.  The damping δ belongs to the ``Curvature``.  What a solve cost stands in
``curvature.products`` afterwards.  The iterative ones also have ``iterates(curvature, v)``, which yields the
approximation after each product, so that accuracy can be drawn against cost in one pass.  Any other callable of this
kind is a solver too; one that differs from the plain case in what ``SolverTraits`` lists says so by inheriting from it.
"""

from dataclasses import dataclass

from torch import Tensor

from metasp_lite.calculus.conjugate_gradients import ConjugateGradient
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.kronecker import EKFAC, KFAC
from metasp_lite.calculus.losses import Penalised
from metasp_lite.calculus.low_rank import Arnoldi, Nystrom
from metasp_lite.calculus.outer_products import GaussNewton, OuterProduct
from metasp_lite.calculus.series import LiSSA, Neumann
from metasp_lite.calculus.solving import Solver, SolverTraits, right_hand_side, solve_each
from metasp_lite.doors import typed

__all__ = [
    "EKFAC",
    "KFAC",
    "Arnoldi",
    "ConjugateGradient",
    "Exact",
    "GaussNewton",
    "Identity",
    "LiSSA",
    "Neumann",
    "Nystrom",
    "OuterProduct",
    "Solver",
    "SolverTraits",
    "solve_each",
]


@dataclass(frozen=True)
class Exact(SolverTraits):
    """The solution itself, through the dense Hessian and its Cholesky factor (P² numbers, P³/3 multiplications).

    Takes v ``(P,)`` or several columns ``(P, K)``.  The factor is kept in the curvature: further solves are cheap.

    Raises:
        ValueError: when v is not like θ.
        NegativeCurvatureError: when H + δI is not positive definite.
    """

    takes_columns = True

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return (H + δI)⁻¹v, with the shape of v."""
        return curvature.solve(right_hand_side(curvature, vector, columns=True))


@dataclass(frozen=True)
class Identity(SolverTraits):
    """v itself: H replaced by the identity (Luketina et al., 2016, "T1−T2").  Costs nothing.

    Raises:
        ValueError: when v is not like θ.
    """

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return v ``(P,)``."""
        return right_hand_side(curvature, vector).clone()
