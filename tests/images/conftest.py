"""What holds for every test of the images."""

import pytest
from helpers.image_sets import home, mirror, served

__all__ = ["home", "mirror", "served"]


@pytest.fixture(autouse=True)
def at_home(home):
    """No test sees the machine's own data."""
