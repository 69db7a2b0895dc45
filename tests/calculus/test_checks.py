"""One loss for each example, a function of θ and that example alone: refused where it is not, at every door."""

import random
from collections.abc import Callable

import pytest
import torch
from helpers.analytic import randn
from torch import Tensor, nn
from torch.nn import functional as F

from metasp_lite.calculus import Curvature, minimise
from metasp_lite.calculus.labels import binary_cross_entropy
from metasp_lite.calculus.losses import (
    ExampleLosses,
    Objective,
    cross_entropy,
    gradient,
    loss_directional_derivatives,
    per_example_gradients,
)
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.calculus.solvers import Identity
from metasp_lite.influence import influence, metasp_gradient, pseudo_update_influence

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")
N = 6
X, Y = randn(N, 5, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])


class Made(nn.Module):
    """A linear layer and a function of its outputs."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(5, 3).double(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


class Recurrent(nn.Module):
    def __init__(self, **settings) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(1, 4, batch_first=True, **settings).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x.unsqueeze(-1))[0][:, -1])


class Attending(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True).double()
        self.into, self.out = nn.Linear(1, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x.unsqueeze(-1))
        return self.out(self.attention(h, h, h)[0].mean(1))


class Counting(nn.Module):
    """Adds one to a buffer at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3).double()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


def of(model: nn.Module, labels: Tensor = Y, loss=cross_entropy) -> Callable[[], ExampleLosses]:
    return lambda: ExampleLosses(model, X, labels, loss)


torch.manual_seed(0)
OWN = torch.Generator().manual_seed(0)
SQUEEZED = nn.Linear(5, 1).double()
BINARY = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)).double()
BAD = {
    "a mean": (of(Made(nn.Identity()), loss=F.cross_entropy), r"shape \(\): give one for each example"),
    "a sum": (of(Made(nn.Identity()), loss=lambda z, y: F.cross_entropy(z, y, reduction="sum")), r"shape \(\)"),
    "a mean that keeps its axis": (of(Made(nn.Identity()), loss=lambda z, y: F.cross_entropy(z, y).view(1)), r"\(1,\)"),
    "every pair": (
        of(SQUEEZED, Y.double(), lambda z, y: F.mse_loss(z, y, reduction="none")),
        r"shape \(4, 4\).*squeeze the outputs",
    ),
    "a column": (of(SQUEEZED, Y.double()[:, None], lambda z, y: (z - y) ** 2), r"shape \(4, 1\)"),
    "a functional dropout": (of(Made(F.dropout)), "draw random numbers"),
    "an LSTM's dropout": (of(Recurrent(num_layers=2, dropout=0.5)), "draw random numbers"),
    "attention's dropout": (of(Attending(0.5)), "draw random numbers"),
    "RReLU": (of(Made(nn.RReLU())), "draw random numbers"),
    "noise of a generator of its own": (
        of(Made(lambda z: z + torch.randn(z.shape, generator=OWN, dtype=z.dtype))),
        "another at every call",
    ),
    "Python's chance": (of(Made(lambda z: z * random.random())), "another at every call"),
    "a centre of the batch": (of(Made(lambda z: z - z.mean(0))), "another among 4 than alone"),
    "a softmax over the batch": (of(Made(lambda z: z.softmax(0))), "another among 4 than alone"),
    "ranks in the batch": (of(Made(lambda z: z.cumsum(0))), "another among 4 than alone"),
    "attention over the batch": (of(Made(lambda z: (z @ z.T).softmax(1) @ z)), "another among 4 than alone"),
    "a norm of the batch in the loss": (
        of(Made(nn.Identity()), loss=lambda z, y: cross_entropy(z, y) / cross_entropy(z, y).norm()),
        "another among 4 than alone",
    ),
    "a buffer that moves": (of(Counting()), "buffer 'calls' moves at every call"),
    "spectral norm in training": (of(Made(nn.utils.spectral_norm(nn.Linear(3, 3).double()))), "buffer .* moves"),
    "instance norm with running averages": (
        lambda: ExampleLosses(
            nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 3)).double(),
            randn(N, 2, 3, seed=2),
            Y,
        ),
        "buffer '0.running_mean' moves",
    ),
    "a label that torch ignores": (of(Made(nn.Identity()), Y.index_fill(0, torch.tensor(3), -100)), "label -100 at"),
    "a class too many": (
        of(Made(nn.Identity()), Y + 1),
        "label 3 at place 2 does not exist: give classes from 0 to 3−1",
    ),
    "a binary label of 2": (
        of(BINARY, Y, binary_cross_entropy),
        "label 2",
    ),
    "a binary label that is NaN": (
        of(BINARY, Y / 0, binary_cross_entropy),
        "label nan",
    ),
    "a target that is NaN": (
        of(nn.Sequential(SQUEEZED, nn.Flatten(0)), Y.double() * torch.nan, lambda z, y: (z - y) ** 2),
        "label nan at place 0 does not exist: give finite numbers",
    ),
    "probabilities that do not sum to 1": (of(Made(nn.Identity()), torch.full((N, 3), 0.5).double()), "sum to 1"),
    "probabilities of fewer classes": (of(Made(nn.Identity()), torch.full((N, 2), 0.5).double()), r"shape \(6, 2\)"),
    "labels that are fractions": (of(Made(nn.Identity()), Y.double()), r"shape \(6,\) and torch.float64"),
    "labels of 32 bits": (of(Made(nn.Identity()), Y.int()), "int64"),
    "inputs of another dtype": (lambda: ExampleLosses(Made(nn.Identity()), X.float(), Y), "cannot be computed"),
    "inputs of another width": (lambda: ExampleLosses(Made(nn.Identity()), X[:, :4], Y), "cannot be computed"),
}
DOORS = {
    "the losses themselves": lambda losses, theta: losses(theta),
    "some of them": lambda losses, theta: losses(theta, torch.tensor([0])),
    "gradient": lambda losses, theta: gradient(Objective(losses), theta),
    "gradient of a mean of its own": lambda losses, theta: gradient(lambda t: losses(t).mean(), theta),
    "per_example_gradients": per_example_gradients,
    "loss_directional_derivatives": lambda losses, theta: loss_directional_derivatives(losses, theta, theta),
    "Curvature": lambda losses, theta: Curvature(Objective(losses), theta),
    "minimise": lambda losses, theta: minimise(Objective(losses), theta),
    "influence": lambda losses, theta: influence(losses, lambda t: t.sum(), GOOD_CURVATURE, Identity()),
    "pseudo_update_influence": lambda losses, theta: pseudo_update_influence(
        Objective(losses), lambda t: t.sum(), theta, step=0.1
    ),
}
_good = ExampleLosses(Made(nn.Identity()), X, Y)
GOOD_CURVATURE = Curvature(Objective(_good), flatten_parameters(_good.model))


