"""The memory of a continual learner: a fixed number of slots, each with an image, its label and its task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Memories(NamedTuple):
    """Examples drawn from a buffer, and the slots they lie in."""

    slots: Tensor  # (k,) int64
    images: Tensor  # (k, C, H, W) uint8
    labels: Tensor  # (k,) int64


class Buffer:
    """``capacity`` slots for images of one shape; a slot keeps its example until another is put there.

    ``columns`` holds a number for each slot under a name of the caller's (a score, a count); a new example resets it
    to 0.
    """

    def __init__(self, capacity: int, shape: Sequence[int], device: torch.device, columns: Sequence[str] = ()) -> None:
        """Begin empty, for uint8 images of ``shape`` (C, H, W).

        Raises:
            ValueError: when ``capacity`` is below 1, or no whole number.
        """
        if type(capacity) is not int:
            raise ValueError(f"a memory of {capacity!r} examples cannot be; give a whole number")
        if capacity < 1:
            raise ValueError(f"a memory of {capacity} examples cannot hold any; give at least 1")
        self.images = torch.zeros(capacity, *shape, dtype=torch.uint8, device=device)
        self.labels = torch.full((capacity,), -1, device=device)
        self.tasks = torch.full((capacity,), -1, device=device)
        self.columns = {name: torch.zeros(capacity, device=device) for name in columns}
        self.offered = 0  # examples that reservoir sampling has seen

    @property
    def capacity(self) -> int:
        """Return the number of slots."""
        return len(self.labels)

    @property
    def filled(self) -> Tensor:
        """Return the slots that hold an example, ascending."""
        return (self.labels >= 0).nonzero()[:, 0]

    @property
    def free(self) -> Tensor:
        """Return the empty slots, ascending."""
        return (self.labels < 0).nonzero()[:, 0]

    def __len__(self) -> int:
        """Return the number of examples held."""
        return int((self.labels >= 0).sum())

    def read(self, slots: Tensor) -> Memories:
        """Return what lies in ``slots (k,)``.

        Raises:
            ValueError: when a slot does not exist.
        """
        self._check_slots(slots)
        return self._read(slots)

    def sample(self, count: int, generator: torch.Generator) -> Memories:
        """Draw ``count`` different examples, or all where there are fewer, each equally likely.

        Raises:
            ValueError: when ``count`` is negative, or no whole number.
        """
        if type(count) is not int or count < 0:
            raise ValueError(f"a sample of {count!r} examples cannot be drawn; ask for a whole number, 0 or more")
        filled = self.filled
        order = torch.randperm(len(filled), generator=generator)[:count]
        return self._read(filled[order.to(filled.device)])

    def put(self, slots: Tensor, images: Tensor, labels: Tensor, task: int) -> None:
        """Store examples in ``slots (k,)``, over what lay there.

        Raises:
            ValueError: when a slot does not exist or is named twice, or when images or labels are not as the memory's.
        """
        self._check_slots(slots)
        self._check_examples(images, labels, len(slots))
        if len(slots.unique()) < len(slots):
            raise ValueError(f"one slot cannot hold two examples; name each of {slots.tolist()} once")
        self._put(slots, images, labels, task)

    def _read(self, slots: Tensor) -> Memories:
        return Memories(slots, self.images[slots], self.labels[slots])

    def _put(self, slots: Tensor, images: Tensor, labels: Tensor, task: int) -> None:
        self.images[slots], self.labels[slots], self.tasks[slots] = images, labels, task
        for column in self.columns.values():
            column[slots] = 0

    def drop(self, slots: Tensor) -> None:
        """Empty ``slots (k,)``.

        Raises:
            ValueError: when a slot does not exist.
        """
        self._check_slots(slots)
        self.labels[slots] = -1
        self.tasks[slots] = -1

    def reservoir(self, images: Tensor, labels: Tensor, task: int, generator: torch.Generator) -> Tensor:
        """Offer a batch; of all examples ever offered, each is in the buffer with the same probability (Vitter, 1985).

        Returns ``(B,)`` the slot each was put in, or -1; of two put in one slot the later stays.

        Raises:
            ValueError: when images or labels are not as the memory's.
        """
        self._check_examples(images, labels, len(labels))
        slots = torch.full((len(labels),), -1)
        for i in range(len(labels)):
            if self.offered < self.capacity:
                slots[i] = self.offered
            else:
                place = int(torch.randint(0, self.offered + 1, (), generator=generator))
                slots[i] = place if place < self.capacity else -1
            self.offered += 1
        last = {int(slot): i for i, slot in enumerate(slots) if slot >= 0}
        chosen = torch.tensor(list(last.values()), dtype=torch.int64, device=self.labels.device)
        targets = torch.tensor(list(last), dtype=torch.int64, device=self.labels.device)
        self._put(targets, images[chosen], labels[chosen], task)
        return slots.to(self.labels.device)

    def _check_slots(self, slots: Tensor) -> None:
        if slots.ndim != 1 or slots.dtype != torch.int64:
            raise ValueError(f"slots are {slots.dtype} {tuple(slots.shape)}; pass int64 (k,)")
        if len(slots) and not (int(slots.min()) >= 0 and int(slots.max()) < self.capacity):
            raise ValueError(f"slots are in {int(slots.min())}..{int(slots.max())}; pass 0..{self.capacity - 1}")

    def _check_examples(self, images: Tensor, labels: Tensor, count: int) -> None:
        wanted = (count, *self.images.shape[1:])
        if images.dtype != torch.uint8 or tuple(images.shape) != wanted:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; pass uint8 {wanted}")
        if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
            raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; pass int64 ({count},)")
        if count and int(labels.min()) < 0:
            raise ValueError(f"labels must be 0 or more, not {int(labels.min())}: -1 marks an empty slot")

    def state_dict(self) -> dict[str, object]:
        """Return everything, for a checkpoint."""
        named = {"images": self.images, "labels": self.labels, "tasks": self.tasks}
        return {**named, "columns": dict(self.columns), "offered": self.offered}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            ValueError: when it is of a buffer of another size or with other columns.
        """
        stored = tuple(state["images"].shape), sorted(state["columns"])
        here = tuple(self.images.shape), sorted(self.columns)
        if stored != here:
            raise ValueError(f"the stored memory has shape and columns {stored}, this one {here}; make it alike")
        for name in ("images", "labels", "tasks"):
            getattr(self, name).copy_(state[name])
        for name, column in self.columns.items():
            column.copy_(state["columns"][name])
        self.offered = state["offered"]


def balanced_choice(labels: Tensor, count: int, scores: Tensor | None, generator: torch.Generator) -> Tensor:
    """Choose ``count`` of the examples with ``labels (n,)`` so that the classes are as even as they can be; positions.

    Within a class the lowest ``scores (n,)`` come first (None: at random), ties at random.  Where the classes cannot
    all have the same number, one more goes to those whose next example has the lowest score (None: by chance).

    Raises:
        ValueError: when more are asked for than there are.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"{count} of {len(labels)} examples cannot be chosen")
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    if scores is not None:
        shuffled = shuffled[scores[shuffled].argsort(stable=True)]
    rank = torch.empty_like(shuffled)  # the place of each example within its class
    for label in labels.unique():
        members = (labels[shuffled] == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members), device=labels.device)
    return shuffled[rank.argsort(stable=True)[:count]]
