"""Targets and data: exact mixtures, toy samplers, images."""

from sdekit.data.mixtures import ExactDenoiser, GaussianMixture, Posterior

__all__ = ["ExactDenoiser", "GaussianMixture", "Posterior"]
