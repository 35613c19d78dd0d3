"""Exact likelihoods of a model, bounds on them, and their units."""

from sdekit.likelihood.flow import LogLikelihood, Prior, decode, encode, log_likelihood

__all__ = ["LogLikelihood", "Prior", "decode", "encode", "log_likelihood"]
