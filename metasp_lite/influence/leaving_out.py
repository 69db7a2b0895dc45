"""The truth that influence predicts: training again to the optimum without an example, or with less of its weight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.curvature import Curvature, NotConvergedError
from metasp_lite.calculus.losses import Objective, Penalised, ScalarLoss, SingleLoss
from metasp_lite.calculus.optimum import minimise, require_optimum
from metasp_lite.calculus.solvers import Exact
from metasp_lite.doors import Count, Whole, typed


@typed
def leave_one_out(curvature: Curvature[Penalised], validation: ScalarLoss, examples: Tensor, **settings: Any) -> Tensor:
    """True change of the validation loss when each of ``examples (K,)`` alone is left out of training; (K,).

    Retrains to the true optimum, by ``retrained_without`` with its ``settings``.  Influence predicts −f I_i/n.

    Raises:
        FloatingPointError: when the validation loss is NaN or infinite; and what ``retrained_without`` raises.
    """
    retrained = retrained_without(curvature, examples, **settings)
    before = validation(curvature.theta)
    return check_finite(vmap(validation, chunk_size=64)(retrained) - before, "a change of the validation loss")


@typed
def retrained_without(
    curvature: Curvature[Penalised],
    examples: Tensor,
    *,
    fraction: float = 1.0,
    tolerance: float = 1e-9,
    max_iterations: Whole = 50,
    chunk: Count = 64,
) -> Tensor:
    """θ retrained without each of ``examples (K,)`` alone, from the optimum θ̂; ``(K, P)``.

    To the optimum of J(θ) − f ℓ(x_i, θ)/n, by ``minimise_all`` with the Hessian of the full objective, which takes
    ``max_iterations`` and ``chunk``.  ``fraction`` f takes away only a part of the example's weight 1/n.

    Raises:
        ValueError: when ``curvature`` is damped, since retraining is not, when an example does not exist, or when
            ``fraction`` is not above 0 and at most 1, or ``tolerance`` not above 0.
        NegativeCurvatureError: when H is not positive definite at θ̂.
        NotConvergedError: when θ̂ is no optimum, or when retraining does not reach ‖∇J₋ᵢ‖ ≤ ``tolerance``.
    """
    objective, n = curvature.objective, len(curvature.objective.losses)
    examples = require_examples(examples, curvature)
    if not 0 < tolerance < float("inf"):
        raise ValueError(f"tolerance={tolerance} must be above 0 and finite")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie above 0 and be at most 1")
    require_optimum(curvature, tolerance, "training")

    def without(theta: Tensor, example: Tensor) -> Tensor:
        return objective(theta) - fraction * objective.losses(theta, example.unsqueeze(0)).squeeze(0) / n

    return minimise_all(
        curvature, without, examples, examples, chunk=chunk, tolerance=tolerance, max_iterations=max_iterations
    )


def require_examples(examples: Tensor, curvature: Curvature[Penalised], n: int | None = None) -> Tensor:
    """Return the indices ``examples (L,)`` on the curvature's device, as int64; ``n`` is that of its losses if None.

    Raises:
        ValueError: when they are not a vector of integers, when one does not exist among n (nothing would be left
            out, or something else), or when there is none.
    """
    n = len(curvature.objective.losses) if n is None else n
    if examples.dim() != 1 or examples.is_floating_point() or examples.dtype == torch.bool:
        raise ValueError(
            f"examples have the shape {tuple(examples.shape)} and {examples.dtype}: give a vector of indices, such as "
            "mask.nonzero()[:, 0]"
        )
    if len(examples) == 0 or int(examples.min()) < 0 or int(examples.max()) >= n:
        raise ValueError(f"examples must be at least one index between 0 and {n - 1}, got {examples.tolist()}")
    return examples.to(curvature.theta.device, torch.int64, copy=True)


def minimise_all(
    curvature: Curvature[Penalised],
    objective: Callable[[Tensor, Tensor], Tensor],
    varied: Tensor,
    examples: Tensor,
    *,
    chunk: int,
    tolerance: float = 1e-9,
    max_iterations: int = 50,
) -> Tensor:
    """Minimise K objectives near to one whose optimum θ̂ is known, each without one of ``examples (K,)``; ``(K, P)``.

    ``objective(theta, varied[k])`` is the k-th of them at θ ``(P,)``; gradients of ``chunk`` at a time are in memory.
    Newton steps from θ̂ with the Hessian H of the known objective as a fixed metric, as H⁻¹∇²J_k is nearly the identity;
    a step that would lengthen the gradient, measured by H⁻¹, is halved until it does not.  Where ``max_iterations``
    steps do not reach the optimum, leaving the example out is too large a change for H: ``optimum.minimise`` trains
    those again from θ̂, one by one.

    Raises:
        ValueError: when ``curvature`` is damped.
        NegativeCurvatureError: when H is not positive definite at θ̂.
        NotConvergedError: when one of the K does not reach an optimum with a gradient norm of ``tolerance``; names it.
        FloatingPointError: when a gradient at θ̂ is NaN or infinite.
    """
    if curvature.damping:
        raise ValueError(f"damping={curvature.damping}: give the undamped curvature, retraining knows no damping")
    curvature.solve(torch.zeros_like(curvature.theta))  # raises here even where nothing pulls θ̂ away from a saddle
    points, open_ = curvature.theta.repeat(len(varied), 1), torch.arange(len(varied), device=varied.device)

    def newton(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the open objectives, the steps against them, and their lengths, ∇ᵀH⁻¹∇."""
        slopes = vmap(grad(objective), chunk_size=chunk)(at, varied[open_])
        steps = Exact()(curvature, slopes.nan_to_num(0, 0, 0).T).T
        lengths = (slopes * steps).sum(dim=1)
        return slopes, steps, lengths.where(slopes.isfinite().all(dim=1), torch.inf)

    here, share = points.clone(), points.new_ones(len(points))
    slopes, steps, lengths = newton(here)
    check_finite(slopes, "a gradient while retraining")
    for iteration in range(max_iterations + 1):
        left = slopes.norm(dim=1) > tolerance
        points[open_] = here
        open_, here, share, slopes, steps, lengths = (
            each[left] for each in (open_, here, share, slopes, steps, lengths)
        )
        if len(open_) == 0:
            return points
        if iteration == max_iterations:
            break
        ahead = here - share[:, None] * steps
        slopes_there, steps_there, lengths_there = newton(ahead)
        better = lengths_there < lengths
        here, slopes, steps = (
            torch.where(better[:, None], new, old)
            for new, old in ((ahead, here), (slopes_there, slopes), (steps_there, steps))
        )
        lengths = torch.where(better, lengths_there, lengths)
        share = torch.where(better, (2 * share).clamp(max=1), share / 2)
    for k in open_:

        def alone(theta: Tensor, row: Tensor = varied[k]) -> Tensor:
            return objective(theta, row)

        try:
            points[k] = minimise(Objective(SingleLoss(alone)), curvature.theta, tolerance=tolerance)
        except (ArithmeticError, RuntimeError) as error:
            raise NotConvergedError(f"retraining without example {int(examples[k])}: {error}") from error
    return points
