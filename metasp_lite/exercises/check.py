"""The checks as notebooks call them: ``check.best_share(answer)``; each is the whole task, with stub and solution."""

from metasp_lite.exercises.one_example import (
    damped_solution,
    influence_of_each,
    predicted_change,
    ridge_without,
    times_counted,
)
from metasp_lite.exercises.two_wishes import best_share, best_slope, common_descent, largest_step, pareto_point
from metasp_lite.exercises.weighted_step import (
    official_weights,
    promised_change,
    relative_weights,
    step_influence,
    step_with_momentum,
)

# in the order in which the notebooks have them
EXERCISES = {
    "01": {
        "times_counted": times_counted,
        "influence_of_each": influence_of_each,
        "predicted_change": predicted_change,
        "damped_solution": damped_solution,
        "ridge_without": ridge_without,
    },
    "04": {
        "best_share": best_share,
        "common_descent": common_descent,
        "best_slope": best_slope,
        "largest_step": largest_step,
        "pareto_point": pareto_point,
    },
    "05": {
        "step_influence": step_influence,
        "relative_weights": relative_weights,
        "official_weights": official_weights,
        "step_with_momentum": step_with_momentum,
        "promised_change": promised_change,
    },
}
