"""The dense Hessian of a network that begins with a wide linear layer, at the cost of the narrow rest.

The fast path of ``Curvature.dense``, which compares it with one product; its slow twin is
``second_order.hessian_by_products``, one product a column.
"""

import torch
from torch import Tensor, nn

from metasp_lite.calculus.checks import check_finite
from metasp_lite.calculus.forward import outputs_at
from metasp_lite.calculus.losses import ExampleLosses
from metasp_lite.calculus.parameters import pieces
from metasp_lite.calculus.second_order import differentiated, gradient_graph


def is_plain(losses: ExampleLosses) -> bool:
    """Whether these are the loss of outputs and labels; a subclass may make them something else."""
    return all(getattr(type(losses), name) is getattr(ExampleLosses, name) for name in ("__call__", "_at", "outputs"))


def first_linear(losses: ExampleLosses) -> int | None:
    """Return the place of a leading linear layer in the sequential model behind ``losses``, or None.

    None also where it may act otherwise than its layers one after the other: in a subclass, with hooks, where layers
    share parameters or some are frozen, or where the layer acts on many vectors of one example.
    """
    model = losses.model
    if not is_plain(losses) or type(model) is not nn.Sequential:
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None
    parameters = list(model.parameters())
    if len(list(model.named_parameters(remove_duplicate=False))) > len(parameters):
        return None
    if not all(parameter.requires_grad for parameter in parameters):
        return None
    place = next((i for i, module in enumerate(model) if type(module) is not nn.Flatten), None)
    if place is None or type(model[place]) is not nn.Linear or (place == 0 and losses.inputs.dim() != 2):
        return None
    if set(dict(model[place].named_parameters())) - {"weight", "bias"}:
        return None
    return place if all((layer.start_dim, layer.end_dim) == (1, -1) for layer in model[:place]) else None


def hessian_by_first_layer(losses: ExampleLosses, theta: Tensor, first: int) -> Tensor:
    """Hessian ``(P, P)`` of the mean loss of a model that begins with a linear layer, z = W x (+ b).

    Derived by the chain rule: the loss sees W and b through z alone, and z is linear in them, so with φ(z, ψ) the loss
    as a function of z and of the other parameters ψ,
    ``∂²/∂W_j∂W_k = (1/n) Σ_i ∂²φ/∂z_j∂z_k x_i x_iᵀ`` and ``∂²/∂W_j∂ψ = (1/n) Σ_i x_i ∂²φ/∂z_j∂ψ``.
    Examples do not meet in φ, so one product per z_j and per ψ_k gives all its second derivatives, and the wide layer,
    which holds nearly all parameters, costs weighted Gram matrices instead of P Hessian-vector products, which are the
    slow twin (``test_first_layer_hessian_equals_products``).
    """
    model, n = losses.model, len(losses)
    assert isinstance(model, nn.Sequential)  # first_linear has seen both
    layer = model[first]
    assert isinstance(layer, nn.Linear)
    head = model[first + 1 :]
    shapes = {name: parameter.shape for name, parameter in head.named_parameters()}
    width, wide = layer.out_features, sum(parameter.numel() for parameter in layer.parameters())
    weight, psi = theta[: layer.weight.numel()].view_as(layer.weight), theta[wide:]
    x = losses.inputs.flatten(1)
    z = x @ weight.T + (theta[layer.weight.numel() : wide] if layer.bias is not None else 0.0)

    def phi(z_psi: Tensor) -> Tensor:
        inputs = z_psi[: z.numel()].view_as(z).clone()  # a copy, for layers that act in place
        outputs = outputs_at(head, pieces(z_psi[z.numel() :], shapes), inputs)
        return losses.loss(outputs, losses.labels).sum() / n

    # Twice backwards: torch.func's forward mode over its gradient imports 55 MiB before its first answer.
    graph = gradient_graph(phi, torch.cat([z.flatten(), psi]))

    def column(z_direction: Tensor, psi_direction: Tensor) -> tuple[Tensor, Tensor]:
        product = differentiated(graph, torch.cat([z_direction.flatten(), psi_direction]), keep=True)
        return product[: z.numel()].view_as(z), product[z.numel() :]

    # Where each W_j, and b_j behind it, stands in θ; x gains a constant input for b.
    places = torch.arange(layer.weight.numel(), device=theta.device).view(width, -1)
    if layer.bias is not None:
        x = torch.cat([x, x.new_ones(n, 1)], dim=1)
        places = torch.cat(
            [places, torch.arange(layer.weight.numel(), wide, device=theta.device).view(width, 1)], dim=1
        )
    hessian = theta.new_empty(len(theta), len(theta))
    for k in range(width):
        dz = torch.zeros_like(z)
        dz[:, k] = 1.0
        dzz, _ = column(dz, torch.zeros_like(psi))  # (n, width): ∂²φ/∂z_j∂z_k of each example
        for j in range(k, width):
            block = x.T @ (dzz[:, j : j + 1] * x)
            hessian[places[j][:, None], places[k]] = block
            hessian[places[k][:, None], places[j]] = block
    for k, unit in enumerate(torch.eye(len(psi), dtype=theta.dtype, device=theta.device)):
        dzpsi, dpsipsi = column(torch.zeros_like(z), unit)
        hessian[places, wide + k] = hessian[wide + k, places] = dzpsi.T @ x
        hessian[wide:, wide + k] = dpsipsi
    check_finite(hessian.sum(dim=1), "a row sum of the Hessian")
    return hessian
