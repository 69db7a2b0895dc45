"""Networks in the middle of training for a MetaSP step, plain steps and real runs to compare with, and their state.

Rounding: through a few layers and up to five steps, two routes to an influence differ by 1e-15 to 1e-13 of its largest
entry (narrow ResNets, whose last batch-norms see eight numbers a channel, come last).  1e-10 is far above that, and a
wrong term shows in the first digits.
"""

import copy

import torch
from torch import nn

from helpers.analytic import randn
from metasp_lite.calculus.losses import cross_entropy
from metasp_lite.networks import lite_cnn, resnet18, toy_mlp

ROUNDING = 1e-10


def assert_close(actual, expected, share=ROUNDING):
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * float(expected.abs().max()))


def mlp():
    return toy_mlp(2 * 8 * 8, 5, 4)


def cnn():
    """With a layer overwritten in place, a strided and a dilated one, and no batch-norm."""
    body = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 2, dilation=2), nn.Tanh()
    return seeded(*body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5, 4))


def cnn_with_batch_norm(dtype=torch.float64):
    return lite_cnn(4, channels=2, widths=(3, 4), dtype=dtype)


def resnet():
    return resnet18(4, channels=2, width=2, dtype=torch.float64)


def seeded(*layers):
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.4 * randn(*parameter.shape, seed=seed + 100))
    return model


def examples(n, classes, seed):
    """Noisy images of ``classes``, each with a mean of its own."""
    labels = torch.tensor(classes).repeat(n)[:n]
    return randn(4, 2, 8, 8, seed=1)[labels] + randn(n, 2, 8, 8, seed=seed), labels


BATCH, OLD, NEW = examples(8, (0, 1, 2, 3), 10), examples(6, (0, 1), 11), examples(5, (2, 3), 12)
NETWORKS = {"MLP": mlp, "CNN": cnn, "CNN with batch-norm": cnn_with_batch_norm, "ResNet-18": resnet}


RULES = {
    "SGD": {"lr": 0.05},
    "momentum": {"lr": 0.03, "momentum": 0.9},
    "weight decay": {"lr": 0.05, "weight_decay": 0.1},
    "nesterov": {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}


def learner(network, rule, warm=True):
    """A model and its optimiser: with the momentum and the running averages of two steps, or fresh."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), **rule)
    for k in range(2 if warm else 0):
        inputs, labels = examples(8, (0, 1, 2, 3), 20 + k)
        plain_step(model, optimizer, (inputs, labels), torch.full((8,), 1 / 8, dtype=torch.float64))
    optimizer.zero_grad()
    return model, optimizer


def plain_step(model, optimizer, batch, weights):
    """The training loop as everybody writes it."""
    optimizer.zero_grad()
    (weights * cross_entropy(model(batch[0]), batch[1])).sum().backward()
    optimizer.step()


def assert_same_state(learner, reference):
    """Parameters, buffers and momenta are equal up to rounding."""
    (model, optimizer), (expected, reference_optimizer) = learner, reference
    for (name, actual), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert_close(actual.detach(), wanted.detach())
        momentum = optimizer.state.get(actual, {}).get("momentum_buffer")
        reference_momentum = reference_optimizer.state.get(wanted, {}).get("momentum_buffer")
        assert (momentum is None) == (reference_momentum is None), name
        if momentum is not None:
            assert_close(momentum, reference_momentum)
    for actual, wanted in zip(model.buffers(), expected.buffers(), strict=True):
        assert_close(actual, wanted) if wanted.is_floating_point() else torch.testing.assert_close(actual, wanted)


def loss_after(learner, weights, validation, steps):
    """ℓ(V, θ_K) after ``steps`` real ones on a copy, every pass in the modes the model is in."""
    model, optimizer = copy.deepcopy(learner)
    for _ in range(steps):
        plain_step(model, optimizer, BATCH, weights)
    with torch.no_grad():
        return float(cross_entropy(model(validation[0]), validation[1]).mean())


def by_finite_differences(learner, validation, steps, width=1e-4):
    """∂ℓ/∂E: the weight of one example moved by ±width of itself.

    Its error falls with width² (at 1e-2 it is 1e-6 of the largest influence) down to the rounding of a loss near 1
    divided by width (1e-9 of it at 1e-5); between them both are below 1e-9.
    """
    n, slopes = len(BATCH[1]), []
    for i in range(n):
        weights = torch.full((2, n), 1 / n, dtype=torch.float64)
        weights[0, i] *= 1 + width
        weights[1, i] *= 1 - width
        after = [loss_after(learner, w, validation, steps) for w in weights]
        slopes.append((after[0] - after[1]) / (2 * width))
    return torch.tensor(slopes, dtype=torch.float64)


def snapshot(model, optimizer):
    """All that a step could change, copied."""
    return copy.deepcopy(
        {
            "parameters": dict(model.named_parameters()),
            "gradients": [parameter.grad for parameter in model.parameters()],
            "trained": [parameter.requires_grad for parameter in model.parameters()],
            "buffers": dict(model.named_buffers()),
            "modes": [module.training for module in model.modules()],
            "optimiser": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "data": (BATCH, OLD, NEW),
        }
    )


def assert_identical(first, second):
    """Equal down to the last bit, whatever they are made of."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert_identical(list(first.items()), list(second.items()))
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_identical(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second
