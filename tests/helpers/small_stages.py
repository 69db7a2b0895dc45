"""A two-stage problem on images that trains in a second."""

from functools import cache

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.course.two_stages import Setup, TwoStages

# a few images, so much regularisation that it has one optimum
SMALL_STAGES = Setup(
    first=(0, 1), second=(5, 7, 9), first_per_class=12, second_per_class=10, test_per_class=2, l2=0.05, width=32
)


@cache
def small_stages() -> tuple[TwoStages, Curvature, Curvature]:
    """The problem, and both stages at their optima."""
    problem = TwoStages(SMALL_STAGES)
    pretrained = problem.pretrained()
    return problem, pretrained, problem.finetuned(pretrained.theta)
