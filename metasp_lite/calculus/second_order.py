"""Second derivatives by differentiating the graph of a gradient: one product with the Hessian, or all of it."""

import torch
from torch import Tensor

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.forward import has_no_rule
from metasp_lite.calculus.losses import ScalarLoss

Graph = tuple[Tensor, Tensor]  # θ as a leaf (P,), and ∇J(θ) (P,) with its history


def gradient_graph(objective: ScalarLoss, theta: Tensor) -> Graph:
    """Return θ ``(P,)`` as a leaf and ∇J(θ) ``(P,)`` with the graph that lets it be differentiated again.

    Raises:
        ValueError: when J does not depend on θ in a way that torch follows.
        FloatingPointError: when J or its gradient is NaN or infinite.
    """
    leaf = theta.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = check_finite(objective(leaf), "the objective")
        if not value.requires_grad:
            raise ValueError(
                "the objective does not depend on θ: something in it is detached, or computed under torch.no_grad()"
            )
        (gradient_,) = torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)
    return leaf, check_finite(gradient_, "the gradient of the objective")


def differentiated(graph: Graph, vector: Tensor, *, keep: bool) -> Tensor:
    """H v ``(P,)``; ``keep`` leaves the graph for the next one."""
    leaf, gradient_ = graph
    if not gradient_.requires_grad:  # J is linear in θ
        return torch.zeros_like(vector)
    (product,) = torch.autograd.grad(gradient_, leaf, vector, retain_graph=keep, materialize_grads=True)
    return product


def hessian_by_products(leaf: Tensor, gradient_: Tensor, chunk: int) -> Tensor:
    """H ``(P, P)`` from the graph of ∇J, ``chunk`` columns at a time, for any twice differentiable J.

    One by one where torch's vmap has no rule for something in the graph.
    """
    hessian = leaf.new_empty(len(leaf), len(leaf))
    if not gradient_.requires_grad:
        return hessian.zero_()
    for start in range(0, len(leaf), chunk):
        rows = hessian[start : start + chunk]
        unit = torch.zeros_like(rows)
        unit[:, start : start + chunk].fill_diagonal_(1.0)
        try:
            (product,) = torch.autograd.grad(
                gradient_, leaf, unit, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )
        except RuntimeError as error:
            if not has_no_rule(error):
                raise
            product = torch.stack([differentiated((leaf, gradient_), each, keep=True) for each in unit])
        rows.copy_(product)
    check_finite(hessian.sum(dim=1), "a row sum of the Hessian")
    return hessian
