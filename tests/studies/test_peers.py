"""Other libraries beside ours: what does not need them, on a toy of the toy in this process."""

from importlib import metadata

import pytest
import torch

from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.optimum import minimise
from metasp_lite.calculus.solvers import ConjugateGradient, Exact
from metasp_lite.course import problems
from metasp_lite.influence.hessian import influence
from metasp_lite.studies import adapters, peers


@pytest.fixture
def small(monkeypatch):
    """The toy with 40 training and 30 test images, its optimum, and this thread count kept."""
    whole, threads = problems.toy, torch.get_num_threads()
    monkeypatch.setattr(peers.problems, "toy", lambda **given: whole(train_per_class=4, test_per_class=3, **given))
    problem = problems.toy(l2=peers._L2, hidden=peers._HIDDEN, seed=0)
    yield problem, minimise(problem.objective, problem.start)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("solver", [Exact(), ConjugateGradient(20)], ids=["exact", "cg"])
def test_our_row_is_a_direct_call(small, solver):
    problem, theta = small
    direct = influence(problem.objective.losses, problem.validation, Curvature(problem.objective, theta), solver)
    # the same sums of the same numbers: rounding alone
    torch.testing.assert_close(adapters.ours(peers._trained(0, theta), solver), direct, rtol=1e-9, atol=1e-12)


def test_a_measured_row_has_the_quality_of_its_scores(small):
    problem, theta = small
    true = influence(problem.objective.losses, problem.validation, Curvature(problem.objective, theta), Exact())

    def doubled(given):
        return 2 * adapters.ours(given, Exact())

    contender = peers._Contender("metasp_lite", "metasp_lite", "doubled", doubled)
    row = peers._measured(contender, 0, theta.tolist(), true.tolist())
    assert (row["signs_right"], row["balanced_accuracy"], row["pearson"], row["slope"]) == (40, 1, 1, 2)
    assert 0 < row["cpu_seconds_min"] <= row["cpu_seconds_median"]
    assert row["extra_mib"] >= 0


def test_what_a_library_raises_is_written_down_with_its_first_line(small):
    def broken(given):
        raise RuntimeError("no such thing\nand much more")

    _, theta = small
    contender = peers._Contender("metasp_lite", "metasp_lite", "broken", broken)
    assert peers._measured(contender, 0, theta.tolist(), [1.0, -1.0]) == {"error": "RuntimeError: no such thing"}


def test_a_library_that_is_not_installed_is_named_and_the_others_are_measured(monkeypatch):
    installed = metadata.version

    def version(name):
        if name != "metasp_lite":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    measured = []
    monkeypatch.setattr(peers.metadata, "version", version)
    monkeypatch.setattr(peers, "import_beforehand", lambda *modules: None)  # would stay for the tests after this one
    monkeypatch.setattr(peers, "_truth", lambda seed: ([0.0], [1.0]))
    monkeypatch.setattr(peers, "_measured", lambda contender, *rest: measured.append(contender.library) or {})
    monkeypatch.setattr(peers, "in_fresh_process", lambda function, *arguments: function(*arguments))
    found = peers.study(1)
    assert set(measured) == {row["library"] for row in found["runs"]} == {"metasp_lite"}
    for name in ("captum", "dattri", "kronfluence", "pyDVL"):
        assert found["settings"]["unmeasured"][name] == "not installed: run make bench-peers"


def counted(given):
    """Return it.

    This is not counted, nor the comment and the blank line.
    """
    # as it is

    return [
        given,
    ]


def test_lines_are_those_of_the_code_alone():
    assert peers._lines(counted) == 3
    assert peers._lines(adapters.ours) == 4
