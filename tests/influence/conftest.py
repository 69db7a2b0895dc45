"""An optimum in closed form, and a network trained to one."""

import pytest
from helpers.analytic import mlp_with_validation, ridge

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.optimum import minimise


@pytest.fixture(scope="module")
def fitted_ridge():
    data = ridge()
    return data, Curvature(data.objective, data.optimum())


@pytest.fixture(scope="module")
def trained():
    """A network at a minimum: training objective, validation loss, θ̂ and its curvature."""
    training, validation, start = mlp_with_validation()
    theta = minimise(training, start, tolerance=1e-13)
    return training, validation, theta, Curvature(training, theta)
