"""Exact likelihoods of a model, bounds on them, and their units."""

from sdekit.likelihood.bits import bits_per_dim, dequantise
from sdekit.likelihood.bounds import Elbo, elbo
from sdekit.likelihood.flow import LogLikelihood, decode, encode, log_likelihood

__all__ = [
    "Elbo",
    "LogLikelihood",
    "bits_per_dim",
    "decode",
    "dequantise",
    "elbo",
    "encode",
    "log_likelihood",
]
