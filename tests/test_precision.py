"""The same influences in float32 and in float64, and on one and two threads: how far rounding takes them.

The bound.  float32 keeps 24 bits, 6e-8 of each number.  A loss, a gradient or a product with H is a sum of some
hundred such numbers and keeps about 1e-6; a solve multiplies that by the condition number κ of H at most.  So 1e-6·κ,
with κ from the dense Hessian; what does not solve has κ = 1.
"""

import copy

import pytest
import torch
from helpers import two_stages
from helpers.small_models import MODELS, somewhere
from helpers.stage_oracles import joint_optimum, proximal_optimum
from helpers.two_stages import SECOND, TEST, W, finetuned, pretrained

from metasp_lite.calculus import solvers
from metasp_lite.calculus.curvature import Curvature
from metasp_lite.calculus.losses import ExampleLosses, Objective
from metasp_lite.calculus.parameters import flatten_parameters
from metasp_lite.influence.hessian import influence
from metasp_lite.influence.metasp import metasp_step
from metasp_lite.influence.pseudo_update import SGDRule, pseudo_update_influence
from metasp_lite.networks import lite_cnn, toy_mlp
from metasp_lite.stages.fixed import fixed_embedding
from metasp_lite.stages.unrolled import ShortRun, unrolled_sensitivity
from metasp_lite.stages.updated import JointObjective, ProximalObjective, joint_influence, proximal_sensitivity

SINGLE = 1e-6
DAMPING = 3.0  # above the most negative eigenvalue of all these models away from their optima


def in_single(losses):
    """The same losses with all numbers rounded to float32."""
    model = copy.deepcopy(losses.model).float()
    labels = losses.labels.float() if losses.labels.is_floating_point() else losses.labels
    return ExampleLosses(model, losses.inputs.float(), labels, losses.loss)


def assert_agree(single, double, share):
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    error = float((single.double() - double).norm() / double.norm())
    assert 0 < error <= share  # 0 would mean that nothing was computed in float32


def condition(matrix):
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] > 0
    return float(values[-1] / values[0])


SOLVERS = {
    "exact": solvers.Exact(),
    "conjugate gradients": solvers.ConjugateGradient(100, tolerance=1e-5),
    "Neumann": solvers.Neumann(100),
    "Gauss-Newton": solvers.GaussNewton(),
    "outer product": solvers.OuterProduct(),
    "identity": solvers.Identity(),
    "LiSSA": solvers.LiSSA(depth=50, batch=6),
}


PAIRS = [
    (name, solver)
    for name in MODELS
    for solver in SOLVERS
    if solver != "Gauss-Newton" or name != "logistic-regression"  # its loss has one output
]


@pytest.mark.parametrize(("name", "solver"), PAIRS)
def test_influences_in_single_precision_are_those_in_double(name, solver):
    double = MODELS[name]()
    theta = somewhere(double)
    single = Objective(in_single(double.losses), double.l2)
    curvatures = [Curvature(double, theta, DAMPING), Curvature(single, theta.float(), DAMPING)]
    found = [influence(c.objective.losses, c.objective, c, SOLVERS[solver]) for c in curvatures]
    kappa = 1 if solver == "identity" else condition(curvatures[0].dense())
    if solver == "conjugate gradients":
        kappa *= 1 + 1e-5 / SINGLE  # each may stop at its tolerance
    assert_agree(found[1], found[0], SINGLE * kappa)


@pytest.mark.parametrize("name", MODELS)
def test_pseudo_updates_in_single_precision_are_those_in_double(name):
    double = MODELS[name]()
    single, theta = Objective(in_single(double.losses), double.l2), somewhere(double)
    found = [
        pseudo_update_influence(objective, objective, at, step=0.1, steps=5)
        for objective, at in ((double, theta), (single, theta.float()))
    ]
    assert_agree(found[1], found[0], 5 * SINGLE)  # five steps, each with its own rounding


def both_precisions():
    """Both stages and the target: float64 and float32."""
    target = ExampleLosses(SECOND, *TEST)
    double = two_stages.G, two_stages.F, target
    yield double, lambda theta: theta
    g, f, t = (in_single(losses) for losses in (two_stages.G.losses, two_stages.F.losses, target))
    yield (Objective(g, two_stages.L2_G), Objective(f, two_stages.L2_F), t), lambda theta: theta.float()


def fixed(g, f, target, at):
    first, second = Curvature(g, at(pretrained())), Curvature(f, at(finetuned()))
    return fixed_embedding(first, second, target, solvers.Exact()), [first.dense(), second.dense()[W:, W:]]


def proximal(g, f, target, at):
    theta = at(proximal_optimum(0.5)[1])
    curvature = Curvature(ProximalObjective(f, at(pretrained())[:W], 0.5), theta)
    return proximal_sensitivity(curvature, target, solvers.Exact()), [curvature.dense()]


def joint(g, f, target, at):
    curvature = Curvature(JointObjective(g, f, 0.3), at(joint_optimum(0.3)[1]))
    return joint_influence(curvature, target, solvers.Exact()), [curvature.dense()]


def unrolled(g, f, target, at):
    index = torch.arange(40).view(8, 5)
    theta = at(finetuned())
    return unrolled_sensitivity(ShortRun(f, SGDRule(0.1, momentum=0.5), index), theta[:W], theta[W:], target), []


@pytest.mark.parametrize("path", [fixed, proximal, joint, unrolled])
def test_two_stages_in_single_precision_are_those_in_double(path):
    (double, matrices), (single, _) = (path(*stages, at) for stages, at in both_precisions())
    kappa = 1.0
    for matrix in matrices:
        kappa *= condition(matrix)
    assert_agree(single, double, SINGLE * max(kappa, 8))  # the run has eight steps


# ------------------------------------------------------------------------------------------------------- threads


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_influences_on_two_threads_are_those_on_one(threads):
    """float64 sums of some thousand terms in another order: 1e-13, times the condition number of the solve."""
    draw = torch.Generator().manual_seed(0)
    model = toy_mlp(784, 8, 4).double()
    inputs = torch.rand(500, 784, generator=draw, dtype=torch.float64)
    objective = Objective(ExampleLosses(model, inputs, torch.arange(500) % 4), l2=0.1)
    found = []
    for count in (1, 2):
        threads(count)
        curvature = Curvature(objective, flatten_parameters(model), DAMPING)
        found.append(influence(objective.losses, objective, curvature, solvers.ConjugateGradient(200, tolerance=1e-12)))
    kappa = curvature.largest_eigenvalue / DAMPING
    assert float((found[1] - found[0]).norm() / found[0].norm()) <= 1e-13 * kappa + 2e-12 * kappa


@pytest.mark.parametrize("network", [lambda: lite_cnn(channels=3), lambda: toy_mlp(3 * 16 * 16, 32, 10).float()])
def test_a_metasp_step_on_two_threads_is_that_on_one(threads, network):
    """float32 sums in another order: 1e-5 of the largest entry, as between float32 and float64."""
    draw = torch.Generator().manual_seed(1)
    sets = [(torch.randn(n, 3, 16, 16, generator=draw), torch.arange(n) % 10) for n in (64, 30, 30)]
    model = network()
    steps = []
    for count in (1, 2):
        threads(count)
        same = copy.deepcopy(model)
        steps.append(metasp_step(same, torch.optim.SGD(same.parameters(), lr=0.1), *sets))
    for name in ("losses", "stability", "plasticity"):
        one, two = (getattr(step, name) for step in steps)
        assert float((two - one).abs().max() / one.abs().max()) <= 1e-5
