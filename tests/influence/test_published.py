"""The paper's printed numbers, and ours beside them."""

import pytest
import torch

from metasp_lite.influence import published
from metasp_lite.influence.agreement import SignConfusion, comparison_table


def test_comparison_table_puts_the_constant_guess_and_the_paper_beside_ours():
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0], dtype=torch.float64)
    table = comparison_table(exact, {"same": exact}, {"theirs": SignConfusion(1, 2, 3, 4)})
    assert table.loc["same", ["TP", "TN", "agreement"]].tolist() == [1, 3, 4]
    assert table.loc["same", "Pearson r"] == pytest.approx(1, abs=1e-12)
    assert table.loc["constant guess", ["agreement", "balanced accuracy"]].tolist() == [3, 0.5]
    assert table.loc["theirs (paper)", ["TP", "TN", "FP", "FN"]].tolist() == [1, 2, 3, 4]


def test_the_papers_table_6_has_1000_examples_and_670_positives_in_every_row():
    """The appendix prints totals of 1000; the positives follow from TP + FN."""
    for signs in published.TABLE_6.values():
        assert signs.total == 1000
        assert signs.true_positive + signs.false_negative == 670
