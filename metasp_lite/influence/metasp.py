"""The MetaSP step: a batch's influence on stability and plasticity, fused into the weights of one real step.

Source: MetaSP, sections 4.2 and 4.3 and algorithm 1.  Negative influence helps: more weight on the example lowers the
validation loss.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metasp_lite.calculus.checks import check_finite, refuse_shared_layers
from metasp_lite.calculus.losses import Examples, LossFunction, cross_entropy, losses_at
from metasp_lite.calculus.min_norm import min_norm_pair
from metasp_lite.doors import typed
from metasp_lite.influence.pseudo_update import Parameters, PseudoUpdate, SGDRule, mean_and_gradient, momentum_of


class Fusion(NamedTuple):
    """Two influence vectors made into the weights of the real step's loss Σ w_i ℓ(x_i, θ)."""

    gamma: Tensor  # (), the share of stability
    influence: Tensor  # (n,), I* = γ I_S + (1−γ) I_P, of the influences as the variant scales them
    weights: Tensor  # (n,), w; the plain mean loss has 1/n; may be negative


_Variant = Callable[[Tensor, Tensor, Tensor, Tensor], Fusion]


@typed
def relative(
    stability: Tensor,
    plasticity: Tensor,
    stability_loss: Tensor,
    plasticity_loss: Tensor,
    *,
    gamma: float | None = None,
) -> Fusion:
    """One scale throughout: influences by E of (1/n) Σ (1 + E_i) ℓ(x_i), and the step E = −I*, so n·w = 1 − I*.

    A reading of eq. 12 in which E counts in plain weights (notebook 05), with the closed-form γ* (eq. 11).  Like
    ``mixed`` and ``printed`` it takes I_S and I_P ``(n,)`` as ``MetaSPStep`` has them and the two validation losses,
    which it has no use for; ``gamma`` replaces γ* by a fixed share.  From one of the three to the next the correction
    n·w − 1 is n times as large; nothing else differs.
    """
    share, fused = _mixture(stability, plasticity, gamma)
    return Fusion(share, fused, (1 - fused) / len(fused))


@typed
def mixed(
    stability: Tensor,
    plasticity: Tensor,
    stability_loss: Tensor,
    plasticity_loss: Tensor,
    *,
    gamma: float | None = None,
) -> Fusion:
    """Two scales in one formula: influences by the relative E, subtracted from the absolute 1/n: w = 1/n − I*.

    No reading of the paper is this; its correction lies between those of ``relative`` and ``printed``.
    """
    share, fused = _mixture(stability, plasticity, gamma)
    return Fusion(share, fused, 1 / len(fused) - fused)


@typed
def printed(
    stability: Tensor,
    plasticity: Tensor,
    stability_loss: Tensor,
    plasticity_loss: Tensor,
    *,
    gamma: float | None = None,
) -> Fusion:
    """Minimise ℓ(B) − I*ᵀL(B) as the paper prints it (eq. 12, appendices B and F): w = 1/n − I*.

    There the pseudo-update descends on ℓ(B) + EᵀL(B), whose mean ℓ(B) is divided by n and whose E is not: the
    influences are n times those of ``MetaSPStep``.  γ* (eq. 11) does not depend on the scale.
    """
    share, fused = _mixture(stability, plasticity, gamma)
    fused = len(fused) * fused
    return Fusion(share, fused, 1 / len(fused) - fused)


@typed
def official(
    stability: Tensor,
    plasticity: Tensor,
    stability_loss: Tensor,
    plasticity_loss: Tensor,
    *,
    gamma: float | None = None,
) -> Fusion:
    """Weigh as the authors' code does: each influence is first rescaled to the norm ℓ(V, θ').

    Where one of the two is itself the shortest mixture, γ* = 0 or 1, the other keeps a share of 0.001; ``gamma``
    replaces γ* by a fixed share.  Then
    w = (1 − I*) / Σ(1 − I*).  Takes I_S and I_P ``(n,)`` and the two validation losses ``()`` after the pseudo-update.
    An influence that is zero everywhere stays zero.  With both losses at most ℓ < √n, no |w_i| is above
    (1 + ℓ) / (n − √n ℓ), since ‖I*‖ ≤ ℓ; beyond √n there is no bound.

    Raises:
        ValueError: when a validation loss is negative: rescaling by it would turn every influence round.
        FloatingPointError: when Σ(1 − I*) is not positive, so that no such weights exist.
    """
    if stability.dim() != 1 or stability.shape != plasticity.shape or len(stability) == 0:
        raise ValueError(
            f"shapes {tuple(stability.shape)} and {tuple(plasticity.shape)}: give two vectors of one length"
        )
    for name, size in {"old": stability_loss, "new": plasticity_loss}.items():
        if size < 0:
            raise ValueError(
                f"the mean loss of {name} is {size.item():.3g} after the pseudo-update, and the variant 'official' "
                "rescales influences by it; add a constant to the loss, or use the variant 'relative'"
            )
    stability, plasticity = _rescaled(stability, stability_loss), _rescaled(plasticity, plasticity_loss)
    share, fused = _mixture(stability, plasticity, gamma)
    if gamma is None:
        share = torch.where((share == 0) | (share == 1), share.clamp(0.001, 0.999), share)
        fused = share * stability + (1 - share) * plasticity
    total = (1 - fused).sum()
    if not total > 0:
        raise FloatingPointError(
            f"the weights sum to {total.item():.3g} before normalisation: the validation losses "
            f"{stability_loss.item():.3g} and {plasticity_loss.item():.3g} are too large for a batch of {len(fused)}; "
            "lower the learning rate, enlarge the batch or use the variant 'relative'"
        )
    return Fusion(share, fused, (1 - fused) / total)


