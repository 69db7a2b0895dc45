"""H by its action on a few directions: Nyström's approximation, and the largest eigenvalues by Arnoldi's iteration."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import Penalised
from metasp_lite.calculus.solving import SolverTraits, right_hand_side, standard_normal
from metasp_lite.doors import Count, Seed, typed


@typed
@dataclass(frozen=True)
class Nystrom(SolverTraits):
    """H + δI replaced by U Λ Uᵀ + (λ + δ)(I − U Uᵀ), with U Λ Uᵀ its Nyström approximation from ``rank`` products.

    K Ω (Ωᵀ K Ω)⁻¹ Ωᵀ K with K = H + δI and ``rank`` random orthonormal directions Ω (Frangella, Tropp and Udell, 2023);
    exact when ``rank`` is P.  What is not sketched is taken to have no curvature but λ + δ.  As a preconditioner it
    leaves those directions the smallest eigenvalue of the sketch instead, so that they are not stretched.

    Raises:
        ValueError: when v is not like θ, when ``rank`` is above P, or when λ + δ is 0 or differs between parameters.
        NegativeCurvatureError: when H + δI is not positive definite in the sketched directions.
    """

    rank: Count
    seed: Seed = 0

    takes_columns = True

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the solution, with the shape of v: ``(P,)``, or several columns ``(P, K)``."""
        vector = right_hand_side(curvature, vector, columns=True)
        shift = curvature.shift
        if not bool((shift == shift[0]).all()) or not shift[0] > 0:
            raise ValueError(
                f"Nyström: l2 + damping lies between {shift.min()} and {shift.max()}; give one number above 0 for all "
                "parameters"
            )
        basis, values = self._sketch(curvature)
        return _spread(basis, values, shift[0], vector)

    def inverse(self, curvature: Curvature[Penalised]) -> Callable[[Tensor], Tensor]:
        """Return the preconditioner, a function of v ``(P,)``; the products are taken here, once."""
        basis, values = self._sketch(curvature)
        return lambda vector: _spread(basis, values, values[-1], vector)

    def _sketch(self, curvature: Curvature[Penalised]) -> tuple[Tensor, Tensor]:
        """Return U ``(P, rank)`` and the eigenvalues ``(rank,)``, the largest first."""
        theta = curvature.theta
        _require_room("rank", self.rank, len(theta))
        directions = torch.linalg.qr(standard_normal(theta, (len(theta), self.rank), self.seed))[0]
        products = torch.stack([curvature @ each for each in directions.T.contiguous()], dim=1)
        inner = directions.T @ products
        inner = (inner + inner.T) / 2
        factor, info = torch.linalg.cholesky_ex(inner)
        if info.item() != 0:
            smallest = float(torch.linalg.eigvalsh(inner)[0])
            raise NegativeCurvatureError(min(smallest, 0.0), curvature.damping)
        half = torch.linalg.solve_triangular(factor, products.T, upper=False).T
        basis, roots, _ = torch.linalg.svd(half, full_matrices=False)
        return basis, roots.square()


@typed
@dataclass(frozen=True)
class Arnoldi(SolverTraits):
    """H⁻¹v within the span of the ``rank`` largest eigenvectors of H + δI alone (Schioppa et al., 2022).

    They come from ``products`` steps of Arnoldi's iteration from a random start; for a symmetric H it is Lanczos's,
    here with every direction made orthogonal to all before.  What v has outside that span is dropped: the smallest
    eigenvalues, to which H⁻¹ gives the most weight.

    Raises:
        ValueError: when v is not like θ, when ``rank`` is above ``products``, or ``products`` above P.
        NegativeCurvatureError: when one of these eigenvalues is not positive.
    """

    rank: Count
    products: Count
    seed: Seed = 0

    takes_columns = True

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the solution, with the shape of v: ``(P,)``, or several columns ``(P, K)``."""
        vector = right_hand_side(curvature, vector, columns=True)
        basis, values = self._largest(curvature)
        columns = vector.reshape(len(vector), -1)
        return (basis @ ((basis.T @ columns) / values[:, None])).view_as(vector)

    def _largest(self, curvature: Curvature[Penalised]) -> tuple[Tensor, Tensor]:
        """Return the eigenvectors ``(P, rank)`` and their eigenvalues ``(rank,)``."""
        theta = curvature.theta
        _require_room("products", self.products, len(theta))
        _require_room("rank", self.rank, self.products)
        start = standard_normal(theta, (1, len(theta)), self.seed)
        basis = start / start.norm()  # rows
        images = theta.new_empty(0, len(theta))
        while True:
            images = torch.cat([images, (curvature @ basis[-1])[None]])
            if len(images) == self.products:
                break
            rest = images[-1]
            for _ in range(2):  # once leaves what rounding made of the first time
                rest = rest - basis.T @ (basis @ rest)
            if rest.norm() <= len(theta) ** 0.5 * torch.finfo(theta.dtype).eps * images[-1].norm():
                break  # H maps the span into itself: all that the start can reach is in it
            basis = torch.cat([basis, (rest / rest.norm())[None]])
        inner = basis @ images.T
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        kept = values.abs().argsort(descending=True)[: self.rank]
        values, vectors = values[kept], vectors[:, kept]
        if not values.min() > len(theta) ** 0.5 * torch.finfo(theta.dtype).eps * values.abs().max():
            raise NegativeCurvatureError(min(float(values.min()), 0.0), curvature.damping)
        return basis.T @ vectors, values


def _spread(basis: Tensor, values: Tensor, rest: Tensor, vector: Tensor) -> Tensor:
    """(U Λ Uᵀ + rest·(I − U Uᵀ))⁻¹v."""
    columns = vector.reshape(len(vector), -1)
    within = basis.T @ columns
    solution = basis @ (within / values[:, None]) + (columns - basis @ within) / rest
    return solution.view_as(vector)


def _require_room(name: str, value: int, most: int) -> None:
    if value > most:
        raise ValueError(f"{name}={value} must be at most {most}; there are no more directions")
