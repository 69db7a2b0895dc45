"""Solvers: each through one table, on Hessians that can be inverted by hand; then each refusal with its reason.

Rounding: the Hessians here have condition numbers below 10, so that a solve loses about one of sixteen digits and a
hundred products lose about one more; 1e-12 of the answer's size is far above that and far below any wrong term.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.analytic import Problem, Quadratic, Sine, logistic, randn, ridge, sine, with_spectrum
from torch import Tensor

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import Objective
from metasp_lite.calculus.solvers import (
    EKFAC,
    KFAC,
    Arnoldi,
    ConjugateGradient,
    Exact,
    GaussNewton,
    Identity,
    LiSSA,
    Neumann,
    Nystrom,
    OuterProduct,
    Solver,
    SolverTraits,
    solve_each,
)

ROUNDING = 1e-12

PROBLEMS = {"sine": sine(), "ridge": ridge().problem(randn(8, seed=6))}
ALL_SOLVERS = [
    *[Exact(), Identity(), OuterProduct(), Neumann(9), ConjugateGradient(8), LiSSA(9, 4, repeats=2)],
    *[Nystrom(3), Arnoldi(3, 5), ConjugateGradient(8, preconditioner=Nystrom(3))],
]
# they need a network's outputs, which "sine" and "quadratic" have not
OF_OUTPUTS = [
    *[GaussNewton(), KFAC(), EKFAC(), KFAC(rank=2, draws=1)],
    ConjugateGradient(8, preconditioner=KFAC(rank=2)),
]
SERIES = [Neumann(5), LiSSA(5, 1)]


def name(value: object) -> str | None:
    return type(value).__name__ if hasattr(value, "__dataclass_fields__") else None


def closed_inverse(problem: Problem, damping: float) -> Tensor:
    return problem.spectral(lambda eigenvalue: 1 / eigenvalue, damping)


def geometric_sum(terms: int, step: Callable[[float], float]) -> Callable[[Problem, float], Tensor]:
    """a Σ_{j<K} (1 − aλ)ʲ = (1 − (1 − aλ)^K)/λ on every eigenvalue; ``step`` gives a from λmax."""

    def answer(problem: Problem, damping: float) -> Tensor:
        a = step(float(problem.eigenvalues.max()) + damping)
        return problem.spectral(lambda eigenvalue: (1 - (1 - a * eigenvalue) ** terms) / eigenvalue, damping)

    return answer


def damped_fisher_inverse(problem: Problem, damping: float) -> Tensor:
    fisher = sum(torch.outer(g, g) for g in problem.gradients) / len(problem.gradients)
    shift = (problem.objective.l2 + damping) * torch.eye(len(problem.theta), dtype=torch.float64)
    return torch.as_tensor(np.linalg.inv((fisher + shift).numpy()))


def remainder(terms: int, step: Callable[[float], float]) -> Callable[[Problem, float], float]:
    """(1 − aλmin)^K: the error of K terms is (I − aH)^K H⁻¹v, and for a ≤ 1/λmax that is its largest factor."""

    def bound(problem: Problem, damping: float) -> float:
        low, high = float(problem.eigenvalues.min()) + damping, float(problem.eigenvalues.max()) + damping
        return (1 - step(high) * low) ** terms + ROUNDING

    return bound


@dataclass(frozen=True)
class Row:
    """A solver, the matrix it must equal, and how far its answer may lie from that one's, as a share of its norm."""

    name: str
    solver: Callable[[Problem], Solver]
    answer: Callable[[Problem, float], Tensor]
    tolerance: Callable[[Problem, float], float] = lambda problem, damping: ROUNDING
    refuses: Callable[[Problem, float], str | None] = lambda problem, damping: None


def no_shift(problem: Problem, damping: float) -> str | None:
    return "above 0" if problem.objective.l2 + damping == 0 else None


def no_outputs(problem: Problem, damping: float) -> str | None:
    return "whose outputs and labels are not known" if isinstance(problem.objective.losses, Sine) else None


