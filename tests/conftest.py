"""What holds for every test."""

import matplotlib as mpl
import pytest
import torch

mpl.use("agg")  # no window, whatever the machine has

# The problems of the tests are tiny: a second thread would only wait for its core when the machine is busy.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones, so that of several processes none is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
