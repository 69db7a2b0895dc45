"""θ holds what is trained: frozen parameters are constants of the model, for every reader of θ."""

import pytest
import torch
from helpers.analytic import randn
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metasp_lite.calculus import Curvature, minimise
from metasp_lite.calculus.losses import ExampleLosses, Objective, per_example_gradients
from metasp_lite.calculus.parameters import flatten_parameters, number_of_trained
from metasp_lite.calculus.solvers import Exact
from metasp_lite.influence import influence, leave_one_out, pseudo_update_influence

N, L2 = 12, 0.1
X, Y = randn(N, 4, seed=1), torch.arange(N) % 3
V = randn(5, 4, seed=2), torch.tensor([0, 1, 2, 1, 0])


def network(frozen: tuple[str, ...]) -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return model


FROZEN = [("0.weight", "0.bias"), ("0.weight",), ("2.weight", "2.bias"), ("0.bias", "2.weight")]


def by_hand(model: nn.Module):
    """J and the losses of X as functions of the trained parameters alone, by torch's own means."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    sizes = [model.get_parameter(name).numel() for name in names]

    def losses(theta, x=X, y=Y):
        views = [t.view_as(model.get_parameter(n)) for n, t in zip(names, theta.split(sizes), strict=True)]
        return F.cross_entropy(functional_call(model, dict(zip(names, views, strict=True)), (x,)), y, reduction="none")

    return losses, lambda theta: losses(theta).mean() + 0.5 * L2 * theta @ theta, sum(sizes)


@pytest.mark.parametrize("frozen", FROZEN)
def test_influence_with_frozen_parameters_is_that_of_the_trained_ones_alone(frozen):
    model = network(frozen)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses, objective, size = by_hand(model)
    training = Objective(ExampleLosses(model, X, Y), L2)
    theta = minimise(training, flatten_parameters(model))
    assert theta.shape == (size,) == (number_of_trained(model),)
    assert torch.func.grad(objective)(theta).norm() < 1e-10
    hessian = torch.func.hessian(objective)(theta)
    jacobian = torch.func.jacrev(losses)(theta)
    torch.testing.assert_close(Curvature(training, theta).dense(), hessian, rtol=0, atol=1e-13)
    torch.testing.assert_close(per_example_gradients(training.losses, theta), jacobian, rtol=0, atol=1e-13)
    expected = -jacobian @ torch.linalg.solve(hessian, torch.func.grad(lambda t: losses(t, *V).mean())(theta))
    validation = Objective(ExampleLosses(model, *V))
    found = influence(training.losses, validation, Curvature(training, theta), Exact())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    small = leave_one_out(Curvature(training, theta), validation, torch.arange(N), fraction=1e-4)
    torch.testing.assert_close(small, -1e-4 * expected / N, rtol=1e-3, atol=1e-9)  # retraining, to first order
    step = pseudo_update_influence(training, validation, theta, step=0.1)
    moved = theta - 0.1 * torch.func.grad(objective)(theta)
    torch.testing.assert_close(step, -0.1 * jacobian @ torch.func.grad(lambda t: losses(t, *V).mean())(moved))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_a_network_with_nothing_trained_is_refused():
    model = network(("0.weight", "0.bias", "2.weight", "2.bias"))
    for call in (lambda: flatten_parameters(model), lambda: ExampleLosses(model, X, Y)):
        with pytest.raises(ValueError, match="no parameter of the network is trained; let one require a gradient"):
            call()
