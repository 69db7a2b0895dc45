"""Whatever bytes a reader meets, it returns the right value or raises its own error; never part of a value.

Files with a sum of their own (checkpoints, caches, gzip) are read as they were written or refused; those without (JSON,
TOML, csv) as an independent reader reads them.  Sixty examples each, the same ones in every run; more, drawn anew, by
``HYPOTHESIS_PROFILE=long pytest tests/faults/test_readers.py``.
"""

import gzip
import hashlib
import io
import json
import math
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import write_lists
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from metasp_lite import results
from metasp_lite import settings as surroundings
from metasp_lite.continual import checkpoint, plan
from metasp_lite.images import cache, folder, idx

settings.register_profile("short", max_examples=60, deadline=None, derandomize=True, database=None)
settings.register_profile("long", max_examples=1_500, deadline=None, database=None)
FUZZED = settings(settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "short")))
CPU = torch.device("cpu")
BYTES = st.binary(max_size=300)


@st.composite
def mutations(draw, whole):
    """``whole`` with some bytes changed, cut out, put in, moved, or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "end", "repeat"])):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if content:
                content[at] = draw(st.integers(0, 255))
            case "cut":
                del content[at : at + draw(st.integers(1, 40))]
            case "insert":
                content[at:at] = draw(st.binary(max_size=20))
            case "end":
                del content[at:]
            case "repeat":
                content += content[at : at + 40]
    return bytes(content)


def outcome(read, *arguments, own=ValueError):
    """What a reader returns, and what it says where it refuses."""
    try:
        return read(*arguments), None
    except own as error:
        return None, str(error)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


# ---------------------------------------------------------------------------------------------------- stored results

RESULT = json.dumps([{"r": 0.5, "name": "λ", "rows": [1, None, True]}, {"seed": 3}], ensure_ascii=False).encode()


def strictly(content):
    """What JSON itself says, or None."""

    def refuse(name):
        raise ValueError(name)

    try:
        found = json.loads(content.decode("utf-8-sig"), parse_constant=refuse)
        if not all(map(math.isfinite, numbers_in(found))):
            return None
    except (ValueError, RecursionError):
        return None
    return found if all(isinstance(each, dict) for each in (found if isinstance(found, list) else [found])) else None


def read_result(place, content):
    path = place / "result.json"
    path.write_bytes(content)
    found, refusal = outcome(results.read, path)
    assert found == strictly(content)
    assert all(math.isfinite(number) for number in numbers_in(found))
    assert refusal is None or ("result.json" in refusal and "move it away" in refusal)
    assert path.read_bytes() == content


def numbers_in(found):
    if isinstance(found, dict | list):
        for each in found.values() if isinstance(found, dict) else found:
            yield from numbers_in(each)
    elif isinstance(found, float):
        yield found


@FUZZED
@given(BYTES)
@example(b'{"r": 1e999}')
@example(b'{"r": 1, "r": 2}')
def test_a_result_of_any_bytes(place, content):
    read_result(place, content)


@FUZZED
@given(mutations(RESULT))
def test_a_mutated_result(place, content):
    read_result(place, content)


# -------------------------------------------------------------------------------------------------------------- grids

GRID = b'streams = ["split-fashion-mnist"]\nmethods = ["er", "metasp"]\nseeds = [1, 2]\n[set]\nlr = 0.1\n'


def read_grid(place, content):
    path = place / "grid.toml"
    path.write_bytes(content)
    jobs, refusal = outcome(plan.read_grid, path, place / "out")
    if refusal is not None:
        assert refusal.startswith(str(path))
        return
    asked = tomllib.loads(content.decode())
    runs = {(job.run.method, job.run.seed, job.run.stream.data) for job in jobs}
    assert {method for method, *_ in runs} == set(asked["methods"])
    assert {seed for _, seed, _ in runs} == set(asked["seeds"])
    assert all(job.run.recipe.lr == asked["set"]["lr"] for job in jobs if set(asked.get("set", {})) == {"lr"})


@FUZZED
@given(BYTES)
def test_a_grid_of_any_bytes(place, content):
    read_grid(place, content)


@FUZZED
@given(mutations(GRID))
def test_a_mutated_grid(place, content):
    read_grid(place, content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["streams", "methods", "memory", "seeds", "profile", "set", "lr", "er"])


@FUZZED
@given(st.dictionaries(NAMES, VALUES, max_size=6), st.dictionaries(NAMES, VALUES, max_size=2))
def test_a_grid_of_any_values(place, description, chosen):
    good = tomllib.loads(GRID.decode())
    try:
        jobs = plan.jobs({**good, "set": {**good["set"], **chosen}, **description}, place / "out")
    except ValueError:
        return
    assert jobs
    assert all(job.run.seed >= 0 for job in jobs)


# -------------------------------------------------------------------------------------------------------- checkpoints

STATE = {"model": {"w": torch.arange(6.0).view(2, 3)}, "epoch": 3, "name": "λ", "losses": [0.5, 1.5]}
IDENTITY = {"method": "er", "seed": 3}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return one == other


def stored(place):
    path = place / "valid.pt"
    checkpoint.save_checkpoint(path, IDENTITY, STATE)
    return path.read_bytes()


def read_checkpoint(place, content):
    path = place / "checkpoint.pt"
    path.write_bytes(content)
    found, refusal = outcome(checkpoint.load_checkpoint, path, IDENTITY, CPU)
    assert equal(found, STATE) if refusal is None else "checkpoint.pt" in refusal
    assert path.read_bytes() == content


@FUZZED
@given(BYTES, st.booleans())
def test_a_checkpoint_of_any_bytes_even_with_their_sum(place, content, summed):
    read_checkpoint(place, content + hashlib.sha256(content).digest() * summed)


@FUZZED
@given(st.data(), st.booleans())
def test_a_mutated_checkpoint(place, data, summed):
    """With a sum of its own, a changed file is read as what it says, or refused, but is never half of a state."""
    body = stored(place)[:-32]
    content = data.draw(mutations(body))
    if not summed:
        read_checkpoint(place, content + hashlib.sha256(body).digest())
        return
    path = place / "checkpoint.pt"
    path.write_bytes(content + hashlib.sha256(content).digest())
    found, refusal = outcome(checkpoint.load_checkpoint, path, IDENTITY, CPU)
    assert isinstance(found, dict) if refusal is None else "checkpoint.pt" in refusal


@FUZZED
@given(VALUES)
def test_a_checkpoint_of_other_values(place, value):
    content = io.BytesIO()
    torch.save(value, content)
    read_checkpoint(place, content.getvalue() + hashlib.sha256(content.getvalue()).digest())


# --------------------------------------------------------------------------------------------------------- image caches


@pytest.fixture(scope="module")
def cached(place):
    """A folder's listing, its pixels, and the file that the cache keeps of them."""
    root = place / "images"
    for number, split in enumerate(("train", "test")):
        (root / split / "cat").mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / "cat" / "0.png")
    listing, path = folder.list_images(root, "train"), place / "cache.npy"
    cache._build_cache(path, listing, folder.Decoding())
    return listing, folder.decode(root / "train" / "cat" / "0.png", folder.Decoding())[None], path.read_bytes()


