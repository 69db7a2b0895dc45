"""The Hessian of an objective at θ: products that are counted, the dense matrix, its factor and extreme eigenvalues."""

import math
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from metasp_lite.calculus.first_layer import first_linear, hessian_by_first_layer
from metasp_lite.calculus.losses import ExampleLosses, Penalised, ScalarLoss, check_finite, require_losses
from metasp_lite.calculus.parameters import require_places, require_vector
from metasp_lite.doors import typed

_AnyObjective = TypeVar("_AnyObjective", bound=Penalised, covariant=True)


class Curvature(Generic[_AnyObjective]):
    """H + δI with H = ∇²J(θ), as a linear operator that counts what it costs.

    The gradient graph is built once and differentiated again for each product, so a product costs about two forward
    passes.  ``products`` counts Hessian-vector products over all n examples; a product over B of them adds B/n.
    """

    @typed
    def __init__(self, objective: _AnyObjective, theta: Tensor, damping: float = 0.0) -> None:
        """Evaluate J at θ ``(P,)``.

        Raises:
            ValueError: for a damping δ that is negative or not finite, or losses that are not one for each example and
                a function of θ and that example alone.
            FloatingPointError: when a loss or the gradient is NaN or infinite.
        """
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping={damping} must be a finite number of at least 0")
        require_losses(objective.losses, theta)
        self.objective, self.damping, self.products = objective, damping, 0.0
        self.theta = theta.detach().clone()  # an optimiser that moves the caller's θ in place leaves this one
        self._leaf, self._gradient = _gradient_graph(objective, self.theta)

    @property
    def gradient(self) -> Tensor:
        """∇J(θ) ``(P,)``."""
        return self._gradient.detach()

    @typed
    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return (H + δI) v ``(P,)``."""
        require_vector(vector, self.theta, "the vector")
        self.products += 1
        (product,) = torch.autograd.grad(self._gradient, self._leaf, vector, retain_graph=True)
        return check_finite(product, "a Hessian-vector product") + self.damping * vector

    @typed
    def right_hand_side(self, vector: Tensor, *, columns: bool = False) -> Tensor:
        """Return v ``(P,)``, or its ``columns (P, K)``, unchanged; refuse what is not like θ, NaN and infinity."""
        several = columns and vector.dim() == 2 and vector.shape[1] > 0
        require_vector(vector[:, 0] if several else vector, self.theta, "the right-hand side")
        return check_finite(vector, "the right-hand side")

    @typed
    def on_batch(self, vector: Tensor, index: Tensor) -> Tensor:
        """(H_B + δI) v with the Hessian of the examples in ``index (B,)`` instead of all n."""
        require_vector(vector, self.theta, "the vector")
        require_places(index, len(self.objective.losses), "index")
        self.products += len(index) / len(self.objective.losses)
        leaf, gradient_ = _gradient_graph(lambda theta: self.objective(theta, index), self.theta)
        (product,) = torch.autograd.grad(gradient_, leaf, vector)
        return check_finite(product, "a Hessian-vector product of a batch") + self.damping * vector

    def dense(self) -> Tensor:
        """H + δI as a matrix ``(P, P)``."""
        losses = self.objective.losses
        if isinstance(losses, ExampleLosses) and (first := first_linear(losses)) is not None:
            hessian = hessian_by_first_layer(losses, self.theta, first)
            hessian.diagonal().add_(self.objective.l2)
        else:
            chunk = max(1, min(64, 4096 // len(losses)))  # more at once would not fit in memory
            hessian = _hessian_by_products(self._leaf, self._gradient, chunk)
        hessian.diagonal().add_(self.damping)
        return hessian

    @cached_property
    def cholesky(self) -> Tensor:
        """Lower Cholesky factor C ``(P, P)``, C Cᵀ = H + δI.  Kept, so that further solves cost almost nothing.

        Raises:
            NegativeCurvatureError: when H + δI is not positive definite, or singular to rounding; names the smallest
                eigenvalue.
        """
        # H is symmetric, so its transpose is H in LAPACK's column order: factored in place, without a second copy.
        factor = self.dense().mT
        info = torch.empty((), dtype=torch.int32, device=factor.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        pivots = factor.diagonal().square()
        # rounding leaves about √P eps of a pivot that should be zero, and a solution as large as one over that
        rounding = len(factor) ** 0.5 * torch.finfo(factor.dtype).eps
        if info.item() != 0 or pivots.min() <= rounding * pivots.max():
            eigenvalues = torch.linalg.eigvalsh(self.dense())
            singular = eigenvalues[0] > -rounding * eigenvalues[-1]
            raise NegativeCurvatureError(0.0 if singular else float(eigenvalues[0]), self.damping)
        return factor

    @cached_property
    def largest_eigenvalue(self) -> float:
        """λmax of H + δI, by Lanczos to four digits."""
        return self._extreme_eigenvalue("LA")

    @cached_property
    def smallest_eigenvalue(self) -> float:
        """λmin of H + δI, by Lanczos to four digits; negative where θ is not a minimum."""
        return self._extreme_eigenvalue("SA")

    def _extreme_eigenvalue(self, which: str) -> float:
        size = len(self.theta)
        if size < 20:  # Lanczos needs room; the dense matrix is cheaper here anyway
            values = torch.linalg.eigvalsh(self.dense())
            return float(values[-1] if which == "LA" else values[0])

        def product(vector: np.ndarray) -> np.ndarray:
            return (self @ torch.as_tensor(vector.ravel()).to(self.theta)).cpu().numpy()

        operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(size)  # fixed, so that the answer is too
        try:
            settings = {"v0": start, "tol": 1e-4, "return_eigenvectors": False}
            values = scipy.sparse.linalg.eigsh(operator, k=1, which=which, **settings)
        except scipy.sparse.linalg.ArpackNoConvergence:  # eigenvalues too close together: the dense matrix has them all
            values = torch.linalg.eigvalsh(self.dense())
        return float(values[-1] if which == "LA" else values[0])


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


def _gradient_graph(objective: ScalarLoss, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return θ as a leaf and ∇J(θ) with the graph that lets it be differentiated again."""
    leaf = theta.detach().clone().requires_grad_()
    value = check_finite(objective(leaf), "the objective")
    (gradient_,) = torch.autograd.grad(value, leaf, create_graph=True)
    return leaf, check_finite(gradient_, "the gradient of the objective")


def _hessian_by_products(leaf: Tensor, gradient_: Tensor, chunk: int) -> Tensor:
    """H ``(P, P)`` from the graph of ∇J, ``chunk`` columns at a time, for any twice differentiable J."""
    hessian = leaf.new_empty(len(leaf), len(leaf))
    for start in range(0, len(leaf), chunk):
        rows = hessian[start : start + chunk]
        unit = torch.zeros_like(rows)
        unit[:, start : start + chunk].fill_diagonal_(1.0)
        (product,) = torch.autograd.grad(
            gradient_, leaf, unit, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        rows.copy_(product)
    check_finite(hessian.sum(dim=1), "a row sum of the Hessian")
    return hessian
