"""Curves that grow while a network trains, for notebook 06."""

from collections.abc import Callable

import matplotlib.pyplot as plt
from IPython.display import DisplayHandle, display

from metasp_lite.continual.learner import Learner
from metasp_lite.continual.methods import Method
from metasp_lite.continual.training import score
from metasp_lite.course import training_plots
from metasp_lite.doors import Count, typed


class LiveCurves:
    """Hand one to ``train(..., watch=)``: it scores the network after every ``every`` epochs, and draws both settings.

    It redraws after every ``redraw`` scores and at the end of a task; a picture takes as long as an epoch of a small
    network.  ``history`` holds (epoch, accuracies by task class-incremental, task-incremental).  Scoring changes
    nothing in the training.
    """

    @typed
    def __init__(
        self, *, every: Count = 1, redraw: Count = 1, show: Callable[..., DisplayHandle | None] = display
    ) -> None:
        """Begin without a picture."""
        self.every, self.redraw, self._show = every, redraw, show
        self._handle: DisplayHandle | None = None
        self.history: list[tuple[float, list[float], list[float]]] = []

    def __call__(self, learner: Learner, method: Method) -> None:
        """Score and redraw."""
        if learner.epoch % self.every:
            return
        epochs = learner.recipe.epochs
        self.history.append((learner.task_number * epochs + learner.epoch, *score(learner)))
        if len(self.history) % self.redraw and learner.epoch != epochs:
            return
        figure = self.draw(epochs)
        if self._handle is None:
            self._handle = self._show(figure, display_id=True)
        else:
            self._handle.update(figure)
        plt.close(figure)

    def draw(self, epochs: int) -> plt.Figure:
        """Return the picture of the history so far; ``epochs`` a task."""
        figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True)
        training_plots.curves(axes, self.history, epochs)
        return figure
