"""The networks of the course."""

import torch
from torch import nn


def toy_mlp(
    inputs: int = 784, hidden: int = 8, classes: int = 10, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Build the one-hidden-layer tanh network of the MetaSP paper's Appendix J (its width is not printed; 8 is ours).

    Takes images or vectors ``(N, …)`` with ``inputs`` numbers each, gives logits ``(N, classes)``.  Its parameters
    depend on ``seed`` alone; the global random state is left as it was.  float64 by default: influence is compared
    with exact answers, and the toy is small.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes))
    return network.to(dtype)


def logistic_regression(inputs: int, *, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Build a binary logistic regression without intercept: vectors ``(N, inputs)`` to one logit ``(N,)``.

    Starts at zero, where every class has probability one half.
    """
    linear = nn.Linear(inputs, 1, bias=False, dtype=dtype)
    nn.init.zeros_(linear.weight)
    return nn.Sequential(linear, nn.Flatten(start_dim=0))
