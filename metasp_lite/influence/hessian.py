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
    per_example_gradients,
    require_losses,
)
from metasp_lite.calculus.parameters import require_vector
from metasp_lite.calculus.solvers import Solver, solve_each
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


@typed
def influence_on_each(losses: Losses, queries: Losses, curvature: Curvature[Penalised], solver: Solver) -> Tensor:
    """Influence of each of n examples on each of Q queries, −∇L H⁻¹ ∇L_Vᵀ; ``(n, Q)``, a column a query.

    A column is ``influence`` on that query's loss alone, its slow twin (``test_influences_on_each_are_those_on_one``).
    The solves share what can be shared, a factor or a gradient graph, and all queries the n gradients, n·P numbers.

    Raises:
        ValueError: when ``losses`` or ``queries`` are not one for each example and a function of θ and it alone.
        FloatingPointError: when a gradient is NaN or infinite.
    """
    theta = curvature.theta
    solutions = solve_each(solver, curvature, per_example_gradients(queries, theta))
    return -per_example_gradients(losses, theta) @ solutions.T