@typed
def dosed(
    stability: Tensor,
    plasticity: Tensor,
    stability_loss: Tensor,
    plasticity_loss: Tensor,
    *,
    dose: float,
    gamma: float | None = None,
) -> Fusion:
    """Weigh by a chosen amount of influence: w ∝ max(0, 1 − c I*/sd(I*)), with Σ w = 1.

    ``dose`` c ≥ 0 is in standard deviations of the batch's own I*, so that it means the same in every batch: at c = 0
    all weights are 1/n, and the larger c, the more of the harmful are left out.  Where all I* are equal they tell no
    example from another, and the weights are 1/n, too.  No variant of the paper; a probe of what influence is worth.

    Raises:
        ValueError: for a dose that is negative or no finite number.
        FloatingPointError: when every example is harmful by more than sd/c, so that nothing keeps a weight.
    """
    if not 0 <= dose < math.inf:
        raise ValueError(f"dose={dose} must be 0 or more, and finite")
    share, fused = _mixture(stability, plasticity, gamma)
    deviation = fused.std(correction=0)
    equal = bool((fused == fused[0]).all())
    kept = torch.ones_like(fused) if equal else (1 - dose * fused / deviation).clamp(min=0)
    if not kept.sum() > 0:
        raise FloatingPointError(f"at dose={dose} no example of the batch keeps a weight; lower the dose")
    return Fusion(share, fused, kept / kept.sum())


def _mixture(stability: Tensor, plasticity: Tensor, gamma: float | None) -> tuple[Tensor, Tensor]:
    """γ and γ I_S + (1−γ) I_P: the shortest such vector (eq. 11), or with the γ that is given."""
    shortest = min_norm_pair(stability, plasticity)
    if gamma is None:
        return shortest.gamma, shortest.point
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma} must be from 0, plasticity alone, to 1, stability alone")
    return torch.full_like(shortest.gamma, gamma), gamma * stability + (1 - gamma) * plasticity


def _rescaled(influence: Tensor, norm: Tensor) -> Tensor:
    largest = influence.abs().max()  # divided out first: the square of a small influence would vanish
    unit = influence / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(unit)
    return unit * (norm / torch.where(length > 0, length, 1.0))


@dataclass(frozen=True)
class MetaSPStep:
    """One step, computed but not taken."""

    losses: Tensor  # (n,), L(θ) of the batch
    stability: Tensor  # (n,), I_S = ∂ℓ(V_old, θ_K)/∂E, where θ_K descends on (1/n) Σ (1 + E_i) ℓ(x_i, θ)
    plasticity: Tensor  # (n,), I_P = ∂ℓ(V_new, θ_K)/∂E
    fusion: Fusion
    gradient: dict[str, Tensor]  # ∇_θ Σ w_i ℓ(x_i, θ), by parameter name
    buffers: dict[str, Tensor]  # the model's buffers after the step: running averages of batch-norm


