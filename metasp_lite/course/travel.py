"""The optimum on its travels, for sliders: with the weight of an example (notebook 01) and with λ (notebook 02)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import ExampleLosses, Objective, gradient
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import ConjugateGradient, Exact, Neumann
from metasp_lite.course.problems import Problem
from metasp_lite.doors import typed
from metasp_lite.influence.hessian import influence


@dataclass(frozen=True)
class OptimumTravel:
    """What happens to the optimum while the weight of one example moves by ε: all arrays along the ε axis (S,)."""

    epsilon: np.ndarray  # (S,)
    optimum: np.ndarray  # (S, 2), retrained
    optimum_first_order: np.ndarray  # (S, 2), θ̂ + ε dθ̂/dε
    validation: np.ndarray  # (S,), at the retrained optimum, nats
    validation_first_order: np.ndarray  # (S,)


@typed
def travel_of_optimum(problem: Problem, example: int, epsilons: np.ndarray) -> OptimumTravel:
    """Retrain J + ε ℓ(x_i, ·) for each ε in ``epsilons (S,)`` and put the first-order prediction beside it; P = 2."""
    losses, validation = problem.objective.losses, problem.validation
    optimum = minimise(problem.objective, problem.start)
    curvature = Curvature(problem.objective, optimum)
    index = torch.tensor([example], device=optimum.device)
    slope = -Exact()(curvature, gradient(lambda theta: losses(theta, index).sum(), optimum))  # dθ̂/dε
    thetas = torch.stack([minimise(_reweighted(problem, example, float(e)), optimum) for e in epsilons])
    eps = torch.as_tensor(epsilons).to(optimum)
    effect = influence(losses, validation, curvature, Exact())[example]
    return OptimumTravel(
        epsilon=epsilons,
        optimum=thetas.cpu().numpy(),
        optimum_first_order=(optimum + eps[:, None] * slope).cpu().numpy(),
        validation=np.array([validation(theta).item() for theta in thetas]),
        validation_first_order=(validation(optimum) + eps * effect).cpu().numpy(),
    )


@typed
def surroundings(
    problem: Problem, example: int, travel: OptimumTravel, at: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two grids of parameters (41,) around the whole travel, and J_ε over them (41, 41) for the ε at place ``at``."""
    points = np.concatenate([travel.optimum, travel.optimum_first_order])
    centre, reach = (points.max(axis=0) + points.min(axis=0)) / 2, 0.6 * np.ptp(points, axis=0).max() + 0.02
    first, second = (np.linspace(c - reach, c + reach, 41) for c in centre)
    grid = torch.cartesian_prod(*(torch.as_tensor(axis).to(problem.start) for axis in (first, second)))
    objective = _reweighted(problem, example, float(travel.epsilon[at]))
    return first, second, torch.func.vmap(objective)(grid).view(41, 41).T.cpu().numpy()


@typed
def optimum_with_l2(problem: Problem, l2: float) -> tuple[Curvature, Tensor]:
    """Train with λ = ``l2``; the curvature at that optimum, and the exact influences ``(n,)`` there.

    By conjugate gradients run to 1e-10, since a dense Hessian for each λ would keep a learner waiting.
    """
    objective = problem.with_l2(l2).objective
    curvature = Curvature(objective, minimise(objective, problem.start))
    solver = ConjugateGradient(2000, tolerance=1e-10)
    return curvature, influence(objective.losses, problem.validation, curvature, solver)


@typed
def influence_by_series(problem: Problem, curvature: Curvature, steps: int, step: float) -> Tensor:
    """Influences ``(n,)`` by K = ``steps`` of the Neumann series, each of ``step``/s_max."""
    solver = Neumann(steps, step=step / curvature.largest_eigenvalue)
    return influence(curvature.objective.losses, problem.validation, curvature, solver)


@dataclass(frozen=True)
class _WeightedLosses:
    """The losses of examples, each times its weight ``(n,)``."""

    losses: ExampleLosses
    weights: Tensor

    def __len__(self) -> int:
        return len(self.losses)

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        return (self.weights if index is None else self.weights[index]) * self.losses(theta, index)


def _reweighted(problem: Problem, example: int, epsilon: float) -> Objective:
    """J(θ) + ε ℓ(x_i, θ), written as a mean of losses with one of them weighted."""
    losses = problem.objective.losses
    weights = torch.ones(len(losses)).to(problem.start)
    weights[example] += epsilon * len(losses)
    return Objective(_WeightedLosses(losses, weights), problem.objective.l2)
