"""What the tests of two-stage scores compare with: dense Hessians, optima of eq. 15's two readings, a saddle.

Rounding: sums of at most a hundred float64 terms around 1 and two solves with condition numbers of about 100 (4000 for
the joint optimum of α = 0.01): differences near 1e-13, far below 1e-10 and that far below a wrong term.

Finite differences: 1e-4 of weight is a share h = 1e-4·M = 6e-3 of an example's; a central difference is off by a share
of about h², and 1e-14/1e-4 of noise is less.  1e-4 of the largest score leaves a factor of ten for the constant.
"""

import torch

from helpers import two_stages as by_hand
from helpers.analytic import randn
from helpers.two_stages import THETA, N, U, W, finetuned, pretrained
from metasp_lite.calculus.optimum import minimise
from metasp_lite.stages.updated import JointObjective, ProximalObjective

ROUNDING = 1e-10
DIFFERENCE = 1e-4
CHOSEN = [0, 11, 37, 59]


def assert_close(actual, expected, share=ROUNDING):
    expected = expected.detach()
    assert float(expected.abs().max()) > 1e-6  # zero would agree with much that is wrong
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * float(expected.abs().max()))


def eye(size):
    return torch.eye(size, dtype=torch.float64)


def g_hessian(theta):
    return torch.func.hessian(by_hand.g_mean)(theta)


def f_hessian(theta):
    return torch.func.hessian(by_hand.f_mean)(theta)


def proximal_optimum(alpha):
    """[W; Θ] at the minimum of F + (α/2)‖W − W*‖² that the fixed embedding's leads to."""
    proximal = ProximalObjective(by_hand.F, pretrained()[:W], alpha)
    return proximal, by_hand.settled(hand_proximal(alpha, pretrained()[:W]), minimise(proximal, finetuned()))


def hand_proximal(alpha, center):
    return lambda theta: by_hand.f_mean(theta) + alpha / 2 * ((theta[:W] - center) ** 2).sum()


def hand_joint(theta, alpha, weights=None):
    """α(G + Σ ε_z g(z)) + (1 − α) F at [W; U; Θ]."""
    first, second = theta[: W + U], torch.cat([theta[:W], theta[W + U :]])
    added = 0.0 if weights is None else weights @ by_hand.g_losses(first)
    return alpha * (by_hand.g_mean(first) + added) + (1 - alpha) * by_hand.f_mean(second)


def joint_optimum(alpha):
    joint = JointObjective(by_hand.G, by_hand.F, alpha)
    # From the two stages' own optimum L-BFGS runs into a saddle, where two tanh units are one.
    start = torch.cat([pretrained(), finetuned()[W:]]) + 0.3 * randn(W + U + THETA, seed=171)
    return joint, by_hand.settled(lambda theta: hand_joint(theta, alpha), minimise(joint, start))


def batches(steps, size=6):
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randperm(N, generator=generator)[:size] for _ in range(steps)])


def at_a_saddle():
    """Curvatures without penalties far from any optimum, and the smallest eigenvalues of G'' and F_ΘΘ there."""
    theta_g, theta_f = 2 * randn(W + U, seed=160), 2 * randn(W + THETA, seed=161)
    theta_f[:W] = theta_g[:W]
    g = torch.func.hessian(lambda t: by_hand.g_losses(t).mean())(theta_g)
    f = torch.func.hessian(lambda t: by_hand.f_losses(t).mean())(theta_f)
    lowest = [float(torch.linalg.eigvalsh(hessian)[0]) for hessian in (g, f[W:, W:])]
    assert max(lowest) < -0.01
    return theta_g, theta_f, lowest
