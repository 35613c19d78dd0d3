"""Targets and data: exact mixtures, toy samplers, images."""

from sdekit.data import images, toys
from sdekit.data.mixtures import ExactDenoiser, GaussianMixture, Posterior
from sdekit.data.targets import TARGETS, ring, spiral, two_mode

__all__ = [
    "TARGETS",
    "ExactDenoiser",
    "GaussianMixture",
    "Posterior",
    "images",
    "ring",
    "spiral",
    "toys",
    "two_mode",
]
