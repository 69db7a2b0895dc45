"""The Hessian of an objective at θ: products that are counted, the dense matrix, its factor and extreme eigenvalues."""

import math
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.first_layer import first_linear, hessian_by_first_layer
from metasp_lite.calculus.losses import ExampleLosses, Penalised, require_losses
from metasp_lite.calculus.parameters import require_places, require_vector
from metasp_lite.calculus.second_order import Graph, differentiated, gradient_graph, hessian_by_products
from metasp_lite.doors import Count, typed

_AnyObjective = TypeVar("_AnyObjective", bound=Penalised, covariant=True)


class Curvature(Generic[_AnyObjective]):
    """H + δI with H = ∇²J(θ), as a linear operator that counts what it costs.

    The gradient graph is built once and differentiated again for each product, so a product costs about two forward
    passes.  It holds all n examples; with a ``batch_size`` B only B at a time are in memory: H·v is a sum over pieces
    of at most B examples, whose graphs are built anew for each product, which costs about twice as much.

    ``products`` counts Hessian-vector products over all n examples; a product over B of them adds B/n.  Looks are not
    counted: two, before the first product, whether H is symmetric, one in ``dense`` whether a short cut gave H, and one
    in ``residual``.
    """

    @typed
    def __init__(
        self, objective: _AnyObjective, theta: Tensor, damping: float = 0.0, *, batch_size: Count | None = None
    ) -> None:
        """Evaluate J at θ ``(P,)``.

        Raises:
            ValueError: for a damping δ that is negative or not finite, a ``batch_size`` below 1, or losses that are not
                one for each example and a function of θ and that example alone.
            FloatingPointError: when a loss or the gradient is NaN or infinite.
        """
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping={damping} must be a finite number of at least 0")
        require_losses(objective.losses, theta)
        self.objective, self.damping, self.batch_size, self.products = objective, damping, batch_size, 0.0
        self._theta = theta.detach().clone()  # an optimiser that moves the caller's θ in place leaves this one
        self._graph: Graph | None = None
        if batch_size is None or batch_size >= len(objective.losses):
            self._graph = gradient_graph(objective, self._theta)
        slopes = (share * graph[1].detach() for share, graph in self._graphs())
        self._gradient = sum(slopes, torch.zeros_like(self._theta))
        self._symmetric = False  # whether H has been looked at

    @property
    def theta(self) -> Tensor:
        """A copy of θ ``(P,)``."""
        return self._theta.clone()

    @property
    def gradient(self) -> Tensor:
        """A copy of ∇J(θ) ``(P,)``."""
        return self._gradient.clone()

    @property
    def shift(self) -> Tensor:
        """λ + δ of each parameter ``(P,)``: what is added to the second derivatives of the losses."""
        return self.objective.l2 + torch.full_like(self._theta, self.damping)

    @typed
    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return (H + δI) v ``(P,)``.

        Raises:
            ValueError: when v is not like θ, or H is not symmetric.
            FloatingPointError: when a number in the product is NaN or infinite.
        """
        require_vector(vector, self._theta, "the vector")
        self._require_symmetry()
        self.products += 1
        return check_finite(self._product(vector), "a Hessian-vector product") + self.damping * vector.detach()

    @typed
    def residual(self, solution: Tensor, vector: Tensor) -> Tensor:
        """v − (H + δI) s ``(P,)``: what a solution s ``(P,)`` leaves of v; a look, which is not counted."""
        return vector - self._product(solution) - self.damping * solution

    @typed
    def on_batch(self, vector: Tensor, index: Tensor) -> Tensor:
        """(H_B + δI) v with the Hessian of the examples in ``index (B,)`` instead of all n; raises as ``@``.

        Raises:
            ValueError: when ``index`` is not at least one place among the n, too.
        """
        n = len(self.objective.losses)
        require_vector(vector, self._theta, "the vector")
        require_places(index, n, "index")
        self._require_symmetry()
        self.products += len(index) / n
        graph = gradient_graph(lambda theta: self.objective(theta, index), self._theta)
        product = differentiated(graph, vector, keep=False)
        return check_finite(product, "a Hessian-vector product of a batch") + self.damping * vector.detach()

    def dense(self) -> Tensor:
        """H + δI as a matrix ``(P, P)``.

        Raises:
            ValueError: when H is not symmetric.
            FloatingPointError: when a number in it is NaN or infinite.
        """
        hessian = self._dense_by_first_layer()
        if hessian is None:
            self._require_symmetry()
            hessian = torch.zeros(2 * [len(self._theta)], dtype=self._theta.dtype, device=self._theta.device)
            for share, graph in self._graphs():
                count = len(self.objective.losses) * share
                chunk = max(1, min(64, int(4096 // count)))  # more at once would not fit in memory
                hessian.add_(hessian_by_products(*graph, chunk), alpha=share)
        hessian.diagonal().add_(self.damping)
        return hessian

    @property
    def cholesky(self) -> Tensor:
        """A copy of the lower Cholesky factor C ``(P, P)``, C Cᵀ = H + δI.

        Raises:
            NegativeCurvatureError: when H + δI is not positive definite, or singular to rounding; names the smallest
                eigenvalue.
        """
        return self._factor.clone()

    def solve(self, columns: Tensor) -> Tensor:
        """(H + δI)⁻¹v for v ``(P,)`` or several columns ``(P, K)``.  The factor is kept: more cost almost nothing.

        Raises:
            NegativeCurvatureError: as ``cholesky``.
        """
        half = torch.linalg.solve_triangular(self._factor, columns.reshape(len(columns), -1), upper=False)
        return torch.linalg.solve_triangular(self._factor.mT, half, upper=True).view_as(columns)

    @cached_property
    def largest_eigenvalue(self) -> float:
        """λmax of H + δI, by Lanczos to four digits."""
        return self._extreme_eigenvalue("LA")

    @cached_property
    def smallest_eigenvalue(self) -> float:
        """λmin of H + δI, by Lanczos to four digits; negative where θ is not a minimum."""
        return self._extreme_eigenvalue("SA")

    @cached_property
    def _factor(self) -> Tensor:
        # H is symmetric, so its transpose is H in LAPACK's column order: factored in place, without a second copy.
        factor = self.dense().mT
        info = torch.empty((), dtype=torch.int32, device=factor.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        if info.item() != 0 or singular_to_rounding(factor):
            eigenvalues = torch.linalg.eigvalsh(self.dense())
            singular = eigenvalues[0] > -_rounding(factor) * eigenvalues[-1]
            raise NegativeCurvatureError(0.0 if singular else float(eigenvalues[0]), self.damping)
        return factor

    def _extreme_eigenvalue(self, which: str) -> float:
        size = len(self._theta)
        if size < 20:  # Lanczos needs room; the dense matrix is cheaper here anyway
            values = torch.linalg.eigvalsh(self.dense())
            return float(values[-1] if which == "LA" else values[0])
        from scipy.sparse import linalg  # here, because it takes half a second that whoever only trains can save

        def product(vector: np.ndarray) -> np.ndarray:
            return (self @ torch.as_tensor(vector.ravel()).to(self._theta)).cpu().numpy()

        operator = linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(size)  # fixed, so that the answer is too
        try:
            settings = {"v0": start, "tol": 1e-4, "return_eigenvectors": False}
            values = linalg.eigsh(operator, k=1, which=which, **settings)
        except linalg.ArpackNoConvergence:  # eigenvalues too close together: the dense matrix has them all
            values = torch.linalg.eigvalsh(self.dense())
        return float(values[-1] if which == "LA" else values[0])

    def _pieces(self) -> Iterator[tuple[float, Tensor | None]]:
        """Yield the share of the examples that each piece has, and which they are; None for all."""
        n = len(self.objective.losses)
        if self.batch_size is None or self.batch_size >= n:
            yield 1.0, None
        else:
            for index in torch.arange(n, device=self._theta.device).split(self.batch_size):
                yield len(index) / n, index

    def _graphs(self) -> Iterator[tuple[float, Graph]]:
        """Yield the share of each piece, and θ and the gradient of the piece with its graph."""
        for share, index in self._pieces():
            if self._graph is not None:
                yield share, self._graph
            else:
                yield share, gradient_graph(partial(self.objective, index=index), self._theta)

    def _product(self, vector: Tensor) -> Tensor:
        """H v ``(P,)``, not counted."""
        total = torch.zeros_like(self._theta)
        for share, graph in self._graphs():
            total.add_(differentiated(graph, vector, keep=self._graph is not None), alpha=share)
        return total

    def _require_symmetry(self) -> None:
        """Look once whether uᵀHv = vᵀHu for two random vectors, as it is for every second derivative.

        A layer's own second derivative may be wrong, that of a custom autograd.Function, say.
        """
        if self._symmetric:
            return
        (u, hu), (v, hv) = ((vector, self._product(vector)) for vector in self._probes(2))
        first, second = (float(a.double() @ b.double()) for a, b in ((u, hv), (v, hu)))
        # For entries of size 1 in u, an error e of Hv changes uᵀHv by about ‖e‖.
        if abs(first - second) > _tolerance(u) * float(hu.norm() + hv.norm()):
            raise ValueError(
                f"the second derivatives of the objective are wrong: uᵀHv = {first:.6g} and vᵀHu = {second:.6g} for "
                "two random vectors, where they should be equal; look at the backward pass of custom autograd "
                "functions and hooks, or use float64"
            )
        self._symmetric = True

    def _probes(self, count: int) -> Iterator[Tensor]:
        draw = torch.Generator().manual_seed(0)
        for _ in range(count):
            yield torch.randn(len(self._theta), generator=draw, dtype=torch.float64).to(self._theta)

    def _dense_by_first_layer(self) -> Tensor | None:
        """H by the short cut for a leading linear layer; None where there is none, or a product shows another H."""
        losses, hessian = self.objective.losses, torch.empty(0)
        if not isinstance(losses, ExampleLosses) or (first := first_linear(losses)) is None:
            return None
        for share, index in self._pieces():
            part = losses
            if index is not None:
                part = ExampleLosses(losses.model, losses.inputs[index], losses.labels[index], losses.loss)
            piece = hessian_by_first_layer(part, self._theta, first).mul_(share)  # P² numbers: in place
            hessian = piece if len(hessian) == 0 else hessian.add_(piece)
        hessian.diagonal().add_(self.objective.l2)
        (probe,) = self._probes(1)
        self._require_symmetry()
        product = self._product(probe)
        away = (hessian @ probe - product).norm()
        return hessian if away <= _tolerance(probe) * product.norm() else None


class NotConvergedError(RuntimeError):
    """A solver or training did not come as near to its end as was asked of it."""


class NegativeCurvatureError(ArithmeticError):
    """H + δI is not positive definite, so θ is not a (damped) minimum and an influence does not exist there."""

    def __init__(self, curvature: float, damping: float = 0.0, where: str = "here") -> None:
        """Say which ``curvature`` vᵀ(H + δI)v/‖v‖² was met, ``where``, and the way out.

        One of zero was met in a Hessian that is singular.
        """
        self.curvature, self.damping = curvature, damping
        place = where if where == "here" else f"in {where}"
        negative = curvature < 0
        kind, more = ("not positive definite", f" by more than {-curvature:.2g}") if negative else ("singular", "")
        super().__init__(
            f"met curvature {curvature:.3g} with damping {damping:.3g}: the Hessian is {kind} {place}; "
            f"train to a minimum, raise the l2 regularisation, or raise the damping{more}"
        )


def singular_to_rounding(factor: Tensor) -> bool:
    """Whether a Cholesky factor ``(P, P)`` is that of a matrix whose smallest pivot is rounding."""
    pivots = factor.diagonal().square()
    return bool(pivots.min() <= _rounding(factor) * pivots.max())


def _rounding(factor: Tensor) -> float:
    # rounding leaves about √P eps of a pivot that should be zero, and a solution as large as one over that
    return len(factor) ** 0.5 * torch.finfo(factor.dtype).eps


def _tolerance(vector: Tensor) -> float:
    """5e-7 in float64, 2e-3 in float32: far above rounding, and far below a wrong derivative of any one layer."""
    return torch.finfo(vector.dtype).eps ** 0.4
