"""The truth that two-stage influence predicts: both stages trained again without one pretraining example.

The first stage is trained again without each of ``examples (L,)`` alone (``leave_out``), then the second.  What is
returned is the change of each target against the same retraining with nothing left out, ``(K, L)``; influence predicts
−f I/m, with f the ``fraction`` of the example's weight that was taken away.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import Losses
from metasp_lite.calculus.optimum import require_optimum
from metasp_lite.doors import Seed, typed
from metasp_lite.influence.leaving_out import minimise_all, require_examples, retrained_without
from metasp_lite.stages.fixed import Stage, embedding_size, head_objective, same_embedding
from metasp_lite.stages.unrolled import Rule, ShortRun
from metasp_lite.stages.updated import JointObjective, ProximalObjective

_State = TypeVar("_State")
_CHUNK = 8  # retrainings in memory at once


@dataclass(frozen=True)
class _LeftOut:
    """Embeddings pretrained again, each without one example."""

    examples: Tensor  # (L,)
    embeddings: Tensor  # (L, w), the optimum without each
    embedding: Tensor  # (w,), the optimum with all


@typed
def leave_out(pretraining: Stage, examples: Tensor, *, fraction: float = 1.0) -> _LeftOut:
    """Retrain the first stage to its optimum without each of ``examples (L,)``; ``pretraining`` is that of G.

    Raises:
        ValueError, NotConvergedError, NegativeCurvatureError: as ``influence.retrained_without``.
    """
    w = embedding_size(pretraining.objective.losses.model)
    examples = require_examples(examples, pretraining)
    retrained = retrained_without(pretraining, examples, fraction=fraction, chunk=_CHUNK)
    return _LeftOut(examples, retrained[:, :w], pretraining.theta[:w])


@typed
def fixed(left_out: _LeftOut, finetuning: Stage, target: Losses) -> Tensor:
    """Retrain the head to its optimum on each of the fixed embeddings (what Theorem 1 predicts).

    ``finetuning`` is the curvature of F at [W*; Θ*].

    Raises:
        ValueError: when it has another embedding than the one that was retrained, or is damped.
        NotConvergedError: when Θ* is no optimum, or a head does not reach its own.
    """
    start, w = finetuning.theta, len(left_out.embedding)
    _require_embedding(left_out, start[:w])
    head = Curvature(head_objective(finetuning.objective, start[:w]), start[w:], finetuning.damping)
    require_optimum(head, 1e-9, "finetuning")

    def on(theta: Tensor, embedding: Tensor) -> Tensor:
        return head_objective(finetuning.objective, embedding)(theta)

    heads = minimise_all(head, on, left_out.embeddings, left_out.examples, chunk=_CHUNK)
    return _changes(target, torch.cat([left_out.embeddings, heads], dim=1), start)


@typed
def proximal(left_out: _LeftOut, finetuning: Curvature[ProximalObjective], target: Losses) -> Tensor:
    """Retrain the whole second stage to its optimum near each embedding; ``finetuning`` is its curvature.

    Raises:
        ValueError: when it is held near another embedding than the one that was retrained, or is damped.
        NotConvergedError: when finetuning is not at its optimum, or does not reach another.
    """
    objective = finetuning.objective
    _require_embedding(left_out, objective.center)
    require_optimum(finetuning, 1e-9, "finetuning")

    def near(theta: Tensor, center: Tensor) -> Tensor:
        return ProximalObjective(objective.finetuning, center, objective.alpha)(theta)

    thetas = minimise_all(finetuning, near, left_out.embeddings, left_out.examples, chunk=_CHUNK)
    return _changes(target, thetas, finetuning.theta)


@typed
def joint(curvature: Curvature[JointObjective], target: Losses, examples: Tensor, *, fraction: float = 1.0) -> Tensor:
    """Retrain the joint optimum; ``curvature`` is that of a ``JointObjective``, ``target`` a function of [W; Θ].

    Raises:
        ValueError: for an example that is not of pretraining; and what ``retrained_without`` raises.
    """
    objective = curvature.objective
    examples = require_examples(examples, curvature, len(objective.pretraining.losses))  # finetuning's come after
    thetas = retrained_without(curvature, examples, fraction=fraction, chunk=_CHUNK)
    return _changes(objective.of_finetuned(target), thetas, curvature.theta)


@typed
def finetuned_by(left_out: _LeftOut, run: Callable[[Tensor], Tensor], head: Tensor, target: Losses) -> Tensor:
    """Finetune each embedding by ``run``, a ``ShortRun``, from [W; Θ_0], all on the same batches; ``head`` is Θ_0."""
    embeddings = torch.cat([left_out.embedding[None], left_out.embeddings])  # the first is the control
    starts = torch.cat([embeddings, head.expand(len(embeddings), -1)], dim=1)
    control, *thetas = vmap(run, chunk_size=_CHUNK)(starts)
    return _changes(target, torch.stack(thetas), control)


@typed
@dataclass(frozen=True)
class Protocol(Generic[_State]):
    """How the paper retrains: some steps of Adam for each stage from the trained weights, not to an optimum."""

    rule: Rule[_State]
    steps: tuple[int, int] = (100, 100)  # of the first stage and of the second
    batch: int = 512  # or all examples of the stage, where it has fewer
    matched: bool = True  # whether all retrainings see the same batches
    seed: Seed = 0  # of the batches

    def __post_init__(self) -> None:
        """Refuse runs of no step, and batches that the removed example may be alone in."""
        if len(self.steps) != 2 or not all(isinstance(each, int) for each in self.steps):
            raise ValueError(f"steps={self.steps} must be two whole numbers, one for each stage")
        if min(self.steps) < 1 or self.batch < 2:
            raise ValueError(f"steps={self.steps}, batch={self.batch}: take at least one step, on two examples or more")


@typed
def by_protocol(
    protocol: Protocol[_State], pretraining: Stage, finetuning: Stage, target: Losses, examples: Tensor
) -> Tensor:
    """Retrain both stages for a few steps, the embedding fixed in the second (the paper's appendix B).

    Raises:
        ValueError: when the two networks do not have one and the same embedding, or for an example that is not there.
    """
    examples = require_examples(examples, pretraining)
    draw, w = torch.Generator().manual_seed(protocol.seed), same_embedding(pretraining, finetuning)
    removed = torch.cat([examples.new_tensor([-1]), examples])  # the first is the control
    stages = [stage.objective for stage in (pretraining, finetuning)]
    batches = [
        _batches(protocol, steps, len(removed), len(stage.losses), draw).to(examples.device)
        for steps, stage in zip(protocol.steps, stages, strict=True)
    ]

    def again(example: Tensor, first: Tensor, second: Tensor) -> Tensor:
        def without(theta: Tensor, index: Tensor) -> Tensor:
            kept = (index != example).to(theta.dtype)
            mean = (kept * stages[0].losses(theta, index)).sum() / kept.sum()
            return mean + 0.5 * stages[0].l2 * theta.dot(theta)

        embedding = ShortRun(without, protocol.rule, first)(pretraining.theta)[:w]
        head = ShortRun(head_objective(stages[1], embedding), protocol.rule, second)(finetuning.theta[w:])
        return torch.cat([embedding, head])

    control, *thetas = vmap(again, chunk_size=_CHUNK)(removed, *batches)
    return _changes(target, torch.stack(thetas), control)


def _batches(protocol: Protocol[_State], steps: int, runs: int, size: int, draw: torch.Generator) -> Tensor:
    """Draw the batches of each run, ``(runs, T, B)``; matched ones are the same for all."""
    drawn = [
        torch.stack([torch.randperm(size, generator=draw)[: protocol.batch] for _ in range(steps)])
        for _ in range(1 if protocol.matched else runs)
    ]
    return torch.stack(drawn).expand(runs, -1, -1)


def _changes(target: Losses, thetas: Tensor, control: Tensor) -> Tensor:
    """Return what each target has become at each of ``thetas (L, P)`` beyond its value at ``control``; ``(K, L)``."""
    values = vmap(target, chunk_size=_CHUNK)(thetas)
    return check_finite(values - target(control), "a change of a target").mT


def _require_embedding(left_out: _LeftOut, embedding: Tensor) -> None:
    """Refuse a second stage that did not start from the first."""
    if not torch.equal(left_out.embedding, embedding):
        raise ValueError(
            "the second stage does not have the embedding of the first; finetune the one that was pretrained"
        )
