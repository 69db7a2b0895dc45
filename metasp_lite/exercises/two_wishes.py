"""The tasks of notebook 04: one step for two losses."""

import torch
from torch import Generator, Tensor

from metasp_lite.calculus import min_norm_pair
from metasp_lite.exercises import draws
from metasp_lite.exercises.engine import Arguments, Exercise


def _bottom(g1: Tensor, g2: Tensor) -> Tensor:
    """Where the parabola has its bottom, inside the segment or not; ½ where there is none."""
    between = g2 - g1
    return between @ g2 / (between @ between) if between.any() else torch.tensor(0.5, dtype=g1.dtype)


def _mixture(gamma: Tensor, g1: Tensor, g2: Tensor) -> Tensor:
    return gamma * g1 + (1 - gamma) * g2


def _quadratics(draw: Generator, number: int) -> Arguments:
    p = draws.size(draw, 2, 4)
    stiff, weak = 3 * draws.hessian(draw, p), draws.hessian(draw, p)
    return (stiff, weak) if number % 2 else (weak, stiff)


def _valleys(draw: Generator, _: int) -> Arguments:
    p = draws.size(draw, 2, 4)
    share = 0.1 + 0.3 * float(torch.rand((), generator=draw, dtype=torch.float64))
    one, other = (draws.hessian(draw, p) for _ in range(2))
    return one, draws.vectors(draw, p), other, draws.vectors(draw, p), share


def _s_max(each: Tensor) -> float:
    return float(torch.linalg.eigvalsh(each)[-1])


def _between(H1: Tensor, c1: Tensor, H2: Tensor, c2: Tensor, gamma: float) -> Tensor:
    """Walk down the mixture of both losses to its minimum: Newton's step from the first valley."""
    slope = (1 - gamma) * H2 @ (c1 - c2)
    return c1 - torch.linalg.solve(gamma * H1 + (1 - gamma) * H2, slope)


best_share = Exercise(
    "γ* and its corner cases",
    "The share γ* of the first vector in the shortest mixture $\\gamma g_1+(1-\\gamma)g_2$ with $0\\le\\gamma\\le1$. "
    "What do you return if $g_1=g_2$?",
    '''
def answer(g1, g2):
    """Return γ* for two vectors (p,)."""
    between = g2 - g1
    if ⟦between @ between == 0⟧:
        return ⟦0.5⟧  # every share gives the same vector
    return ⟦(between @ g2 / (between @ between)).clamp(0, 1)⟧
''',
    draws.pair,
    lambda g1, g2: min_norm_pair(g1, g2).gamma,
    {
        "γ must lie between 0 and 1; where the parabola's bottom lies outside, the nearest end is best": _bottom,
        "that is the share of the second vector; γ multiplies the first": (
            lambda g1, g2: 1 - min_norm_pair(g1, g2).gamma
        ),
        "0/0 for a pair that is equal: every share is right there, so return one": (
            lambda g1, g2: ((g2 - g1) @ g2 / ((g2 - g1) @ (g2 - g1))).clamp(0, 1)
        ),
        "the denominator is the squared length of g₂ − g₁": (
            lambda g1, g2: ((g2 - g1) @ g2 / (g2 - g1).norm()).nan_to_num(0.5).clamp(0, 1)
        ),
        "the numerator is (g₂ − g₁)ᵀg₂; yours has the other sign": (
            lambda g1, g2: ((g1 - g2) @ g2 / ((g2 - g1) @ (g2 - g1))).nan_to_num(0.5).clamp(0, 1)
        ),
    },
    "an equal pair, wide and narrow angles, either one longer",
    seen=_mixture,
)

common_descent = Exercise(
    "The step that serves both",
    "The steepest common descent direction $d^*$ of two gradients. (The stub gets γ* from `min_norm_pair`.)",
    '''
def answer(g1, g2):
    """Return d* (p,)."""
    gamma = min_norm_pair(g1, g2).gamma
    return ⟦-(gamma * g1 + (1 - gamma) * g2)⟧
''',
    draws.pair,
    lambda g1, g2: -min_norm_pair(g1, g2).point,
    {
        "the sign is flipped, as in the paper's appendix: along the mixture itself both losses rise": (
            lambda g1, g2: min_norm_pair(g1, g2).point
        ),
        "the plain mean of the gradients is one fixed share; it may raise one of the losses": (
            lambda g1, g2: -(g1 + g2) / 2
        ),
        "the shares are swapped: γ multiplies the first vector": (
            lambda g1, g2: -_mixture(1 - min_norm_pair(g1, g2).gamma, g1, g2)
        ),
    },
    "an equal pair, wide and narrow angles, either one longer",
)

