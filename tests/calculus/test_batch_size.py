"""A curvature over pieces of the examples: the same numbers, in less memory."""

import subprocess
import sys

import pytest
import torch
from helpers.analytic import randn
from helpers.small_models import EVERY_MODEL, assert_equal_up_to_rounding, somewhere
from torch import nn

from metasp_lite.calculus import curvature as curvature_module
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import ExampleLosses, Objective, SingleLoss
from metasp_lite.calculus.solvers import ConjugateGradient, Exact, LiSSA, Neumann
from metasp_lite.influence import influence


@EVERY_MODEL
@pytest.mark.parametrize("batch_size", [1, 5, 11, 12, 100])  # of 12: with and without a rest, and all
def test_pieces_give_the_numbers_of_the_whole(build, batch_size):
    objective = build()
    theta, vector = somewhere(objective), randn(len(somewhere(objective)), seed=71)
    whole = Curvature(objective, theta, 2.0)
    pieces = Curvature(objective, theta, 2.0, batch_size=batch_size)
    assert_equal_up_to_rounding(pieces.gradient, whole.gradient)
    assert_equal_up_to_rounding(pieces @ vector, whole @ vector)
    assert_equal_up_to_rounding(pieces.dense(), whole.dense())
    assert_equal_up_to_rounding(
        pieces.on_batch(vector, torch.tensor([3, 1])), whole.on_batch(vector, torch.tensor([3, 1]))
    )
    assert pieces.products == whole.products
    assert pieces.largest_eigenvalue == pytest.approx(whole.largest_eigenvalue, rel=1e-6)  # Lanczos: four digits
    for solver in (Exact(), ConjugateGradient(100, tolerance=1e-12), Neumann(5, step=0.1), LiSSA(4, 12, step=0.1)):
        assert_equal_up_to_rounding(solver(pieces, vector), solver(whole, vector))
    losses = objective.losses
    found, expected = (influence(losses, objective, each, Exact()) for each in (pieces, whole))
    assert_equal_up_to_rounding(found, expected)


def test_no_graph_holds_more_examples_than_the_pieces(monkeypatch):
    """Nor is any kept."""
    sizes, original = [], curvature_module.gradient_graph

    def looking(objective, theta):
        sizes.append(len(objective.keywords["index"]))
        return original(objective, theta)

    monkeypatch.setattr(curvature_module, "gradient_graph", looking)
    losses = ExampleLosses(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), randn(10, 4, seed=1), torch.arange(10) % 3
    )
    theta = randn(15, seed=2)
    curvature = Curvature(Objective(losses), theta, batch_size=4)
    assert sizes == [4, 4, 2]
    assert curvature._graph is None
    curvature @ theta
    assert sizes == [4, 4, 2] * 4  # two looks and the product


@pytest.mark.parametrize("batch_size", [0, -1])
def test_pieces_of_nothing_are_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a whole number, at least 1 or None"):
        Curvature(Objective(SingleLoss(lambda theta: theta.square().sum())), torch.ones(3), batch_size=batch_size)


def test_a_model_that_mixes_the_examples_of_a_piece_is_refused():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x):
            return self.layer(x) - self.layer(x).mean(0)

    losses = ExampleLosses(Centred(), randn(10, 4, seed=1), torch.arange(10) % 3)
    with pytest.raises(ValueError, match="another among 4 than alone"):
        Curvature(Objective(losses), randn(15, seed=2), batch_size=5)


MEMORY = """
import re, sys, torch
from metasp_lite.calculus import Curvature, ExampleLosses, Objective
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.networks import lite_cnn
torch.set_num_threads(1)
model, n = lite_cnn().eval(), 200
images = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
losses, theta = ExampleLosses(model, images, torch.arange(n) % 10), flatten_parameters(model)
peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])  # of this program alone
before = peak()
curvature = Curvature(Objective(losses), theta, batch_size=int(sys.argv[1]))
product = curvature @ torch.ones_like(theta)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pieces_take_the_memory_of_a_piece():
    """200 images in one graph take 20 times what 10 do; asked for is half, as torch itself grows, too."""

    def mebibytes(batch_size):
        command = [sys.executable, "-c", MEMORY, str(batch_size)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert mebibytes(10) < mebibytes(200) / 2
