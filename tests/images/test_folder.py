"""Image folders: read as torchvision reads them, and every defect named with the way out."""

import shutil

import numpy as np
import pytest
import torch
from helpers.image_sets import as_torchvision_reads, cache_files, make_tree, noise, rgb, save
from PIL import Image

from metasp_lite.images import folder, sources


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)])
def test_a_folder_reads_as_torchvisions_image_folder(home, shape):
    classes = ("b", "B", "10", "2", "ä", "a b")
    files = ("x.png", "X.PNG", "10.webp", "9.jpg", "a.jpeg")
    for seed, (name, file) in enumerate((name, file) for name in classes for file in files):
        for split in ("train", "test"):
            save(home / "toy" / split / name / file.lower(), noise(seed, *shape))
            (home / "toy" / split / name / file.lower()).rename(home / "toy" / split / name / file)
    if shape == (6, 5):  # WebP has no grey
        for path in (home / "toy").rglob("*.webp"):
            path.unlink()
    for split in ("train", "test"):
        images, labels, names = as_torchvision_reads(home / "toy", split)
        ours = sources.load("toy", split)
        assert np.array_equal(ours.images.numpy(), images)
        assert ours.labels.tolist() == labels
        assert ours.classes == names
        assert ours.source == "image folder METASP_DATA/toy"


def test_hidden_files_are_left_out(home):
    make_tree(home / "toy")
    before = sources.load("toy")
    for name in ("train/.DS_Store", "train/cat/.hidden.png", "train/.git/config"):
        path = home / "toy" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert torch.equal(sources.load("toy").images, before.images)


DEFECTS = {
    "stray file": (lambda root: (root / "train/notes.txt").write_text("x"), r"notes\.txt.*move it"),
    "foreign file": (lambda root: (root / "train/cat/notes.txt").write_text("x"), r"notes\.txt.*move it"),
    "inner folder": (lambda root: (root / "train/cat/inner.png").mkdir(), r"inner\.png.*move it"),
    "dead link": (lambda root: (root / "train/cat/link.png").symlink_to("nowhere.png"), r"link\.png.*move it"),
    "empty class": (
        lambda root: [p.unlink() for p in (root / "train/cat").iterdir()],
        r"train/cat holds no image.*add",
    ),
    "class in train only": (lambda root: rgb(root / "train/eel/0.png"), "'eel' is in only one of train and test.*add"),
    "class in test only": (lambda root: rgb(root / "test/eel/0.png"), "'eel' is in only one of train and test.*add"),
    "no classes": (lambda root: shutil.rmtree(root / "train") or (root / "train").mkdir(), "holds no class folder"),
    "no test split": (lambda root: shutil.rmtree(root / "test"), r"no folder .*toy/test; an image-folder tree is"),
    "no image": (lambda root: (root / "train/cat/x.png").write_text("x"), r"cat/x\.png cannot be decoded.*replace"),
    "no bytes": (lambda root: (root / "train/cat/x.png").touch(), r"cat/x\.png cannot be decoded.*replace"),
    "other size": (
        lambda root: rgb(root / "train/dog/x.png", (5, 6, 3)),
        r"x\.png is 5×6 pixels, expected 6×5.*size=N",
    ),
    "grey in RGB": (lambda root: rgb(root / "train/dog/x.png", (6, 5)), r"x\.png has mode L, expected RGB; convert"),
    "RGBA in RGB": (lambda root: rgb(root / "train/dog/x.png", (6, 5, 4)), r"x\.png has mode RGBA, expected RGB; conv"),
    "RGBA first": (
        lambda root: rgb(root / "train/cat/0.png", (6, 5, 4)),
        r"0\.png has mode RGBA, expected L or RGB; c",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_a_folder_is_named_with_the_way_out(home, defect):
    make_tree(home / "toy")
    cause, message = DEFECTS[defect]
    cause(home / "toy")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sources.load("toy")
    assert cache_files() == []


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_no_truncated_image_is_taken_for_whole(tmp_path, suffix):
    # Cutting bytes that carry no pixels (a PNG's end mark) may go unnoticed: then the pixels must be the right ones.
    path = tmp_path / f"whole.{suffix}"
    save(path, noise(0, 24, 24, 3))
    content, whole = path.read_bytes(), folder.decode(path, folder.Decoding())
    cut = tmp_path / f"cut.{suffix}"
    refused = 0
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        try:
            pixels = folder.decode(cut, folder.Decoding())
        except ValueError as error:
            refused += 1
            assert f"cut.{suffix} cannot be decoded" in str(error)  # noqa: PT017 - most lengths raise, not all
        else:
            assert np.array_equal(pixels, whole)
    assert refused >= len(content) - 20


def test_size_resizes_files_that_vary_as_pillow_does(home):
    for seed, shape in enumerate([(9, 12, 3), (30, 20, 3), (8, 8, 3)]):
        for split in ("train", "test"):
            save(home / "toy" / split / "a" / f"{seed}.png", noise(seed, *shape))
    expected = [
        np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        for path in sorted((home / "toy" / "train" / "a").iterdir())
    ]
    assert np.array_equal(sources.load("toy", size=8).images.numpy(), np.stack(expected))
    rgb(home / "toy/train/a/grey.png", (8, 8))
    with pytest.raises(ValueError, match=r"grey\.png has mode L, expected RGB"):
        sources.load("toy", size=8)


def test_a_flipped_bit_of_a_png_is_never_another_picture(tmp_path):
    """Smooth pixels, which compress so well that a bit says much; zlib's own sum is not reached by Pillow's decoder."""
    path, pixels = tmp_path / "a.png", 4 * np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8)
    save(path, pixels)
    whole, refused = path.read_bytes(), 0
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert np.array_equal(folder.decode(path, folder.Decoding())[0], pixels)
        except ValueError:
            refused += 1
    assert refused > 7 * len(whole) - 64  # all but what is no part of the picture: the last chunk
