"""Gauss–Newton matrices in Kronecker factors: one small matrix for what goes into a layer, one for what comes back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.layers import Block, blocks
from metasp_lite.calculus.losses import Penalised
from metasp_lite.calculus.outer_products import losses_of_outputs, output_roots
from metasp_lite.calculus.solving import SolverTraits, right_hand_side, standard_normal
from metasp_lite.doors import Count, Seed, typed


@dataclass(frozen=True)
class _Kronecker(SolverTraits):
    """A block for each layer, diagonal in the basis of the eigenvectors of its two factors.

    What makes it cheap to build, for a preconditioner say: ``rank`` keeps the largest eigenvalues of each factor alone,
    found by one step of subspace iteration from random directions (Halko, Martinsson and Tropp, 2011), and leaves all
    other directions λ + δ; ``draws`` replaces the K passes back, one for each output, by as many with random signs,
    whose mean square is the same.
    """

    rank: Count | None = None
    draws: Count | None = None
    seed: Seed = 0

    takes_columns = needs_plain_mean = True
    _corrected: ClassVar[bool]  # whether the eigenvalues are taken anew

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the solution, with the shape of v: ``(P,)``, or several columns ``(P, K)``."""
        vector = right_hand_side(curvature, vector, columns=True)
        return self.inverse(curvature)(vector)

    def inverse(self, curvature: Curvature[Penalised]) -> Callable[[Tensor], Tensor]:
        """Return the inverse as a function of v ``(P,)`` or ``(P, K)``; the factors are computed here, once.

        Raises:
            ValueError: as the solver.
        """
        losses, theta, shift = losses_of_outputs(curvature, "Kronecker factors"), curvature.theta, curvature.shift

        def weights(outputs: Tensor) -> Tensor:
            roots = output_roots(losses, outputs)
            rows = roots if self.draws is None else self._mixed(roots, self.draws)
            curvature.products += (1 + len(rows)) / 2  # a product costs about two forward passes
            return rows

        found = blocks(losses, theta, weights)
        parts = [self._part(block, shift[block.where]) for block in found]

        def solve(vector: Tensor) -> Tensor:
            rows = vector.reshape(len(vector), -1).T
            solution = torch.empty_like(rows)
            for part in parts:
                solution[:, part.where] = part.solve(rows[:, part.where])
            return check_finite(solution, "a solution by Kronecker factors").T.reshape(vector.shape)

        return solve

    def _mixed(self, roots: Tensor, draws: int) -> Tensor:
        """Σ_k ±w_k ``(draws, n, K)`` with random signs of each example: E[wwᵀ] = Σ_k w_k w_kᵀ."""
        signs = standard_normal(roots, (draws, *roots.shape[:2]), self.seed).sign()
        return (signs[..., None] * roots).sum(dim=1) / draws**0.5

    def _part(self, block: Block, shift: Tensor) -> "_Part":
        if not torch.equal(shift, shift.flatten()[0].expand_as(shift)):
            raise ValueError(
                f"Kronecker factors: λ + δ differs within the layer {block.name!r}; give one number for all of it"
            )
        n, places, width = block.into.shape
        into_values, into = self._eigenvectors(block.into.reshape(-1, width), n * places)
        back_values, back = self._eigenvectors(block.back.flatten(0, 2), n)
        values = back_values[:, None] * into_values
        if self._corrected:
            turned = block.into @ into
            values = torch.zeros_like(values)
            for row in block.back @ back:  # (n, T, out), of one output
                if places == 1:  # the gradient is one product b aᵀ, and its square that of both
                    values += row[:, 0].square().T @ turned[:, 0].square() / n
                else:
                    values += (row.mT @ turned).square().mean(dim=0)
        rest = shift.flatten()[0]
        values = values.clamp(min=0) + rest
        rounding = block.where.numel() ** 0.5 * torch.finfo(values.dtype).eps
        smallest = values.min() if values.shape == block.where.shape else torch.minimum(values.min(), rest)
        if not smallest > rounding * values.max():
            raise ValueError(
                f"Kronecker factors: the block of the layer {block.name!r} is singular; raise the l2 regularisation or "
                "the damping"
            )
        return _Part(block.where, into, back, values, rest)

    def _eigenvectors(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors, as columns, of Σ rows rowsᵀ/count for ``rows (N, width)``."""
        basis = None
        if self.rank is not None and self.rank < rows.shape[1]:
            start = standard_normal(rows, (rows.shape[1], self.rank), self.seed)
            basis = torch.linalg.qr(rows.T @ (rows @ start))[0]
            rows = rows @ basis
        values, vectors = torch.linalg.eigh(rows.T @ rows / count)
        return values, vectors if basis is None else basis @ vectors


@typed
@dataclass(frozen=True)
class KFAC(_Kronecker):
    """H replaced by Kronecker factors of the Gauss–Newton matrix (Martens and Grosse, 2015), layer by layer.

    The block of a layer is A ⊗ B with A = mean of a aᵀ over examples and places, what goes into it, and
    B = (1/n) Σ g gᵀ, what comes back to it; layers do not meet.  For convolutions the places are its patches, each
    taken for an example of its own (Grosse and Martens, 2016).  λ + δ is added to each product of eigenvalues.
    Exact for a single linear layer where a and g do not depend on each other: one example, or the squared loss.
    Costs a pass forward and one back for each output (or draw), counted as half a product each, and an
    eigendecomposition of both factors of each layer (or of their ``rank``), which no count of products shows.

    Raises:
        ValueError: when v is not like θ, for losses other than ``ExampleLosses``, for trained parameters outside linear
            and convolution layers, or when λ + δ differs within a layer or leaves a block singular.
    """

    _corrected = False


@typed
@dataclass(frozen=True)
class EKFAC(_Kronecker):
    """K-FAC with the right length of each direction (George et al., 2018): eigenvectors as ``KFAC``, eigenvalues anew.

    The eigenvalue of the direction b aᵀ is the mean square of the gradients along it, (1/n) Σ (bᵀ G_i a)², with G_i the
    gradient of example i in the layer's weights; with it, of all matrices that are diagonal in this basis, the block
    is the nearest to the Gauss–Newton matrix.  Raises as ``KFAC``, costs two passes over the examples more.
    """

    _corrected = True


@dataclass(frozen=True)
class _Part:
    """The inverse of one layer's block."""

    where: Tensor  # (out, in)
    into: Tensor  # (in, r), eigenvectors as columns
    back: Tensor  # (out, q)
    values: Tensor  # (q, r), eigenvalues of the block with λ + δ
    rest: Tensor  # λ + δ, what directions outside have

    def solve(self, rows: Tensor) -> Tensor:
        """The solution for ``rows (K, out, in)``."""
        turned = self.back.T @ rows @ self.into
        if self.values.shape == self.where.shape:
            return self.back @ (turned / self.values) @ self.into.T
        inside = self.back @ (turned / self.values - turned / self.rest) @ self.into.T
        return rows / self.rest + inside
