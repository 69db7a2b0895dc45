"""What the notebooks need and nothing else does: their problems, figures, sliders, live curves."""

from metasp_lite.course import (
    approximation_plots,
    guide,
    notation,
    optimum_plots,
    plots,
    problems,
    stage_plots,
    step_plots,
    training_plots,
    uses_plots,
    widgets,
)
from metasp_lite.course.live import LiveCurves
from metasp_lite.course.two_stages import SETUPS, TwoStages

__all__ = [
    "SETUPS",
    "LiveCurves",
    "TwoStages",
    "approximation_plots",
    "guide",
    "notation",
    "optimum_plots",
    "plots",
    "problems",
    "stage_plots",
    "step_plots",
    "training_plots",
    "uses_plots",
    "widgets",
]
