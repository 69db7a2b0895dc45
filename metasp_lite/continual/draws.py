"""The random draws of a run, a generator for each purpose: what one method draws shifts nobody else's draws."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

VERSION = 2  # of what a seed means; before, one generator served all purposes


@dataclass(frozen=True)
class Draws:
    """Generators on the CPU, so that a seed means the same on every device.

    Methods that are compared from one seed see the same batches, and the same crops of them; with equal memories they
    rehearse the same examples with the same crops.  What else one of them draws is its own affair.
    """

    order: torch.Generator  # which new examples come together in a batch, epoch by epoch
    crops: torch.Generator  # crops and flips of new examples
    memory: torch.Generator  # what is taken from the memory to be rehearsed
    replays: torch.Generator  # crops and flips of what is rehearsed
    validation: torch.Generator  # MetaSP's validation sets
    storing: torch.Generator  # what the memory keeps and loses
    own: torch.Generator  # whatever a single method needs beside these

    @classmethod
    def of(cls, seed: int) -> "Draws":
        """Begin all of them, independent of each other, from one ``seed``."""
        children = np.random.SeedSequence(seed).spawn(len(dataclasses.fields(cls)))
        seeds = [int(child.generate_state(1, np.uint64)[0]) for child in children]
        return cls(*(torch.Generator().manual_seed(each) for each in seeds))

    def state_dict(self) -> dict[str, Tensor]:
        """Return where each of them is."""
        return {field.name: getattr(self, field.name).get_state() for field in dataclasses.fields(self)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put each of them where ``state_dict`` found it; states may lie on another device."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).set_state(state[field.name].cpu())
