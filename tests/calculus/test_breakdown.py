"""Solvers where no answer exists, or chance and rounding have outgrown it: refused, or within bounds, never silent."""

import math

import pytest
import torch
from helpers.analytic import Quadratic, logistic, mlp, randn, ridge, sine, squared_error, with_spectrum
from torch import nn

from metasp_lite.calculus.curvature import Curvature, NegativeCurvatureError, NotConvergedError
from metasp_lite.calculus.losses import ExampleLosses, Objective
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.calculus.solvers import ConjugateGradient, Exact, LiSSA, Neumann

REFUSED = (NegativeCurvatureError, NotConvergedError)


def singular(kind, seed, damping=0.0, dtype=torch.float64):
    """Six examples, fifteen parameters: a Hessian of rank six (squared errors) or ten."""
    if kind == "classes":
        model, labels = nn.Sequential(nn.Linear(4, 3)), torch.arange(6) % 3
        losses = ExampleLosses(model.to(dtype), randn(6, 4, seed=seed).to(dtype), labels)
    else:
        model = nn.Sequential(nn.Linear(15, 1, bias=False), nn.Flatten(0))
        x, y = randn(6, 15, seed=seed), randn(6, seed=seed + 1)
        losses = ExampleLosses(model.to(dtype), x.to(dtype), y.to(dtype), squared_error)
    return Curvature(Objective(losses), 0.5 * randn(15, seed=seed + 50).to(dtype), damping)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["classes", "squares"])
def test_conjugate_gradients_outside_the_range_of_a_singular_hessian(kind, seed, dtype):
    """There is no solution.  Whatever number of products: refused, or near in size to the pseudo-inverse's answer.

    100 is between what is seen (at most 55) and what was returned before (1e3 to 1e30).
    """
    curvature, v = singular(kind, seed, dtype=dtype), randn(15, seed=seed + 99).to(dtype)
    nearest = torch.linalg.pinv(curvature.dense(), hermitian=True, rtol=1e-5) @ v
    refused = 0
    for iterations in range(1, 21):
        try:
            answer = ConjugateGradient(iterations)(curvature, v)
        except REFUSED:
            refused += 1
        else:
            assert answer.norm() < 100 * nearest.norm()
    assert refused >= 10
    with pytest.raises(REFUSED):
        ConjugateGradient(1000)(curvature, v)
    with pytest.raises(REFUSED):
        ConjugateGradient(1000, tolerance=1e-3)(curvature, v)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["classes", "squares"])
def test_conjugate_gradients_in_the_range_of_a_singular_hessian_give_the_shortest_solution(kind, seed):
    curvature = singular(kind, seed)
    hessian = curvature.dense()
    v = hessian @ randn(15, seed=seed + 99)
    answer = ConjugateGradient(50, tolerance=1e-8)(curvature, v)
    assert (hessian @ answer - v).norm() <= 1.1e-8 * v.norm()
    expected = torch.linalg.pinv(hessian, hermitian=True, rtol=1e-10) @ v
    assert (answer - expected).norm() <= 1e-4 * expected.norm()  # 1e-8 times the condition of the range, below 1e4


def test_conjugate_gradients_on_an_ill_conditioned_hessian_are_right_or_refused():
    """λ from 1e-12 to 1, where float64 has four digits left."""
    for low in (1e-4, 1e-8, 1e-12, 1e-16):
        matrix = with_spectrum(torch.logspace(math.log10(low), 0, 12, dtype=torch.float64))
        curvature, v = Curvature(Objective(Quadratic(matrix)), torch.zeros(12).double()), randn(12, seed=7)
        for solver in (ConjugateGradient(500), ConjugateGradient(500, tolerance=1e-6)):
            try:
                answer = solver(curvature, v)
            except REFUSED:
                assert low < 1e-4
            else:
                assert (matrix @ answer - v).norm() < (2e-6 if solver.tolerance else 1) * v.norm()


