"""Two small two-stage problems, each as the package sees it and once more written out by hand.

Networks: 5 → 3 tanh as the embedding W, one linear layer U on three classes in pretraining, 3 tanh → 2 classes Θ in
finetuning.  Ridge: both stages are least squares, so that every optimum is the solution of a linear system.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from helpers.analytic import randn, squared_error
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss
from metasp_lite.calculus.optimum import minimise

M, N, K = 60, 40, 5  # pretraining, finetuning and test examples
L2_G, L2_F = 0.05, 0.05
W, U, THETA = 5 * 3 + 3, 3 * 3 + 3, (3 * 3 + 3) + (3 * 2 + 2)  # parameters of each part


def parted(embedding: nn.Module, head: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(embedding=embedding, head=head)).double()


def network(head: nn.Module) -> nn.Sequential:
    return parted(nn.Sequential(nn.Linear(5, 3), nn.Tanh()), head)


def examples(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors ``(count, 5)`` whose classes depend on them and on noise."""
    x = randn(count, 5, seed=seed)
    return x, (x @ randn(5, classes, seed=classes) + 0.5 * randn(count, classes, seed=seed + 1)).argmax(dim=1)


PRETRAINING, FINETUNING, TEST = examples(M, 3, seed=100), examples(N, 2, seed=110), examples(K, 2, seed=120)
FIRST = network(nn.Sequential(nn.Linear(3, 3)))
SECOND = network(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
G = Objective(ExampleLosses(FIRST, *PRETRAINING), L2_G)
F = Objective(ExampleLosses(SECOND, *FINETUNING), L2_F)
TARGET = ExampleLosses(SECOND, *TEST)


# ------------------------------------------------------------------------------------------------------- by hand


def linear(x: Tensor, theta: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """A linear layer with the first parameters of θ, and the parameters that are left."""
    size = outputs * x.shape[1]
    return x @ theta[:size].view(outputs, -1).T + theta[size : size + outputs], theta[size + outputs :]


def surprise(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.logsumexp(logits, dim=1) - logits[torch.arange(len(labels)), labels]


def g_losses(theta: Tensor) -> Tensor:
    """Losses of the pretraining examples at [W; U]."""
    hidden, rest = linear(PRETRAINING[0], theta, 3)
    return surprise(linear(torch.tanh(hidden), rest, 3)[0], PRETRAINING[1])


def f_losses(theta: Tensor, data: tuple[Tensor, Tensor] = FINETUNING) -> Tensor:
    """Losses of the finetuning examples, or of others, at [W; Θ]."""
    hidden, rest = linear(data[0], theta, 3)
    hidden, rest = linear(torch.tanh(hidden), rest, 3)
    return surprise(linear(torch.tanh(hidden), rest, 2)[0], data[1])


def targets(theta: Tensor) -> Tensor:
    """Losses of the test examples at [W; Θ]; (K,)."""
    return f_losses(theta, TEST)


def g_mean(theta: Tensor) -> Tensor:
    return g_losses(theta).mean() + L2_G / 2 * (theta**2).sum()


def f_mean(theta: Tensor) -> Tensor:
    return f_losses(theta).mean() + L2_F / 2 * (theta**2).sum()


def settled(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """The minimum next to θ by Newton steps with the dense Hessian."""
    for _ in range(8):
        gradient = torch.func.grad(function)(theta)
        if gradient.norm() <= 1e-14:
            break
        theta = theta - torch.linalg.solve(torch.func.hessian(function)(theta), gradient)
    assert torch.func.grad(function)(theta).norm() <= 1e-13
    return theta


@cache
def pretrained() -> Tensor:
    """[W*; U*], the minimum of G."""
    return settled(g_mean, minimise(G, 0.5 * randn(W + U, seed=130)))


@cache
def finetuned() -> Tensor:
    """[W*; Θ*], the head at its minimum for the fixed embedding."""
    w = pretrained()[:W]
    start = 0.5 * randn(THETA, seed=131)
    head = minimise(Objective(SingleLoss(lambda head: f_mean(torch.cat([w, head])))), start)
    return torch.cat([w, settled(lambda head: f_mean(torch.cat([w, head])), head)])


def curvatures(damping_g: float = 0.0, damping_f: float = 0.0) -> tuple[Curvature, Curvature]:
    return Curvature(G, pretrained(), damping_g), Curvature(F, finetuned(), damping_f)


STEP = 1e-4  # of an example's weight, which is 1/M


def weighted_optimum(weights: Tensor, damping: float = 0.0) -> Tensor:
    """[W; U] at the minimum of G + Σ ε_z g(z) + (δ/2)‖θ − θ*‖²: the damping holds θ where it was."""
    there = pretrained()
    return settled(lambda t: g_mean(t) + weights @ g_losses(t) + damping / 2 * ((t - there) ** 2).sum(), there)


def central_differences(changed: Callable[[Tensor], Tensor], chosen: list[int]) -> Tensor:
    """d changed/dε_z at ε = 0 for each chosen example z, of a function of all weights ``(M,)``; (K, L)."""
    columns = []
    for z in chosen:
        weights = torch.zeros(M, dtype=torch.float64)
        weights[z] = STEP
        columns.append((changed(weights) - changed(-weights)) / (2 * STEP))
    return torch.stack(columns, dim=1)


# --------------------------------------------------------------------------------------------------------- ridge


class RidgeStages:
    """Pretraining: ½‖W x − y‖² for three outputs; finetuning: ½(Θ·W x − y)²; each with its penalty."""

    x, y = randn(M, 5, seed=140), randn(M, 5, seed=140) @ randn(5, 3, seed=141) + randn(M, 3, seed=142)
    x_f = randn(N, 5, seed=143)
    y_f = x_f @ randn(5, seed=144) + randn(N, seed=145)
    x_t = randn(K, 5, seed=146)
    y_t = x_t @ randn(5, seed=144)
    l2_g, l2_f = 0.2, 0.1

    def embedding(self, weights: Tensor | None = None) -> Tensor:
        """W* ``(3, 5)`` with the weights ε added to the pretraining examples' 1/M."""
        weights = 1 / M + (torch.zeros(M, dtype=torch.float64) if weights is None else weights)
        matrix = (self.x.T * weights) @ self.x + self.l2_g * torch.eye(5, dtype=torch.float64)
        return torch.linalg.solve(matrix, (self.x.T * weights) @ self.y).T

    def head(self, embedding: Tensor) -> Tensor:
        """Θ* ``(3,)`` for an embedding."""
        features = self.x_f @ embedding.T
        matrix = features.T @ features / N + self.l2_f * torch.eye(3, dtype=torch.float64)
        return torch.linalg.solve(matrix, features.T @ self.y_f / N)

    def losses(self, weights: Tensor | None = None) -> Tensor:
        """Losses of the test examples ``(K,)`` after both stages."""
        embedding = self.embedding(weights)
        return (self.x_t @ embedding.T @ self.head(embedding) - self.y_t) ** 2 / 2

    def curvatures(self, embedding: nn.Module, empty: nn.Module) -> tuple[Curvature, Curvature, ExampleLosses]:
        """Both stages as the package sees them, and the target; pretraining's head has no parameters."""
        first = ExampleLosses(
            parted(embedding, empty), self.x, self.y, lambda outputs, y: ((outputs - y) ** 2).sum(dim=1) / 2
        )
        model = parted(embedding, nn.Sequential(nn.Linear(3, 1, bias=False), nn.Flatten(start_dim=0)))
        second = ExampleLosses(model, self.x_f, self.y_f, squared_error)
        w = self.embedding()
        theta = torch.cat([w.flatten(), self.head(w)])
        return (
            Curvature(Objective(first, self.l2_g), w.flatten()),
            Curvature(Objective(second, self.l2_f), theta),
            ExampleLosses(model, self.x_t, self.y_t, squared_error),
        )