@pytest.mark.parametrize("case", BAD)
def test_losses_that_are_not_one_for_each_example_are_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):  # noqa: PT012 some are refused when they are made
        losses = make()
        state = torch.get_rng_state()
        try:
            losses(flatten_parameters(losses.model))
        finally:
            assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", ["a mean", "every pair", "a functional dropout", "a centre of the batch"])
def test_every_door_looks(case, door):
    losses = BAD[case][0]()
    theta = flatten_parameters(losses.model)
    other = door == "influence" and len(theta) != len(GOOD_CURVATURE.theta)  # refused for the size of its θ
    with pytest.raises(ValueError, match=r"θ has the shape \(18,\)" if other else BAD[case][1]):
        DOORS[door](losses, theta)


IMAGES, WORDS = randn(N, 2, 3, seed=2), torch.arange(12).view(6, 2) % 7
VALID = {
    "an LSTM without dropout": (Recurrent(), X),
    "an LSTM's dropout in evaluation": (Recurrent(num_layers=2, dropout=0.5).eval(), X),
    "attention": (Attending(), X),
    "GroupNorm": (nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)).double(), X),
    "LayerNorm": (nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double(), X),
    "InstanceNorm": (nn.Sequential(nn.InstanceNorm1d(2), nn.Flatten(), nn.Linear(6, 3)).double(), IMAGES),
    "embeddings": (nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3)).double(), WORDS),
    "batch-norm in evaluation": (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().eval(), X),
    "float32": (nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3)), X.float()),
}


@pytest.mark.parametrize("case", VALID)
def test_valid_models_pass_and_have_the_gradients_of_a_plain_loop(case):
    model, inputs = VALID[case]
    losses, theta = ExampleLosses(model, inputs, Y), flatten_parameters(model)
    expected = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    F.cross_entropy(model(inputs[i : i + 1]), Y[i : i + 1]), list(model.parameters())
                )
            ]
        )
        for i in range(N)
    ]
    rounding = 1e-5 if theta.dtype == torch.float32 else 1e-11
    rows = per_example_gradients(losses, theta)
    torch.testing.assert_close(rows, torch.stack(expected), rtol=0, atol=rounding)
    u = randn(len(theta), seed=4).to(theta)
    torch.testing.assert_close(loss_directional_derivatives(losses, theta, u), rows @ u, rtol=0, atol=100 * rounding)


def test_losses_at_which_all_examples_are_equal_are_looked_at_again_where_they_are_used():
    """At θ = 0 a layer that mixes the batch does not show; the curvature at another θ sees it."""
    losses = of(Made(lambda z: z - z.mean(0)))()
    theta = flatten_parameters(losses.model)
    losses(torch.zeros_like(theta))
    with pytest.raises(ValueError, match="another among 4 than alone"):
        Curvature(Objective(losses), theta)


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (torch.zeros(17).double(), r"\(17,\)"),
        (torch.zeros(18, dtype=torch.int64), "int64"),
        (X, r"\(6, 5\)"),
    ],
)
def test_a_theta_that_is_not_the_models_is_refused(theta, message):
    for door in DOORS.values():
        if door is not DOORS["influence"]:
            with pytest.raises(ValueError, match=message):
                door(of(Made(nn.Identity()))(), theta)


@pytest.mark.parametrize(
    "case", ["a mean", "a mean that keeps its axis", "every pair", "a functional dropout", "RReLU"]
)
def test_the_metasp_step_refuses_them_too(case):
    losses = BAD[case][0]()
    optimizer = torch.optim.SGD(losses.model.parameters(), lr=0.1)
    examples = losses.inputs[:4], losses.labels[:4]
    with pytest.raises(ValueError, match=BAD[case][1]):
        metasp_gradient(losses.model, optimizer, examples, examples, examples, loss=losses.loss)


@pytest.mark.parametrize("label", [-100, -1, 3])
@pytest.mark.parametrize("place", range(3))
def test_the_metasp_step_refuses_labels_that_do_not_exist(label, place):
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double()
    sets = [(X, Y.clone()) for _ in range(3)]
    sets[place][1][2] = label
    with pytest.raises(ValueError, match=f"label {label} at place 2 does not exist"):
        metasp_gradient(model, torch.optim.SGD(model.parameters(), lr=0.1), *sets)