TABLE = [
    Row("exact", lambda p: Exact(), closed_inverse),
    Row("cg-P-steps", lambda p: ConjugateGradient(len(p.theta)), closed_inverse),
    Row(
        "cg-tolerance",  # ‖s − H⁻¹v‖ ≤ ‖v − Hs‖/λmin, and ‖v‖ ≤ λmax ‖H⁻¹v‖
        lambda p: ConjugateGradient(50, tolerance=1e-3),
        closed_inverse,
        lambda p, damping: 1e-3 * float((p.eigenvalues.max() + damping) / (p.eigenvalues.min() + damping)),
    ),
    Row("identity", lambda p: Identity(), lambda p, damping: torch.eye(len(p.theta), dtype=torch.float64)),
    Row("outer-product", lambda p: OuterProduct(), damped_fisher_inverse, refuses=no_shift),
    # all directions, found with products of relative error 1e-16 that their Gram matrix squares: 1e-12 and no better
    Row("nystrom-P", lambda p: Nystrom(len(p.theta)), closed_inverse, lambda p, damping: 1e-11, no_shift),
    Row("arnoldi-P", lambda p: Arnoldi(len(p.theta), len(p.theta)), closed_inverse, lambda p, damping: 1e-11),
    # one linear layer under a squared loss: the Hessian is Gauss–Newton's matrix, and that is one Kronecker product
    *[
        Row(each, lambda p, made=made: made, closed_inverse, refuses=no_outputs)
        for each, made in {
            "gauss-newton": GaussNewton(),
            "kfac": KFAC(),
            "kfac-draw": KFAC(draws=1),  # of a root of 1, whose sign does not matter
            "ekfac": EKFAC(),
            "cg-kfac-1-step": ConjugateGradient(1, preconditioner=KFAC()),  # the inverse itself
        }.items()
    ],
    Row(
        "cg-nystrom-P-steps",
        lambda p: ConjugateGradient(len(p.theta), preconditioner=Nystrom(3)),
        closed_inverse,
    ),
    Row(
        "cg-kfac-rank-P-steps",
        lambda p: ConjugateGradient(len(p.theta), preconditioner=KFAC(rank=2)),
        closed_inverse,
        refuses=no_outputs,
    ),
    Row("neumann-1", lambda p: Neumann(1), geometric_sum(1, lambda high: 1 / high)),
    Row("neumann-25", lambda p: Neumann(25), geometric_sum(25, lambda high: 1 / high)),
    Row("neumann-25-step", lambda p: Neumann(25, step=0.3), geometric_sum(25, lambda high: 0.3)),
    Row("neumann-inverse", lambda p: Neumann(60), closed_inverse, remainder(60, lambda high: 1 / high)),
    Row(
        "lissa-all-25",  # a batch of all n is the whole Hessian: the recursion is the series, with LiSSA's own a
        lambda p: LiSSA(25, batch=len(p.objective.losses)),
        geometric_sum(25, lambda high: 0.5 / high),
    ),
    Row(
        "lissa-all-repeats",
        lambda p: LiSSA(12, batch=len(p.objective.losses), repeats=3, step=0.3),
        geometric_sum(12, lambda high: 0.3),
    ),
    Row(
        "lissa-inverse",
        lambda p: LiSSA(120, batch=len(p.objective.losses)),
        closed_inverse,
        remainder(120, lambda high: 0.5 / high),
    ),
]


@pytest.mark.parametrize("damping", [0.0, 0.4])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_solver_equals_its_closed_form(row, problem, damping):
    problem = PROBLEMS[problem]
    curvature = Curvature(problem.objective, problem.theta, damping)
    vector = randn(len(problem.theta), seed=7)
    if reason := row.refuses(problem, damping):
        with pytest.raises(ValueError, match=reason):
            row.solver(problem)(curvature, vector)
        return
    expected = row.answer(problem, damping) @ vector
    error = (row.solver(problem)(curvature, vector) - expected).norm() / expected.norm()
    assert error <= row.tolerance(problem, damping)


