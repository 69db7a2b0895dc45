"""Influence across two stages: what one pretraining example does to the loss of the network finetuned afterwards.

Source: Multi-Stage Influence Function (NeurIPS 2020), Theorem 1 and eq. 15.  Pretraining minimises G(W, U), finetuning
F(W, Θ): an embedding W, and a head for each stage.  Both networks are ``nn.Sequential`` with the parts ``embedding``
and ``head``, so θ_G = [W; U] and θ_F = [W; Θ].

Every score has two factors.  The second stage decides the sensitivity t = dℓ/dW* of the target to the pretrained
embedding; ``fixed_sensitivity``, ``proximal_sensitivity`` and ``unrolled_sensitivity`` are three models of it.  The
first stage is an optimum, so W* moves by −v(z) = −[G''⁻¹g'(z)]_W for each unit of weight on the pretraining example z:
I(z) = −t·v(z) = −g'(z)·G''⁻¹[t; 0], one solve for all z (``pretraining_influence``).  ``joint_influence`` is the
reading of eq. 15 that knows one optimum only.

The sign is that of ``influence``: **negative helps**, and leaving z out of the m examples predicts −I(z)/m.
"""

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional as F

from metasp_lite.functional import (
    Curvature,
    ExampleLosses,
    NegativeCurvatureError,
    Objective,
    check_finite,
    gradient,
    loss_directional_derivatives,
    per_example_gradients,
)
from metasp_lite.solvers import GaussNewton, OuterProduct, Solver, solve_each

Target = Callable[..., Tensor]  # a scalar loss of θ_F, or losses of test examples, each a target of its own


def embedding_size(model: nn.Module) -> int:
    """Return w, how many parameters the embedding has.

    Raises:
        ValueError: when ``model`` is not the sequence of an ``embedding`` and a ``head``.
    """
    parts = [name for name, _ in model.named_children()]
    if parts != ["embedding", "head"] or type(model) is not nn.Sequential:
        raise ValueError(
            f"the network has the parts {parts}; build it as nn.Sequential of an 'embedding' and a 'head', "
            "as metasp_lite.models.two_stage does"
        )
    return sum(parameter.numel() for parameter in model.embedding.parameters())


def same_embedding(pretraining: Curvature, finetuning: Curvature) -> int:
    """Return w, the size of the embedding that both networks share.

    Raises:
        ValueError: when they do not have one and the same embedding.
    """
    w = embedding_size(finetuning.objective.losses.model)
    if embedding_size(pretraining.objective.losses.model) != w or not torch.equal(
        pretraining.theta[:w], finetuning.theta[:w]
    ):
        raise ValueError(
            "the embedding of the finetuned network is not the pretrained one; take an updated-embedding score"
        )
    return w


def target_gradients(target: Target, theta: Tensor) -> Tensor:
    """∇ℓ(θ) of each target, ``(K, P)``; K = 1 for a scalar loss."""
    found = per_example_gradients(target, theta) if isinstance(target, Sized) else gradient(target, theta)[None]
    return check_finite(found, "the gradient of a target")


def head_objective(finetuning: Objective, embedding: Tensor) -> Objective:
    """F(W, ·) for a given embedding W ``(w,)``: the finetuning objective of the head's parameters Θ alone.

    Its examples are the features that W gives; the penalty of W, a constant, is left out.
    """
    losses = finetuning.losses
    names = ExampleLosses(losses.model.embedding, losses.inputs, losses.labels)
    features = functional_call(losses.model.embedding, names.unflatten(embedding), (losses.inputs,))
    return Objective(ExampleLosses(losses.model.head, features, losses.labels, losses.loss), finetuning.l2)


