"""What losses must be for an influence to exist: one number for each example, a function of θ and that example alone.

Looked at on a few examples wherever losses come in by a door, once each time, so that a training step or a Hessian
product pays nothing.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn


class Losses(Protocol):
    """The losses of n examples as a function of θ ``(P,)``."""

    def __len__(self) -> int:
        """Return n."""
        ...

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the losses ``(n,)``, or ``(B,)`` of the examples in ``index (B,)``."""
        ...


@dataclass(frozen=True)
class Part:
    """Some of the losses, those of the examples in ``index (B,)``."""

    losses: Losses
    index: Tensor

    def __len__(self) -> int:
        """Return B."""
        return len(self.index)

    def __call__(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the losses ``(B,)``, or some of these."""
        return self.losses(theta, self.index if index is None else self.index[index])


_Selected = Callable[[Tensor, Tensor], Tensor]  # θ (P,), index (B,) -> losses (B,)
_FEW = 4  # examples that are looked at


def require_example_losses(losses: _Selected, n: int, theta: Tensor) -> None:
    """Do nothing for n losses that are one number for each example and a function of θ ``(P,)`` and it alone.

    Raises:
        ValueError: when they are not one for each example, when they draw random numbers or are others at every call,
            when the loss of an example is another among others than alone, or when torch cannot compute them.
    """
    index = torch.linspace(0, n - 1, min(n, _FEW), dtype=torch.float64).long().to(theta.device)
    with torch.no_grad(), no_random_numbers(theta.device):
        together, again = (evaluated(losses, theta, index) for _ in range(2))
        require_one_each(together, len(index))
        alone = torch.cat([require_one_each(evaluated(losses, theta, index[i : i + 1]), 1) for i in range(len(index))])
    if not _equal(together, again):
        raise ValueError(
            f"the loss of example {int(index[0])} is another at every call ({_first(together, again)}), so that no "
            "influence is defined; put what draws or counts into evaluation mode (module.eval())"
        )
    if not _equal(together, alone):
        raise ValueError(
            f"the loss of an example is another among {len(index)} than alone ({_first(together, alone)}): a layer or "
            "the loss mixes the examples of a batch; take one that treats each by itself (evaluation mode, LayerNorm)"
        )


def require_one_each(losses: Tensor, n: int) -> Tensor:
    """Return the losses unchanged.

    Raises:
        ValueError: when they are not ``(n,)``.
    """
    if losses.shape != (n,):
        more = ""
        if losses.dim() > 1 and losses.shape[0] == n:
            more = "; outputs (n, 1) beside labels (n,) are every pair: squeeze the outputs"
        raise ValueError(
            f"the losses have the shape {tuple(losses.shape)}: give one for each example (n,), here ({n},), "
            f'as reduction="none" does{more}'
        )
    return losses


@contextmanager
def no_random_numbers(device: torch.device) -> Iterator[None]:
    """Refuse what draws random numbers, which would be others at the next call; puts the generators back.

    Raises:
        ValueError: when one was drawn on the CPU or on ``device``.
    """
    places = [(torch.random.get_rng_state, torch.random.set_rng_state)]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        places.append((partial(module.get_rng_state, device), partial(module.set_rng_state, device=device)))
    before = [get() for get, _ in places]
    try:
        yield
    finally:
        if not all(torch.equal(get(), state) for (get, _), state in zip(places, before, strict=True)):
            for (_, put_back), state in zip(places, before, strict=True):
                put_back(state)
            raise ValueError(  # which explains what else may have been raised
                "the losses draw random numbers at every call, so that no influence is defined; set the p of dropout "
                "layers to 0 or put what draws into evaluation mode (module.eval())"
            )


def refuse_mixing_layers(model: nn.Module) -> None:
    """Do nothing for a model without layers that are known to make a loss of one example impossible.

    Raises:
        ValueError: when, in training mode, one normalises over the batch, or drops out and draws anew at every call.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(f"layer {name!r} mixes the examples of a batch; call model.eval() first")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"layer {name!r} draws anew at every call; set its p to 0 or call model.eval() first")


