"""The dense Hessian by the first layer: against products, and taken exactly where there is such a layer."""

import pytest
import torch
from helpers.small_models import MODELS, assert_equal_up_to_rounding, objective_of, seeded, somewhere
from torch import nn

from metasp_lite.calculus import curvature
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.first_layer import first_linear, hessian_by_first_layer
from metasp_lite.calculus.losses import Objective

FIRST_LINEAR = {
    "toy-mlp": 1,
    "logistic-regression": 0,
    "two-hidden-layers": 0,
    "linear-alone": 0,
    "frozen-batch-norm": 0,
}


@pytest.mark.parametrize("name", FIRST_LINEAR)
def test_first_layer_hessian_equals_products(name):
    objective = Objective(MODELS[name]().losses)
    theta = somewhere(objective)
    products = curvature._hessian_by_products(*curvature._gradient_graph(objective, theta), 5)
    assert_equal_up_to_rounding(hessian_by_first_layer(objective.losses, theta, FIRST_LINEAR[name]), products)


@pytest.mark.parametrize("name", MODELS)
def test_dense_takes_the_first_layers_route_exactly_where_there_is_one(name, monkeypatch):
    objective = MODELS[name]()
    taken = []
    for route in ("hessian_by_first_layer", "_hessian_by_products"):
        original = getattr(curvature, route)
        monkeypatch.setattr(
            curvature, route, lambda *args, route=route, original=original: taken.append(route) or original(*args)
        )
    Curvature(objective, somewhere(objective)).dense()
    assert first_linear(objective.losses) == FIRST_LINEAR.get(name)
    assert taken == ["hessian_by_first_layer" if name in FIRST_LINEAR else "_hessian_by_products"]


class AddsItsInput(nn.Sequential):
    """Not its layers one after the other."""

    def forward(self, x):
        return x[:, :3] + super().forward(x)


def with_a_hook(model):
    model[0].register_forward_hook(lambda _, __, output: output.sin())
    return model


def with_tied_layers(model):
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    "model",
    [
        AddsItsInput(*seeded(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))),
        with_a_hook(seeded(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))),
        with_tied_layers(seeded(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))),
    ],
    ids=["subclass", "hook", "tied"],
)
def test_dense_takes_no_short_cut_where_a_sequence_is_more_than_its_layers(model):
    objective = objective_of(model, next(model.parameters()).shape[1])
    theta = somewhere(objective)
    assert_equal_up_to_rounding(Curvature(objective, theta).dense(), torch.func.hessian(objective)(theta))
