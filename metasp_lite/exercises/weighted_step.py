"""The tasks of notebook 05: influence in one step, and the weights made of it."""

import torch
from torch import Generator, Tensor

from metasp_lite.calculus import min_norm_pair
from metasp_lite.exercises import draws
from metasp_lite.exercises.engine import Arguments, Exercise


def _step(draw: Generator, _: int) -> Arguments:
    n, p = draws.size(draw, 4, 9), draws.size(draw, 2, 5)
    curved, middle = draws.hessian(draw, p), draws.vectors(draw, p)

    def grad_V(theta: Tensor) -> Tensor:
        return curved.to(theta.dtype) @ (theta - middle.to(theta.dtype))

    return draws.vectors(draw, n, p), draws.vectors(draw, p), 0.3, grad_V


def _wishes(draw: Generator, _: int) -> Arguments:
    n = draws.size(draw, 4, 9)
    first, aside = draws.vectors(draw, n), draws.vectors(draw, n)
    return first, aside - first / 2


def _fused(draw: Generator, _: int) -> Arguments:
    """Influences of which some exceed 1, so that weights turn negative."""
    fused = 0.5 * draws.vectors(draw, draws.size(draw, 5, 9))
    return (torch.cat([fused, torch.tensor([1.6], dtype=fused.dtype)]),)


def _moving(draw: Generator, _: int) -> Arguments:
    p = draws.size(draw, 2, 5)
    return *(draws.vectors(draw, p) for _ in range(3)), 0.3, 0.8


def _weights_and_influences(draw: Generator, _: int) -> Arguments:
    n = draws.size(draw, 4, 9)
    return (1 + 0.3 * draws.vectors(draw, n)) / n, draws.vectors(draw, n)


def _step_influence(grads: Tensor, theta: Tensor, a: float, grad_V: object, *, at_theta: bool = False) -> Tensor:
    """Differentiate the step by E, one example after the other."""
    assert callable(grad_V)
    n = len(grads)
    slope = grad_V(theta if at_theta else theta - a * grads.sum(0) / n)
    return torch.stack([-(a / n) * (each * slope).sum() for each in grads])


def _shortest(first: Tensor, second: Tensor) -> Tensor:
    return min_norm_pair(first, second).point


step_influence = Exercise(
    "Influence through one step",
    "Given the gradients of the batch's losses at $\\theta$ as rows, the step size and a function that returns the "
    "validation gradient anywhere: the derivative of $\\ell(V,\\theta')$ by our $E$, for each example.",
    '''
def answer(grads, theta, a, grad_V):
    """Return the influences (n,); grads is (n, p), grad_V(theta) is (p,)."""
    n = len(grads)
    moved = ⟦theta - a * grads.mean(0)⟧
    return ⟦-a / n * grads @ grad_V(moved)⟧
''',
    _step,
    _step_influence,
    {
        "the validation gradient belongs at θ′, where the step has led, not at θ": (
            lambda *given: _step_influence(*given, at_theta=True)
        ),
        "the sign is flipped: the step goes against the gradient": lambda *given: -_step_influence(*given),
        "a factor n: by ε the derivative is n times what it is by E": (
            lambda grads, *rest: len(grads) * _step_influence(grads, *rest)
        ),
        "the step size is missing: an example acts through a step of size a": (
            lambda grads, theta, a, grad_V: _step_influence(grads, theta, a, grad_V) / a
        ),
        "the step follows the mean gradient of the batch, not the sum": (
            lambda grads, theta, a, grad_V: -a / len(grads) * grads @ grad_V(theta - a * grads.sum(0))
        ),
        "θ′ = θ − a × mean gradient: your step goes uphill": (
            lambda grads, theta, a, grad_V: -a / len(grads) * grads @ grad_V(theta + a * grads.mean(0))
        ),
    },
    "batches of 4 to 9, 2 to 5 parameters, a quadratic validation loss",
)

relative_weights = Exercise(
    "From two influences to weights",
    "The weights $w$ of the variant `relative`: with the shortest mixture $I^*$ of both influences, $n\\,w_i=1-I^*_i$.",
    '''
def answer(I_S, I_P):
    """Return w (n,) for S- and P-influences (n,)."""
    fused = ⟦min_norm_pair(I_S, I_P).point⟧
    return ⟦(1 - fused) / len(fused)⟧
''',
    _wishes,
    lambda I_S, I_P: 1 / len(I_S) - _shortest(I_S, I_P) / len(I_S),
    {
        "a factor n: that is the variant mixed, which subtracts I* from 1/n": (
            lambda I_S, I_P: 1 / len(I_S) - _shortest(I_S, I_P)
        ),
        "the sign is flipped: negative helps, and what helps should count more": (
            lambda I_S, I_P: (1 + _shortest(I_S, I_P)) / len(I_S)
        ),
        "the plain mean of both influences is not their shortest mixture": (
            lambda I_S, I_P: (1 - (I_S + I_P) / 2) / len(I_S)
        ),
        "that is n·w; a plain example weighs 1/n": lambda I_S, I_P: 1 - _shortest(I_S, I_P),
        "relative does not divide by the sum; that is the way of official": (
            lambda I_S, I_P: (1 - _shortest(I_S, I_P)) / (1 - _shortest(I_S, I_P)).sum()
        ),
    },
    "batches of 4 to 9 with influences that disagree",
)

