"""Approximations of H⁻¹v: exact, identity, outer product, Neumann, conjugate gradients, LiSSA (notebook 02).

Every solver is a frozen dataclass of its settings and is called as ``solver(curvature, v)`` with v ``(P,)``, giving an
approximation of (H + δI)⁻¹v ``(P,)``.  The damping δ belongs to the ``Curvature``.  What a solve cost stands in
``curvature.products`` afterwards.  The iterative ones also have ``iterates(curvature, v)``, which yields the
approximation after each product, so that accuracy can be drawn against cost in one pass.  Any other callable of this
kind is a solver too; one that differs from the plain case in what ``SolverTraits`` lists says so by inheriting from it.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError, NotConvergedError
from metasp_lite.calculus.losses import ExampleLosses, Penalised, cross_entropy, per_example_gradients
from metasp_lite.doors import Seed, typed


class Solver(Protocol):
    """Anything that approximates (H + δI)⁻¹v."""

    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return an approximation of (H + δI)⁻¹v ``(P,)``."""
        ...


class SolverTraits:
    """What a solver says of itself; the plain case."""

    takes_columns: ClassVar[bool] = False  # v may be several columns (P, K), for the price of about one
    needs_plain_mean: ClassVar[bool] = False  # its matrix is made from the examples of one mean, all of equal weight


