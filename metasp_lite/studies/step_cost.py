"""What a MetaSP step costs beside other steps.

Three costs of one step: operations (multiplications and additions of convolutions and linear layers, as torch counts
them), CPU time on one thread, and how far the step raises the peak of memory.  Images and labels are random: no cost
depends on what they show.  The optimiser is plain SGD, the numbers are float32.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from metasp_lite import networks
from metasp_lite.calculus.losses import Examples, cross_entropy
from metasp_lite.influence.by_autograd import influences_by_autograd
from metasp_lite.influence.metasp import metasp_step, relative
from metasp_lite.memory import peak_mib
from metasp_lite.studies.process import in_fresh_process, return_freed_memory

SEED = 0
_IMAGE, _CLASSES, _LEARNING_RATE = (3, 32, 32), 10, 0.1
_Arguments = tuple[nn.Module, torch.optim.SGD, Examples, Examples, Examples]  # of a step: …, batch, V_old, V_new


def _er_step(model: nn.Module, optimizer: torch.optim.SGD, batch: Examples, old: Examples, new: Examples) -> None:
    """Experience replay: a plain step on the whole batch, whose second half comes from the memory."""
    optimizer.zero_grad()
    cross_entropy(model(batch[0]), batch[1]).mean().backward()
    optimizer.step()


def _sgd_step(model: nn.Module, optimizer: torch.optim.SGD, batch: Examples, old: Examples, new: Examples) -> None:
    """Fine-tuning: a plain step on the new examples alone, the first half of the batch."""
    half = len(batch[1]) // 2
    _er_step(model, optimizer, (batch[0][:half], batch[1][:half]), old, new)


def _oracle_step(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    batch: Examples,
    old: Examples,
    new: Examples,
    *,
    shared: bool = False,
) -> None:
    """Take the MetaSP step by plain autograd: a differentiated pseudo-update for each validation set, as published.

    With ``shared`` one pseudo-update serves both validation sets.
    """
    optimizer.zero_grad()
    if shared:
        (stability, plasticity), losses = influences_by_autograd(model, optimizer, batch, old, new)
    else:
        (stability,), (old_loss,) = influences_by_autograd(model, optimizer, batch, old)
        (plasticity,), (new_loss,) = influences_by_autograd(model, optimizer, batch, new)
        losses = [old_loss, new_loss]
    weights = relative(stability, plasticity, *losses).weights
    (weights @ cross_entropy(model(batch[0]), batch[1])).backward()
    optimizer.step()


STEPS: dict[str, Callable[..., object]] = {
    "sgd": _sgd_step,
    "er": _er_step,
    "metasp": partial(metasp_step, variant=relative),  # the oracle's weights
    "oracle": _oracle_step,
    "oracle-shared": partial(_oracle_step, shared=True),
}


_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lite-cnn": networks.lite_cnn,
    "resnet18-20": partial(networks.resnet18, width=20),
    "resnet18-64": partial(networks.resnet18, width=64),
}


@dataclass(frozen=True)
class Case:
    """One network and one size of the batch and of the validation sets."""

    network: str
    n: int = 64  # examples of the batch, half of them new
    v: int = 100  # examples of both validation sets together
    repetitions: int = 15
    variants: tuple[str, ...] = ("sgd", "er", "metasp", "oracle")


CASES = (
    *(Case("lite-cnn", n=n) for n in (16, 32, 128)),
    *(Case("lite-cnn", v=v) for v in (20, 50, 200)),
    Case("lite-cnn", variants=tuple(STEPS)),
    Case("resnet18-20", repetitions=5, variants=tuple(STEPS)),
    Case("resnet18-64", repetitions=3, variants=tuple(STEPS)),
)


def study() -> list[dict[str, object]]:
    """Measure every case; a row for each step."""
    rows = []
    with tqdm(total=sum(1 + 2 * len(case.variants) for case in CASES), desc="step", unit="run") as bar:
        for case in CASES:
            bar.set_postfix_str(f"{case.network}, n {case.n}, v {case.v}")
            measured = in_fresh_process(operations_and_seconds, case)
            bar.update()
            for row in measured:
                for name, ordinary in {"peak_extra_mib": False, "peak_extra_mib_ordinary_malloc": True}.items():
                    row[name] = round(in_fresh_process(peak_extra_mib, row["variant"], case, ordinary), 1)
                    bar.update()
            rows += measured
    return rows


def operations_and_seconds(case: Case) -> list[dict[str, object]]:
    """Count the operations of each variant's step, then time all variants in turn, ``repetitions`` times.

    The counted step is the warm-up.  Each variant trains a copy of the network of its own.  Times are medians; the
    ratio of CPU times is that of the medians.
    """
    torch.set_num_threads(1)
    network = _NETWORKS[case.network]()
    steps = {name: partial(STEPS[name], *arguments(copy.deepcopy(network), case)) for name in case.variants}
    counted = {name: operations(step) for name, step in steps.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(case.repetitions):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    median = {name: [statistics.median(kind) for kind in zip(*pairs, strict=True)] for name, pairs in seconds.items()}
    return [
        {
            "variant": name,
            "network": case.network,
            "n": case.n,
            "v": case.v,
            "counted_gflop": counted[name] / 1e9,
            "counted_ratio_to_er": round(counted[name] / counted["er"], 3),
            "cpu_seconds": round(median[name][0], 4),
            "cpu_seconds_min": round(min(cpu for cpu, _ in seconds[name]), 4),
            "cpu_ratio_to_er": round(median[name][0] / median["er"][0], 3),
            "wall_seconds": round(median[name][1], 4),
            "repetitions": case.repetitions,
            "seed": SEED,
            "threads": torch.get_num_threads(),
        }
        for name in steps
    ]


def peak_extra_mib(variant: str, case: Case, ordinary_malloc: bool = False) -> float:
    """Return by how much one step raises this process's peak of resident memory.

    That is what the step needs; with ``ordinary_malloc`` also what the allocator keeps of freed memory, which is a
    matter of chance.

    Network, examples and optimiser are there before.  Steps of four examples on small networks come first, so that
    kernels and libraries that are loaded when first used do not count, and no peak of a warm-up hides the step's.
    """
    torch.set_num_threads(1)
    if not ordinary_malloc:
        return_freed_memory()
    step = STEPS[variant]
    for small in (networks.lite_cnn(widths=(2, 2, 2)), networks.resnet18(width=2)):
        step(*arguments(small, Case(case.network, n=4, v=4)))
    subject = arguments(_NETWORKS[case.network](), case)
    gc.collect()
    before = peak_mib()
    step(*subject)
    return peak_mib() - before


def operations(step: Callable[[], object]) -> int:
    """Take a step and return its floating-point operations."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def arguments(model: nn.Module, case: Case) -> _Arguments:
    """Give ``model`` an optimiser, a batch and two validation sets of random images."""
    generator = torch.Generator().manual_seed(SEED)

    def drawn(size: int) -> Examples:
        images = torch.randn(size, *_IMAGE, generator=generator)
        return images, torch.randint(_CLASSES, (size,), generator=generator)

    optimizer = torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE)
    return model, optimizer, drawn(case.n), drawn(case.v // 2), drawn(case.v // 2)
