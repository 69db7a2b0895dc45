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
from metasp_lite.calculus.solving import SolverTraits, right_hand_side
from metasp_lite.doors import typed


class _Kronecker(SolverTraits):
    """A block for each layer, diagonal in the basis of the eigenvectors of its two factors."""

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
        weights = output_roots(losses, theta)
        found = blocks(losses, theta, weights)
        curvature.products += (1 + len(weights)) / 2  # a product costs about two forward passes
        parts = [_Part.of(block, shift[block.where], corrected=self._corrected) for block in found]

        def solve(vector: Tensor) -> Tensor:
            columns = vector.reshape(len(vector), -1)
            solution = torch.empty_like(columns)
            for part in parts:
                solution[part.where] = part.solve(columns[part.where])
            return check_finite(solution, "a solution by Kronecker factors").view_as(vector)

        return solve


@dataclass(frozen=True)
class KFAC(_Kronecker):
    """H replaced by Kronecker factors of the Gauss–Newton matrix (Martens and Grosse, 2015), layer by layer.

    The block of a layer is A ⊗ B with A = mean of a aᵀ over examples and places, what goes into it, and
    B = (1/n) Σ g gᵀ, what comes back to it; layers do not meet.  For convolutions the places are its patches, each
    taken for an example of its own (Grosse and Martens, 2016).  λ + δ is added to each product of eigenvalues.
    Exact for a single linear layer where a and g do not depend on each other: one example, or the squared loss.
    Costs a pass forward and one back for each output, counted as half a product each, and an eigendecomposition of
    both factors of each layer, which no count of products shows.

    Raises:
        ValueError: when v is not like θ, for losses other than ``ExampleLosses``, for trained parameters outside linear
            and convolution layers, or when λ + δ differs within a layer or leaves a block singular.
    """

    _corrected = False


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
    into: Tensor  # (in, in), eigenvectors as columns
    back: Tensor  # (out, out)
    values: Tensor  # (out, in), eigenvalues of the block with λ + δ

    @classmethod
    def of(cls, block: Block, shift: Tensor, *, corrected: bool) -> "_Part":
        if not torch.equal(shift, shift.flatten()[0].expand_as(shift)):
            raise ValueError(
                f"Kronecker factors: λ + δ differs within the layer {block.name!r}; give one number for all of it"
            )
        n, places, width = block.into.shape
        a, g = block.into.reshape(-1, width), block.back.flatten(0, 2)
        into, back = a.T @ a / len(a), g.T @ g / n
        (into_values, into), (back_values, back) = map(torch.linalg.eigh, (into, back))
        values = back_values[:, None] * into_values
        if corrected:
            turned = (block.into @ into, block.back @ back)
            values = torch.zeros_like(values)
            for row in turned[1]:  # (n, T, out), of one output
                if places == 1:  # the gradient is one product b aᵀ, and its square that of both
                    values += row[:, 0].square().T @ turned[0][:, 0].square() / n
                else:
                    values += (row.mT @ turned[0]).square().mean(dim=0)
        values = values.clamp(min=0) + shift
        rounding = len(values.flatten()) ** 0.5 * torch.finfo(values.dtype).eps
        if not values.min() > rounding * values.max():
            raise ValueError(
                f"Kronecker factors: the block of the layer {block.name!r} is singular; raise the l2 regularisation or "
                "the damping"
            )
        return cls(block.where, into, back, values)

    def solve(self, columns: Tensor) -> Tensor:
        """The solution for ``columns (out, in, K)``."""
        turned = torch.einsum("ob,oik,ia->bak", self.back, columns, self.into) / self.values[:, :, None]
        return torch.einsum("ob,bak,ia->oik", self.back, turned, self.into)
