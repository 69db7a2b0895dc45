"""The mathematics of a θ: losses of examples, curvature, H⁻¹v, optima, common descent.  Knows no images, no tasks."""

from metasp_lite.calculus import solvers
from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError, NotConvergedError
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Objective,
    SingleLoss,
    gradient,
    loss_directional_derivatives,
    per_example_gradients,
)
from metasp_lite.calculus.min_norm import min_norm_pair
from metasp_lite.calculus.optimum import minimise

__all__ = [
    "Curvature",
    "ExampleLosses",
    "NegativeCurvatureError",
    "NotConvergedError",
    "Objective",
    "SingleLoss",
    "gradient",
    "loss_directional_derivatives",
    "min_norm_pair",
    "minimise",
    "per_example_gradients",
    "solvers",
]
