"""θ and the parameters of a network: θ holds what is trained, in the order of ``model.parameters()``."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trained_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the parameters that are trained (``requires_grad``), by name, in the model's order.

    Raises:
        ValueError: when there are none.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not shapes:
        raise ValueError("no parameter of the network is trained; let one require a gradient by requires_grad_()")
    return shapes


def number_of_trained(model: nn.Module) -> int:
    """Return P, how many numbers of the model are trained; raises as ``trained_shapes``."""
    return sum(shape.numel() for shape in trained_shapes(model).values())


def pieces(theta: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the views of θ ``(P,)`` of these shapes, one after the other, by name.

    Raises:
        ValueError: when θ is not a floating-point vector of as many numbers.
    """
    sizes = [shape.numel() for shape in shapes.values()]
    if theta.shape != (sum(sizes),) or not theta.is_floating_point():
        raise ValueError(
            f"θ has the shape {tuple(theta.shape)} and {theta.dtype}: give ({sum(sizes)},) floating-point numbers, one "
            "for each trained parameter, as flatten_parameters does"
        )
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), theta.split(sizes), strict=True)}


def require_theta(theta: Tensor) -> None:
    """Do nothing for a floating-point vector.

    Raises:
        ValueError: for anything else.
    """
    if theta.dim() != 1 or not theta.is_floating_point():
        raise ValueError(
            f"θ has the shape {tuple(theta.shape)} and {theta.dtype}: give a floating-point vector (P,), such as "
            "flatten_parameters does"
        )


def require_vector(vector: Tensor, theta: Tensor, what: str) -> Tensor:
    """Return ``vector`` unchanged.

    Raises:
        ValueError: when it has not the shape and dtype of θ ``(P,)``; names ``what``.
    """
    if vector.shape != theta.shape or vector.dtype != theta.dtype:
        raise ValueError(
            f"{what} has the shape {tuple(vector.shape)} and {vector.dtype}: give {tuple(theta.shape)} and "
            f"{theta.dtype}, those of θ"
        )
    return vector


def require_places(places: Tensor, n: int, what: str) -> Tensor:
    """Return ``places`` unchanged.

    Raises:
        ValueError: when they are not one or more places among n, as an int64 vector; names ``what``.
    """
    if places.dim() != 1 or places.dtype != torch.int64:
        raise ValueError(f"{what} has the shape {tuple(places.shape)} and {places.dtype}: give places as int64 (k,)")
    if len(places) == 0 or int(places.min()) < 0 or int(places.max()) >= n:
        raise ValueError(f"{what} must hold one place or more between 0 and {n - 1}, not {places.tolist()[:20]}")
    return places
