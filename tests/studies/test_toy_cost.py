"""The costs on the toy: what is counted, on a toy of the toy in this process, where seconds mean nothing."""

import pytest
import torch

from metasp_lite.course import problems
from metasp_lite.studies import toy_cost


@pytest.mark.parametrize(
    ("counts", "goal", "found"),
    [([3, 9, 8, 9, 9], 9, 4), ([9, 9], 9, 1), ([9, 8], 9, None), ([1, 2, 3], 3, 3)],
)
def test_a_goal_counts_from_where_it_is_never_left_again(counts, goal, found):
    assert toy_cost._stays(counts, goal) == found


def test_a_row_counts_the_products_that_build_the_preconditioner(monkeypatch):
    whole = problems.toy
    monkeypatch.setattr(toy_cost.problems, "toy", lambda **given: whole(train_per_class=4, test_per_class=3, **given))
    monkeypatch.setattr(toy_cost, "_MOST", 40)
    monkeypatch.setattr(toy_cost, "_REPEATS", 1)
    threads = torch.get_num_threads()
    row = toy_cost._measure(0)
    torch.set_num_threads(threads)
    assert row["kfac_cg_products_to_build"] == 1.0  # a pass forward and one back
    assert 0 < row["ekfac_signs_right"] <= 40
    if row["kfac_cg_products_to_1000"] is not None:
        assert row["kfac_cg_products_to_1000"] >= 2