@typed
def metasp_gradient(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    batch: Examples,
    old: Examples,
    new: Examples,
    *,
    variant: _Variant = official,
    pseudo_steps: int = 1,
    loss: LossFunction = cross_entropy,
) -> MetaSPStep:
    """Compute the MetaSP step on ``batch`` without taking it; ``model`` and ``optimizer`` stay as they are.

    ``old`` and ``new`` are the validation sets V_old (from the memory) and V_new (from the new task).  ``variant``
    turns influences into weights: ``official``, ``relative``, ``mixed``, ``printed`` or, with its dose given,
    ``dosed``; only those of the first and the last have a bound, and training with the others may run away.  The
    pseudo-update follows the optimiser's own rule, with its momentum.  Batch-norm in training mode takes batch
    statistics in every pass, and each validation set is a batch of its own.  Parameters that require no gradient stay
    where they are.  Cost for K = 1, in forward passes of an example: 9 for each of the batch and 3 for each of the
    validation sets.  Its slow twin is ``influences_by_autograd`` (``test_metasp_equals_by_autograd``).

    Raises:
        ValueError: when a set is empty or its labels differ in number, when the optimiser is not SGD, lacks a
            parameter of the model or holds a foreign one, when the model draws random numbers (dropout in training
            mode), leaves a trained parameter out of the losses or has one layer under two names, or when
            ``pseudo_steps`` is below 1.
        FloatingPointError: when a loss, a parameter, an influence or the gradient is NaN or infinite.
    """
    for name, examples in {"batch": batch, "old": old, "new": new}.items():
        if len(examples) != 2:
            raise ValueError(f"{name} has {len(examples)} parts; give two tensors, inputs and labels")
        inputs, labels = examples
        if len(inputs) != len(labels) or len(inputs) == 0:
            raise ValueError(f"{name} has {len(inputs)} inputs and {len(labels)} labels; give as many, at least one")
    refuse_shared_layers(model)
    trained = trained_parameters(model, optimizer)
    buffers: dict[str, Tensor] = {}

    def losses(parameters: Parameters, examples: Examples = batch) -> Tensor:
        values, after = losses_at(model, dict(zip(trained, parameters, strict=True)), examples, loss)
        if not buffers:  # the first pass is the real step's too, and the one that moves the running averages
            buffers.update(after)
        return values

    moved, rules = zip(*trained.values(), strict=True)
    momenta = [momentum_of(optimizer, parameter) for parameter in moved]
    pseudo = PseudoUpdate(losses, moved, rules, momenta, steps=pseudo_steps)
    (old_loss, old_gradient), (new_loss, new_gradient) = (
        mean_and_gradient(partial(losses, examples=examples), pseudo.parameters) for examples in (old, new)
    )
    check_finite(old_loss, "the mean loss of old after the pseudo-update")
    check_finite(new_loss, "the mean loss of new after the pseudo-update")
    stability, plasticity = pseudo.influences(old_gradient, new_gradient)
    fusion = variant(stability, plasticity, old_loss, new_loss)
    gradient = dict(zip(trained, pseudo.gradient(fusion.weights), strict=True))
    check_finite(torch.stack([g.abs().max() for g in gradient.values()]), "the largest entry of a parameter's gradient")
    return MetaSPStep(pseudo.losses, stability, plasticity, fusion, gradient, buffers)


def metasp_step(
    model: nn.Module, optimizer: torch.optim.SGD, batch: Examples, old: Examples, new: Examples, **settings: Any
) -> MetaSPStep:
    """Take the step that ``metasp_gradient`` computes from the same arguments, and return it.

    Moves the parameters and the momentum by ``optimizer.step()``, and the model's buffers; the parameters' ``grad``
    holds what the optimiser made of the gradient.  Where ``metasp_gradient`` raises, nothing has moved.
    """
    step = metasp_gradient(model, optimizer, batch, old, new, **settings)
    for name, parameter in model.named_parameters():
        # a copy: with Nesterov momentum torch may add to it in place, and the step returned would change
        parameter.grad = step.gradient[name].clone() if name in step.gradient else None
    optimizer.step()
    for name, buffer in model.named_buffers():
        buffer.copy_(step.buffers[name])
    return step


def trained_parameters(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, tuple[nn.Parameter, SGDRule]]:
    """Return the parameters that the optimiser moves, by name, each with its rule.

    Raises:
        ValueError: when the optimiser is not SGD or has dampening or maximize, when it lacks a parameter that requires
            a gradient or holds a foreign one, or when no parameter requires one.
    """
    if type(optimizer) is not torch.optim.SGD:
        raise ValueError(f"{type(optimizer).__name__} is not followed by a pseudo-update; use torch.optim.SGD")
    rules = {parameter: SGDRule.of(group) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    foreign = [tuple(parameter.shape) for parameter in rules.keys() - set(parameters.values())]
    if foreign:
        raise ValueError(
            f"the optimiser holds tensors of shape {foreign} that are not parameters of the model; "
            "build it as torch.optim.SGD(model.parameters(), …)"
        )
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    missed = [name for name, parameter in trained.items() if parameter not in rules]
    if missed or not trained:
        raise ValueError(
            f"the optimiser lacks {missed or 'nothing'} of the {len(trained)} parameters that require a gradient; "
            "give it all of them, one at least, or freeze those it lacks by requires_grad_(False)"
        )
    return {name: (parameter, rules[parameter]) for name, parameter in trained.items()}
