"""The optimum's travels that the sliders show."""

import numpy as np
import pytest
import torch

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.optimum import minimise
from metasp_lite.course.travel import travel_of_optimum
from metasp_lite.influence.leaving_out import leave_one_out


def test_travel_touches_its_prediction_and_ends_at_leave_one_out(shoes):
    """At ε = 0 both meet; at ε = −1/n the retrained loss is what leave_one_out finds by its own route."""
    n, example = len(shoes.objective.losses), 55
    travel = travel_of_optimum(shoes, example, np.array([-1 / n, -1e-4, 0.0, 1e-4]))
    np.testing.assert_allclose(travel.optimum[2], travel.optimum_first_order[2], atol=1e-9)
    slope = (travel.optimum[3] - travel.optimum[1]) / 2e-4
    predicted = (travel.optimum_first_order[3] - travel.optimum_first_order[1]) / 2e-4
    np.testing.assert_allclose(slope, predicted, rtol=1e-4)  # a central difference with h = 1e-4
    curvature = Curvature(shoes.objective, minimise(shoes.objective, shoes.start))
    true = leave_one_out(curvature, shoes.validation, torch.tensor([example]))
    assert travel.validation[0] - travel.validation[2] == pytest.approx(true.item(), abs=1e-9)
