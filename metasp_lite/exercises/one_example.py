"""The tasks of notebook 01: what one example is worth."""

import torch
from torch import Generator, Tensor

from metasp_lite.exercises import draws
from metasp_lite.exercises.engine import Arguments, Exercise


def _scores_and_n(draw: Generator, _: int) -> Arguments:
    n = draws.size(draw, 5, 20)
    return draws.vectors(draw, n), n


def _example(draw: Generator, number: int) -> Arguments:
    n, sign = draws.size(draw, 5, 20), 1 if number % 2 else -1
    return sign * float(torch.rand((), generator=draw, dtype=torch.float64)) / 2, n


def _gradients(draw: Generator, _: int) -> Arguments:
    n, p = draws.size(draw, 5, 12), draws.size(draw, 2, 5)
    return draws.vectors(draw, n, p), draws.hessian(draw, p), draws.vectors(draw, p)


def _damped(draw: Generator, _: int) -> Arguments:
    p = draws.size(draw, 2, 6)
    delta = 0.2 + float(torch.rand((), generator=draw, dtype=torch.float64)) / 5  # below every eigenvalue
    return draws.hessian(draw, p), draws.vectors(draw, p), delta


def _ridge(draw: Generator, _: int) -> Arguments:
    n, p = draws.size(draw, 6, 12), draws.size(draw, 2, 4)
    return draws.vectors(draw, n, p), draws.vectors(draw, n), 0.3, draws.size(draw, 0, n - 1)


def _ridge_weighted(X: Tensor, y: Tensor, l2: float, weights: Tensor) -> Tensor:
    """Minimise ½ Σ weights_j (x_j θ − y_j)² + λ/2 ‖θ‖², as one least-squares problem with p more rows."""
    rows = torch.cat([weights.sqrt()[:, None] * X, l2**0.5 * torch.eye(X.shape[1], dtype=X.dtype)])
    return torch.linalg.lstsq(rows, torch.cat([weights.sqrt() * y, y.new_zeros(X.shape[1])])[:, None]).solution[:, 0]


def _all_but(n: int, i: int) -> Tensor:
    return (torch.arange(n) != i).double()


def _second_moment(X: Tensor, i: int) -> Tensor:
    """Return XᵀX / n without row i."""
    return X.T @ (_all_but(len(X), i)[:, None] * X) / len(X)


times_counted = Exercise(
    "How often does it count?",
    "An example gets the extra weight ε on top of its $\\frac1n$. How many times does it count, if a plain one counts "
    "once?",
    '''
def answer(epsilon, n):
    """Return how many times the example counts."""
    return ⟦1 + n * epsilon⟧
''',
    _example,
    lambda epsilon, n: (1 / n + epsilon) / (1 / n),
    {
        "a factor n is missing: a plain example has the weight 1/n, so measure ε in units of 1/n": lambda e, n: 1 + e,
        "that is the weight itself; divide it by the weight of a plain example": lambda e, n: 1 / n + e,
        "the sign is flipped: ε above 0 makes the example count more": lambda e, n: 1 - n * e,
        "that is the extra alone; the example's own 1/n counts once, too": lambda e, n: n * e,
    },
    "n from 5 to 20, ε of both signs",
)

influence_of_each = Exercise(
    "The influence of every example",
    "Given the gradients of all $n$ losses as rows, the Hessian and the validation gradient: the influence of each "
    "example on the validation loss. One solve is enough.",
    '''
def answer(grads, H, grad_V):
    """Return I(V, x_i) for each row of grads (n, p); H is (p, p), grad_V (p,)."""
    q = ⟦torch.linalg.solve(H, grad_V)⟧
    return ⟦-grads @ q⟧
''',
    _gradients,
    lambda grads, H, grad_V: torch.stack([-grad_V @ torch.linalg.inv(H) @ each for each in grads]),
    {
        "the sign is flipped: more weight on an example moves the optimum against its gradient, by −H⁻¹∇ℓ(x)": (
            lambda grads, H, grad_V: grads @ torch.linalg.solve(H, grad_V)
        ),
        "you multiply by H where its inverse is meant": lambda grads, H, grad_V: -grads @ H @ grad_V,
        "the Hessian is missing: without it this is only the product of two gradients": (
            lambda grads, H, grad_V: -grads @ grad_V
        ),
        "a factor n: the influence is a derivative by ε, which is not divided by n (leaving out is ε = −1/n)": (
            lambda grads, H, grad_V: -grads @ torch.linalg.solve(H, grad_V) / len(grads)
        ),
        "that is the predicted change of leaving each one out, −I/n; asked is I itself": (
            lambda grads, H, grad_V: grads @ torch.linalg.solve(H, grad_V) / len(grads)
        ),
    },
    "5 to 12 examples, 2 to 5 parameters",
)

