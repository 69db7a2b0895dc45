"""Random instances of the tasks: small problems that can be solved by hand."""

import torch
from torch import Generator, Tensor


def size(draw: Generator, low: int, high: int) -> int:
    """Draw a whole number from ``low`` to ``high``."""
    return int(torch.randint(low, high + 1, (), generator=draw))


def vectors(draw: Generator, *shape: int) -> Tensor:
    """Draw standard normal numbers, float64."""
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def hessian(draw: Generator, p: int) -> Tensor:
    """Draw a symmetric matrix (p, p) with eigenvalues between 0.5 and 5, no two of them alike on purpose."""
    turned = torch.linalg.qr(vectors(draw, p, p)).Q
    eigenvalues = 0.5 + 4.5 * torch.rand(p, generator=draw, dtype=torch.float64)
    return turned @ torch.diag(eigenvalues) @ turned.T


def pair(draw: Generator, number: int) -> tuple[Tensor, Tensor]:
    """Draw two gradients: opposite wishes, narrow angles with either one shorter, then any; the first pair is equal."""
    first = vectors(draw, size(draw, 2, 6))
    aside = vectors(draw, len(first))
    second = (first.clone(), -0.5 * first + 0.3 * aside, 3 * first + 0.1 * aside, first / 3 + 0.02 * aside, aside)
    return first, second[min(number, 4)]