@pytest.mark.parametrize("solver", ALL_SOLVERS + OF_OUTPUTS, ids=name)
def test_solvers_are_linear_maps_that_send_zero_to_zero_and_leave_v_alone(solver):
    problem = PROBLEMS["ridge"]
    zero, vector = torch.zeros(8, dtype=torch.float64), randn(8, seed=7)
    assert torch.equal(solver(Curvature(problem.objective, problem.theta), zero), zero)
    kept = vector.clone()
    answer = solver(Curvature(problem.objective, problem.theta), vector)
    assert torch.equal(vector, kept)
    assert answer.data_ptr() != vector.data_ptr()
    scaled = solver(Curvature(problem.objective, problem.theta), -1e3 * vector)
    assert (scaled + 1e3 * answer).norm() <= ROUNDING * scaled.norm()


def test_exact_solves_several_columns_at_once():
    problem = PROBLEMS["ridge"]
    columns = randn(8, 3, seed=8)
    expected = closed_inverse(problem, 0.4) @ columns
    answer = Exact()(Curvature(problem.objective, problem.theta, 0.4), columns)
    assert (answer - expected).norm() <= ROUNDING * expected.norm()


def test_neumann_error_on_the_flattest_direction_is_exactly_one_minus_a_lambda_to_the_k():
    problem, terms, step = PROBLEMS["sine"], 40, 0.7
    low, flattest = problem.eigenvalues[0], problem.basis[:, 0]
    error = 1 / low - flattest @ Neumann(terms, step)(Curvature(problem.objective, problem.theta), flattest)
    # The error, 4e-4 of the answer, is a difference of two numbers: it keeps 1e-16/4e-4 of relative accuracy.
    assert float(error * low) == pytest.approx(float((1 - step * low) ** terms), rel=1e-11)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_conjugate_gradients_are_the_best_of_their_krylov_space(iterations):
    problem, vector = PROBLEMS["ridge"], randn(8, seed=7)
    hessian = problem.spectral(lambda eigenvalue: eigenvalue, 0.0)
    krylov = torch.stack([torch.linalg.matrix_power(hessian, k) @ vector for k in range(iterations)], dim=1)
    # min over s in the space of ½ sᵀHs − vᵀs: a small dense system, whose condition costs a few digits of sixteen.
    expected = krylov @ torch.linalg.solve(krylov.T @ hessian @ krylov, krylov.T @ vector)
    answer = ConjugateGradient(iterations)(Curvature(problem.objective, problem.theta), vector)
    assert (answer - expected).norm() <= 1e-10 * expected.norm()


def test_conjugate_gradients_stop_once_the_tolerance_is_met_and_never_work_on_noise():
    problem, vector = PROBLEMS["ridge"], randn(8, seed=7)
    hessian = problem.spectral(lambda eigenvalue: eigenvalue, 0.0)
    curvature = Curvature(problem.objective, problem.theta)
    iterates = list(ConjugateGradient(50, tolerance=1e-2).iterates(curvature, vector))
    residuals = [float((vector - hessian @ iterate).norm() / vector.norm()) for iterate in iterates]
    assert residuals[-1] <= 1e-2 < min(residuals[:-1])
    assert curvature.products == len(iterates)
    curvature = Curvature(problem.objective, problem.theta)
    ConjugateGradient(1000)(curvature, vector)  # exact after P = 8, and rounding allows a few more
    assert curvature.products <= 12


# ----------------------------------------------------------------------------------------------- batches and cost


