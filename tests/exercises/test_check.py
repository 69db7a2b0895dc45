"""Every task keeps its word: its solution passes, its typical errors get their hints, its stub asks for an answer."""

import re

import nbformat
import numpy as np
import pytest
import torch

from metasp_lite import settings
from metasp_lite.calculus import min_norm_pair
from metasp_lite.exercises import check

ALL = {name: task for tasks in check.EXERCISES.values() for name, task in tasks.items()}
SEEDS = range(10)
by_task = pytest.mark.parametrize("name", ALL)


def run(code):
    """The function that a cell defines, with what the notebooks have imported before it."""
    names = {"torch": torch, "min_norm_pair": min_norm_pair}
    exec(code, names)
    return names["answer"]


@by_task
def test_the_solution_passes_in_both_precisions_and_every_form(name):
    task, solved = ALL[name], run(ALL[name].solution)

    def single(*given):
        given = [each.float() if isinstance(each, torch.Tensor) else each for each in given]
        return solved(*given)

    forms = {
        "as it is": solved,
        "float32": single,
        "NumPy": lambda *given: np.asarray(solved(*given)),
        "a list": lambda *given: np.asarray(solved(*given)).tolist(),
        "a column": lambda *given: torch.as_tensor(solved(*given)).reshape(-1, 1),
        "a row, with its graph": lambda *given: torch.as_tensor(solved(*given)).reshape(1, -1).clone().requires_grad_(),
    }
    for form, answer in forms.items():
        for seed in SEEDS:
            verdict = task(answer, seed=seed)
            assert verdict.right, (form, seed, verdict)
            assert task.checked in repr(verdict)


@pytest.mark.parametrize(("name", "hint"), [(name, hint) for name, task in ALL.items() for hint in task.wrong])
def test_a_typical_error_gets_its_own_hint(name, hint):
    for seed in SEEDS:
        verdict = ALL[name](ALL[name].wrong[hint], seed=seed)
        assert verdict.right is False
        assert repr(verdict) == f"not yet: {hint}"


@by_task
def test_the_stub_is_the_solution_with_holes_and_is_no_answer(name):
    task = ALL[name]
    assert len(task.wrong) >= 2
    parts = task.stub.split("...")
    assert len(parts) > 1
    assert re.fullmatch(".+?".join(map(re.escape, parts)), task.solution, re.DOTALL)
    assert task.solution != task.stub
    assert repr(task(run(task.stub))) == "not answered yet"
    assert repr(task(...)) == "not answered yet"


@by_task
def test_other_wrong_answers_are_told_from_errors_and_from_numbers(name):
    task, solved = ALL[name], run(ALL[name].solution)
    twice = task(lambda *given: 2.5 * torch.as_tensor(solved(*given)) + 0.1, seed=1)
    assert twice.right is False
    assert "random cases" in repr(twice)
    assert "ZeroDivisionError" in repr(task(lambda *given: 1 / 0))
    assert "make it a function" in repr(task(0.5))


def test_an_answer_that_writes_into_its_arguments_does_not_spoil_the_check():
    def spoiling(scores, n):
        result = -scores / n
        scores.zero_()
        return result

    assert check.predicted_change(spoiling).right


def test_the_wrong_count_and_a_division_by_zero_are_named():
    assert "the result has 1 entry, and" in repr(check.predicted_change(lambda scores, n: scores.sum(), seed=0))
    assert "divided by zero" in repr(check.predicted_change(lambda scores, n: scores / 0, seed=0))


def test_all_fields_at_once_and_results_that_are_no_numbers_are_named():
    whole = repr(check.best_share(min_norm_pair))
    assert whole == f"not yet: return one of {', '.join(min_norm_pair(*torch.eye(2))._fields)}, not all of them"
    no_numbers = "not yet: the result is no vector or number of the right shape"
    assert repr(check.predicted_change(lambda scores, n: "a half")) == no_numbers
    assert repr(check.best_share(lambda g1, g2: torch.ones(50))) == no_numbers
    assert repr(check.predicted_change(lambda scores, n: [...])) == "not answered yet"


def test_both_signs_of_the_extra_weight_are_tried():
    for seed in SEEDS:
        tried = []
        check.times_counted(lambda epsilon, n, tried=tried: tried.append(epsilon) or 0.0, seed=seed)
        assert min(tried) < 0 < max(tried)


# --- in the notebooks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"), [(number, name) for number, tasks in check.EXERCISES.items() for name in tasks]
)
def test_a_notebook_has_question_stub_check_and_folded_solution_in_this_order(number, name):
    (path,) = (settings.PROJECT_DIR / "notebooks").glob(f"{number}-*.ipynb")
    cells, task = nbformat.read(path, as_version=4).cells, ALL[name]
    place = 1 + list(check.EXERCISES[number]).index(name)
    (at,) = [k for k, cell in enumerate(cells) if cell.source == f"check.{name}(answer)"]
    question, stub, asked, solution = cells[at - 2 : at + 2]
    assert question.source.endswith(f"### Your turn {place}: {task.title}\n\n{task.question}")
    assert stub.source == task.stub
    assert [output.data["text/plain"] for output in asked.outputs] == ["not answered yet"]
    folded = f"<details><summary>Solution</summary>\n\n```python\n{task.solution}\n```\n</details>"
    assert solution.source == folded