def fixed_sensitivity(finetuning: Curvature, target: Target, solver: Solver) -> Tensor:
    """t = f_W − F_WΘ F_ΘΘ⁻¹ f_Θ of each target, ``(K, w)``: the head is the optimum for the embedding (Theorem 1).

    ``finetuning`` is that of F at [W*; Θ*]; its damping δ is added to F_ΘΘ.

    Raises:
        NegativeCurvatureError: when F_ΘΘ + δI is not positive definite.
        ValueError: for networks without an embedding and a head, or the curvature of a ``Proximal``.
    """
    objective, theta = finetuning.objective, finetuning.theta
    if isinstance(objective, Proximal):
        raise ValueError(
            "the curvature is of a Proximal: give that of the finetuning objective, or proximal_sensitivity"
        )
    w = embedding_size(objective.losses.model)
    direct = target_gradients(target, theta)
    with _in_stage("finetuning"):
        head = Curvature(head_objective(objective, theta[:w]), theta[w:], finetuning.damping)
        s = solve_each(solver, head, direct[:, w:])
    mixed = [(finetuning @ F.pad(each, (w, 0)))[:w] for each in s]  # F_WΘ has no diagonal, so no damping
    return direct[:, :w] - torch.stack(mixed)


@dataclass(frozen=True)
class Proximal:
    """F(W, Θ) + (α/2)‖W − W*‖²: finetuning that is held near the pretrained embedding W* ``(w,)``."""

    finetuning: Objective
    center: Tensor
    alpha: float

    def __post_init__(self) -> None:
        """Refuse an α that is negative or not finite, and a W* that is no embedding of the network."""
        if not (0 <= self.alpha < float("inf")):
            raise ValueError(f"alpha={self.alpha} must be a finite number of at least 0")
        w = embedding_size(self.losses.model)
        if self.center.shape != (w,):
            raise ValueError(f"the center has the shape {tuple(self.center.shape)}; give the embedding W* ({w},)")

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
        size = sum(parameter.numel() for parameter in self.losses.model.parameters())
        penalties = self.center.new_full((size,), self.finetuning.l2)
        penalties[: len(self.center)] += self.alpha
        return penalties


def proximal_sensitivity(finetuning: Curvature, target: Target, solver: Solver) -> Tensor:
    """t = α [(F'' + α diag(I_W, 0))⁻¹ f']_W of each target, ``(K, w)``: eq. 15 read as proximal finetuning.

    ``finetuning`` is that of a ``Proximal`` at its optimum; its damping δ is added to all parameters.  α → ∞ gives
    ``fixed_sensitivity``, α → 0 gives zero.

    Raises:
        NegativeCurvatureError: when the matrix is not positive definite.
        ValueError: for the curvature of anything but a ``Proximal``.
    """
    proximal = finetuning.objective
    if not isinstance(proximal, Proximal):
        raise ValueError(f"the curvature is of {type(proximal).__name__}: give that of a Proximal at its optimum")
    with _in_stage("finetuning"):
        s = solve_each(solver, finetuning, target_gradients(target, finetuning.theta))
    return proximal.alpha * s[:, : len(proximal.center)]


class Rule(Protocol):
    """One step of an optimiser: (θ, state, gradient) to (θ', state'); the first state is None."""

    def step(self, theta: Tensor, state: object, gradient: Tensor) -> tuple[Tensor, object]:
        """Take the step; a function of its arguments that torch can differentiate."""
        ...