def test_lissa_on_random_batches_averages_to_the_series_within_its_own_spread():
    """Batches are drawn independently, so E[s] is the Neumann sum and the variance follows from a recursion.

    With h_B = h·P/|B| with probability |B|/P, else 0: m ← av + (1 − ah)m and, q = E(1 − ah_B)² = 1 − 2ah + a²h²P/|B|,
    M ← a²v² + 2av(1 − ah)m + qM.  The mean of R runs lies within 4.5 standard errors (one in 1e5 for each of eight).
    """
    problem, depth, batch, repeats = PROBLEMS["sine"], 10, 2, 150
    h, v = problem.eigenvalues, randn(8, seed=7)
    a = 0.25  # aP/|B|·λmax ≤ 1: no batch makes it grow
    mean, square = a * v, (a * v) ** 2
    for _ in range(depth - 1):
        square = (a * v) ** 2 + 2 * a * v * (1 - a * h) * mean + (1 - 2 * a * h + a**2 * h**2 * 8 / batch) * square
        mean = a * v + (1 - a * h) * mean
    answer = LiSSA(depth, batch, repeats, step=a)(Curvature(problem.objective, problem.theta), v)
    error = (answer - mean).abs() / ((square - mean**2) / repeats).sqrt()
    assert error.max() < 4.5
    assert error.mean() > 0.2  # and it does scatter: batches are really drawn


def test_lissa_depends_on_its_seed_alone():
    problem, v = PROBLEMS["sine"], randn(8, seed=7)

    def run(seed):
        return LiSSA(10, 4, seed=seed)(Curvature(problem.objective, problem.theta), v)

    torch.manual_seed(1)
    first, state = run(3), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(run(3), first)
    assert not torch.equal(run(4), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("solver", "products"),
    [
        (Exact(), 0),
        (Identity(), 0),
        (OuterProduct(), 0),
        (ConjugateGradient(5), 5),
        (Neumann(10), 9),
        (LiSSA(10, batch=7, repeats=4), 4 * 9 * 7 / 70),
        (Nystrom(3), 3),
        (Arnoldi(3, 5), 5),
        (KFAC(), 1),  # a pass forward and one back, for one output
        (EKFAC(), 1),
        (ConjugateGradient(4, preconditioner=Nystrom(3)), 7),
        (ConjugateGradient(4, preconditioner=KFAC(rank=2)), 5),
    ],
    ids=name,
)
def test_a_solve_costs_the_products_its_docstring_says(solver, products):
    problem = PROBLEMS["ridge"]
    curvature = Curvature(problem.objective, problem.theta)
    solver(curvature, randn(8, seed=7))
    assert curvature.products == pytest.approx(products, rel=1e-12)  # a sum of tenths


@pytest.mark.parametrize(
    "make", [lambda k: Neumann(k, step=0.1), ConjugateGradient, lambda k: LiSSA(k, batch=7, step=0.1)]
)
def test_the_kth_iterate_is_the_answer_of_a_solver_stopped_at_k(make):
    problem, vector = PROBLEMS["ridge"], randn(8, seed=7)
    iterates = list(make(6).iterates(Curvature(problem.objective, problem.theta), vector))
    assert len(iterates) == 6
    for k, iterate in enumerate(iterates, start=1):
        assert torch.equal(iterate, make(k)(Curvature(problem.objective, problem.theta), vector))


def test_lissa_iterates_average_over_the_repeats():
    """The i-th repeat draws on from where the last one stopped: two repeats less one leave the second."""
    problem, vector = PROBLEMS["ridge"], randn(8, seed=7)

    def curvature():
        return Curvature(problem.objective, problem.theta)

    both = list(LiSSA(6, 7, repeats=2).iterates(curvature(), vector))
    first = LiSSA(6, 7)(curvature(), vector)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randperm(70, generator=generator)[:7] for _ in range(10)]
    a = 0.5 / float(problem.eigenvalues.max())
    x, identity = problem.objective.losses.inputs, torch.eye(8, dtype=torch.float64)
    second = [a * vector]
    for index in batches[5:]:
        second.append(a * vector + second[-1] - a * (x[index].T @ x[index] / 7 + 0.1 * identity) @ second[-1])
    for iterate, estimate in zip(both, second, strict=True):
        expected = (first + estimate) / 2
        assert (iterate - expected).norm() <= ROUNDING * expected.norm()


# ------------------------------------------------------------------------------------------------------- refusals


def quadratic(matrix: Tensor, damping: float = 0.0) -> Curvature:
    return Curvature(Objective(Quadratic(matrix)), torch.zeros(len(matrix), dtype=torch.float64), damping)


