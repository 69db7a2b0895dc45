"""What the tests of the course share: closed figures, and the smallest problem."""

import matplotlib.pyplot as plt
import pytest

from metasp_lite.course import problems


@pytest.fixture(autouse=True)
def closed_figures(monkeypatch):
    """Figures stay open until the test has looked at them, and no longer."""
    monkeypatch.setattr(plt, "show", lambda: None)
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def shoes():
    return problems.shoes()
