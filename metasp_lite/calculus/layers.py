"""What goes into each layer and what comes back to it: the two halves of every gradient that Kronecker factors use.

The gradient of one example's loss in the weights of a layer is Σ_t g_t a_tᵀ, with a_t what goes in and g_t the
gradient in what comes out; t counts the places that a layer visits, one for a linear layer and every patch for a
convolution.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metasp_lite.calculus.losses import ExampleLosses

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Block:
    """The trained parameters of one layer, and what they meet in n examples at T places each."""

    name: str
    where: Tensor  # (out, in) int64: where each of them stands in θ; a trained bias is the last column
    into: Tensor  # (n, T, in): what goes in, with a 1 for the bias
    back: Tensor  # (K, n, T, out): gradients in what comes out, of K weightings of the outputs


def blocks(losses: ExampleLosses, theta: Tensor, weights: Callable[[Tensor], Tensor]) -> list[Block]:
    """Return a block for each layer with trained parameters, from one pass forward and K back.

    ``weights`` makes of the outputs ``(n, …)`` what they are weighted with before each pass back, ``(K, n, outputs)``.

    Raises:
        ValueError: when a trained parameter belongs to no linear or convolution layer, or to one that acts otherwise
            than once and by itself; names it.
    """
    layers = _layers(losses)
    leaf = theta.detach().clone().requires_grad_()
    with _recording(layers) as (into, out), torch.enable_grad():
        outputs = losses.outputs(leaf)
        for name in layers:
            if len(into.get(name, [])) != 1:
                raise ValueError(
                    f"the layer {name!r} is called {len(into.get(name, []))} times, and its Kronecker factors need "
                    "one call; take Gauss–Newton or conjugate gradients"
                )
        ends = [out[name][0] for name in layers]
        rows = [
            torch.autograd.grad(outputs, ends, each.view_as(outputs), retain_graph=True, materialize_grads=True)
            for each in weights(outputs)
        ]
    places = losses.unflatten(torch.arange(len(theta), dtype=torch.float64, device=theta.device))
    found = []
    for k, (name, layer) in enumerate(layers.items()):
        own = [places[f"{name}.{kind}" if name else kind] for kind in _trained(layer)]
        where = torch.cat([each.reshape(len(each), -1) for each in own], dim=1).long()
        back = torch.stack([_places(layer, row[k]) for row in rows])
        found.append(Block(name, where, into[name][0], back))
    return found


def _layers(losses: ExampleLosses) -> dict[str, Layer]:
    """Return the layers that have trained parameters, by name."""
    found: dict[str, Layer] = {}
    for name, parameter in losses.model.named_parameters():
        owner, _, kind = name.rpartition(".")
        layer = losses.model.get_submodule(owner)
        if not parameter.requires_grad:
            continue
        if not isinstance(layer, Layer) or type(layer) not in (nn.Linear, nn.Conv2d) or kind not in ("weight", "bias"):
            raise ValueError(
                f"{name!r} is trained and belongs to a {type(layer).__name__}: Kronecker factors are those of Linear "
                "and Conv2d layers; freeze it, or take Gauss–Newton or conjugate gradients"
            )
        if isinstance(layer, nn.Conv2d) and (
            layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
        ):
            raise ValueError(
                f"the convolution {owner!r} has groups={layer.groups}, padding={layer.padding!r} and "
                f"padding_mode={layer.padding_mode!r}: Kronecker factors need groups=1, padding in pixels and zeros; "
                "take Gauss–Newton or conjugate gradients"
            )
        found[owner] = layer
    return found


_Calls = dict[str, list[Tensor]]


@contextmanager
def _recording(layers: dict[str, Layer]) -> Iterator[tuple[_Calls, _Calls]]:
    """Keep what goes into the layers and what comes out while the model runs; copies, for some act in place."""
    into: _Calls = {}
    out: _Calls = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            into.setdefault(name, []).append(_inputs(layers[name], inputs[0].detach()))
            out.setdefault(name, []).append(output)
            return output.clone()

        return hook

    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        yield into, out
    finally:
        for hook in hooks:
            hook.remove()


def _trained(layer: Layer) -> list[str]:
    """Which parameters of the layer are trained: weight, then bias."""
    return [kind for kind, parameter in layer.named_parameters() if parameter.requires_grad]


def _inputs(layer: Layer, into: Tensor) -> Tensor:
    """What the layer's trained parameters meet, ``(n, T, in)``; a copy."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        patches = F.unfold(into, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
    else:
        patches = into.flatten(1, -2) if into.dim() > 2 else into[:, None]
    parts = {"weight": patches, "bias": patches.new_ones(*patches.shape[:2], 1)}
    return torch.cat([parts[kind] for kind in _trained(layer)], dim=2)


def _places(layer: Layer, back: Tensor) -> Tensor:
    """A gradient in what comes out, ``(n, T, out)``."""
    if isinstance(layer, nn.Conv2d):
        return back.flatten(2).mT
    return back.flatten(1, -2) if back.dim() > 2 else back[:, None]
