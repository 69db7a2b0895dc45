"""The tiny images that runs are tested on, and an empty data folder."""

from pathlib import Path

import pytest
from helpers.image_sets import home
from helpers.tiny_stream import make_folder, run_on

from metasp_lite.continual import streams

__all__ = ["home"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def stream(folder) -> streams.Stream:
    return streams.make(run_on(folder, "fine-tune").stream)
