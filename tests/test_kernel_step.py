"""One noisy step of a density against closed forms, for kernels wide and narrow and maps that fold."""

import math

import numpy as np
import pytest

from sdekit.pde.kernel_step import Grid1D, noisy_step


def normal(x, mean=0.0, std=1.0):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def standard(points=256):
    nodes = np.linspace(-8.3, 8.3, points)
    return Grid1D(nodes, normal(nodes))


@pytest.mark.parametrize("sigma", [3.0, 0.3, 0.1, 0.05, 0.02, 1e-3, 1e-4])
@pytest.mark.parametrize("slope", [0.2, 1.0, -0.7, 3.0])
def test_affine_map_of_a_normal(sigma, slope):
    """a u + b + sigma z is N(b, a^2 + sigma^2), whatever the kernel is in spacings (0.065 here)."""
    start = standard()
    out, resolved = noisy_step(start, slope * start.nodes + 0.4, sigma)
    expected = normal(out.nodes, 0.4, math.hypot(slope, sigma))
    assert resolved
    # Below a spacing the density is interpolated, by splines with an error of 1e-11 at this spacing.
    assert np.abs(out.rho - expected).max() < (2e-11 if sigma < 0.05 else 1e-12) * expected.max()
    assert len(out.nodes) == 256
    assert abs(out.spacing * out.rho.sum() - 1) < 1e-12
    assert out.rho.min() >= 0


@pytest.mark.parametrize("sigma", [0.5, 0.1])
def test_map_that_folds(sigma):
    """u^2 / 2 of a normal u, blurred: against the integral over u by a rule of its own."""
    start = standard(1024)
    out, resolved = noisy_step(start, start.nodes**2 / 2, sigma)
    u = np.linspace(-9, 9, 200_001)
    for i in range(0, 1024, 97):
        expected = np.trapezoid(normal(u) * normal(out.nodes[i], u**2 / 2, sigma), u)
        assert abs(out.rho[i] - expected) < 1e-11
    assert resolved


def test_many_steps_keep_the_variance():
    """A thousand steps add a thousand variances: cells in place of points would add h^2 / 12 each."""
    density = standard()
    for _ in range(1000):
        density, _ = noisy_step(density, density.nodes, 0.03)
    variance = density.spacing * (density.rho @ density.nodes**2)
    assert abs(variance - (1 + 1000 * 0.03**2)) < 1e-10


def test_a_kernel_too_narrow_is_said():
    """A steep map tears neighbouring nodes apart by more than any number of points between them mends."""
    start = standard()
    _, resolved = noisy_step(start, 1e4 * start.nodes, 1e-6)
    assert not resolved
