"""The figures of the notebooks: all that goes in is there to be seen, or is refused."""

import pytest
import torch

from metasp_lite.course import plots


def test_cost_picture_has_every_method_in_three_panels():
    exact = torch.tensor([-2.0, -1.0, -1.0, 3.0])
    path = {1: torch.tensor([-1.0, 1.0, -1.0, 1.0]), 10: exact}
    figure = plots.accuracy_against_cost(exact, {"series": path}, {"points": path}, {"level": path[1]})
    assert [ax.get_ylabel() for ax in figure.axes] == ["agreement, of 4", "balanced accuracy", "Pearson r"]
    agreement = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert agreement == {"level": [3, 3], "constant guess": [3, 3], "series": [3, 4], "points": [3, 4]}


def test_image_grid_refuses_missing_titles():
    with pytest.raises(ValueError, match="2 images and 1 titles"):
        plots.image_grid(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), ["one"])
