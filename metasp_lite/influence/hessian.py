"""Influence of training examples on a validation loss by the Hessian (MetaSP, appendix B).

Sign everywhere: influence is d(validation loss)/d(example weight).  **Negative helps**: training more on the example
lowers the validation loss.  (The MetaSP paper's prose calls such an example "positive".)
"""

import torch
from torch import Tensor

from metasp_lite.calculus.checks import Part
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import (
    Losses,
    Penalised,
    ScalarLoss,
    derivatives_along,
    gradient,
    require_losses,
)
from metasp_lite.calculus.parameters import require_vector
from metasp_lite.calculus.solvers import Solver
from metasp_lite.doors import typed


@typed
def influence(losses: Losses, validation: ScalarLoss, curvature: Curvature[Penalised], solver: Solver) -> Tensor:
    """Influence of each example on the validation loss, I(V, B) = −∇L H⁻¹ ∇ℓ(V); returns (B,).

    ``losses`` are those of the examples to score (the training examples, or a batch of them), ``curvature`` is taken
    at the optimum of the training objective.  One solve for all examples, then one forward-mode pass, over as many
    examples at a time as the curvature takes (``batch_size``).
    Leaving example i out of the n that were trained on changes the validation loss by −I_i/n, to first order.

    Raises:
        ValueError: when ``losses`` are not one for each example and a function of θ and that example alone.
        FloatingPointError: when an influence is NaN or infinite.
    """
    if losses is not curvature.objective.losses:  # which were looked at
        require_losses(losses, curvature.theta)  # before the solve
    solution = solver(curvature, gradient(validation, curvature.theta))
    require_vector(solution, curvature.theta, "the solver's answer")
    theta, n = curvature.theta, len(losses)
    parts = torch.arange(n, device=theta.device).split(curvature.batch_size or n)
    derivatives = [
        derivatives_along(losses if len(index) == n else Part(losses, index), theta, solution) for index in parts
    ]
    return -torch.cat(derivatives)