def test_conjugate_gradients_do_not_claim_a_tolerance_that_rounding_forbids():
    """In float32 the residual that is carried along goes on falling; v − Hs does not."""
    matrix = with_spectrum(torch.logspace(-5.5, 0, 40, dtype=torch.float64)).float()
    curvature, v = Curvature(Objective(Quadratic((matrix + matrix.T) / 2)), torch.zeros(40)), randn(40, seed=7).float()
    with pytest.raises(NotConvergedError, match=r"rounding in torch.float32 leaves .* use float64|reached .* products"):
        ConjugateGradient(2000, tolerance=1e-7)(curvature, v)


def outcome(solver, matrix, vector):
    """The answer, or the class of the refusal."""
    try:
        return solver(Curvature(Objective(Quadratic(matrix)), torch.zeros_like(vector)), vector)
    except REFUSED as error:
        return type(error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("low", [1e-4, 1e-12, 0.0])
def test_what_conjugate_gradients_refuse_does_not_hang_on_the_scales_of_h_and_v(low, dtype):
    """Powers of two scale every number of the recursion without rounding, so that answers are equal to the last bit."""
    spectrum = torch.logspace(math.log10(low or 1e-3), 0, 12, dtype=torch.float64)
    matrix, v = with_spectrum(spectrum if low else spectrum.where(spectrum > 0.05, 0.0)).to(dtype), randn(12, seed=7)
    matrix, v, refused = (matrix + matrix.T) / 2, v.to(dtype), 0
    solvers = [ConjugateGradient(k) for k in range(1, 16)]
    for solver in [*solvers, *(ConjugateGradient(500, tolerance=t) for t in (0.1, 1e-3, 1e-6))]:
        found = outcome(solver, matrix, v)
        refused += isinstance(found, type)
        for of_h, of_v in ((1.0, 2.0**20), (1.0, 2.0**-20), (2.0**10, 1.0), (2.0**-10, 1.0)):
            scaled = outcome(solver, of_h * matrix, of_v * v)
            if isinstance(found, type):
                assert scaled is found
            else:
                assert torch.equal(scaled, of_v / of_h * found)
    assert refused > 0 or low == 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_curvature_that_is_rounding_is_told_as_none(seed):
    """Two products leave what is outside the range; in exact numbers its curvature is 0, here about 1e-17."""
    matrix = with_spectrum(torch.tensor([0.0, 1.0, 2.0]).double(), seed)
    with pytest.raises(NegativeCurvatureError, match="the Hessian is singular") as caught:
        ConjugateGradient(9)(Curvature(Objective(Quadratic(matrix)), torch.zeros(3).double()), randn(3, seed=seed))
    assert caught.value.curvature == 0.0


def test_damping_cures_a_singular_hessian():
    curvature, v = singular("classes", 0, damping=1e-3), randn(15, seed=99)
    expected = torch.linalg.solve(curvature.dense(), v)
    for solver in (Exact(), ConjugateGradient(40), ConjugateGradient(40, tolerance=1e-9)):
        assert (solver(curvature, v) - expected).norm() <= 1e-6 * expected.norm()  # condition about 1e3


def test_neumann_keeps_its_terms_on_a_singular_hessian_in_single_precision():
    """A part of v outside the range stays in every term; rounding is no growth."""
    curvature, v = singular("squares", 1, dtype=torch.float32), randn(15, seed=99).float()
    step, hessian, terms = 1 / curvature.largest_eigenvalue, curvature.dense(), 200
    values, basis = torch.linalg.eigh(hessian.double())
    sums = sum((1 - step * values) ** j for j in range(terms))
    expected = step * (basis @ (sums * (basis.T @ v.double())))
    answer = Neumann(terms, step=step)(curvature, v)
    assert (answer.double() - expected).norm() <= 1e-4 * expected.norm()  # 200 products of 7 digits


# ------------------------------------------------------------------------------------------------------- LiSSA

_TRAINING = mlp()[1]
LISSA = {
    "sine": (Curvature(sine().objective, sine().theta), randn(8, seed=7)),
    "ridge": (Curvature(ridge().objective, ridge().optimum()), randn(8, seed=7)),
    "logistic": (Curvature(logistic(), minimise(logistic(), torch.zeros(4).double())), randn(4, seed=7)),
    "mlp": (
        Curvature(_TRAINING, minimise(_TRAINING, flatten_parameters(_TRAINING.losses.model))),
        randn(33, seed=7),
    ),
}


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("problem", LISSA)
def test_lissa_leaves_less_than_all_of_v_or_is_refused(problem, batch):
    curvature, v = LISSA[problem]
    hessian, refused = curvature.dense(), 0
    for depth in (5, 20, 80):
        for seed in range(3):
            try:
                answer = LiSSA(depth, batch, seed=seed)(curvature, v)
            except (ValueError, NegativeCurvatureError):
                refused += 1
            else:
                assert (v - hessian @ answer).norm() <= v.norm() * (1 + 1e-8)
    assert refused < 9 or batch == 1
    assert refused >= 3 or batch > 1 or problem == "logistic"


def test_lissa_names_the_way_out_and_it_is_one():
    curvature, v = LISSA["ridge"]
    with pytest.raises(ValueError, match=r"‖v − Hs‖ is .* ‖v‖, and 0 would leave ‖v‖; lower the step, enlarge the bat"):
        LiSSA(50, 1)(curvature, v)
    step, hessian = 0.05 / curvature.largest_eigenvalue, curvature.dense()
    for solver in (LiSSA(500, 1, step=step), LiSSA(50, 20), LiSSA(50, 4, repeats=20)):
        answer = solver(curvature, v)
        assert (v - hessian @ answer).norm() < 0.8 * v.norm()


# ------------------------------------------------------------------------------- second derivatives that are wrong


class WrongTwice(torch.autograd.Function):
    """A matrix product x Wᵀ whose backward pass, differentiated again, forgets the derivative in W."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, slope):
        x, weight = ctx.saved_tensors
        return slope @ weight.detach(), slope.T @ x


class Layer(nn.Module):
    def __init__(self, right):
        super().__init__()
        self.weight, self.right = nn.Parameter(0.5 * randn(3, 4, seed=1)), right

    def forward(self, x):
        return x @ self.weight.T if self.right else WrongTwice.apply(x, self.weight)


def custom(right):
    first = nn.Linear(4, 4).double()
    nn.utils.vector_to_parameters(0.5 * randn(20, seed=2), first.parameters())
    losses = ExampleLosses(nn.Sequential(first, nn.Tanh(), Layer(right)), randn(9, 4, seed=3), torch.arange(9) % 3)
    return Curvature(Objective(losses, 0.1), 0.5 * randn(32, seed=4), damping=1.0)  # positive definite


def test_second_derivatives_that_are_not_symmetric_are_refused_by_everything_that_takes_them():
    v = randn(32, seed=5)
    uses = [
        lambda c: c @ v,
        lambda c: c.on_batch(v, torch.tensor([0, 1])),
        lambda c: c.dense(),
        lambda c: c.cholesky,
        lambda c: c.largest_eigenvalue,
        *(lambda c, solver=s: solver(c, v) for s in (Exact(), ConjugateGradient(5), Neumann(3), LiSSA(3, 2))),
    ]
    for use in uses:
        use(custom(True))
        with pytest.raises(ValueError, match=r"second derivatives of the objective are wrong: uᵀHv = .* use float64"):
            use(custom(False))


def test_the_look_at_symmetry_is_taken_once_and_not_counted(monkeypatch):
    curvature, calls = custom(True), []
    original = Curvature._product
    monkeypatch.setattr(Curvature, "_product", lambda self, vector: calls.append(1) or original(self, vector))
    for _ in range(3):
        curvature @ randn(32, seed=5)
    assert curvature.products == 3
    assert len(calls) == 5
