"""Named mixtures: targets with an exact score at every noise level, standardised to mean 0 and variance 1."""

import math

import torch

from sdekit.data.mixtures import GaussianMixture
from sdekit.errors import check_integer, check_number


def two_mode() -> GaussianMixture:
    """0.3 N(-0.5, 0.2^2) + 0.7 N(0.5, 0.2^2), standardised: means -1.4 and 0.6, stds 0.4."""
    return GaussianMixture([0.3, 0.7], [-0.5, 0.5], stds=0.2).standardised()


def spiral(turns: float = 1.5, components: int = 120, std: float = 0.05) -> GaussianMixture:
    """A spiral in the plane as an exact mixture: components spread evenly along its arm.

    Args:
        turns: how often it winds around the origin.
        components: how many; the arm looks continuous where they overlap.
        std: width of the arm before standardising (the arm ends at radius 1).
    """
    components = check_integer("components", components, 2)
    check_number("turns", turns, 0, open_low=True)
    angle = torch.linspace(0, 1, 4001, dtype=torch.float64).sqrt() * 2 * math.pi * turns
    arm = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1) / (2 * math.pi * turns)
    length = torch.cat([torch.zeros(1), arm.diff(dim=0).norm(dim=1).cumsum(0)]).double()
    wanted = torch.linspace(0.08, 1, components, dtype=torch.float64) * length[-1]
    means = arm[torch.searchsorted(length, wanted).clamp(max=len(arm) - 1)]
    return GaussianMixture(
        None, means, stds=check_number("std", std, 0, open_low=True)
    ).standardised()


def ring(modes: int = 8, std: float = 0.1) -> GaussianMixture:
    """`modes` equal bells around a circle of radius 1 before standardising."""
    modes = check_integer("modes", modes, 1)
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    means = torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(
        None, means, stds=check_number("std", std, 0, open_low=True)
    ).standardised()


#: The targets that have names on the command line.
TARGETS = {"two-mode": two_mode, "spiral": spiral, "ring": ring}
