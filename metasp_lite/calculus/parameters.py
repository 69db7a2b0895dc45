"""θ and the parameters of a network: θ holds what is trained, in the order of ``model.parameters()``."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metasp_lite.calculus.checks import can_be_looked_at
from metasp_lite.doors import typed


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


@typed
def flatten_parameters(model: nn.Module) -> Tensor:
    """Return a copy of all trained parameters as one vector θ ``(P,)``, in the order of ``model.parameters()``.

    Raises:
        ValueError: when none is trained.
    """
    return torch.cat([model.get_parameter(name).detach().flatten() for name in trained_shapes(model)])


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
    """Do nothing for a vector of float32 or float64.

    Raises:
        ValueError: for anything else; derivatives of second order do not survive half precision.
    """
    if not isinstance(theta, Tensor):
        raise ValueError(f"θ is a {type(theta).__name__}: give a tensor (P,), such as flatten_parameters does")
    if theta.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"θ is {theta.dtype}, too coarse for an influence: turn the network and its inputs into float32 "
            "(.float()) or float64 (.double())"
        )
    if theta.dim() != 1 or not theta.is_floating_point():
        raise ValueError(
            f"θ has the shape {tuple(theta.shape)} and {theta.dtype}: give a floating-point vector (P,), such as "
            "flatten_parameters does"
        )


def require_vector(vector: Tensor, theta: Tensor, what: str, *, columns: bool = False) -> Tensor:
    """Return ``vector`` unchanged.

    Raises:
        ValueError: when it has not the shape, dtype and device of θ ``(P,)``; names ``what``.  With ``columns`` it may
            also be ``(P, K)``.
    """
    if not isinstance(vector, Tensor):
        raise ValueError(f"{what} is a {type(vector).__name__}: give a tensor {tuple(theta.shape)}")
    fits = vector.shape == theta.shape or (columns and vector.dim() == 2 and len(vector) == len(theta))
    if not fits or vector.dtype != theta.dtype or vector.device != theta.device:
        found, wanted = (
            f"{tensor.dtype}" + (f" on {tensor.device}" if vector.device != theta.device else "")
            for tensor in (vector, theta)
        )
        raise ValueError(
            f"{what} has the shape {tuple(vector.shape)} and {found}: give {tuple(theta.shape)} and "
            f"{wanted}, those of θ"
        )
    return vector


def require_places(places: Tensor, n: int, what: str) -> Tensor:
    """Return ``places`` unchanged.

    Raises:
        ValueError: when they are not one or more places among n, as an int64 vector; names ``what``.  Where vmap maps
            over them, their numbers cannot be looked at.
    """
    if not isinstance(places, Tensor):
        raise ValueError(f"{what} is a {type(places).__name__}: give places as an int64 tensor (k,)")
    if places.dim() != 1 or places.dtype != torch.int64:
        raise ValueError(f"{what} has the shape {tuple(places.shape)} and {places.dtype}: give places as int64 (k,)")
    if not can_be_looked_at(places):
        return places
    if len(places) == 0 or int(places.min()) < 0 or int(places.max()) >= n:
        raise ValueError(f"{what} must hold one place or more between 0 and {n - 1}, not {places.tolist()[:20]}")
    return places