def indefinite(size: int) -> Tensor:
    """λ from −0.7 to 2, in a random basis."""
    return with_spectrum(torch.cat([torch.tensor([-0.7]), torch.linspace(0.5, 2, size - 1)]).double())


@pytest.mark.parametrize(
    ("diagonal", "vector", "damping", "curvature"),
    [
        # The first direction is v itself.
        ((1.0, -2.0), (1.0, 1.0), 0.0, -0.5),
        # One step 5/7 along v = (2, 1) leaves r = (−6, 12)/7, β = 36/49, and the next direction is (1, 4)·30/49:
        ((2.0, -1.0), (2.0, 1.0), 0.0, -14 / 17),
        ((1.75, -1.25), (2.0, 1.0), 0.25, -14 / 17),
        # Flat is not positive either.
        ((1.0, 0.0), (0.0, 1.0), 0.0, 0.0),
    ],
)
def test_conjugate_gradients_raise_where_they_meet_negative_curvature(diagonal, vector, damping, curvature):
    hessian = quadratic(torch.diag(torch.tensor(diagonal, dtype=torch.float64)), damping)
    with pytest.raises(NegativeCurvatureError) as caught:
        ConjugateGradient(10)(hessian, torch.tensor(vector, dtype=torch.float64))
    assert caught.value.curvature == pytest.approx(curvature, abs=1e-14)  # a handful of roundings
    assert f"curvature {curvature:.3g} with damping {damping:.3g}" in str(caught.value)
    assert (f"by more than {-curvature:.2g}" if curvature else "the Hessian is singular") in str(caught.value)


@pytest.mark.parametrize("solver", [Exact(), Neumann(200)], ids=name)
@pytest.mark.parametrize("size", [6, 30])  # eigenvalues from the dense matrix, and by Lanczos
def test_negative_curvature_is_met_and_the_smallest_eigenvalue_named(solver, size):
    matrix = indefinite(size)
    with pytest.raises(NegativeCurvatureError, match=r"raise the damping by more than 0\.7") as caught:
        solver(quadratic(matrix), randn(size, seed=7))
    # Lanczos promises four digits.
    assert caught.value.curvature == pytest.approx(float(np.linalg.eigvalsh(matrix.numpy())[0]), rel=1e-4)


def test_neumann_names_lambda_min_though_the_term_that_grows_has_a_positive_quotient():
    matrix = torch.diag(torch.tensor([1.0, -0.9], dtype=torch.float64))
    with pytest.raises(NegativeCurvatureError) as caught:  # vᵀHv/vᵀv = 0.05, which damping by 0.05 does not cure
        Neumann(10)(quadratic(matrix), torch.ones(2, dtype=torch.float64))
    assert caught.value.curvature == pytest.approx(-0.9, rel=1e-14)
    with pytest.raises(NegativeCurvatureError, match=r"curvature -0\.85 with damping 0\.05"):
        Neumann(10)(quadratic(matrix, damping=0.05), torch.ones(2, dtype=torch.float64))


def test_lissa_raises_on_negative_curvature():
    matrix = indefinite(6)
    with pytest.raises(NegativeCurvatureError, match=r"curvature -0\.6 with damping 0\.1:"):
        LiSSA(200, 1)(quadratic(matrix, damping=0.1), randn(6, seed=7))
    with pytest.raises(NegativeCurvatureError) as caught:
        LiSSA(200, 1)(quadratic(matrix), randn(6, seed=7))
    # Thousandfold growth leaves the eigenvector of −0.7 all but alone: its quotient is off by about (1/1000)² or less.
    assert caught.value.curvature == pytest.approx(-0.7, rel=1e-3)


