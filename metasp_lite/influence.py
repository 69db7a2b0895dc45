"""Influence of training examples on a validation loss (MetaSP, appendix B), and the truth it predicts.

Sign everywhere: influence is d(validation loss)/d(example weight).  **Negative helps**: training more on the example
lowers the validation loss.  (The MetaSP paper's prose calls such an example "positive".)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from metasp_lite.functional import (
    Curvature,
    Objective,
    check_finite,
    gradient,
    loss_directional_derivatives,
)
from metasp_lite.pseudo_update import PseudoUpdate, SGDRule
from metasp_lite.solvers import Exact, Solver

ScalarLoss = Callable[[Tensor], Tensor]  # θ (P,) -> ()


def influence(losses: Callable[..., Tensor], validation: ScalarLoss, curvature: Curvature, solver: Solver) -> Tensor:
    """Influence of each example on the validation loss, I(V, B) = −∇L H⁻¹ ∇ℓ(V); returns (B,).

    ``losses`` are those of the examples to score (the training examples, or a batch of them), ``curvature`` is taken
    at the optimum of the training objective.  One solve for all examples, then one forward-mode pass.
    Leaving example i out of the n that were trained on changes the validation loss by −I_i/n, to first order.
    """
    solution = solver(curvature, gradient(validation, curvature.theta))
    return -check_finite(loss_directional_derivatives(losses, curvature.theta, solution), "an influence")


def pseudo_update_influence(
    objective: Objective, validation: ScalarLoss, theta: Tensor, *, step: float, steps: int = 1
) -> Tensor:
    """MetaSP's influence: differentiate ℓ(V, θ_K) after K pseudo-update steps with respect to the weights E; (n,).

    θ_{k+1} = θ_k − a ∇(J + EᵀL/n)(θ_k); at E = 0 the derivative is −(a/n) Σ_{k<K} ∇L(θ_k) u_{k+1} with
    u_K = ∇ℓ(V, θ_K) and u_k = (I − aH(θ_k)) u_{k+1} (derived in notebook 02).  The result is n times that, so that
    it has the scale of ``influence``, where an example's weight is not divided by n.  Exact at any θ ``(P,)``,
    stationary or not.  At a stationary point it equals the Neumann series of ``steps`` terms.  Keeps K·P numbers.

    Raises:
        ValueError: for a step that is not positive, or fewer than one step.
        FloatingPointError: when a pseudo-update leaves the finite numbers; lower the step.
    """
    if not step > 0 or steps < 1:
        raise ValueError(f"step={step}, steps={steps}: the step must be positive and there must be at least one")
    rule = SGDRule(step, weight_decay=objective.l2)
    pseudo = PseudoUpdate(lambda parameters: objective.losses(*parameters), [theta], [rule], [None], steps=steps)
    (total,) = pseudo.influences([gradient(validation, *pseudo.parameters)])
    return len(total) * total


def leave_one_out(curvature: Curvature, validation: ScalarLoss, examples: Tensor, **settings: Any) -> Tensor:
    """True change of the validation loss when each of ``examples (K,)`` alone is left out of training; (K,).

    Retrains to the true optimum, by ``retrained_without`` with its ``settings``.  Influence predicts −f I_i/n.

    Raises:
        FloatingPointError: when the validation loss is NaN or infinite; and what ``retrained_without`` raises.
    """
    retrained = retrained_without(curvature, examples, **settings)
    before = validation(curvature.theta)
    return check_finite(vmap(validation, chunk_size=64)(retrained) - before, "a change of the validation loss")


def retrained_without(
    curvature: Curvature,
    examples: Tensor,
    *,
    fraction: float = 1.0,
    tolerance: float = 1e-9,
    max_iterations: int = 200,
    chunk: int = 64,
) -> Tensor:
    """θ retrained without each of ``examples (K,)`` alone, from the optimum θ̂; ``(K, P)``.

    To the optimum of J(θ) − f ℓ(x_i, θ)/n, all K at once (``chunk`` of them in memory), by ``newton`` with the Hessian
    of the full objective.  ``fraction`` f takes away only a part of the example's weight 1/n.

    Raises:
        ValueError: when ``curvature`` is damped, since retraining is not, when an example does not exist, or when
            ``fraction`` is not above 0 and at most 1.
        NegativeCurvatureError: when H is not positive definite at θ̂.
        RuntimeError: when θ̂ is no optimum, or when retraining does not reach ‖∇J₋ᵢ‖ ≤ ``tolerance``.
    """
    objective, n = curvature.objective, len(curvature.objective.losses)
    examples = examples.to(curvature.theta.device)
    require_examples(examples, n)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie above 0 and be at most 1")
    if curvature.gradient.norm() > tolerance:
        raise RuntimeError(
            f"the gradient norm {curvature.gradient.norm().item():.2g} is above {tolerance:.2g}: "
            "train to an optimum first (metasp_lite.optimum.minimise)"
        )

    def without(theta: Tensor, example: Tensor) -> Tensor:
        return objective(theta) - fraction * objective.losses(theta, example.unsqueeze(0)).squeeze(0) / n

    def gradients(thetas: Tensor) -> Tensor:
        return vmap(grad(without), chunk_size=chunk)(thetas, examples)

    return newton(curvature, gradients, examples, tolerance=tolerance, max_iterations=max_iterations)


def require_examples(examples: Tensor, n: int) -> None:
    """Refuse ``examples`` that do not exist among n: nothing would be left out, or something else.

    Raises:
        ValueError: when one does not exist, or when there is none.
    """
    if len(examples) == 0 or int(examples.min()) < 0 or int(examples.max()) >= n:
        raise ValueError(f"examples must be at least one index between 0 and {n - 1}, got {examples.tolist()}")


def newton(
    curvature: Curvature,
    gradients: Callable[[Tensor], Tensor],
    examples: Tensor,
    *,
    tolerance: float = 1e-9,
    max_iterations: int = 200,
) -> Tensor:
    """Minimise K objectives near to one whose optimum θ̂ is known, each without one of ``examples (K,)``; ``(K, P)``.

    ``gradients`` maps their K points ``(K, P)`` to their gradients there.  Newton steps from θ̂ with the Hessian H of
    the known objective as a fixed metric, as H⁻¹∇²J_k is nearly the identity; a step that would lengthen the gradient,
    measured by H⁻¹, is halved until it does not.  The result does not depend on the metric, only on the gradients being
    zero.

    Raises:
        ValueError: when ``curvature`` is damped.
        NegativeCurvatureError: when H is not positive definite at θ̂.
        RuntimeError: when a gradient norm stays above ``tolerance``.
        FloatingPointError: when one is NaN or infinite.
    """
    if curvature.damping:
        raise ValueError(f"damping={curvature.damping}: give the undamped curvature, retraining knows no damping")
    _ = curvature.cholesky  # raises here even where nothing pulls θ̂ away from a saddle
    points, share = curvature.theta.repeat(len(examples), 1), curvature.theta.new_ones(len(examples), 1)
    slopes = check_finite(gradients(points), "a gradient while retraining")
    steps = Exact()(curvature, slopes.T).T
    for _ in range(max_iterations):
        norms = slopes.norm(dim=1)
        open_ = norms > tolerance
        if not open_.any():
            return points
        ahead = points - share * steps
        there = gradients(ahead)
        steps_there = Exact()(curvature, there.nan_to_num(0, 0, 0).T).T
        # ∇ᵀH⁻¹∇ is the length in which the plain steps contract
        shorter = (there * steps_there).sum(dim=1, keepdim=True) < (slopes * steps).sum(dim=1, keepdim=True)
        better = shorter & there.isfinite().all(dim=1, keepdim=True)
        points, slopes, steps = (
            torch.where(better, new, old) for new, old in ((ahead, points), (there, slopes), (steps_there, steps))
        )
        share = torch.where(better, (2 * share).clamp(max=1), share / 2)
    raise RuntimeError(
        f"retraining without example {int(examples[open_][0])} stopped at gradient norm "
        f"{norms.max().item():.2g}; raise the l2 regularisation or max_iterations"
    )
