"""Losses of an example by name, and the labels that exist for them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LossFunction = Callable[[Tensor, Tensor], Tensor]  # (logits (B, …), labels (B,)) -> losses (B,)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example: logits ``(B, C)`` and labels ``(B,)`` to losses ``(B,)`` in nats.

    Labels may also be probabilities of the classes, ``(B, C)``.
    """
    return F.cross_entropy(logits, labels, reduction="none")


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example of a binary model: logits ``(B,)``, labels 0 or 1 ``(B,)``, losses ``(B,)``."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")


def require_labels(labels: Tensor, loss: LossFunction, outputs: Tensor | None = None) -> None:
    """Do nothing for labels that exist: numbers, and for a cross-entropy classes or probabilities.

    ``outputs (B, C)`` are logits of some examples, None while they are not known.  Torch itself gives the label −100 a
    loss of 0, and a binary label 2 a loss without a minimum.

    Raises:
        ValueError: for one that does not exist, names it and its place; or for labels of another kind.
    """
    wanted, wrong = "finite numbers", ~labels.isfinite()
    classes = "C" if outputs is None or outputs.dim() < 2 else outputs.shape[1]
    if loss is binary_cross_entropy:
        wanted, wrong = "labels 0 or 1, or a probability", ~((labels >= 0) & (labels <= 1))
    elif loss is cross_entropy and labels.is_floating_point():
        wanted = f"probabilities of the {classes} classes (n, {classes}) that sum to 1, or classes as int64 (n,)"
        if labels.dim() != 2 or classes not in ("C", labels.shape[1]):
            raise ValueError(f"the labels have the shape {tuple(labels.shape)} and {labels.dtype}: give {wanted}")
        sums = (labels.sum(dim=1, keepdim=True) - 1).abs() < 1e-2
        wrong = ~((labels >= 0) & (labels <= 1) & sums)
    elif loss is cross_entropy:
        wanted = f"classes from 0 to {classes}−1"
        if labels.dtype not in (torch.int64, torch.uint8):
            raise ValueError(f"the labels are {labels.dtype}: give classes as int64 (labels.long())")
        wrong = labels < 0 if isinstance(classes, str) else (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        place = int(wrong.flatten().nonzero()[0])
        raise ValueError(f"the label {labels.flatten()[place].item()} at place {place} does not exist: give {wanted}")