def test_lissa_that_diverges_over_steep_batches_does_not_blame_the_hessian():
    problem = PROBLEMS["sine"]  # one batch of one has 8 times the curvature of the mean
    with pytest.raises(ValueError, match=r"too large for batches of 1, .* lower the step or enlarge the batch"):
        LiSSA(200, 1)(Curvature(problem.objective, problem.theta), randn(8, seed=7))


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=name)
def test_damping_above_minus_lambda_min_makes_an_indefinite_hessian_solvable(solver):
    matrix, vector = indefinite(6), randn(6, seed=7)
    if isinstance(solver, LiSSA):
        solver = LiSSA(9, 1)
    answer = solver(quadratic(matrix, damping=0.8), vector)
    if isinstance(solver, Exact | ConjugateGradient):
        expected = torch.linalg.solve(matrix + 0.8 * torch.eye(6, dtype=torch.float64), vector)
        assert (answer - expected).norm() <= 1e-11 * expected.norm()  # condition 28: ten times that of the table
    assert answer.isfinite().all()


@pytest.mark.parametrize("solver", SERIES, ids=name)
@pytest.mark.parametrize("size", [6, 30])
@pytest.mark.parametrize("step", [0.5002, 0.6, 0.0, -0.1, math.nan, math.inf])
def test_a_series_refuses_a_step_that_diverges_and_names_the_bound(solver, size, step):
    matrix = with_spectrum(torch.linspace(0.5, 4, size, dtype=torch.float64))  # λmax = 4, so 2/λmax = 0.5
    solver = type(solver)(**{**vars(solver), "step": step})
    with pytest.raises(ValueError, match=r"diverges: step .* must lie between 0 and 2/λmax = 0\.5; choose one inside"):
        solver(quadratic(matrix), randn(size, seed=7))


@pytest.mark.parametrize("solver", SERIES, ids=name)
@pytest.mark.parametrize("size", [6, 30])
def test_a_series_accepts_a_step_just_inside_the_bound(solver, size):
    matrix = with_spectrum(torch.linspace(0.5, 4, size, dtype=torch.float64))
    solver = type(solver)(**{**vars(solver), "step": 0.4998})
    vector = randn(size, seed=7)
    # Quadratic has one example: a batch of one is all of it, and both are the series of five terms.
    term, expected = vector, torch.zeros_like(vector)
    for _ in range(5):
        expected = expected + 0.4998 * term
        term = term - 0.4998 * matrix @ term
    assert (solver(quadratic(matrix), vector) - expected).norm() <= ROUNDING * expected.norm()


