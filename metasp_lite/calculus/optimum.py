"""Training to a true optimum: influence is defined at a stationary point, so the course has to reach one."""

import math
from collections import deque

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError, NotConvergedError
from metasp_lite.calculus.losses import Penalised, require_losses
from metasp_lite.calculus.solvers import ConjugateGradient
from metasp_lite.doors import Count, Positive, Whole, typed


@typed
def minimise(
    objective: Penalised,
    theta: Tensor,
    *,
    tolerance: Positive = 1e-10,
    adam_steps: Whole = 0,
    lbfgs_steps: Whole = 2000,
    newton_steps: Whole = 20,
    newton_products: Count = 1000,
) -> Tensor:
    """Minimise J from θ ``(P,)`` until ‖∇J‖ ≤ ``tolerance``; returns the optimum ``(P,)``.

    ``adam_steps`` of torch's Adam (step 0.01) come first, for a network whose start is far from everything.
    torch's L-BFGS (strong Wolfe line search, history 60) finds the basin, then Newton steps with conjugate gradients
    finish: near the optimum L-BFGS cannot see progress in J any more, which is quadratic in what is left, but Newton
    still sees it in ∇J.  Where the gradient vanishes may also be a saddle: a hundred products of conjugate gradients
    on a random vector look for a direction along which J curves downwards.  They find a curvature of −λmax/100, and
    may miss one of −λmax/10,000; ``Curvature.cholesky``, and so every exact influence, misses none.

    Raises:
        ValueError: for a tolerance that is not a finite number above 0, or when the losses are not one for each example
            and a function of θ and that example alone.
        NegativeCurvatureError: when L-BFGS left off where J is not convex, or training ended at a saddle and a hundred
            products saw it.
        NotConvergedError: when ‖∇J‖ stays above ``tolerance``; names what was reached.
        FloatingPointError: when J or its gradient is NaN or infinite.
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance={tolerance} must be a finite number above 0")
    require_losses(objective.losses, theta)
    theta = lbfgs(objective, adam(objective, theta, adam_steps), lbfgs_steps)
    for _ in range(newton_steps):
        curvature = Curvature(objective, theta)
        if curvature.gradient.norm() <= tolerance:
            return _require_minimum(curvature)
        # Solving far below the gradient's own size would be wasted: Newton squares the error each step anyway.
        solver = ConjugateGradient(
            newton_products, tolerance=max(1e-6, 0.1 * tolerance / curvature.gradient.norm().item())
        )
        theta = theta - solver(curvature, curvature.gradient)
    curvature = Curvature(objective, theta)
    reached = curvature.gradient.norm().item()
    if reached <= tolerance:
        return _require_minimum(curvature)
    raise NotConvergedError(
        f"training stopped at gradient norm {reached:.2g}, above {tolerance:.2g}; "
        "allow more lbfgs_steps, raise the l2 regularisation, or use float64"
    )


@typed
def adam(objective: Penalised, theta: Tensor, steps: Whole) -> Tensor:
    """Take ``steps`` of torch's Adam (step 0.01) on all examples from θ ``(P,)``; what an unfinished training gives."""
    leaf = theta.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        check_finite(objective(leaf), "the training objective").backward()
        optimiser.step()
    return leaf.detach()


@typed
def lbfgs(objective: Penalised, theta: Tensor, steps: Whole) -> Tensor:
    """Take at most ``steps`` of torch's L-BFGS from θ ``(P,)``; fewer once no entry of ∇J is above 1e-7."""
    leaf = theta.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [leaf],
        max_iter=steps,
        history_size=60,
        tolerance_grad=1e-7,  # of the largest entry
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = check_finite(objective(leaf), "the training objective")
        value.backward()
        return value

    optimiser.step(closure)
    return check_finite(leaf.detach(), "the trained parameters")


def require_optimum(curvature: Curvature[Penalised], tolerance: float, what: str) -> None:
    """Refuse a point where ``what`` has not ended: the descent still to go would count as an example's effect.

    Raises:
        NotConvergedError: when ‖∇J‖ is above ``tolerance``.
    """
    norm = curvature.gradient.norm().item()
    if not norm <= tolerance:
        raise NotConvergedError(
            f"the gradient norm {norm:.2g} of {what} is above {tolerance:.2g}: "
            "train to an optimum first (metasp_lite.calculus.minimise)"
        )


def _require_minimum(curvature: Curvature[Penalised]) -> Tensor:
    """Return θ, unless some direction of a Krylov space curves downwards there; a flat one does not."""
    theta = curvature.theta
    probe = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(theta)
    try:
        deque(ConjugateGradient(100).iterates(curvature, probe), maxlen=0)
    except NegativeCurvatureError as found:
        # Rounding is eps times the largest |λ|, which P times the probe's curvature is well above but for an unlucky H.
        trace = len(theta) * (probe @ (curvature @ probe) / (probe @ probe)).abs().item()
        if found.curvature < -torch.finfo(theta.dtype).eps * trace:
            raise
    return theta
