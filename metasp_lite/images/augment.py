"""Images to network inputs, a batch at a time and on the images' device: random crop, flip, normalisation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metasp_lite.doors import typed


@typed
@dataclass(frozen=True)
class Augmentation:
    """Shift each image by up to ``padding`` pixels (black comes in), mirror half of them if ``flip``, normalise.

    ``mean`` and ``std`` are those of a channel, on the scale 0…255.  Crop and flip are one gather for the whole batch.
    Black comes in before normalising, as in the papers' code.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that no image can be normalised or shifted by.

        Raises:
            ValueError: names the number.
        """
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean={self.mean} and std={self.std}: give one of each for every channel")
        if not all(isinstance(each, int | float) for each in (*self.mean, *self.std)):
            raise ValueError(f"mean={self.mean} and std={self.std}: give numbers")
        if not all(map(math.isfinite, self.mean)) or not all(0 < each < math.inf for each in self.std):
            raise ValueError(f"mean={self.mean} must be finite, and std={self.std} positive and finite")
        if self.padding < 0:
            raise ValueError(f"padding={self.padding} must be 0 pixels or more")

    @classmethod
    @typed
    def fitted(cls, images: Tensor, *, padding: int = 0, flip: bool = False) -> "Augmentation":
        """Take mean and deviation of each channel from uint8 ``images (N, C, H, W)``; exact, from their histogram.

        The deviation of a channel that is the same everywhere is taken to be 1, so that nothing is blown up.

        Raises:
            ValueError: for images that are none, or a ``padding`` that would shift them out of sight.
        """
        if images.dim() != 4 or images.dtype != torch.uint8 or images.numel() == 0:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; pass uint8 (N, C, H, W), at least one")
        if not 0 <= padding < min(images.shape[2:]):
            raise ValueError(
                f"padding={padding} must be 0 or more, and below the images' {min(images.shape[2:])} pixels"
            )
        levels = torch.arange(256, dtype=torch.float64)
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.transpose(0, 1)]).cpu()
        share = counts.double() / counts.sum(dim=1, keepdim=True)
        mean = share @ levels
        std = (share * (levels - mean[:, None]) ** 2).sum(dim=1).sqrt()
        std[std == 0] = 1
        return cls(tuple(mean.tolist()), tuple(std.tolist()), padding, flip)

    @typed
    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images ``(B, C, H, W)`` into float32 inputs of mean 0 and deviation 1, nothing random.

        Raises:
            ValueError: for images that have not so many channels as ``mean``.
        """
        if images.dim() != 4 or images.shape[1] != len(self.mean):
            raise ValueError(f"images are {tuple(images.shape)}; pass (B, {len(self.mean)}, H, W)")
        mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return images.to(mean.dtype, copy=True).sub_(mean).div_(std)  # one new tensor, not three

    @typed
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a crop and a flip for each of the uint8 images ``(B, C, H, W)`` and normalise; (B, C, H, W) float32.

        ``generator`` is a CPU generator: the same seed gives the same crops on every device.
        """
        return self.normalise(self.move(images, generator))

    @typed
    def move(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip alone, of uint8 ``(B, C, H, W)``; returns the images themselves if neither is asked for.

        Raises:
            ValueError: for images of another shape.
        """
        if images.dim() != 4:
            raise ValueError(f"images are {tuple(images.shape)}; pass (B, C, H, W)")
        if not (self.padding or self.flip):
            return images
        count, _, height, width = images.shape
        shift = torch.randint(0, 2 * self.padding + 1, (2, count, 1), generator=generator)
        chance = torch.rand(count, 1, generator=generator, dtype=torch.float32)  # whatever torch's default: one draw
        mirrored = (chance < 0.5) & self.flip
        columns = torch.arange(width).expand(count, width)
        rows = torch.arange(height) + shift[0]
        columns = torch.where(mirrored, width - 1 - columns, columns) + shift[1]
        rows, columns = rows.to(images.device), columns.to(images.device)
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        places = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).flatten(1)[:, None]
        return padded.flatten(2).gather(2, places.expand(-1, images.shape[1], -1)).view_as(images)
