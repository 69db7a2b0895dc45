"""Eq. 15 of Multi-Stage Influence Function, for an embedding that finetuning updates, in two readings of ours.

The appendix names its constant α = 0.01 and does not print it.  ``ProximalObjective``: finetuning is held near the
pretrained embedding by (α/2)‖W − W*‖²; its sensitivity goes into ``stages.pretraining_influence``.  ``JointObjective``:
the finetuned model is the optimum of α G + (1−α) F; there is one optimum only, and ``joint_influence`` is its score.
Each predicts the training that it describes; what finetuning does in practice is neither (``unrolled``).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite_if_seen
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import ExampleLosses, Losses, Objective, per_example_gradients
from metasp_lite.calculus.parameters import number_of_trained, require_places
from metasp_lite.calculus.solvers import Solver, SolverTraits, solve_each
from metasp_lite.doors import typed
from metasp_lite.stages.fixed import (
    directional_derivatives,
    embedding_size,
    in_stage,
    require_objective,
)


@typed
@dataclass(frozen=True)
class ProximalObjective:
    """F(W, Θ) + (α/2)‖W − W*‖²: finetuning that is held near the pretrained embedding W* ``(w,)``."""

    finetuning: Objective[ExampleLosses]
    center: Tensor
    alpha: float

    def __post_init__(self) -> None:
        """Refuse an α that is negative or not finite, and a W* that is no embedding of the network."""
        if not (0 <= self.alpha < float("inf")):
            raise ValueError(f"alpha={self.alpha} must be a finite number of at least 0")
        w = embedding_size(self.losses.model)
        if self.center.shape != (w,):
            raise ValueError(f"the center has the shape {tuple(self.center.shape)}; give the embedding W* ({w},)")
        check_finite_if_seen(self.center, "the center")
        object.__setattr__(self, "center", self.center.clone())  # what moves the caller's leaves this one

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the scalar at [W; Θ]; with ``index (B,)`` the mean loss runs over those examples only."""
        away = theta[: len(self.center)] - self.center
        return self.finetuning(theta, index) + 0.5 * self.alpha * away.dot(away)

    @property
    def losses(self) -> ExampleLosses:
        """Return the losses of the finetuning examples."""
        return self.finetuning.losses

    @property
    def l2(self) -> Tensor:
        """Return the second derivatives of both penalties ``(P,)``."""
        penalties = self.center.new_full((number_of_trained(self.losses.model),), self.finetuning.l2)
        penalties[: len(self.center)] += self.alpha
        return penalties


@typed
def proximal_sensitivity(finetuning: Curvature[ProximalObjective], target: Losses, solver: Solver) -> Tensor:
    """t = α [(F'' + α diag(I_W, 0))⁻¹ f']_W of each target, ``(K, w)``: eq. 15 read as proximal finetuning.

    ``finetuning`` is the curvature at the optimum; its damping δ is added to all parameters.  α → ∞ gives
    ``fixed_sensitivity``, α → 0 gives zero.

    Raises:
        NegativeCurvatureError: when the matrix is not positive definite.
        ValueError: for the curvature of anything but a ``ProximalObjective``.
    """
    require_objective(finetuning, ProximalObjective, "a ProximalObjective at its optimum")
    proximal = finetuning.objective
    with in_stage("finetuning"):
        s = solve_each(solver, finetuning, per_example_gradients(target, finetuning.theta))
    return proximal.alpha * s[:, : len(proximal.center)]


