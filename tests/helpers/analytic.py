"""Problems whose Hessian, optimum and leave-one-out answers can be written down, and small ones to train.

Everything is float64: the tests ask for equality up to rounding, and single precision would hide a wrong digit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metasp_lite.calculus.labels import binary_cross_entropy
from metasp_lite.calculus.losses import ExampleLosses, Objective, cross_entropy
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.networks import logistic_regression, toy_mlp


def randn(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Sine:
    """n = P losses ℓ_i(θ) = P sin θ_i: their mean is Σ sin θ_i, with Hessian diag(−sin θ).

    A batch B has the Hessian (P/|B|) diag(−sin θ_i for i in B, else 0): most of its directions are flat, one is steep.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        losses = self.size * torch.sin(theta)
        return losses if index is None else losses[index]


class Quadratic:
    """One example with the loss ½ θᵀAθ, whose Hessian is A everywhere."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __len__(self) -> int:
        return 1

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        losses = 0.5 * (theta @ self.matrix @ theta).unsqueeze(0)
        return losses if index is None else losses[index]


def with_spectrum(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues in a random basis."""
    basis = torch.linalg.qr(randn(len(eigenvalues), len(eigenvalues), seed=seed))[0]
    return basis @ torch.diag(eigenvalues) @ basis.T


@dataclass(frozen=True)
class Problem:
    """An objective at a θ where H = U diag(λ) Uᵀ and the gradient of every example are known by hand."""

    objective: Objective
    theta: Tensor
    eigenvalues: Tensor  # λ, with the l2 term
    basis: Tensor  # U, columns
    gradients: Tensor  # (n, P)

    def spectral(self, function: Callable[[Tensor], Tensor], damping: float) -> Tensor:
        """f(H + δI) as a matrix ``(P, P)``."""
        return self.basis @ torch.diag(function(self.eigenvalues + damping)) @ self.basis.T


def sine() -> Problem:
    """Σ sin θ_i at eight places in (π, 3π/2), where −sin θ rises from 0.25 to 1."""
    offset = torch.linspace(0.25, 1.5, 8, dtype=torch.float64)  # sin(π + x) = −sin x, cos(π + x) = −cos x
    return Problem(
        Objective(Sine(8)),
        torch.pi + offset,
        torch.sin(offset),
        torch.eye(8, dtype=torch.float64),
        torch.diag(-8 * torch.cos(offset)),
    )


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """½ (output − label)² of each example ``(B,)``."""
    return 0.5 * (outputs - labels) ** 2


@dataclass(frozen=True)
class Ridge:
    """J(θ) = (1/n) Σ ½ (x_iᵀθ − y_i)² + (λ/2)‖θ‖², solved by the normal equations."""

    x: Tensor
    y: Tensor
    l2: float
    held_out: tuple[Tensor, Tensor]

    @property
    def objective(self) -> Objective:
        return Objective(ExampleLosses(logistic_regression(self.x.shape[1]), self.x, self.y, squared_error), self.l2)

    @property
    def validation(self) -> Objective:
        return Objective(ExampleLosses(logistic_regression(self.x.shape[1]), *self.held_out, squared_error))

    def hessian(self) -> Tensor:
        return self.x.T @ self.x / len(self.x) + self.l2 * torch.eye(self.x.shape[1], dtype=torch.float64)

    def optimum(self, example: int | None = None, fraction: float = 0.0) -> Tensor:
        """The minimiser with ``fraction`` of the weight 1/n of ``example`` taken away (added, where negative)."""
        weight = torch.full_like(self.y, 1 / len(self.y))
        if example is not None:
            weight[example] *= 1 - fraction
        matrix = (self.x.T * weight) @ self.x + self.l2 * torch.eye(self.x.shape[1], dtype=torch.float64)
        return torch.linalg.solve(matrix, self.x.T @ (weight * self.y))

    def validation_loss(self, theta: Tensor) -> float:
        x, y = self.held_out
        return float(((x @ theta - y) ** 2).mean() / 2)

    def validation_gradient(self, theta: Tensor) -> Tensor:
        x, y = self.held_out
        return x.T @ (x @ theta - y) / len(y)

    def problem(self, theta: Tensor) -> Problem:
        """Its spectrum comes from the singular values of the design, never from a Hessian."""
        _, singular, basis = np.linalg.svd(self.x.numpy())
        eigenvalues = torch.as_tensor(singular**2 / len(self.x)) + self.l2
        return Problem(
            self.objective, theta, eigenvalues, torch.as_tensor(basis.T), (self.x @ theta - self.y)[:, None] * self.x
        )


def ridge(n: int = 70, size: int = 8, l2: float = 0.1) -> Ridge:
    """Noisy linear data with a random design."""
    truth = randn(size, seed=1)
    x, held_out = randn(n, size, seed=2), randn(25, size, seed=3)
    return Ridge(x, x @ truth + randn(n, seed=4), l2, (held_out, held_out @ truth + randn(25, seed=5)))


def logistic_data(n: int, size: int = 4, seed: int = 10) -> tuple[Tensor, Tensor]:
    """Vectors ``(n, size)`` and labels 0 or 1 ``(n,)`` that overlap, so that an optimum exists for any l2."""
    x = randn(n, size, seed=seed)
    return x, (x[:, 0] - x[:, 1] + randn(n, seed=seed + 1) > 0).long()


def logistic(n: int = 60, size: int = 4, l2: float = 0.05, seed: int = 10) -> Objective:
    """Binary logistic regression on ``logistic_data``."""
    return Objective(ExampleLosses(logistic_regression(size), *logistic_data(n, size, seed), binary_cross_entropy), l2)


def mlp(n: int = 40, l2: float = 0.05, seed: int = 20) -> tuple[nn.Sequential, Objective]:
    """A 6-3-3 tanh network on 2×3 "images" of three classes, and its objective; P = 33."""
    inputs = randn(n, 2, 3, seed=seed)
    labels = (inputs.flatten(1) @ randn(6, 3, seed=seed + 1) + randn(n, 3, seed=seed + 2)).argmax(dim=1)
    model = toy_mlp(6, 3, 3, seed=seed)
    return model, Objective(ExampleLosses(model, inputs, labels, cross_entropy), l2)


def mlp_with_validation(l2: float = 0.05) -> tuple[Objective, Objective, Tensor]:
    """Training objective, validation loss on other data of the same kind, and the network's first θ ``(33,)``."""
    model, training = mlp(l2=l2)
    inputs = randn(15, 2, 3, seed=30)
    labels = (inputs.flatten(1) @ randn(6, 3, seed=21)).argmax(dim=1)
    return training, Objective(ExampleLosses(model, inputs, labels, cross_entropy)), flatten_parameters(model)
