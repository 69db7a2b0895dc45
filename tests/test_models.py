"""Models: the networks are the ones the formulas mean, and building one disturbs nothing."""

import math

import numpy as np
import pytest
import torch
from analytic import randn

from metasp_lite.functional import binary_cross_entropy, flatten_parameters
from metasp_lite.models import logistic_regression, toy_mlp


def test_toy_mlp_is_the_appendix_network():
    model = toy_mlp()
    assert len(flatten_parameters(model)) == 784 * 8 + 8 + 8 * 10 + 10
    images = randn(5, 1, 28, 28, seed=0)
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in model.parameters())
    expected = np.tanh(images.flatten(1).numpy() @ w1.T + b1) @ w2.T + b2
    # Sums of 784 products in another order: about 784 rounding errors of 1e-16.
    torch.testing.assert_close(model(images).detach(), torch.as_tensor(expected), rtol=0, atol=1e-13)


def test_toy_mlp_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = flatten_parameters(toy_mlp(6, 3, 2, seed=5))
    torch.manual_seed(2)
    assert torch.equal(flatten_parameters(toy_mlp(6, 3, 2, seed=5)), first)
    assert not torch.equal(flatten_parameters(toy_mlp(6, 3, 2, seed=6)), first)


def test_toy_mlp_leaves_the_global_random_state_as_it_was():
    before = torch.get_rng_state()
    toy_mlp(6, 3, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_have_the_dtype_that_was_asked_for(dtype):
    assert flatten_parameters(toy_mlp(6, 3, 2, dtype=dtype)).dtype == dtype
    assert flatten_parameters(logistic_regression(3, dtype=dtype)).dtype == dtype
    assert flatten_parameters(toy_mlp(6, 3, 2)).dtype == flatten_parameters(logistic_regression(3)).dtype
    assert flatten_parameters(toy_mlp(6, 3, 2)).dtype == torch.float64


def test_logistic_regression_is_one_inner_product_without_intercept():
    model, x = logistic_regression(3), randn(7, 3, seed=0)
    assert len(flatten_parameters(model)) == 3
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    # Three products and two sums of numbers around 1: a few rounding errors of 1e-16.
    torch.testing.assert_close(model(x).detach(), x[:, 0] - 2 * x[:, 1] + x[:, 2] / 2, rtol=0, atol=1e-14)


def test_logistic_regression_starts_undecided_even_on_one_example():
    logits = logistic_regression(3)(randn(1, 3, seed=0))
    assert logits.shape == (1,)
    assert binary_cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(math.log(2), rel=1e-15)
