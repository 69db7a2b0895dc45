"""Theorem 1 with one of its parts spoiled, for the study of leaving out."""

from torch import Tensor

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import per_example_gradients
from metasp_lite.calculus.optimum import adam
from metasp_lite.calculus.solvers import Exact, GaussNewton, Identity
from metasp_lite.course.two_stages import PAPER_DAMPING, TwoStages
from metasp_lite.stages.fixed import fixed_embedding, fixed_sensitivity, pretraining_influence


def ablations(problem: TwoStages, pretrained: Curvature, finetuned: Curvature) -> dict[str, Tensor]:
    """Scores of all pretraining examples with one part of Theorem 1 spoiled at a time, each ``(K, m)``."""
    theta, head, test = pretrained.theta, finetuned.theta, problem.test

    def damped(first: float, second: float) -> Tensor:
        curvatures = Curvature(problem.pretraining, theta, first), Curvature(problem.finetuning, head, second)
        return fixed_embedding(*curvatures, test, Exact())

    direct = per_example_gradients(test, head)[:, : problem.embedding]
    return {
        "both Hessians": fixed_embedding(pretrained, finetuned, test, Exact()),
        **{f"damping {d:g} and {e:g} (the paper's for {name})": damped(d, e) for name, (d, e) in PAPER_DAMPING.items()},
        "Gauss–Newton matrices": fixed_embedding(pretrained, finetuned, test, GaussNewton()),
        "identity matrices": fixed_embedding(pretrained, finetuned, test, Identity()),
        "without the Θ-term": pretraining_influence(pretrained, direct, Exact()),
    }


def unfinished(problem: TwoStages, steps: int) -> tuple[Tensor, float]:
    """Scores ``(K, m)`` after ``steps`` of Adam, with the least damping of 0, 0.001, 0.002, 0.004, … that allows them.

    Returns that damping, too.
    """
    theta, damping = adam(problem.pretraining, problem.first_start, steps), 0.0
    sensitivity = fixed_sensitivity(problem.finetuned(theta), problem.test, Exact())
    while True:
        try:
            return pretraining_influence(Curvature(problem.pretraining, theta, damping), sensitivity, Exact()), damping
        except NegativeCurvatureError:
            damping = max(2 * damping, 1e-3)
