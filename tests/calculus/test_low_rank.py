"""Nyström and Arnoldi against eigenvectors written down beforehand, and what a preconditioner does for a solve."""

import pytest
import torch
from helpers.analytic import Quadratic, mlp_with_validation, randn, with_spectrum

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError
from metasp_lite.calculus.losses import Objective
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import EKFAC, KFAC, Arnoldi, ConjugateGradient, Exact, Nystrom, solve_each

P = 12
STEEP = torch.tensor([100.0, 60.0, 30.0, *[1.0] * (P - 3)], dtype=torch.float64)
MANY = torch.logspace(0, 4, P, dtype=torch.float64)
VECTOR = randn(P, seed=4)


def curvature_of(eigenvalues, l2=0.0, damping=0.0):
    matrix = with_spectrum(eigenvalues)
    return Curvature(Objective(Quadratic(matrix), l2), torch.zeros(len(matrix), dtype=torch.float64), damping)


def near(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("solver", [Nystrom(P), Arnoldi(P, P)], ids=["Nyström", "Arnoldi"])
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_all_directions_give_the_solution_itself(solver, damping):
    curvature = curvature_of(MANY, 0.1, damping)
    near(solver(curvature, VECTOR), Exact()(curvature, VECTOR))
    assert curvature.products == P


@pytest.mark.parametrize("solver", [Nystrom(4), Arnoldi(3, 5)], ids=["Nyström", "Arnoldi"])
def test_columns_are_solved_as_each_alone(solver):
    curvature, rows = curvature_of(STEEP, 0.1), randn(3, P, seed=5)
    near(solve_each(solver, curvature, rows), torch.stack([solver(curvature, row) for row in rows]), 1e-12)


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_nystrom_never_exceeds_the_curvature_and_keeps_the_rest_at_the_shift(rank):
    curvature, solver = curvature_of(STEEP, 0.5), Nystrom(rank)
    basis, values = solver._sketch(curvature)
    left = with_spectrum(STEEP + 0.5) - basis @ torch.diag(values) @ basis.T
    assert torch.linalg.eigvalsh(left)[0] > -1e-9
    outside = VECTOR - basis @ (basis.T @ VECTOR)
    near(solver(curvature, outside), outside / 0.5)
    assert curvature.products == 2 * rank


def test_nystrom_finds_all_of_a_curvature_of_low_rank():
    steep = torch.tensor([100.0, 60.0, 30.0, *[0.0] * (P - 3)], dtype=torch.float64)
    curvature = curvature_of(steep, 1e-9)
    _, values = Nystrom(5)._sketch(curvature)
    near(values[:3], steep[:3], 1e-6)
    assert values[3] < 1e-6


def test_arnoldi_keeps_the_largest_and_drops_the_rest():
    curvature = curvature_of(MANY)
    values, vectors = torch.linalg.eigh(with_spectrum(MANY))
    top = vectors[:, -4:]
    near(Arnoldi(4, P)(curvature, VECTOR), top @ ((top.T @ VECTOR) / values[-4:]), 1e-8)


def test_arnoldi_stops_where_the_start_can_reach_no_more():
    curvature = curvature_of(torch.full((P,), 2.0, dtype=torch.float64))
    basis, _ = Arnoldi(1, P)._largest(curvature)
    assert curvature.products < P
    inside = basis[:, 0] * 3
    near(Arnoldi(1, P)(curvature, inside), inside / 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_sketch_leaves_fewer_products_to_a_given_residual(seed):
    plain, sketched = curvature_of(MANY), curvature_of(MANY)
    tolerance = 1e-6
    near(ConjugateGradient(100, tolerance)(plain, VECTOR), Exact()(plain, VECTOR), 1e-2)
    solver = ConjugateGradient(100, tolerance, Nystrom(8, seed))
    near(solver(sketched, VECTOR), Exact()(sketched, VECTOR), 1e-2)
    assert sketched.products - 8 < plain.products


@pytest.mark.parametrize("preconditioner", [KFAC(), EKFAC(), Nystrom(5)], ids=["K-FAC", "EK-FAC", "Nyström"])
def test_a_preconditioner_changes_the_way_and_not_the_end(preconditioner):
    objective, _, start = mlp_with_validation()
    theta = minimise(objective, start)
    curvature = Curvature(objective, theta, 0.05)
    vector = randn(len(theta), seed=6)
    expected = Exact()(curvature, vector)
    near(ConjugateGradient(len(theta), 1e-9, preconditioner)(curvature, vector), expected, 1e-6)
    inverse = preconditioner.inverse(curvature)
    matrix = torch.stack([inverse(unit) for unit in torch.eye(len(theta), dtype=torch.float64)])
    near(matrix, matrix.T, 1e-9)
    assert torch.linalg.eigvalsh(matrix)[0] > 0


class Inverse:
    """H⁻¹ itself, times a sign."""

    def __init__(self, sign):
        self.sign = sign

    def inverse(self, curvature):
        return lambda vector: self.sign * Exact()(curvature, vector)


def test_the_inverse_as_preconditioner_needs_one_product():
    curvature = curvature_of(MANY)
    near(ConjugateGradient(1, preconditioner=Inverse(1))(curvature, VECTOR), Exact()(curvature, VECTOR))
    assert curvature.products == 1


def test_a_preconditioner_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="is not positive definite; take another preconditioner"):
        ConjugateGradient(3, preconditioner=Inverse(-1))(curvature_of(MANY), VECTOR)


@pytest.mark.parametrize("solver", [Nystrom(P), Arnoldi(P, P)], ids=["Nyström", "Arnoldi"])
def test_negative_curvature_is_refused(solver):
    curvature = curvature_of(torch.cat([MANY[:-1], -MANY[-1:]]), 0.1)
    with pytest.raises(NegativeCurvatureError, match="not positive definite"):
        solver(curvature, VECTOR)


@pytest.mark.parametrize(
    ("solver", "l2", "words"),
    [
        (Nystrom(P + 1), 0.1, "rank=13 must be at most 12"),
        (Nystrom(3), 0.0, "give one number above 0"),
        (Arnoldi(3, P + 1), 0.1, "products=13 must be at most 12"),
        (Arnoldi(6, 5), 0.1, "rank=6 must be at most 5"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_product(solver, l2, words):
    curvature = curvature_of(MANY, l2)
    with pytest.raises(ValueError, match=words):
        solver(curvature, VECTOR)
    assert curvature.products == 0
