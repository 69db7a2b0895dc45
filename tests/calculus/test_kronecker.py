"""Kronecker factors against the dense Gauss–Newton matrix, against loops over examples, and against another library."""

import pytest
import torch
from helpers.analytic import randn
from torch import nn
from torch.nn import functional as F

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.labels import cross_entropy
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.calculus.solvers import EKFAC, KFAC, GaussNewton

BOTH = pytest.mark.parametrize("solver", [KFAC(), EKFAC()], ids=["K-FAC", "EK-FAC"])
_FACTORS = {"fisher_type": "type-2", "kfac_approx": "expand", "separate_weight_and_bias": False}
IMAGES, LABELS = randn(6, 2, 5, 5, seed=3), torch.tensor([0, 1, 2] * 2)


def squared(outputs, labels):
    return ((outputs - labels) ** 2).flatten(1).sum(dim=1)


def seeded(*layers):
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def perceptron(n=7):
    model = seeded(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    return ExampleLosses(model, randn(n, 4, seed=1), torch.arange(n) % 3)


def convolutions(n=6, **settings):
    layers = nn.Conv2d(2, 3, 3, **settings), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.LazyLinear(3)
    model = nn.Sequential(*layers)
    model(IMAGES.float())
    return ExampleLosses(seeded(*model), IMAGES[:n], LABELS[:n])


def at(losses):
    return flatten_parameters(losses.model)


def matrix_of(solver, losses, l2=0.3, damping=0.0):
    """What the solver puts in place of H + δI, from its inverse."""
    theta = at(losses)
    inverse = solver(Curvature(Objective(losses, l2), theta, damping), torch.eye(len(theta), dtype=theta.dtype))
    return torch.linalg.inv(inverse)


def gauss_newton(losses, l2=0.3):
    return matrix_of(GaussNewton(), losses, l2)


def layer_places(losses):
    """For each layer the places of its parameters in θ, as ``(out, in)`` with the bias as the last column."""
    places = losses.unflatten(torch.arange(len(at(losses)), dtype=torch.float64))
    owners = dict.fromkeys(name.rpartition(".")[0] for name in places)
    return {
        owner: torch.cat(
            [
                places[f"{owner}.{kind}"].reshape(len(places[f"{owner}.{kind}"]), -1).long()
                for kind in ("weight", "bias")
                if f"{owner}.{kind}" in places
            ],
            dim=1,
        )
        for owner in owners
    }


def only_blocks(matrix, losses):
    kept = torch.zeros_like(matrix)
    for where in layer_places(losses).values():
        index = where.flatten()
        kept[index[:, None], index] = matrix[index[:, None], index]
    return kept


@BOTH
def test_squared_errors_of_one_linear_layer_have_exact_factors(solver):
    losses = ExampleLosses(seeded(nn.Linear(4, 3)), randn(7, 4, seed=1), randn(7, 3, seed=2), squared)
    torch.testing.assert_close(matrix_of(solver, losses), gauss_newton(losses), rtol=1e-10, atol=1e-10)


@BOTH
def test_one_example_has_exact_blocks(solver):
    losses = perceptron(1)
    expected = only_blocks(gauss_newton(losses), losses)
    torch.testing.assert_close(matrix_of(solver, losses), expected, rtol=1e-9, atol=1e-9)
    assert (expected - gauss_newton(losses)).abs().max() > 0.01  # what is left out is not nothing


@BOTH
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (1, 2)}])
@pytest.mark.parametrize("make", [perceptron, convolutions])
def test_factors_by_loops(solver, make, settings):
    """a and g of every example, output and place by autograd on the layer alone; a convolution as a sum over places."""
    losses = make(**settings) if make is convolutions else make()
    model, theta = losses.model, at(losses)
    expected = 0.3 * torch.eye(len(theta), dtype=torch.float64)
    for name, where in layer_places(losses).items():
        layer, index = model[int(name)], int(name)
        into, back, whole = [], [], []
        for x in losses.inputs:
            a = model[:index](x[None]).detach()
            z = layer(a).detach().requires_grad_()
            outputs = model[index + 1 :](z.clone())[0]
            p = outputs.softmax(dim=0).detach()
            patches = (
                F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].T
                if (isinstance(layer, nn.Conv2d))
                else a
            )
            patches = torch.cat([patches, torch.ones(len(patches), 1).double()], dim=1)
            root = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
            for value, vector in zip(*(root[0].clamp(min=0), root[1].T), strict=True):
                (g,) = torch.autograd.grad((value.sqrt() * vector * outputs).sum(), z, retain_graph=True)
                g = g[0].flatten(1).T if isinstance(layer, nn.Conv2d) else g
                back.append(g)
                whole.append(g.T @ patches)
            into.append(patches)
        n = len(losses)
        a, g = torch.cat(into), torch.cat(back)
        factors = a.T @ a / len(a), g.T @ g / n
        block = torch.kron(factors[1], factors[0])
        if isinstance(solver, EKFAC):
            basis = torch.kron(torch.linalg.eigh(factors[1])[1], torch.linalg.eigh(factors[0])[1])
            squares = sum((basis.T @ each.flatten()) ** 2 for each in whole) / n
            block = basis @ torch.diag(squares) @ basis.T
        expected[where.flatten()[:, None], where.flatten()] += block
    torch.testing.assert_close(matrix_of(solver, losses), expected, rtol=1e-8, atol=1e-9)


