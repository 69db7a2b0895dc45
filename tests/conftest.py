"""What holds for every test."""

from collections import Counter

import matplotlib as mpl
import pytest
import torch

mpl.use("agg")  # no window, whatever the machine has

# The problems of the tests are tiny: a second thread would only wait for its core when the machine is busy.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones, so that of several processes none is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


FAULTS: Counter = Counter()  # of tests/faults, from all processes


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what the trials of a test have counted."""
    if report.when == "teardown":
        for name, counts in report.user_properties:
            if name == "faults":
                FAULTS.update(counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how all trials of faults ended."""
    if FAULTS:
        counts = ", ".join(f"{name} {count}" for name, count in FAULTS.items())
        terminalreporter.write_line(f"faults: {counts}")
