"""Forward-mode derivatives of a function that was already evaluated, at the cost of the tangents alone.

A forward-mode pass computes the function itself once more on the way.  Here one evaluation is recorded, and what was
costly in it (convolutions, linear layers, maxima and batch statistics) is taken from the record.  All else goes through
torch's own forward mode, so that any function torch can differentiate may be recorded.  The slow twin is double
backward: the derivative of the gradient's product with v in v (``test_tape_equals_double_backward``).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from metasp_lite.calculus.checks import check_finite

_BILINEAR = (F.conv1d, F.conv2d, F.conv3d, F.linear)
_Function = Callable[[tuple[Tensor, ...]], Tensor]  # parameters -> value


class Tape:
    """The costly intermediate results of one evaluation of a function.

    ``with tape.record(): value = function(parameters)``, then ``tape.derivative(function, parameters, direction)`` as
    often as wanted.  It copies no result; most of them the graph for the backward pass holds as well.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._entries: list[tuple[Any, ...]] = []

    def record(self) -> AbstractContextManager:
        """Return the context in which to evaluate the function."""
        self._entries.clear()
        return _Recording(self._entries)

    def derivative(self, function: _Function, parameters: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
        """∂f(θ)·u of the recorded ``function`` at the recorded ``parameters``; has the shape of its value.

        ``direction`` u is one tensor for each parameter, of its shape.

        Raises:
            RuntimeError: when the function does not do what it did while it was recorded.
            FloatingPointError: when the derivative is NaN or infinite.
        """
        replay = _Replay(self._entries)
        with torch.no_grad(), forward_ad.dual_level(), replay:
            duals = [forward_ad.make_dual(p.detach(), u) for p, u in zip(parameters, direction, strict=True)]
            tangent = forward_ad.unpack_dual(function(tuple(duals))).tangent
        if tangent is None or next(replay.entries, None) is not None:
            raise RuntimeError("the function did less than when it was recorded; it must do the same at every call")
        return check_finite(tangent, "a directional derivative")


class _Recording(TorchFunctionMode):
    def __init__(self, entries: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.entries = entries

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is F.max_pool2d:  # a call that asks for the places itself comes under another name
            value, places = function(*args, **{**kwargs, "return_indices": True})
            self.entries.append((function, value.detach(), value._version, places))
            return value
        value = function(*args, **kwargs)
        if function in _BILINEAR:
            self.entries.append((function, value.detach(), value._version))
        elif _is_batch_norm(function, **kwargs):
            x = args[0].detach()
            x = x.to(torch.promote_types(x.dtype, torch.float32))  # statistics of half-precision inputs are kept whole
            self.entries.append((function, *torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)))
        return value


class _Replay(TorchFunctionMode):
    def __init__(self, entries: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.entries = iter(entries)

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        rule: Callable[..., Tensor | None] | None = None
        if function in _BILINEAR:
            rule = _bilinear
        elif function is F.max_pool2d:
            rule = _max_pooling
        elif _is_batch_norm(function, **kwargs):
            rule = _batch_norm
        if rule is None:
            return function(*args, **kwargs)
        recorded, *values = next(self.entries, (None,))
        if recorded is not function:
            raise RuntimeError("the function did something new; it must do the same as when it was recorded")
        dual = rule(function, values, *args, **kwargs)
        return function(*args, **kwargs) if dual is None else dual  # no rule for this case: torch's own, at full cost


def _is_batch_norm(function: Callable, training: bool = False, **_: Any) -> bool:
    return function is F.batch_norm and training


def _bilinear(
    function: Callable,
    recorded: list,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **more: Any,
) -> Tensor | None:
    """y = x∗W + b has the tangent x∗Ẇ + ḃ + ẋ∗W."""
    value, version = recorded
    (x, dx), (w, dw) = forward_ad.unpack_dual(input), forward_ad.unpack_dual(weight)
    if dw is None:  # frozen
        return None
    b, db = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    if value._version != version:  # overwritten in place since it was recorded, by an activation, say
        value = function(x, w, b, *rest, **more)
    tangent = function(x, dw, db, *rest, **more)
    if dx is not None:
        tangent += function(dx, w, None, *rest, **more)
    return forward_ad.make_dual(value, tangent)


def _max_pooling(_: Callable, recorded: list, input: Tensor, *rest: Any, **more: Any) -> Tensor | None:
    """The tangent of a maximum is the tangent of the entry that was largest."""
    value, version, places = recorded
    dx = forward_ad.unpack_dual(input).tangent
    if dx is None or value._version != version:
        return None
    return forward_ad.make_dual(value, dx.flatten(-2).gather(-1, places.flatten(-2)).view_as(value))


def _batch_norm(
    _: Callable,
    recorded: list,
    input: Tensor,
    *running: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    **more: Any,
) -> Tensor | None:
    """y = w x̂ + b, x̂ = (x−μ)/σ over the batch, has the tangent (∂y/∂x) ẋ + ẇ x̂ + ḃ.

    In a channel ∂y/∂x = (w/σ)(Id − 11ᵀ/N − x̂x̂ᵀ/N) is symmetric: the kernel of the backward pass applies it forwards.
    """
    variance, mean = recorded
    if weight is None or bias is None:
        return None
    (x, dx), (w, dw), (b, db) = (forward_ad.unpack_dual(tensor) for tensor in (input, weight, bias))
    if dx is None or dw is None or db is None or w.dtype != mean.dtype:  # the last: all in half precision
        return None
    tangent, _, _ = torch.ops.aten.native_batch_norm_backward(
        dx, x, w, None, None, mean, (variance + eps).rsqrt(), True, eps, [True, False, False]
    )
    # with the batch's own statistics given, "evaluation" computes w x̂ + b in one pass; so it does ẇ x̂ + ḃ
    tangent += F.batch_norm(x, mean, variance, dw, db, eps=eps)
    return forward_ad.make_dual(F.batch_norm(x, mean, variance, w, b, eps=eps), tangent)
