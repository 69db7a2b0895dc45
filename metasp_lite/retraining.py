"""The truth that two-stage influence predicts: both stages trained again without one pretraining example.

Each function starts from the trained networks, leaves out each of ``examples (L,)`` alone and returns the change of
each target against the same retraining with nothing left out, ``(K, L)``; influence predicts −f I/m, with f the
``fraction`` of the example's weight that is taken away.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from metasp_lite.functional import Curvature, check_finite
from metasp_lite.influence import newton, retrained_without
from metasp_lite.stages import Joint, Proximal, Rule, ShortRun, Target, embedding_size, head_objective, same_embedding

CHUNK = 8  # retrainings in memory at once


def fixed(
    pretraining: Curvature, finetuning: Curvature, target: Target, examples: Tensor, *, fraction: float = 1.0
) -> Tensor:
    """Retrain both stages to their true optima, the embedding fixed in the second (what Theorem 1 predicts).

    The curvatures are those of G at [W*; U*] and of F at [W*; Θ*].

    Raises:
        ValueError: when the two networks do not have one and the same embedding, or for a damped curvature.
        RuntimeError: when either start is no optimum of its stage; and what ``retrained_without`` raises.
    """
    w = same_embedding(pretraining, finetuning)
    embeddings = retrained_without(pretraining, examples, fraction=fraction, chunk=CHUNK)[:, :w]
    start = finetuning.theta
    head = Curvature(head_objective(finetuning.objective, start[:w]), start[w:], finetuning.damping)
    _require_optimum(head)

    def gradient_of_head(theta: Tensor, embedding: Tensor) -> Tensor:
        return grad(head_objective(finetuning.objective, embedding))(theta)

    heads = newton(head, lambda thetas: vmap(gradient_of_head, chunk_size=CHUNK)(thetas, embeddings), examples)
    return _changes(target, torch.cat([embeddings, heads], dim=1), start)


def proximal(
    pretraining: Curvature, finetuning: Curvature, target: Target, examples: Tensor, *, fraction: float = 1.0
) -> Tensor:
    """Retrain both stages to their optima, the second by a ``Proximal``, which ``finetuning`` is the curvature of.

    Raises:
        ValueError: when it is not held near the pretrained embedding, or for a damped curvature.
        RuntimeError: when either start is no optimum of its stage; and what ``retrained_without`` raises.
    """
    objective, w = finetuning.objective, embedding_size(pretraining.objective.losses.model)
    if not torch.equal(objective.center, pretraining.theta[:w]):
        raise ValueError(
            "the center of the proximal finetuning is not the pretrained embedding; give pretraining.theta[:w]"
        )
    _require_optimum(finetuning)
    centers = retrained_without(pretraining, examples, fraction=fraction, chunk=CHUNK)[:, :w]

    def gradient_at(theta: Tensor, center: Tensor) -> Tensor:
        return grad(Proximal(objective.finetuning, center, objective.alpha))(theta)

    thetas = newton(finetuning, lambda points: vmap(gradient_at, chunk_size=CHUNK)(points, centers), examples)
    return _changes(target, thetas, finetuning.theta)


def joint(curvature: Curvature, target: Target, examples: Tensor, *, fraction: float = 1.0) -> Tensor:
    """Retrain the joint optimum; ``curvature`` is that of a ``Joint``, ``target`` a function of [W; Θ].

    Raises:
        ValueError: for an example that is not of pretraining; and what ``retrained_without`` raises.
    """
    objective: Joint = curvature.objective
    _require_examples(examples, len(objective.pretraining.losses))  # the joint losses go on with finetuning's
    thetas = retrained_without(curvature, examples, fraction=fraction, chunk=CHUNK)
    return _changes(objective.of_finetuned(target), thetas, curvature.theta)


def finetuned_by(
    run: ShortRun, pretraining: Curvature, head: Tensor, target: Target, examples: Tensor, *, fraction: float = 1.0
) -> Tensor:
    """Retrain the first stage to its optimum, then finetune it by ``run`` from [W; Θ_0], on the same batches."""
    w = embedding_size(pretraining.objective.losses.model)
    retrained = retrained_without(pretraining, examples, fraction=fraction, chunk=CHUNK)
    embeddings = torch.cat([pretraining.theta[None], retrained])[:, :w]  # the first is the control
    starts = torch.cat([embeddings, head.expand(len(embeddings), -1)], dim=1)
    control, *thetas = vmap(run, chunk_size=CHUNK)(starts)
    return _changes(target, torch.stack(thetas), control)


@dataclass(frozen=True)
class Protocol:
    """How the paper retrains: some steps of Adam for each stage from the trained weights, not to an optimum."""

    rule: Rule
    steps: int = 100  # of each stage
    batch: int = 512  # or all examples of the stage, where it has fewer
    matched: bool = True  # whether all retrainings see the same batches
    seed: int = 0  # of the batches

    def __post_init__(self) -> None:
        """Refuse runs of no step, and batches that the removed example may be alone in."""
        if self.steps < 1 or self.batch < 2:
            raise ValueError(f"steps={self.steps}, batch={self.batch}: take at least one step, on two examples or more")


def by_protocol(
    protocol: Protocol, pretraining: Curvature, finetuning: Curvature, target: Target, examples: Tensor
) -> Tensor:
    """Retrain both stages for a few steps, the embedding fixed in the second (the paper's appendix B).

    Raises:
        ValueError: when the two networks do not have one and the same embedding, or for an example that is not there.
    """
    _require_examples(examples, len(pretraining.objective.losses))
    draw, w = torch.Generator().manual_seed(protocol.seed), same_embedding(pretraining, finetuning)
    removed = torch.cat([examples.new_tensor([-1]), examples])  # the first is the control
    stages = [stage.objective for stage in (pretraining, finetuning)]
    batches = [_batches(protocol, len(removed), len(stage.losses), draw).to(examples.device) for stage in stages]

    def again(example: Tensor, first: Tensor, second: Tensor) -> Tensor:
        def without(theta: Tensor, index: Tensor) -> Tensor:
            kept = (index != example).to(theta.dtype)
            mean = (kept * stages[0].losses(theta, index)).sum() / kept.sum()
            return mean + 0.5 * stages[0].l2 * theta.dot(theta)

        embedding = ShortRun(without, protocol.rule, first)(pretraining.theta)[:w]
        head = ShortRun(head_objective(stages[1], embedding), protocol.rule, second)(finetuning.theta[w:])
        return torch.cat([embedding, head])

    control, *thetas = vmap(again, chunk_size=CHUNK)(removed, *batches)
    return _changes(target, torch.stack(thetas), control)


def _batches(protocol: Protocol, runs: int, size: int, draw: torch.Generator) -> Tensor:
    """Draw the batches of each run, ``(runs, T, B)``; matched ones are the same for all."""
    drawn = [
        torch.stack([torch.randperm(size, generator=draw)[: protocol.batch] for _ in range(protocol.steps)])
        for _ in range(1 if protocol.matched else runs)
    ]
    return torch.stack(drawn).expand(runs, -1, -1)


def _changes(target: Target, thetas: Tensor, control: Tensor) -> Tensor:
    """Return what each target has become at each of ``thetas (L, P)`` beyond its value at ``control``; ``(K, L)``."""
    values = vmap(lambda theta: target(theta).reshape(-1), chunk_size=CHUNK)(thetas)
    return check_finite(values - target(control).reshape(-1), "a change of a target").T


def _require_examples(examples: Tensor, m: int) -> None:
    """Refuse examples that pretraining does not have: nothing would be left out, or something else."""
    if len(examples) == 0 or int(examples.min()) < 0 or int(examples.max()) >= m:
        raise ValueError(f"examples must be at least one index between 0 and {m - 1}, got {examples.tolist()}")


def _require_optimum(curvature: Curvature, tolerance: float = 1e-9) -> None:
    """Refuse a second stage that is not at its optimum: its own way there would count as the example's effect."""
    norm = curvature.gradient.norm().item()
    if norm > tolerance:
        raise RuntimeError(
            f"the gradient norm {norm:.2g} of finetuning is above {tolerance:.2g}: "
            "train it to an optimum first (metasp_lite.optimum.minimise)"
        )