def read_cache(place, cached, content):
    listing, pixels, _ = cached
    path = place / "mutated.npy"
    path.write_bytes(content)
    found = cache._open_cache(path, listing, folder.Decoding())
    assert found is None or np.array_equal(found, pixels)


@FUZZED
@given(BYTES)
@example(b"")
def test_a_cache_of_any_bytes(place, cached, content):
    read_cache(place, cached, content)


@FUZZED
@given(st.data())
def test_a_mutated_cache(place, cached, data):
    read_cache(place, cached, data.draw(mutations(cached[2])))


# ----------------------------------------------------------------------------------------------------------------- idx

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
IDX = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in PIXELS.shape) + PIXELS.tobytes()
ZIPPED = gzip.compress(IDX, mtime=0)


def read_idx(place, content):
    path = place / "images.gz"
    path.write_bytes(content)
    for read in (idx.read_idx, idx.read_idx_shape):
        found, refusal = outcome(read, path, "get it again")
        if refusal is None:
            yield found
        else:
            assert refusal.startswith(str(path))
            assert refusal.endswith("get it again")


@FUZZED
@given(BYTES, st.booleans())
@example(bytes([0, 0, 8, 255]) + bytes([0, 0, 0, 1]) * 255 + b"\7", True)
@example(bytes([0, 0, 8, 4]) + bytes([0, 1, 0, 0]) * 4, True)
@example(bytes([0, 0, 8, 0]) + b"\7", True)
def test_an_idx_file_of_any_bytes(place, content, zipped):
    for found in read_idx(place, gzip.compress(content) if zipped else content):
        assert zipped
        assert content.startswith(b"\0\0\x08")
        assert isinstance(found, tuple) or content.endswith(found.tobytes())


