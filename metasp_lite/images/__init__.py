"""Data sets as uint8 tensors: where they come from, how they are read, and how they become network inputs."""

from metasp_lite.images.augment import Augmentation
from metasp_lite.images.entries import inventory
from metasp_lite.images.sets import ImageSet, first_per_class
from metasp_lite.images.sources import KNOWN, download, load, ways_out

__all__ = ["KNOWN", "Augmentation", "ImageSet", "download", "first_per_class", "inventory", "load", "ways_out"]