@typed
@dataclass(frozen=True)
class JointObjective:
    """α G(W, U) + (1−α) F(W, Θ) as a function of [W; U; Θ] (eq. 15 read as one optimum)."""

    pretraining: Objective[ExampleLosses]
    finetuning: Objective[ExampleLosses]
    alpha: float

    def __post_init__(self) -> None:
        """Refuse an α outside (0, 1)."""
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha} must lie between 0 and 1, both excluded")

    @property
    def sizes(self) -> list[int]:
        """Return the numbers of parameters of W, U and Θ."""
        w = embedding_size(self.pretraining.losses.model)
        heads = [stage.losses.model.get_submodule("head") for stage in (self.pretraining, self.finetuning)]
        return [w, *map(number_of_trained, heads)]

    def stages(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """[W; U; Θ] to [W; U] and [W; Θ]."""
        embedding, first, second = theta.split(self.sizes)
        return torch.cat([embedding, first]), torch.cat([embedding, second])

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the scalar; with ``index (B,)`` the mean loss runs over those of both stages' examples only."""
        penalty = 0.5 * (self.l2 * theta).dot(theta)
        return self.losses(theta, index).mean() + penalty

    @property
    def l2(self) -> Tensor:
        """Return the second derivatives of both penalties ``(P,)``."""
        first, second = self.alpha * self.pretraining.l2, (1 - self.alpha) * self.finetuning.l2
        like = next(self.finetuning.losses.model.parameters())
        return torch.cat(
            [like.new_full((n,), x) for n, x in zip(self.sizes, (first + second, first, second), strict=True)]
        )

    @property
    def losses(self) -> "_JointLosses":
        """Return the losses of both stages' examples, pretraining's first, weighted so that their mean is the joint."""
        return _JointLosses(self)

    def of_finetuned(self, target: Losses) -> Losses:
        """Turn losses as a function of [W; Θ] into losses as one of [W; U; Θ]."""
        return _Finetuned(self, target)


@dataclass(frozen=True)
class _JointLosses:
    """The losses of the m pretraining and the n finetuning examples, α(m+n)/m g and (1−α)(m+n)/n f; ``(m+n,)``."""

    joint: JointObjective

    def __len__(self) -> int:
        """Return m + n."""
        return len(self.joint.pretraining.losses) + len(self.joint.finetuning.losses)

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the losses, or those of the examples in ``index (B,)``."""
        (first, second), joint = self.joint.stages(theta), self.joint
        m, total = len(joint.pretraining.losses), len(self)
        scales = joint.alpha * total / m, (1 - joint.alpha) * total / (total - m)
        if index is None:
            return torch.cat([scales[0] * joint.pretraining.losses(first), scales[1] * joint.finetuning.losses(second)])
        require_places(index, total, "index")
        g = joint.pretraining.losses(first, index.clamp(max=m - 1))  # an index may be vmap's: no branch can see it
        f = joint.finetuning.losses(second, (index - m).clamp(min=0))
        return torch.where(index < m, scales[0] * g, scales[1] * f)


@dataclass(frozen=True)
class _Finetuned:
    joint: JointObjective
    losses: Losses

    def __len__(self) -> int:
        return len(self.losses)

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        return self.losses(self.joint.stages(theta)[1], index)


@typed
def joint_influence(
    curvature: Curvature[JointObjective], target: Losses, solver: Solver, *, batch: int = 1000
) -> Tensor:
    """I(z) = −α f'ᵀ H⁻¹ g'(z) of each pretraining example on each target; ``(K, m)``: eq. 15 read as one optimum.

    ``curvature`` is that of a ``JointObjective`` at its optimum [W; U; Θ], ``target`` a function of [W; Θ].

    Raises:
        NegativeCurvatureError: when H with its damping is not positive definite.
        ValueError: for a solver that needs a plain mean (``OuterProduct``, ``GaussNewton``): the two stages weigh their
            examples differently.
    """
    joint = curvature.objective
    if isinstance(solver, SolverTraits) and solver.needs_plain_mean:
        raise ValueError(f"{type(solver).__name__} knows the examples of one stage only; take another solver")
    with in_stage("joint"):
        solution = solve_each(solver, curvature, per_example_gradients(joint.of_finetuned(target), curvature.theta))
    theta, used = joint.stages(curvature.theta)[0], sum(joint.sizes[:2])
    return -joint.alpha * directional_derivatives(joint.pretraining.losses, theta, solution[:, :used], batch)