@FUZZED
@given(mutations(ZIPPED))
def test_a_mutated_idx_file_is_as_it_was_or_refused(place, content):
    for found in read_idx(place, content):
        assert isinstance(found, tuple) or np.array_equal(found, PIXELS) or gzip.decompress(content) != IDX


# ------------------------------------------------------------------------------------------------------- images, lists


def png():
    content = io.BytesIO()
    Image.fromarray(PIXELS.transpose(1, 2, 0)).save(content, "PNG")
    return content.getvalue()


def decoded(place, content):
    path = place / "image.png"
    path.write_bytes(content)
    found, refusal = outcome(folder.decode, path, folder.Decoding())
    if refusal is not None:
        assert str(path) in refusal
        return None
    assert found.dtype == np.uint8
    assert found.ndim == 3
    return found


@FUZZED
@given(BYTES)
def test_an_image_of_any_bytes(place, content):
    decoded(place, content)


@FUZZED
@given(mutations(png()))
def test_a_mutated_image_is_as_it_was_or_refused(place, content):
    found = decoded(place, content)
    assert found is None or np.array_equal(found, PIXELS)


@pytest.fixture(scope="module")
def listed(place):
    root = place / "listed"
    write_lists(root, {"train": list("aabb"), "test": list("ab")}, size=(4, 4))
    return root, (root / "train.csv").read_bytes()


def read_lists(listed, content):
    root, whole = listed
    (root / "train.csv").write_bytes(content)
    found, refusal = outcome(folder.list_images, root, "train", own=(ValueError, FileNotFoundError))
    (root / "train.csv").write_bytes(whole)
    if refusal is not None:
        assert str(root) in refusal
        return
    assert found.classes
    assert len(found.files) == len(found.labels) > 0
    assert all((root / "images" / file).is_file() for file in found.files)


@FUZZED
@given(BYTES)
def test_a_list_of_any_bytes(listed, content):
    read_lists(listed, content)


@FUZZED
@given(st.data())
def test_a_mutated_list(listed, data):
    read_lists(listed, data.draw(mutations(listed[1])))


# -------------------------------------------------------------------------------------------------------- surroundings

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=400) | st.sampled_from(
    ["lite", "full", "~", "~nobody-of-this-name", ".", "/", "x" * 5000, "/dev/null/x", "\udcff"]
)


@FUZZED
@given(WORDS)
def test_surroundings_of_any_words(word):
    with pytest.MonkeyPatch.context() as patched:
        for name in ("METASP_PROFILE", "METASP_DATA", "METASP_CACHE"):
            patched.setenv(name, word)
        profile, refusal = outcome(surroundings.profile)
        assert profile == word if word in surroundings.PROFILES else "METASP_PROFILE" in refusal
        data, refusal = outcome(surroundings.data_dir, own=FileNotFoundError)
        assert data.is_dir() if refusal is None else "METASP_DATA" in refusal
        cache, refusal = outcome(surroundings.cache_dir, own=FileNotFoundError)
        assert isinstance(cache, Path) if refusal is None else "METASP_CACHE" in refusal
        assert set(surroundings.for_another_folder()) == ({"METASP_DATA", "METASP_CACHE"} if word else set())
