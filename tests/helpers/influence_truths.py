"""How near an influence is to its truth, and the truth for ridge regression."""

import math

import torch

from metasp_lite.calculus.losses import ExampleLosses, Objective

# Sums of at most a hundred float64 terms and one solve with a condition number near 10: differences near 1e-14.
ROUNDING = 1e-12


def assert_close(actual, expected, share=ROUNDING):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= share * expected.norm()


def closed_form_leave_one_out(data, examples, fraction):
    before = data.validation_loss(data.optimum())
    after = [data.validation_loss(data.optimum(int(example), fraction)) for example in examples]
    return torch.tensor(after, dtype=torch.float64) - before


def nan_validation(data):
    """Return the mean loss of the held-out examples with a NaN among their inputs."""
    x, y = (part.clone() for part in data.held_out)
    x[0] = math.nan
    return Objective(ExampleLosses(data.objective.losses.model, x, y, data.objective.losses.loss))