official_weights = Exercise(
    "The weights of the authors' code",
    "With the fused influence $I^*$ (of the rescaled influences) the variant `official` takes "
    "$w_i=\\frac{1-I^*_i}{\\sum_j(1-I^*_j)}$.",
    '''
def answer(fused):
    """Return w (n,) for a fused influence (n,); an entry above 1 gives a negative weight."""
    w = ⟦1 - fused⟧
    return ⟦w / w.sum()⟧
''',
    _fused,
    lambda fused: (1 - fused) / (len(fused) - fused.sum()),
    {
        "the weights do not add up to one: divide by their sum": lambda fused: 1 - fused,
        "divide by the sum, not by the sum of the absolute values: weights may be negative": (
            lambda fused: (1 - fused) / (1 - fused).abs().sum()
        ),
        "the sign is flipped: negative helps, and what helps should count more": (
            lambda fused: (1 + fused) / (1 + fused).sum()
        ),
        "weights may be negative; here they were cut off at zero": (
            lambda fused: (1 - fused).clamp(min=0) / (1 - fused).clamp(min=0).sum()
        ),
        "that divides by n, as relative does; official divides by the sum of its own weights": (
            lambda fused: (1 - fused) / len(fused)
        ),
    },
    "6 to 10 influences, at least one of them above 1",
)

step_with_momentum = Exercise(
    "A step with momentum",
    "Where does torch's SGD with momentum lead (section 6)? $b$ is the velocity that the last step has left, a sum of "
    "gradients without the step size; $g$ is the gradient of this step.",
    '''
def answer(theta, g, b, a, beta):
    """Return θ' (p,) after one step of size a."""
    return ⟦theta - a * (beta * b + g)⟧
''',
    _moving,
    lambda theta, g, b, a, beta: theta.add(b, alpha=-a * beta).add(g, alpha=-a),
    {
        "momentum is forgotten": lambda theta, g, b, a, beta: theta - a * g,
        "β is missing: only this share of the old velocity is kept": lambda theta, g, b, a, beta: theta - a * (b + g),
        "that is Nesterov's step, which looks one step further": (
            lambda theta, g, b, a, beta: theta - a * (g + beta * (beta * b + g))
        ),
        "the sign is flipped: the step goes against the velocity": (
            lambda theta, g, b, a, beta: theta + a * (beta * b + g)
        ),
        "torch's velocity is βb + g; the factor 1 − β belongs to a running average, as in Adam": (
            lambda theta, g, b, a, beta: theta - a * (beta * b + (1 - beta) * g)
        ),
        "here b is a sum of gradients: the step size a multiplies it too, and the step goes against it": (
            lambda theta, g, b, a, beta: theta + beta * b - a * g
        ),
        "the step size a multiplies the velocity too": lambda theta, g, b, a, beta: theta - beta * b - a * g,
    },
    "2 to 5 parameters, a = 0.3, β = 0.8",
)

promised_change = Exercise(
    "What do the weights promise?",
    "To first order, what is the validation loss after a step with the weights $w$, *minus* that after a plain step? "
    "The influences are derivatives by our $E$.",
    '''
def answer(w, scores):
    """Return the promised change; w and scores are (n,)."""
    n = len(w)
    return ⟦(n * w - 1) @ scores⟧
''',
    _weights_and_influences,
    lambda w, scores: sum(float(len(w) * one - 1) * float(score) for one, score in zip(w, scores, strict=True)),
    {
        "a factor n: our E counts in plain weights, E = n·w − 1": lambda w, scores: (w - 1 / len(w)) @ scores,
        "subtract the plain step: its weights of 1/n promise nothing": lambda w, scores: len(w) * w @ scores,
        "the sign is flipped: asked is the weighted step's loss minus the plain step's; more weight on an example with "
        "negative influence lowers it": (lambda w, scores: -(len(w) * w - 1) @ scores),
    },
    "batches of 4 to 9, weights of about 1/n",
)
