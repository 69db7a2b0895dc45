"""What the trials share: tiny images and a counter whose sums the end of the session shows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.image_sets import home
from helpers.tiny_stream import make_folder, run_on

from metasp_lite.continual import streams

__all__ = ["home"]


@pytest.fixture(scope="module", autouse=True)
def nothing_in_the_tree(tmp_path_factory) -> Iterator[None]:
    """Caches go where the trials' other files go."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("METASP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.delenv("METASP_PROFILE", raising=False)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def stream(folder) -> streams.Stream:
    return streams.make(run_on(folder, "er").stream)


@pytest.fixture
def tally(request) -> Iterator[Counter]:
    """Counts of the trials and of how they ended."""
    counts: Counter = Counter()
    yield counts
    request.node.user_properties.append(("faults", dict(counts)))