@pytest.mark.parametrize("solver", SERIES, ids=name)
def test_the_steps_bound_includes_the_damping(solver):
    matrix = with_spectrum(torch.linspace(0.5, 4, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"2/λmax = 0\.4;"):
        type(solver)(**{**vars(solver), "step": 0.45})(quadratic(matrix, damping=1.0), randn(6, seed=7))


@pytest.mark.parametrize("solver", SERIES, ids=name)
def test_a_series_raises_where_no_eigenvalue_is_positive(solver):
    for curvature, damping in ((-1.0, 0.0), (-1.0, 0.25), (0.0, 0.0)):
        with pytest.raises(NegativeCurvatureError, match=f"with damping {damping:.3g}") as caught:
            solver(quadratic(curvature * torch.eye(3, dtype=torch.float64), damping), randn(3, seed=7))
        assert caught.value.curvature == pytest.approx(curvature + damping)


@pytest.mark.parametrize("solver", SERIES, ids=name)
def test_a_series_refuses_a_step_on_the_bound_itself(solver):
    """On λmax = 1 a step of 2 turns the sign of each term and makes none smaller."""
    with pytest.raises(ValueError, match="diverges: step 2 must lie between 0 and"):
        type(solver)(**{**vars(solver), "step": 2.0})(quadratic(torch.eye(3).double()), randn(3, seed=7))


@pytest.mark.parametrize("solver", [each for each in ALL_SOLVERS if not each.takes_columns], ids=name)
def test_several_columns_are_refused_by_solvers_that_take_one(solver):
    problem = PROBLEMS["ridge"]
    with pytest.raises(ValueError, match="the right-hand side"):
        solver(Curvature(problem.objective, problem.theta), randn(8, 3, seed=7))


@pytest.mark.parametrize("size", [19, 20, 60])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_extreme_eigenvalues_agree_with_a_dense_solver(size, damping):
    inner = torch.linspace(0.1, 3, size - 2, dtype=torch.float64)
    matrix = with_spectrum(torch.cat([torch.tensor([-1.5]), inner, torch.tensor([5.0])]))
    values = np.linalg.eigvalsh(matrix.numpy()) + damping
    curvature = quadratic(matrix, damping)
    assert curvature.largest_eigenvalue == pytest.approx(values[-1], rel=1e-4)  # Lanczos to four digits
    assert curvature.smallest_eigenvalue == pytest.approx(values[0], rel=1e-4)
    assert (curvature.products > 0) == (size >= 20)  # below 20 the dense matrix, beyond it products


def test_extreme_eigenvalues_keep_four_digits_where_they_are_crowded():
    """Neighbours 0.25 % away: the first twenty Lanczos vectors do not tell them apart, so that only the test of
    convergence gives the digits."""
    curvature = quadratic(with_spectrum(torch.linspace(1, 4, 300, dtype=torch.float64)))
    assert curvature.largest_eigenvalue == pytest.approx(4, rel=1e-4)
    assert curvature.smallest_eigenvalue == pytest.approx(1, rel=1e-4)


def test_conjugate_gradients_raise_when_the_tolerance_is_out_of_reach():
    objective = logistic()
    curvature = Curvature(objective, randn(4, seed=6))
    with pytest.raises(RuntimeError, match=r"in 2 products, not the tolerance 1e-10; allow more iterations"):
        ConjugateGradient(2, tolerance=1e-10)(curvature, randn(4, seed=7))
    assert curvature.products == 2


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        *(
            (ConjugateGradient(5, tolerance=value), f"tolerance={value} must be above 0 and below 1")
            for value in (-1e-3, 0, 0.0, 1, 1.0, 7.0, math.nan, math.inf, -math.inf)
        ),
        (LiSSA(5, batch=9), "batch=9 is larger than the 8 examples; lower it"),
        (OuterProduct(), "must be above 0; raise the damping"),
    ],
)
def test_settings_that_mean_nothing_are_refused(solver, message):
    with pytest.raises(ValueError, match=message):
        solver(Curvature(Objective(Sine(8)), PROBLEMS["sine"].theta), randn(8, seed=7))


@pytest.mark.parametrize(
    ("solver", "settings", "message"),
    [
        (Neumann, {"terms": 0}, "terms=0 must be a whole number, at least 1"),
        (Neumann, {"terms": -3}, "terms=-3 must be a whole number, at least 1"),
        (ConjugateGradient, {"iterations": 0}, "iterations=0 must be a whole number, at least 1"),
        (LiSSA, {"depth": 0, "batch": 2}, "depth=0 must be a whole number, at least 1"),
        (LiSSA, {"depth": 5, "batch": 0}, "batch=0 must be a whole number, at least 1"),
        (LiSSA, {"depth": 5, "batch": 2, "repeats": 0}, "repeats=0 must be a whole number, at least 1"),
    ],
)
def test_counts_below_one_are_refused_when_a_solver_is_made(solver, settings, message):
    with pytest.raises(ValueError, match=message):
        solver(**settings)


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=name)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_right_hand_side_that_is_not_finite_is_refused_by_every_solver(solver, value):
    problem, vector = PROBLEMS["ridge"], randn(8, seed=7)
    vector[3] = value
    with pytest.raises(FloatingPointError, match=f"the right-hand side is {value} at position 3"):
        solver(Curvature(problem.objective, problem.theta), vector)


# ----------------------------------------------------------------------- several vectors, and a penalty per parameter


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=name)
@pytest.mark.parametrize("count", [1, 3])
def test_solve_each_gives_row_by_row_what_the_solver_gives_alone(solver, count):
    problem, vectors = PROBLEMS["ridge"], randn(count, 8, seed=8)
    answer = solve_each(solver, Curvature(problem.objective, problem.theta, 0.4), vectors)
    assert answer.shape == (count, 8)
    for row, vector in zip(answer, vectors, strict=True):
        alone = solver(Curvature(problem.objective, problem.theta, 0.4), vector)
        assert (row - alone).norm() <= ROUNDING * alone.norm()