best_slope = Exercise(
    "How steep is it?",
    "The bound $\\tau^*$, which neither slope along $d^*$ exceeds, from $d^*$ alone.",
    '''
def answer(d):
    """Return τ* for the steepest common descent direction d (p,)."""
    return ⟦-d @ d⟧
''',
    lambda draw, number: (-min_norm_pair(*draws.pair(draw, 4)).point - 0.1,),
    lambda d: -d.square().sum(),
    {
        "the sign is flipped: both losses fall, so their slopes are negative": lambda d: d @ d,
        "that is the optimal value τ + ½‖d‖², not τ": lambda d: -d @ d / 2,
        "the square is missing": lambda d: -d.norm(),
    },
    "directions of 2 to 6 numbers",
)

largest_step = Exercise(
    "A step that is safe for both",
    "Two quadratic losses with the Hessians $H_1$ and $H_2$: up to which step size does no step along $d^*$ raise a "
    "loss, whatever the gradients (section 5)?",
    '''
def answer(H1, H2):
    """Return the bound on the step size; H1 and H2 are (p, p)."""
    s_max = ⟦max(torch.linalg.eigvalsh(H1).max(), torch.linalg.eigvalsh(H2).max())⟧
    return ⟦2 / s_max⟧
''',
    _quadratics,
    lambda H1, H2: 2 / max(float(torch.linalg.matrix_norm(each, 2)) for each in (H1, H2)),
    {
        "a factor 2 is missing: at 1/s_max the guaranteed fall is largest, at 2/s_max it has shrunk to zero; the "
        "latter is asked for": (lambda H1, H2: 1 / max(_s_max(H1), _s_max(H2))),
        "the stiffer loss decides: take the larger of the largest eigenvalues": (
            lambda H1, H2: 2 / min(_s_max(H1), _s_max(H2))
        ),
        "each loss has its own curvature; that of the mean loss does not bound the stiffer one": (
            lambda H1, H2: 2 / _s_max((H1 + H2) / 2)
        ),
        "the largest eigenvalue limits the step, not the smallest": (
            lambda H1, H2: 2 / min(float(torch.linalg.eigvalsh(each)[0]) for each in (H1, H2))
        ),
    },
    "2 to 4 parameters, either loss stiffer",
)

pareto_point = Exercise(
    "A point of the Pareto front",
    "Two quadratic losses $\\frac12(\\theta-c_i)^\\top H_i(\\theta-c_i)$: the point $\\theta_\\gamma$ at which the "
    "mixture with share γ of the first gradient vanishes.",
    '''
def answer(H1, c1, H2, c2, gamma):
    """Return the point (p,)."""
    both = ⟦gamma * H1 + (1 - gamma) * H2⟧
    return torch.linalg.solve(both, ⟦gamma * H1 @ c1 + (1 - gamma) * H2 @ c2⟧)
''',
    _valleys,
    _between,
    {
        "that is the mean of both minima, which ignores the Hessians: set γH₁(θ − c₁) + (1 − γ)H₂(θ − c₂) to zero and "
        "solve for θ": (lambda H1, c1, H2, c2, gamma: gamma * c1 + (1 - gamma) * c2),
        "the shares are swapped: γ belongs to the first loss": (
            lambda H1, c1, H2, c2, gamma: _between(H1, c1, H2, c2, 1 - gamma)
        ),
        "on the right-hand side multiply each minimum by its Hessian": (
            lambda H1, c1, H2, c2, gamma: torch.linalg.solve(
                gamma * H1 + (1 - gamma) * H2, gamma * c1 + (1 - gamma) * c2
            )
        ),
    },
    "2 to 4 parameters, shares below one half",
)