def test_corrected_eigenvalues_come_nearer_in_every_block():
    losses = convolutions()
    truth = only_blocks(gauss_newton(losses), losses)
    away = {solver: (matrix_of(solver, losses) - truth).norm() for solver in (KFAC(), EKFAC())}
    assert away[EKFAC()] < away[KFAC()]


@pytest.mark.parametrize(
    ("solver", "operator", "settings"),
    [
        (GaussNewton(), "GGNLinearOperator", {}),
        (KFAC(), "KFACLinearOperator", _FACTORS),
        (EKFAC(), "EKFACLinearOperator", _FACTORS),
    ],
    ids=["Gauss–Newton", "K-FAC", "EK-FAC"],
)
@pytest.mark.parametrize("make", [perceptron, convolutions])
@pytest.mark.filterwarnings("ignore")  # what that library does is its own affair
def test_matrices_of_another_library(solver, operator, settings, make):
    """Condition numbers below a hundred, and two inversions on our side: 1e-9 is far above float64's rounding."""
    import curvlinops  # here, because its imports warn

    losses = make()
    data = [(losses.inputs, losses.labels)]
    parameters = list(losses.model.parameters())
    theirs = getattr(curvlinops, operator)(losses.model, nn.CrossEntropyLoss(), parameters, data, **settings)
    theirs = theirs @ torch.eye(len(at(losses)), dtype=torch.float64)
    ours = matrix_of(solver, losses) - 0.3 * torch.eye(len(theirs)).double()
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@BOTH
def test_a_rank_keeps_the_largest_eigenvalues_and_leaves_the_rest_the_shift(solver):
    """Inputs in a plane: with the bias, three eigenvalues of the first factor are all there are."""
    losses = perceptron()
    flat = ExampleLosses(losses.model, randn(7, 2, seed=1) @ randn(2, 4, seed=2), losses.labels)
    where = layer_places(losses)["0"].flatten()
    kept, whole = (matrix_of(each, flat)[where[:, None], where] for each in (type(solver)(rank=3), solver))
    torch.testing.assert_close(kept, whole, rtol=1e-9, atol=1e-9)
    least = type(solver)(rank=1)
    assert (torch.linalg.eigvalsh(matrix_of(least, losses)[where[:, None], where]) < 0.3 + 1e-9).sum() == len(where) - 1
    torch.testing.assert_close(matrix_of(type(solver)(rank=99), losses), matrix_of(solver, losses))


@BOTH
def test_draws_scatter_about_the_factors(solver):
    """With random signs each factor is a mean of draws; its standard error after 4,000 is below 0.02 of its size."""
    losses = perceptron()
    exact, near, far = (matrix_of(type(solver)(draws=draws), losses) for draws in (None, 4000, 1))
    assert (near - exact).norm() < 0.05 * exact.norm() < (far - exact).norm()
    assert not torch.equal(matrix_of(type(solver)(draws=1, seed=1), losses), far)