def refuse_shared_layers(model: nn.Module) -> None:
    """Do nothing for a model in which every layer has one name.

    A layer under two names would be left with parameters that are not its own by torch's functional_call (pytorch issue
    164759).

    Raises:
        ValueError: when there is one; names it.
    """
    names: dict[nn.Module, str] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        first = names.setdefault(layer, name)
        if first != name and layer.state_dict():
            raise ValueError(
                f"layers {first!r} and {name!r} are one; give it one name and call it twice, or let two layers share "
                "their parameters (b.weight = a.weight)"
            )


@contextmanager
def model_stays(model: nn.Module) -> Iterator[None]:
    """Refuse a model whose buffers or frozen parameters an evaluation moves; puts them back.

    Raises:
        ValueError: when one has moved; names it.
    """
    held = dict(model.named_buffers()) | {name: p for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: tensor.detach().clone() for name, tensor in held.items()}
    versions = {name: tensor._version for name, tensor in held.items()}
    try:
        yield
    finally:
        # Written to, and not with the same numbers; NaN stays NaN.
        moved = [
            name
            for name, tensor in held.items()
            if tensor._version != versions[name] and not torch.equal(tensor, before[name])
        ]
        if moved:  # which explains what else may have been raised
            with torch.no_grad():
                for name, tensor in held.items():
                    tensor.copy_(before[name])
            kind = "buffer" if moved[0] in dict(model.named_buffers()) else "the frozen parameter"
            raise ValueError(f"{kind} {moved[0]!r} moves at every call; call model.eval() first")


def can_be_looked_at(*tensors: Tensor) -> bool:
    """Return whether numbers can be read from the tensors; not from those that vmap maps over."""
    try:
        for tensor in tensors:
            if tensor.numel():
                tensor.detach().flatten()[0].item()
    except RuntimeError:
        return False
    return True


def check_finite(values: Tensor, what: str) -> Tensor:
    """Return ``values`` unchanged.

    Raises:
        FloatingPointError: when a number in it is NaN or infinite; names ``what`` and the first place.
    """
    if not torch.isfinite(values).all():
        where = int((~torch.isfinite(values.flatten())).nonzero()[0])
        raise FloatingPointError(
            f"{what} is {values.flatten()[where].item()} at position {where}; "
            "check the inputs for NaN, lower the step size or raise the regularisation"
        )
    return values


def check_finite_if_seen(values: Tensor, what: str) -> Tensor:
    """Return ``values`` unchanged; raises as ``check_finite``, but not under vmap, where numbers cannot be read."""
    return check_finite(values, what) if can_be_looked_at(values) else values


def evaluated(function: Callable[..., Tensor], theta: Tensor, *arguments: Tensor) -> Tensor:
    """Return the function's value at θ and the arguments.

    Raises:
        ValueError: where torch cannot compute it, with its reason.
    """
    try:
        with warnings.catch_warnings():  # the call that follows the look gives them
            warnings.simplefilter("ignore")
            return function(theta, *arguments)
    except (RuntimeError, LookupError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"the losses cannot be computed at θ of shape {tuple(theta.shape)} and {theta.dtype} ({reason[0]}); give "
            "inputs, labels and θ in the shapes and dtype that the network and the loss take"
        ) from error


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two evaluations differ by rounding alone; a sum in another order, in TF32 perhaps, is not another."""
    finite = torch.where(first.isfinite(), first, 0).abs().max().item()
    eps = torch.finfo(first.dtype).eps
    rounding = eps**0.4 * finite + 1e3 * eps
    return torch.allclose(first, second, rtol=0, atol=rounding, equal_nan=True)


def _first(one: Tensor, other: Tensor) -> str:
    place = int((one - other).nan_to_num().abs().argmax())
    return f"{one[place].item():.6g} and {other[place].item():.6g}"
