"""A network as a function of its parameters, by kernels that torch can differentiate twice and in every mode."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.backends import cuda, mha
from torch.func import functional_call

_MISFIT = re.compile(r"same dtype|cannot be multiplied|to have \d+ channels|Input type .* same|[Ee]xpected \dD")


def outputs_at(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the model's outputs for ``inputs (n, …)`` with ``parameters`` (and buffers, if any) in place of its own.

    Attention is computed by its formula: torch's fused kernels have no second derivative, or a wrong one, and its "fast
    path" for encoder layers in evaluation mode has none at all.

    Raises:
        ValueError: when the network cannot take inputs of this shape or dtype, with torch's reason.
    """
    try:
        with _plain_attention():
            return functional_call(model, dict(parameters), (inputs,))
    except RuntimeError as error:
        if not _MISFIT.search(str(error)):
            raise
        kinds = ", ".join(sorted({str(each.dtype) for each in parameters.values() if each.is_floating_point()}))
        raise ValueError(
            f"the network with parameters of {kinds} cannot take inputs of shape {tuple(inputs.shape)} and "
            f"{inputs.dtype} ({str(error).splitlines()[0]}); give inputs in the shape and dtype that it takes"
        ) from error


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let attention be matrix products and a softmax; puts torch's own choice back."""
    switches: tuple[tuple[Callable[[], bool], Callable[[bool], object], bool], ...] = (
        (cuda.flash_sdp_enabled, cuda.enable_flash_sdp, False),
        (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, False),
        (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, False),
        (cuda.math_sdp_enabled, cuda.enable_math_sdp, True),
        (mha.get_fastpath_enabled, mha.set_fastpath_enabled, False),
    )
    before = [get() for get, _, _ in switches]
    try:
        for _, put, wanted in switches:
            put(wanted)
        yield
    finally:
        for (_, put, _), value in zip(switches, before, strict=True):
            put(value)


def has_no_rule(error: RuntimeError) -> bool:
    """Whether torch's transforms (vmap, grad, jvp) have no rule for something in the function that they were given.

    It computes all the same without them.  Too little memory or inputs of a wrong shape are errors of another kind.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    words = ["batching rule", "vmap", "functorch", "forward ad", "forward-mode", "setup_context", "jvp"]
    words += ["doesn't match the broadcast shape"]  # vmap on a layer that writes into what it does not map (an LSTM)
    return any(word in str(error).lower() for word in words)


def plain_gradient(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """The gradient of a scalar function at θ ``(P,)`` without those transforms."""
    leaf = theta.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(leaf), leaf, materialize_grads=True)[0]
