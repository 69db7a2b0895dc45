"""Small networks of every kind as functions of θ, for tests of derivatives.

Rounding: the functions here are sums of at most a few hundred float64 terms around 1, so that two routes to the same
derivative differ by some 1e-15; 1e-12 is far above that and far below any wrong term.
"""

import pytest
import torch
from torch import nn

from helpers.analytic import logistic, mlp, randn
from metasp_lite.calculus.losses import ExampleLosses, Objective
from metasp_lite.calculus.parameters import flatten_parameters

ROUNDING = 1e-12


def assert_equal_up_to_rounding(actual, expected):
    actual, expected = actual.detach(), expected.detach()
    torch.testing.assert_close(actual, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


def seeded(*layers):
    """Layers with parameters that no other test has a hand in."""
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=seed + 100))
    return model


def objective_of(model, *shape, classes=3, n=12):
    labels = torch.arange(n) % classes
    return Objective(ExampleLosses(model, randn(n, *shape, seed=50), labels), l2=0.05)


def two_hidden_layers():
    return objective_of(seeded(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), 4, classes=2)


def linear_alone():
    return objective_of(seeded(nn.Linear(4, 3)), 4)


def frozen_batch_norm():
    model = seeded(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).eval()
    model[1].running_mean.copy_(randn(3, seed=60))
    model[1].running_var.copy_(randn(3, seed=61).exp())
    return objective_of(model, 4)


def convolution():
    return objective_of(seeded(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), 1, 3, 3)


def sequence():
    """A linear layer that acts on each of four vectors of an example."""
    return objective_of(seeded(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)), 4, 4)


def not_sequential():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = seeded(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

        def forward(self, x):
            return 2 * self.inner(x)

    return objective_of(Doubled(), 4)


MODELS = {
    "toy-mlp": lambda: mlp(n=12)[1],
    "logistic-regression": lambda: logistic(n=12),
    "two-hidden-layers": two_hidden_layers,
    "linear-alone": linear_alone,
    "frozen-batch-norm": frozen_batch_norm,
    "convolution": convolution,
    "sequence": sequence,
    "not-sequential": not_sequential,
}


EVERY_MODEL = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def somewhere(objective):
    """A θ that is neither the model's own nor stationary."""
    theta = flatten_parameters(objective.losses.model)
    return theta + 0.3 * randn(len(theta), seed=70)