def plain(curvature, vector):
    """A solver that says nothing of itself."""
    assert vector.dim() == 1
    return Exact()(curvature, vector)


class OnColumns(SolverTraits):
    """A solver from elsewhere that takes all right-hand sides in one call."""

    takes_columns = True

    def __init__(self):
        self.calls = 0

    def __call__(self, curvature, vector):
        self.calls += 1
        return Exact()(curvature, vector)


def test_solve_each_takes_solvers_from_elsewhere_one_by_one_unless_they_say_that_they_take_columns():
    problem, vectors, together = PROBLEMS["ridge"], randn(3, 8, seed=8), OnColumns()
    curvature = Curvature(problem.objective, problem.theta)
    expected = solve_each(Exact(), curvature, vectors)
    for solver in (plain, together):
        answer = solve_each(solver, curvature, vectors)
        assert (answer - expected).norm() <= ROUNDING * expected.norm()
    assert together.calls == 1


@pytest.mark.parametrize("vectors", [torch.ones(8).double(), torch.ones(0, 8).double()], ids=["a vector", "no row"])
def test_solve_each_refuses_what_is_no_rows(vectors):
    problem = PROBLEMS["ridge"]
    with pytest.raises(ValueError, match=r"the right-hand sides have the shape .*: give rows \(K, P\), at least one"):
        solve_each(Exact(), Curvature(problem.objective, problem.theta), vectors)


def test_solve_each_factors_once(monkeypatch):
    problem, calls = PROBLEMS["ridge"], []
    original = Curvature.dense
    monkeypatch.setattr(Curvature, "dense", lambda self: calls.append(1) or original(self))
    solve_each(Exact(), Curvature(problem.objective, problem.theta), randn(5, 8, seed=8))
    assert len(calls) == 1


class Weighted:
    """The losses of an objective under a penalty ½ Σ λ_j θ_j², a λ for each parameter."""

    def __init__(self, objective: Objective, l2: Tensor) -> None:
        self.losses, self.l2 = objective.losses, l2

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        return self.losses(theta, index).mean() + 0.5 * (self.l2 * theta).dot(theta)


PENALTIES = torch.linspace(0.05, 2.0, 8, dtype=torch.float64)


def test_outer_product_takes_a_penalty_for_each_parameter():
    problem, vector = PROBLEMS["ridge"], randn(8, seed=7)
    fisher = problem.gradients.T @ problem.gradients / len(problem.gradients)
    expected = torch.linalg.solve(fisher + torch.diag(PENALTIES + 0.3), vector)
    answer = OuterProduct()(Curvature(Weighted(problem.objective, PENALTIES), problem.theta, 0.3), vector)
    assert (answer - expected).norm() <= ROUNDING * expected.norm()


def test_outer_product_refuses_a_parameter_without_penalty_among_others():
    penalties = PENALTIES.clone()
    penalties[5] = 0.0
    curvature = Curvature(Weighted(PROBLEMS["ridge"].objective, penalties), PROBLEMS["ridge"].theta)
    with pytest.raises(ValueError, match=r"l2 \+ damping = 0\.0 must be above 0; raise the damping"):
        OuterProduct()(curvature, randn(8, seed=7))


def test_exact_and_the_products_take_a_penalty_for_each_parameter():
    """Ridge begins with a linear layer, whose dense Hessian takes the penalty up on its own."""
    problem, vector = PROBLEMS["ridge"], randn(8, seed=7)
    hessian = problem.spectral(lambda eigenvalue: eigenvalue, 0.0) - torch.eye(8, dtype=torch.float64) * 0.1
    expected = torch.linalg.solve(hessian + torch.diag(PENALTIES), vector)
    for solver in (Exact(), ConjugateGradient(8)):
        answer = solver(Curvature(Weighted(problem.objective, PENALTIES), problem.theta), vector)
        assert (answer - expected).norm() <= ROUNDING * expected.norm()
