"""Matrices made of first derivatives alone, in place of the Hessian: the empirical Fisher and Gauss–Newton matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.curvature import Curvature, singular_to_rounding
from metasp_lite.calculus.first_layer import is_plain
from metasp_lite.calculus.losses import ExampleLosses, Penalised, per_example_gradients
from metasp_lite.calculus.solving import SolverTraits, right_hand_side
from metasp_lite.doors import typed


@dataclass(frozen=True)
class OuterProduct(SolverTraits):
    """H replaced by the damped empirical Fisher matrix, ((1/n) Σ g_i g_iᵀ + (λ + δ)I)⁻¹v with g_i = ∇ℓ(x_i) (Larsen).

    By Woodbury's identity with the n×n Gram matrix of the per-example gradients.  Larsen's single outer product has
    rank one; this damped per-example form is our reading of it.  It resembles H where the losses are negative
    log-likelihoods of a model that fits; losses c times as large make it c² times as large, and H c times.  Costs n
    per-example gradients, no product.

    Raises:
        ValueError: when v is not like θ, or when λ + δ is 0 or so small that nothing but rounding would be left, since
            n < P outer products cannot be inverted alone.
    """

    needs_plain_mean = True

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the damped empirical-Fisher solution ``(P,)``."""
        vector = right_hand_side(curvature, vector)
        shift = curvature.shift
        if not bool((shift > 0).all()):
            raise ValueError(f"outer product: l2 + damping = {shift.min()} must be above 0; raise the damping")
        gradients = per_example_gradients(curvature.objective.losses, curvature.theta)
        shifted = gradients / shift
        gram = gradients @ shifted.T
        gram.diagonal().add_(len(gradients))
        inner = torch.linalg.solve(gram, shifted @ vector)
        solution = vector / shift - shifted.T @ inner
        # Woodbury's identity takes the difference of two vectors of size ‖v‖/(λ + δ), which may be all rounding.
        left = vector - shift * solution - gradients.T @ (gradients @ solution) / len(gradients)
        if not left.norm() <= torch.finfo(vector.dtype).eps ** 0.4 * vector.norm():
            raise ValueError(
                f"outer product: l2 + damping = {shift.min():.2g} is too small beside the gradients for "
                f"{vector.dtype}; raise the damping"
            )
        return solution


@dataclass(frozen=True)
class GaussNewton(SolverTraits):
    """H replaced by the generalised Gauss–Newton matrix of the network and its loss (Schraudolph, 2002).

    (1/n) Σ_i J_iᵀ A_i J_i + λ + δ, with J_i the Jacobian of the K outputs for example i and A_i ``(K, K)`` the second
    derivatives of its loss in them, whatever the labels: the Hessian without the second derivatives of the network.
    It is never indefinite.  Costs K per-example gradients for each of n examples and P³/3 multiplications.

    Raises:
        ValueError: when v is not like θ, for losses whose outputs and labels are not known (other than
            ``ExampleLosses``) or that are not convex in the outputs, or when the matrix with λ + δ is singular.
    """

    takes_columns = needs_plain_mean = True

    @typed
    def __call__(self, curvature: Curvature[Penalised], vector: Tensor) -> Tensor:
        """Return the solution, with the shape of v: ``(P,)``, or several columns ``(P, K)``."""
        vector = right_hand_side(curvature, vector, columns=True)
        losses, theta = losses_of_outputs(curvature, "Gauss–Newton"), curvature.theta
        matrix = torch.diag(curvature.shift)
        for weights in output_roots(losses, losses.outputs(theta)):
            rows = per_example_gradients(_Weighted(losses, weights), theta)
            matrix += rows.T @ rows / len(rows)
        factor, info = torch.linalg.cholesky_ex(check_finite(matrix, "the Gauss–Newton matrix"))
        if info.item() != 0 or singular_to_rounding(factor):
            raise ValueError("Gauss–Newton: the matrix is singular; raise the l2 regularisation or the damping")
        return torch.cholesky_solve(vector.view(len(vector), -1), factor).view_as(vector)


@dataclass(frozen=True)
class _Weighted:
    """w_iᵀ z_i of each example ``(n,)``: a weighted sum of its outputs z_i, with ``weights (n, K)``."""

    losses: ExampleLosses
    weights: Tensor

    def __len__(self) -> int:
        return len(self.losses)

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        weights = self.weights if index is None else self.weights[index]
        return (weights * self.losses.outputs(theta, index).reshape(len(weights), -1)).sum(dim=1)


def losses_of_outputs(curvature: Curvature[Penalised], solver: str) -> ExampleLosses:
    """Return the losses of the curvature, which are those of a network's outputs.

    Raises:
        ValueError: when they are not, or may be something else; names the ``solver`` that needs them.
    """
    losses = curvature.objective.losses
    if not isinstance(losses, ExampleLosses) or not is_plain(losses):
        raise ValueError(
            f"{solver}: the losses are {type(losses).__name__}, whose outputs and labels are not known; give "
            "ExampleLosses, or take another solver"
        )
    return losses


def output_roots(losses: ExampleLosses, outputs: Tensor) -> Tensor:
    """Weights ``(K, n, K)`` of the ``outputs (n, …)``, A_i = Σ_k w_ki w_kiᵀ: second derivatives of each loss in them.

    The rows of the symmetric square root of A_i: there is one, where roots of another kind have a choice of signs.

    Raises:
        ValueError: when an eigenvalue is negative by more than rounding.
    """
    outputs = outputs.detach()
    leaf = outputs.reshape(len(losses), -1).requires_grad_()
    with torch.enable_grad():
        value = losses.loss(leaf.view_as(outputs), losses.labels).sum()
        (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
        rows = [
            torch.autograd.grad(column.sum(), leaf, retain_graph=True, materialize_grads=True)[0]
            if slope.requires_grad
            else torch.zeros_like(leaf)  # a loss that is linear in the outputs
            for column in slope.unbind(1)
        ]
    second = check_finite(torch.stack(rows, dim=1).detach(), "a second derivative of a loss in the outputs")
    values, vectors = torch.linalg.eigh((second + second.mT) / 2)
    rounding = 100 * torch.finfo(values.dtype).eps * values.abs().max()
    if values.min() < -rounding:
        raise ValueError(
            f"Gauss–Newton: the loss is not convex in the outputs (a second derivative of {values.min():.3g}), so the "
            "matrix may be indefinite; take another solver"
        )
    return ((vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT).permute(1, 0, 2)