class _Iterative(SolverTraits):
    """A solver whose answer is the last of its iterates."""

    def iterates(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[Tensor]:
        raise NotImplementedError

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the last iterate ``(P,)``."""
        return deque(self.iterates(curvature, vector), maxlen=1)[0]


@dataclass(frozen=True)
class Exact(SolverTraits):
    """The solution itself, through the dense Hessian and its Cholesky factor (P² numbers, P³/3 multiplications).

    Takes v ``(P,)`` or several columns ``(P, K)``.  The factor is kept in the curvature: further solves are cheap.

    Raises:
        NegativeCurvatureError: when H + δI is not positive definite.
    """

    takes_columns = True

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return (H + δI)⁻¹v, with the shape of v."""
        columns = curvature.right_hand_side(vector, columns=True).view(len(vector), -1)
        half = torch.linalg.solve_triangular(curvature.cholesky, columns, upper=False)
        return torch.linalg.solve_triangular(curvature.cholesky.mT, half, upper=True).view_as(vector)


@typed
def solve_each(solver: Solver, curvature: Curvature[Penalised], vectors: Tensor) -> Tensor:
    """(H + δI)⁻¹v for each row v of ``vectors (K, P)``; (K, P).  All rows share one factor or one gradient graph."""
    if isinstance(solver, SolverTraits) and solver.takes_columns:
        return solver(curvature, vectors.T).T
    return torch.stack([solver(curvature, vector) for vector in vectors])


@dataclass(frozen=True)
class Identity(SolverTraits):
    """v itself: H replaced by the identity (Luketina et al., 2016, "T1−T2").  Costs nothing."""

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return v ``(P,)``."""
        return curvature.right_hand_side(vector).clone()


@dataclass(frozen=True)
class OuterProduct(SolverTraits):
    """H replaced by the damped empirical Fisher matrix, ((1/n) Σ g_i g_iᵀ + (λ + δ)I)⁻¹v with g_i = ∇ℓ(x_i) (Larsen).

    By Woodbury's identity with the n×n Gram matrix of the per-example gradients.  Larsen's single outer product has
    rank one; this damped per-example form is our reading of it.  Costs n per-example gradients, no product.

    Raises:
        ValueError: when λ + δ is 0, since n < P outer products cannot be inverted alone.
    """

    needs_plain_mean = True

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the damped empirical-Fisher solution ``(P,)``."""
        curvature.right_hand_side(vector)
        shift = curvature.objective.l2 + torch.full_like(vector, curvature.damping)
        if not bool((shift > 0).all()):
            raise ValueError(f"outer product: l2 + damping = {shift.min()} must be above 0; raise the damping")
        gradients = per_example_gradients(curvature.objective.losses, curvature.theta)
        shifted = gradients / shift
        gram = gradients @ shifted.T
        gram.diagonal().add_(len(gradients))
        inner = torch.linalg.solve(gram, shifted @ vector)
        return vector / shift - shifted.T @ inner


@dataclass(frozen=True)
class GaussNewton(SolverTraits):
    """H replaced by the generalised Gauss–Newton matrix of a classifier with cross-entropy (Schraudolph, 2002).

    (1/n) Σ_i Σ_c p_ic g_ic g_icᵀ + λ + δ, with g_ic the gradient that example i would have under label c and p_ic the
    model's probability of it: the second derivatives of the loss, without those of the network.  It is never
    indefinite.  Costs n·C per-example gradients and P³/3 multiplications.

    Raises:
        ValueError: for another loss than ``losses.cross_entropy``, or when the matrix with λ + δ is singular.
    """

    takes_columns = needs_plain_mean = True

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the solution, with the shape of v: ``(P,)``, or several columns ``(P, K)``."""
        losses, theta = curvature.objective.losses, curvature.theta
        if not isinstance(losses, ExampleLosses) or losses.loss is not cross_entropy:
            raise ValueError("Gauss–Newton: the losses are not functional.cross_entropy; take another solver")
        matrix = torch.diag(curvature.objective.l2 + torch.full_like(theta, curvature.damping))
        classes = torch.func.functional_call(losses.model, losses.unflatten(theta), (losses.inputs[:1],)).shape[1]
        for label in range(classes):
            under = ExampleLosses(losses.model, losses.inputs, torch.full_like(losses.labels, label), losses.loss)
            rows = per_example_gradients(under, theta) * (-0.5 * under(theta)).exp()[:, None]  # √p g
            matrix += rows.T @ rows / len(rows)
        columns = curvature.right_hand_side(vector, columns=True).view(len(vector), -1)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if info.item() != 0:
            raise ValueError("Gauss–Newton: the matrix is singular; raise the l2 regularisation or the damping")
        return torch.cholesky_solve(columns, factor).view_as(vector)


@typed
@dataclass(frozen=True)
class Neumann(_Iterative):
    """a Σ_{j<K} (I − aH)ʲ v, the first ``terms`` terms K of the Neumann series (Lorraine et al., 2020).

    ``step`` is a, 0 < a < 2/λmax; None takes 1/λmax.  Costs K − 1 products, beside those that find λmax.

    Raises:
        ValueError: for a step outside (0, 2/λmax): the series would diverge.
        NegativeCurvatureError: when a term grows, which no positive definite H allows.
    """

    terms: int
    step: float | None = None

    def iterates(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[Tensor]:
        """Yield the sum after each term ``(P,)``."""
        _at_least_one("terms", self.terms)
        step = _safe_step("neumann", self.step, curvature)
        term = curvature.right_hand_side(vector)
        total = step * term
        yield total
        for _ in range(self.terms - 1):
            product = curvature @ term
            following = term - step * product
            if following.norm() > term.norm() * (1 + 1e-9):  # |1 − aλ| ≤ 1 for every eigenvalue in [0, 2/a]
                # The quotient of this one term may still be positive; λmin is what the damping has to exceed.
                raise NegativeCurvatureError(curvature.smallest_eigenvalue, curvature.damping)
            term = following
            total = total + step * term
            yield total


@typed
@dataclass(frozen=True)
class ConjugateGradient(_Iterative):
    """Conjugate gradients: the best approximation, in the norm of H, that K products allow.

    Stops after ``iterations`` products.  With a ``tolerance`` it stops as soon as ‖v − Hs‖ ≤ tolerance·‖v‖.

    Raises:
        ValueError: for a tolerance that is not positive.
        NegativeCurvatureError: when it meets a direction p with pᵀHp ≤ 0.
        NotConvergedError: when ``iterations`` products did not reach ``tolerance``.
    """

    iterations: int
    tolerance: float | None = None

    def iterates(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[Tensor]:
        """Yield the approximation after each product ``(P,)``."""
        _at_least_one("iterations", self.iterations)
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance={self.tolerance} must be above 0, or None to run all the iterations")
        residual = curvature.right_hand_side(vector).clone()
        solution, direction, square = torch.zeros_like(vector), residual.clone(), residual.dot(residual)
        # Below this the residual is rounding: going on would divide noise by noise.
        target = (self.tolerance or torch.finfo(vector.dtype).eps) * vector.norm()
        if square.sqrt() <= target:
            yield solution
            return
        for _ in range(self.iterations):
            product = curvature @ direction
            slope = direction.dot(product)
            if slope <= 0:
                raise NegativeCurvatureError(float(slope / direction.dot(direction)), curvature.damping)
            step = square / slope
            solution = solution + step * direction
            residual -= step * product
            yield solution
            previous, square = square, residual.dot(residual)
            if square.sqrt() <= target:
                return
            direction = residual + (square / previous) * direction
        if self.tolerance is not None:
            raise NotConvergedError(
                f"conjugate gradients reached {float(square.sqrt() / vector.norm()):.2g} in {self.iterations} "
                f"products, not the tolerance {self.tolerance:.2g}; allow more iterations or raise the damping"
            )


@typed
@dataclass(frozen=True)
class LiSSA(_Iterative):
    """The Neumann recursion s ← a v + (I − aH_B)s on random batches B, averaged over repeats (Agarwal et al., 2017).

    ``step`` is a, 0 < a < 2/λmax of the whole Hessian (a batch's own λmax is larger: stay well below); None takes
    1/(2λmax).  Costs repeats · (depth − 1) · batch/n products.  ``seed`` draws the batches.

    Raises:
        ValueError: for a step outside (0, 2/λmax), a batch larger than n, or a step too large for the batches.
        NegativeCurvatureError: when the recursion grows a thousandfold beyond a·depth·‖v‖, its bound for
            0 ⪯ aH_B ⪯ 2, and meets negative curvature there.
    """

    depth: int
    batch: int
    repeats: int = 1
    step: float | None = None
    seed: Seed = 0

    def iterates(self, curvature: Curvature[Penalised], vector: Tensor) -> Iterator[Tensor]:
        """Yield, after each step of the last repeat, the average over the repeats so far ``(P,)``."""
        _at_least_one("depth", self.depth)
        _at_least_one("batch", self.batch)
        _at_least_one("repeats", self.repeats)
        n = len(curvature.objective.losses)
        if self.batch > n:
            raise ValueError(f"lissa: batch={self.batch} is larger than the {n} examples; lower it")
        curvature.right_hand_side(vector)
        step = _safe_step("lissa", self.step, curvature, default=0.5)
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


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")


def _safe_step(solver: str, step: float | None, curvature: Curvature[Penalised], default: float = 1.0) -> float:
    """Return the step size a, ``default``/λmax where it is None; refuse one that diverges."""
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
