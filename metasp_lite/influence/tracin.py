"""TracIn: what training on an example did to a validation loss, step by step; a score along the way, not a solver."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from metasp_lite.calculus.losses import (
    Losses,
    ScalarLoss,
    derivatives_along,
    gradient,
    require_losses,
)
from metasp_lite.calculus.parameters import require_theta, require_vector
from metasp_lite.doors import typed


@typed
def tracin(
    losses: Losses, validations: Sequence[ScalarLoss], checkpoints: Sequence[Tensor], steps: Sequence[float]
) -> Tensor:
    """−Σ_c a_c ∇ℓ(x_i, θ_c)·∇ℓ(V, θ_c) (TracInCP, Pruthi et al., 2020); (K, n) for K ``validations`` and n losses.

    ``checkpoints`` are the θ_c ``(P,)`` along a training run, ``steps`` the a_c > 0 of each: its step size, times the
    number of steps that it stands for.  Negative helps, as with ``influence``, and the scale is that of one step on the
    example alone.  All validation losses share the pass over the examples.  No Hessian, and no optimum is asked for.

    Raises:
        ValueError: for no checkpoint or no validation loss, for another number of steps than checkpoints, for a step
            that is not above 0, or losses that are not one for each example.
        FloatingPointError: when a gradient or a derivative is NaN or infinite.
    """
    if not checkpoints or not validations:
        raise ValueError(f"{len(checkpoints)} checkpoints, {len(validations)} validation losses: give at least one")
    if len(steps) != len(checkpoints) or not all(0 < step < float("inf") for step in steps):
        raise ValueError(f"steps={list(steps)}: give {len(checkpoints)}, one for each checkpoint, finite and above 0")
    for theta in checkpoints:
        require_theta(theta)
        require_vector(theta, checkpoints[0], "a checkpoint θ")
    require_losses(losses, checkpoints[0])
    total = checkpoints[0].new_zeros(len(validations), len(losses))
    for theta, step in zip(checkpoints, steps, strict=True):
        targets = torch.stack([gradient(validation, theta) for validation in validations])
        total -= step * vmap(lambda target, at=theta: derivatives_along(losses, at, target))(targets)
    return total
