"""Influence across two stages: what one pretraining example does to the loss of the network finetuned afterwards.

Source: Multi-Stage Influence Function (NeurIPS 2020), Theorem 1 and eq. 15.  Pretraining minimises G(W, U), finetuning
F(W, Θ): an embedding W, and a head for each stage.  Both networks are ``nn.Sequential`` with the parts ``embedding``
and ``head``, so θ_G = [W; U] and θ_F = [W; Θ].

A target is the loss of an example, each of the ``target`` losses one of its own; a scalar function of θ_F becomes one
by ``SingleLoss``.

Every score has two factors.  The second stage decides the sensitivity t = dℓ/dW* of the target to the pretrained
embedding; ``fixed_sensitivity`` is its model for an embedding that finetuning leaves alone.  For one that it moves
there are ``proximal_sensitivity`` (in ``updated``) and ``unrolled_sensitivity`` (in ``unrolled``).  The first
stage is an optimum, so W* moves by −v(z) = −[G''⁻¹g'(z)]_W for each unit of weight on the pretraining example z:
I(z) = −t·v(z) = −g'(z)·G''⁻¹[t; 0], one solve for all z (``pretraining_influence``).  The letters are the paper's;
the course, in which g is a gradient and t a task, writes ℓ(z), J, H and ξ for g, G, G'' and t.

The sign is that of ``influence``: **negative helps**, and leaving z out of the m examples predicts −I(z)/m.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metasp_lite.calculus.checks import Part, check_finite
from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.forward import outputs_at
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Losses,
    Objective,
    Penalised,
    loss_directional_derivatives,
    per_example_gradients,
)
from metasp_lite.calculus.parameters import number_of_trained, pieces, trained_shapes
from metasp_lite.calculus.solvers import Solver, solve_each
from metasp_lite.doors import typed

Stage = Curvature[Objective[ExampleLosses]]  # G or F at some θ


def embedding_size(model: nn.Module) -> int:
    """Return w, how many trained parameters the embedding has.

    Raises:
        ValueError: when ``model`` is not the sequence of an ``embedding`` and a ``head``, or its embedding is frozen.
    """
    parts = [name for name, _ in model.named_children()]
    if parts != ["embedding", "head"] or type(model) is not nn.Sequential:
        raise ValueError(
            f"the network has the parts {parts}; build it as nn.Sequential of an 'embedding' and a 'head', "
            "as metasp_lite.networks.two_stage does"
        )
    embedding = model.get_submodule("embedding")
    if not any(parameter.requires_grad for parameter in embedding.parameters()):
        raise ValueError(
            "the embedding is frozen, but a pretraining example acts through it alone: let it require a gradient "
            "(requires_grad_()); a score for a fixed embedding holds it by itself"
        )
    return number_of_trained(embedding)


def same_embedding(pretraining: Stage, finetuning: Stage) -> int:
    """Return w, the size of the embedding that both networks share.

    Raises:
        ValueError: when they do not have one and the same embedding.
    """
    models = [stage.objective.losses.model for stage in (pretraining, finetuning)]
    w, frozen = (
        embedding_size(models[1]),
        [[p for p in model.get_submodule("embedding").parameters() if not p.requires_grad] for model in models],
    )
    if (
        embedding_size(models[0]) != w
        or not torch.equal(pretraining.theta[:w], finetuning.theta[:w])
        or len(frozen[0]) != len(frozen[1])
        or not all(torch.equal(*pair) for pair in zip(*frozen, strict=True))
    ):
        raise ValueError(
            "the embedding of the finetuned network is not the pretrained one; take an updated-embedding score"
        )
    return w


def require_objective(curvature: Curvature[Penalised], kind: type[Penalised], what: str) -> None:
    """Do nothing for the curvature of an objective of that ``kind``.

    Raises:
        ValueError: for that of another; names it, and ``what`` to give.
    """
    if not isinstance(curvature.objective, kind):
        raise ValueError(f"the curvature is of {type(curvature.objective).__name__}: give that of {what}")


@typed
def head_objective(finetuning: Objective[ExampleLosses], embedding: Tensor) -> Objective[ExampleLosses]:
    """F(W, ·) for a given embedding W ``(w,)``: the finetuning objective of the head's parameters Θ alone.

    Its examples are the features that W gives; the penalty of W, a constant, is left out.
    """
    losses = finetuning.losses
    body, head = (losses.model.get_submodule(part) for part in ("embedding", "head"))
    features = outputs_at(body, pieces(embedding, trained_shapes(body)), losses.inputs)
    return Objective(ExampleLosses(head, features, losses.labels, losses.loss), finetuning.l2)


@typed
def fixed_sensitivity(finetuning: Stage, target: Losses, solver: Solver) -> Tensor:
    """t = f_W − F_WΘ F_ΘΘ⁻¹ f_Θ of each target, ``(K, w)``: the head is the optimum for the embedding (Theorem 1).

    ``finetuning`` is that of F at [W*; Θ*]; its damping δ is added to F_ΘΘ.

    Raises:
        NegativeCurvatureError: when F_ΘΘ + δI is not positive definite.
        ValueError: for networks without an embedding and a head, or the curvature of anything but an ``Objective``.
    """
    require_objective(finetuning, Objective, "the Objective of finetuning")
    objective, theta = finetuning.objective, finetuning.theta
    w = embedding_size(objective.losses.model)
    direct = per_example_gradients(target, theta)
    with in_stage("finetuning"):
        head = Curvature(head_objective(objective, theta[:w]), theta[w:], finetuning.damping)
        s = solve_each(solver, head, direct[:, w:])
    mixed = [(finetuning @ F.pad(each, (w, 0)))[:w] for each in s]  # F_WΘ has no diagonal, so no damping
    return direct[:, :w] - torch.stack(mixed)


@typed
def pretraining_influence(
    pretraining: Stage,
    sensitivity: Tensor,
    solver: Solver,
    *,
    losses: Losses | None = None,
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
    with in_stage("pretraining"):
        solution = solve_each(solver, pretraining, padded)
    return -directional_derivatives(losses or pretraining.objective.losses, pretraining.theta, solution, batch)


@typed
def directional_derivatives(losses: Losses, theta: Tensor, directions: Tensor, batch: int) -> Tensor:
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
        part = Part(losses, index)
        if len(directions) <= 2:
            pieces.append(torch.stack([loss_directional_derivatives(part, theta, u) for u in directions]))
        else:
            pieces.append(directions @ per_example_gradients(part, theta).T)
    return check_finite(torch.cat(pieces, dim=1), "an influence")


@typed
def fixed_embedding(
    pretraining: Stage, finetuning: Stage, target: Losses, solver: Solver, *, batch: int = 1000
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


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Let a NegativeCurvatureError say in which stage it was met."""
    try:
        yield
    except NegativeCurvatureError as error:
        raise NegativeCurvatureError(error.curvature, error.damping, f"the {name} stage") from error