predicted_change = Exercise(
    "From influence to leaving one out",
    "Given the influences of all $n$ examples: by how much will the validation loss change when each of them alone is "
    "left out?",
    '''
def answer(scores, n):
    """Return the predicted change for each of the n scores, (n,)."""
    return ⟦-scores / n⟧
''',
    _scores_and_n,
    lambda scores, n: (-1 / n) * scores,
    {
        "the sign is flipped: leaving out is a negative extra weight": lambda scores, n: scores / n,
        "a factor n: leaving out takes away the weight 1/n, not 1": lambda scores, n: -scores,
        "leaving out takes away the weight 1/n; that of the others stays 1/n": lambda scores, n: -scores / (n - 1),
    },
    "5 to 20 influences of both signs",
)

damped_solution = Exercise(
    "A damped solve",
    "Solve $(H+\\delta\\,\\mathrm{Id})\\,q=v$.",
    '''
def answer(H, v, delta):
    """Return q (p,)."""
    return ⟦torch.linalg.solve(H + delta * torch.eye(len(v)).to(H), v)⟧
''',
    _damped,
    lambda H, v, delta: (lambda s, Q: Q @ ((Q.T @ v) / (s + delta)))(*torch.linalg.eigh(H)),
    {
        "the damping is forgotten": lambda H, v, delta: torch.linalg.solve(H, v),
        "the damping belongs on the diagonal alone: H + δ adds it to every entry": (
            lambda H, v, delta: torch.linalg.solve(H + delta, v)
        ),
        "damping is added to H, not subtracted": (
            lambda H, v, delta: torch.linalg.solve(H - delta * torch.eye(len(v)).to(H), v)
        ),
    },
    "2 to 6 parameters, damping below the eigenvalues",
)

ridge_without = Exercise(
    "The truth: train again without one",
    "Ridge regression has its optimum in closed form. Its objective is "
    "$\\frac1n\\sum_j\\frac12(x_j^\\top\\theta-y_j)^2+\\frac\\lambda2\\lVert\\theta\\rVert^2$. Find the optimum "
    "without example $i$: its whole weight $\\frac1n$ is taken away, the others keep theirs.",
    '''
def answer(X, y, l2, i):
    """Return the optimum (p,) without example i; X is (n, p), y (n,), l2 is λ."""
    n, p = X.shape
    keep = torch.arange(n) != i
    H = ⟦X[keep].T @ X[keep] / n + l2 * torch.eye(p).to(X)⟧
    return torch.linalg.solve(H, ⟦X[keep].T @ y[keep] / n⟧)
''',
    _ridge,
    lambda X, y, l2, i: _ridge_weighted(X, y, l2, _all_but(len(y), i) / len(y)),
    {
        "the others keep their weight 1/n; a mean over the n − 1 that are left gives them more": (
            lambda X, y, l2, i: _ridge_weighted(X, y, l2, _all_but(len(y), i) / (len(y) - 1))
        ),
        "nothing is left out: this is the optimum of all examples": (
            lambda X, y, l2, i: _ridge_weighted(X, y, l2, torch.ones_like(y) / len(y))
        ),
        "λ is forgotten": lambda X, y, l2, i: _ridge_weighted(X, y, 0.0, _all_but(len(y), i) / len(y)),
        "a factor n: divide the sums over the examples by n, or λ counts too little": (
            lambda X, y, l2, i: _ridge_weighted(X, y, l2, _all_but(len(y), i))
        ),
        "example i is still on the right-hand side": (
            lambda X, y, l2, i: torch.linalg.solve(
                _second_moment(X, i) + l2 * torch.eye(X.shape[1]).to(X), X.T @ y / len(y)
            )
        ),
        "λ belongs on the diagonal alone: a number added to a matrix goes into every entry": (
            lambda X, y, l2, i: torch.linalg.solve(_second_moment(X, i) + l2, X.T @ (_all_but(len(y), i) * y) / len(y))
        ),
    },
    "6 to 12 examples, 2 to 4 parameters, any one of them left out",
)
