"""TracIn against loops over examples, checkpoints and questions, by plain autograd."""

import pytest
import torch
from helpers.analytic import mlp_with_validation, randn, ridge

from metasp_lite.calculus.losses import ExampleLosses, Objective
from metasp_lite.influence import tracin


def loop(losses, validations, checkpoints, steps):
    """Each gradient by itself."""
    rows = []
    for validation in validations:
        row = torch.zeros(len(losses), dtype=torch.float64)
        for theta, step in zip(checkpoints, steps, strict=True):
            leaf = theta.clone().requires_grad_()
            (target,) = torch.autograd.grad(validation(leaf), leaf)
            for i in range(len(losses)):
                (own,) = torch.autograd.grad(losses(leaf, torch.tensor([i]))[0], leaf)
                row[i] -= step * own @ target
        rows.append(row)
    return torch.stack(rows)


def test_tracin_equals_a_loop_for_several_questions_at_once():
    training, validation, start = mlp_with_validation()
    inner = validation.losses
    single = [Objective(ExampleLosses(inner.model, inner.inputs[i : i + 1], inner.labels[i : i + 1])) for i in range(3)]
    questions, checkpoints = [validation, *single], [start, start + 0.1 * randn(33, seed=1), -start]
    scores = tracin(training.losses, questions, checkpoints, [0.5, 0.1, 2.0])
    expected = loop(training.losses, questions, checkpoints, [0.5, 0.1, 2.0])
    assert (scores - expected).abs().max() <= 1e-13 * expected.abs().max()  # rounding of sums of 33 products


def test_a_step_on_one_example_changes_the_validation_loss_by_its_score():
    """Of first order: an error of the second, and so a hundredth of it for a tenth of the step."""
    problem = ridge()
    theta, validation = randn(8, seed=2), problem.validation
    own = problem.objective.losses
    leaf = theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(own(leaf, torch.tensor([5]))[0], leaf)
    errors = []
    for step in (1e-2, 1e-3):
        change = validation(theta - step * slope) - validation(theta)
        errors.append(abs(float(change - tracin(own, [validation], [theta], [step])[0, 5])))
    assert errors[1] < 0.011 * errors[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoints": []}, "0 checkpoints, 1 validation losses: give at least one"),
        ({"validations": []}, "1 checkpoints, 0 validation losses"),
        ({"steps": [0.1, 0.2]}, "give 1, one for each checkpoint"),
        ({"steps": [-0.1]}, "finite and above 0"),
        ({"steps": [float("nan")]}, "finite and above 0"),
    ],
)
def test_what_is_no_path_is_refused(change, words):
    training, validation, start = mlp_with_validation()
    given = {"losses": training.losses, "validations": [validation], "checkpoints": [start], "steps": [0.1]}
    with pytest.raises(ValueError, match=words):
        tracin(**{**given, **change})
