"""Curves that grow while a network trains."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

from metasp_lite.course import live


@pytest.fixture
def screen(monkeypatch):
    """What was shown and what replaced it, by the numbers of lines in the left panel; every score is 0.5."""
    drawn = []

    def show(figure, display_id):
        drawn.append(("shown", len(figure.axes[0].lines)))
        return SimpleNamespace(update=lambda other: drawn.append(("replaced", len(other.axes[0].lines))))

    monkeypatch.setattr(live, "score", lambda learner: ([0.5] * (learner.task_number + 1),) * 2)
    return show, drawn


def train(curves, *, tasks=2, epochs=4):
    for task in range(tasks):
        for epoch in range(1, epochs + 1):
            curves(SimpleNamespace(epoch=epoch, task_number=task, recipe=SimpleNamespace(epochs=epochs)), None)


def test_one_picture_grows_with_every_score_and_none_is_left_open(screen):
    show, drawn = screen
    curves = live.LiveCurves(every=2, show=show)
    train(curves)
    assert [entry[0] for entry in curves.history] == [2, 4, 6, 8]
    assert drawn == [
        ("shown", 1),
        ("replaced", 1),
        ("replaced", 3),
        ("replaced", 3),
    ]  # tasks, and where the second began
    assert not plt.get_fignums()


def test_a_picture_drawn_more_rarely_shows_every_score_at_the_end_of_each_task(screen):
    show, drawn = screen
    curves = live.LiveCurves(redraw=3, show=show)
    train(curves)
    assert [entry[0] for entry in curves.history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(drawn) == 4  # after the scores 3 and 6, and after 4 and 8, which end the tasks
    assert len(curves.draw(epochs=4).axes[0].lines[0].get_xdata()) == 8


def test_the_picture_can_be_drawn_again_afterwards(screen):
    show, _ = screen
    curves = live.LiveCurves(show=show)
    train(curves, tasks=1)
    assert [len(line.get_xdata()) for line in curves.draw(epochs=4).axes[0].lines] == [4]