@pytest.mark.parametrize(("draws", "products"), [(None, 2.0), (1, 1.0), (4, 2.5)])
def test_each_pass_counts_half_a_product(draws, products):
    losses = perceptron()
    curvature = Curvature(Objective(losses, 0.3), at(losses))
    KFAC(draws=draws)(curvature, at(losses))
    assert curvature.products == products


@BOTH
def test_damping_is_added_to_the_eigenvalues(solver):
    losses = perceptron()
    damped, plain = matrix_of(solver, losses, 0.3, 0.2), matrix_of(solver, losses, 0.3)
    torch.testing.assert_close(damped, plain + 0.2 * torch.eye(len(plain)).double(), rtol=1e-9, atol=1e-9)


@BOTH
@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias"])
def test_frozen_parameters_have_no_factor(solver, frozen):
    losses = perceptron(1)
    losses.model.get_parameter(frozen).requires_grad_(False)
    losses = ExampleLosses(losses.model, losses.inputs, losses.labels)
    torch.testing.assert_close(
        matrix_of(solver, losses), only_blocks(gauss_newton(losses), losses), rtol=1e-9, atol=1e-9
    )


@BOTH
def test_vectors_at_more_places_than_one(solver):
    """A linear layer on a sequence: each place counts for an example of its own."""
    model = seeded(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3))
    losses = ExampleLosses(model, randn(5, 2, 4, seed=1), LABELS[:5])
    matrix = matrix_of(solver, losses)
    torch.testing.assert_close(matrix, only_blocks(matrix, losses), rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh(matrix)[0] > 0.29


@BOTH
def test_the_model_keeps_no_hook_and_a_solve_no_history(solver):
    losses = perceptron()
    assert not matrix_of(solver, losses).requires_grad
    assert not any(layer._forward_hooks for layer in losses.model.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.layer(x).tanh())


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return F.linear(self.layer(x), self.other.weight)


REFUSED = {
    "batch-norm": (
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(),
        "'1.weight' is trained and belongs to a B",
    ),
    "twice": (Twice(), "the layer 'layer' is called 2 times"),
    "by its weight": (Unused(), "the layer 'other' is called 0 times"),
    "groups": (nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 3, 1, groups=3), nn.Flatten()), "groups=3"),
    "same": (nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 3, 1, padding="same"), nn.Flatten()), "'same'"),
}


@BOTH
@pytest.mark.parametrize("name", list(REFUSED))
def test_other_networks_are_refused(solver, name):
    model, words = REFUSED[name]
    losses = ExampleLosses(model.double(), randn(4, 3, seed=0), LABELS[:4])
    with pytest.raises(ValueError, match=words):
        solver(Curvature(Objective(losses, 0.1), at(losses)), at(losses))


@BOTH
def test_a_loss_without_second_derivatives_leaves_the_shift_alone(solver):
    losses = perceptron()
    linear = ExampleLosses(losses.model, losses.inputs, randn(7, 3, seed=2), lambda z, y: (z * y).sum(dim=1))
    torch.testing.assert_close(matrix_of(solver, linear), 0.3 * torch.eye(len(at(linear))).double())


@BOTH
def test_other_losses_and_singular_blocks_are_refused(solver):
    losses = perceptron()
    with pytest.raises(ValueError, match=r"the block of the layer '2' is singular; raise the l2"):
        solver(Curvature(Objective(losses), at(losses)), at(losses))
    single = SingleLoss(lambda theta: theta.square().sum())
    with pytest.raises(ValueError, match="Kronecker factors: the losses are SingleLoss"):
        solver(Curvature(Objective(single), at(losses)), at(losses))
    wrong = ExampleLosses(losses.model, losses.inputs, losses.labels, lambda z, y: -cross_entropy(z, y))
    with pytest.raises(ValueError, match="not convex in the outputs"):
        solver(Curvature(Objective(wrong, 0.1), at(losses)), at(losses))