@dataclass(frozen=True)
class Adam:
    """The rule of torch.optim.Adam, as a function (Kingma and Ba, 2015)."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def step(self, theta: Tensor, state: tuple[Tensor, ...] | None, gradient: Tensor) -> tuple[Tensor, tuple]:
        """(θ, (m, v, t), g) to (θ', (m', v', t')).  An entry whose gradients were all 0 does not move."""
        first, second = self.betas
        m, v, t = state or (torch.zeros_like(theta), torch.zeros_like(theta), theta.new_zeros(()))
        m, v, t = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient**2, t + 1
        root = torch.where(v > 0, v, 1).sqrt() * (v > 0)  # √ has no derivative at 0
        step = (m / (1 - first**t)) / (root / (1 - second**t).sqrt() + self.eps)
        return theta - self.lr * step, (m, v, t)


@dataclass(frozen=True)
class ShortRun:
    """A run of gradient steps on given batches: what finetuning is in practice, with no optimum at its end."""

    objective: Callable[..., Tensor]  # (θ, index) -> (); an Objective
    rule: Rule
    batches: Tensor  # (T, B) int64

    def __call__(self, theta: Tensor) -> Tensor:
        """Run from θ ``(P,)`` to θ_T ``(P,)``."""
        state = None
        for index in self.batches:
            theta, state = self.rule.step(theta, state, self._gradient(theta, index))
        return theta

    def _gradient(self, theta: Tensor, index: Tensor) -> Tensor:
        return grad(self.objective)(theta, index)

    def pull_back(self, theta: Tensor, target: Target) -> Tensor:
        """dℓ(θ_T)/dθ of each target, ``(K, P)``: backwards through the run, step by step.

        Keeps θ and the optimiser's state of all T steps; each step is computed once more on the way back.
        """
        path: list[tuple[Tensor, object]] = [(theta, None)]
        for index in self.batches:
            path.append(self.rule.step(*path[-1], self._gradient(path[-1][0], index)))
        back, d_state = target_gradients(target, path.pop()[0]), None
        for index, (theta, state) in zip(self.batches.flip(0), reversed(path), strict=True):

            def moved(theta: Tensor, state: object = None, index: Tensor = index) -> tuple[Tensor, object]:
                return self.rule.step(theta, state, self._gradient(theta, index))

            start = (theta,) if state is None else (theta, state)
            if d_state is None:  # nothing depends on the state after the last step
                _, pull = vjp(lambda *start: moved(*start)[0], *start)
                found = vmap(pull)(back)
            else:
                _, pull = vjp(moved, *start)
                found = vmap(pull)((back, d_state))
            back, d_state = (*found, None)[:2]
        return check_finite(back, "the derivative of a target through the run")


def unrolled_sensitivity(run: ShortRun, embedding: Tensor, head: Tensor, target: Target) -> Tensor:
    """t = dℓ(θ_T)/dW of each target, ``(K, w)``, for the finetuning run that starts at [W; Θ_0]; needs no optimum.

    ``embedding`` is W ``(w,)``, ``head`` Θ_0 ``(h,)``, which does not depend on W.
    """
    return run.pull_back(torch.cat([embedding, head]), target)[:, : len(embedding)]


def pretraining_influence(
    pretraining: Curvature,
    sensitivity: Tensor,
    solver: Solver,
    *,
    losses: Callable[..., Tensor] | None = None,
    batch: int = 1000,
) -> Tensor:
    """Influence I(z) = −g'(z)·(G'' + δI)⁻¹[t; 0] of each pretraining example z on each target; ``(K, m)``.

    ``pretraining`` is the curvature of G at [W*; U*] with damping δ, ``sensitivity`` t ``(K, w)``.  ``losses`` are
    those of the examples to score, None for those that the curvature is of (the paper takes it from a sample of
    1000).  Examples are scored ``batch`` at a time.

    Raises:
        NegativeCurvatureError: when G'' + δI is not positive definite.
        ValueError: when ``sensitivity`` is not one row of w numbers for each target.
    """
    w = embedding_size(pretraining.objective.losses.model)
    if sensitivity.dim() != 2 or sensitivity.shape[1] != w or len(sensitivity) == 0:
        raise ValueError(f"the sensitivity has the shape {tuple(sensitivity.shape)}: give (K, {w}), one row a target")
    padded = F.pad(sensitivity, (0, len(pretraining.theta) - sensitivity.shape[1]))
    with _in_stage("pretraining"):
        solution = solve_each(solver, pretraining, padded)
    return -directional_derivatives(losses or pretraining.objective.losses, pretraining.theta, solution, batch)


def directional_derivatives(losses: Callable[..., Tensor], theta: Tensor, directions: Tensor, batch: int) -> Tensor:
    """∇L(θ)·u for each row u of ``directions (K, P)``; ``(K, n)``, at most ``batch`` examples at a time.

    Two directions or fewer go forwards through the network, one pass each.  More share the examples' gradients, which
    cost as much as about two passes; of these at most 50 million numbers are in memory.

    Raises:
        ValueError: for a ``batch`` below 1.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: score at least one example at a time")
    if len(directions) > 2:
        batch = max(1, min(batch, 50_000_000 // len(theta)))
    pieces = []
    for index in torch.arange(len(losses), device=theta.device).split(batch):
        part = _Part(losses, index)
        if len(directions) <= 2:
            pieces.append(torch.stack([loss_directional_derivatives(part, theta, u) for u in directions]))
        else:
            pieces.append(directions @ per_example_gradients(part, theta).T)
    return check_finite(torch.cat(pieces, dim=1), "an influence")


@dataclass(frozen=True)
class _Part:
    """Some of the losses."""

    losses: Callable[..., Tensor]
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        return self.losses(theta, self.index if index is None else self.index[index])


def fixed_embedding(
    pretraining: Curvature, finetuning: Curvature, target: Target, solver: Solver, *, batch: int = 1000
) -> Tensor:
    """Theorem 1: influence of each pretraining example on each target, the embedding fixed in finetuning; ``(K, m)``.

    Two solves for each target, none for an example.  Each curvature carries its own damping.

    Raises:
        NegativeCurvatureError: when a Hessian with its damping is not positive definite; names the stage.
        ValueError: when the two networks do not have one and the same embedding.
    """
    same_embedding(pretraining, finetuning)
    sensitivity = fixed_sensitivity(finetuning, target, solver)
    return pretraining_influence(pretraining, sensitivity, solver, batch=batch)


@dataclass(frozen=True)
class Joint:
    """α G(W, U) + (1−α) F(W, Θ) as a function of [W; U; Θ] (eq. 15 read as one optimum)."""

    pretraining: Objective
    finetuning: Objective
    alpha: float

    def __post_init__(self) -> None:
        """Refuse an α outside (0, 1)."""
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha} must lie between 0 and 1, both excluded")

    @property
    def sizes(self) -> list[int]:
        """Return the numbers of parameters of W, U and Θ."""
        w = embedding_size(self.pretraining.losses.model)
        models = (self.pretraining.losses.model, self.finetuning.losses.model)
        return [w, *(sum(parameter.numel() for parameter in model.head.parameters()) for model in models)]

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
    def losses(self) -> "JointLosses":
        """Return the losses of both stages' examples, pretraining's first, weighted so that their mean is the joint."""
        return JointLosses(self)

    def of_finetuned(self, target: Target) -> Target:
        """Turn a target, a function of [W; Θ], into one of [W; U; Θ]."""
        if isinstance(target, Sized):
            return _Finetuned(self, target)
        return lambda theta: target(self.stages(theta)[1])


@dataclass(frozen=True)
class JointLosses:
    """The losses of the m pretraining and the n finetuning examples, α(m+n)/m g and (1−α)(m+n)/n f; ``(m+n,)``."""

    joint: Joint

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
        g = joint.pretraining.losses(first, index.clamp(max=m - 1))  # an index may be vmap's: no branch can see it
        f = joint.finetuning.losses(second, (index - m).clamp(min=0))
        return torch.where(index < m, scales[0] * g, scales[1] * f)


@dataclass(frozen=True)
class _Finetuned:
    joint: Joint
    losses: ExampleLosses

    def __len__(self) -> int:
        return len(self.losses)

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        return self.losses(self.joint.stages(theta)[1], index)


def joint_influence(curvature: Curvature, target: Target, solver: Solver, *, batch: int = 1000) -> Tensor:
    """I(z) = −α f'ᵀ H⁻¹ g'(z) of each pretraining example on each target; ``(K, m)``: eq. 15 read as one optimum.

    ``curvature`` is that of a ``Joint`` at its optimum [W; U; Θ], ``target`` a function of [W; Θ].

    Raises:
        NegativeCurvatureError: when H with its damping is not positive definite.
        ValueError: for ``OuterProduct`` and ``GaussNewton``, whose matrices are made from the examples of one stage.
    """
    joint = curvature.objective
    if isinstance(solver, OuterProduct | GaussNewton):
        raise ValueError(f"{type(solver).__name__} knows the examples of one stage only; take another solver")
    with _in_stage("joint"):
        solution = solve_each(solver, curvature, target_gradients(joint.of_finetuned(target), curvature.theta))
    theta, used = joint.stages(curvature.theta)[0], sum(joint.sizes[:2])
    return -joint.alpha * directional_derivatives(joint.pretraining.losses, theta, solution[:, :used], batch)


@contextmanager
def _in_stage(name: str) -> Iterator[None]:
    try:
        yield
    except NegativeCurvatureError as error:
        raise NegativeCurvatureError(error.curvature, error.damping, f"the {name} stage") from error
