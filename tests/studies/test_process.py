"""Processes for measurements: each begins without the peak of the one that asks."""

from metasp_lite import memory
from metasp_lite.studies import process


def test_the_peak_of_a_fresh_process_does_not_include_that_of_the_one_that_asks():
    """It did where the process was started and not forked: this one holds torch, about 500 MiB, that one nothing."""
    assert memory.peak_mib() > 150
    assert process.in_fresh_process(memory.peak_mib) < 100
