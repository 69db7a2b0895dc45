"""Image files, alone and with the csv lists that sort them into splits."""

import numpy as np
import torch
from PIL import Image


def save(path, seed, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def write_lists(root, lists, size=(6, 5)):
    """Write images/ and the lists {name: [label, …]}; returns {name: [pixels, …]}."""
    pixels, number = {}, 0
    for name, labels in lists.items():
        rows, pixels[name] = ["filename,label"], []
        for label in labels:
            file = f"{label}{number:05}.png"
            pixels[name].append(save(root / "images" / file, number, size))
            rows.append(f"{file},{label}")
            number += 1
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return pixels
