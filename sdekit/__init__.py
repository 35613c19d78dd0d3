"""Continuous-time score-based diffusion, with every part held against closed-form truth.

A forward process, a denoiser read four ways, a sampler that is a table of numbers, and a truth to hold each
against.
"""

from sdekit import data, metrics, networks, pde, schedules, testing, training
from sdekit import sampling as samplers
from sdekit.comparison import (
    BiasTable,
    ErrorBudget,
    SetTable,
    Table,
    compare,
    compare_sets,
    error_budget,
    sampler_bias,
)
from sdekit.data import ExactDenoiser, GaussianMixture
from sdekit.ddpm import DDPM
from sdekit.denoisers import Denoiser, EDMPrecondition, NetworkDenoiser
from sdekit.diagnosis import Diagnosis, diagnose
from sdekit.errors import CheckpointError, NumericsError, SdekitError
from sdekit.learned_variance import LearnedVariance
from sdekit.likelihood import (
    LogLikelihood,
    bits_per_dim,
    decode,
    dequantise,
    elbo,
    encode,
    log_likelihood,
)
from sdekit.orders import MeasuredOrder, Problem, measure_order
from sdekit.processes import (
    EDM,
    VE,
    VP,
    Heat,
    Interpolant,
    OrnsteinUhlenbeck,
    Process,
    SubVP,
)
from sdekit.sampling import ProbabilityFlow, ReverseSDE, Samples, sample
from sdekit.training import TrainResult, train

__version__ = "0.1.0"

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "BiasTable",
    "CheckpointError",
    "Denoiser",
    "Diagnosis",
    "EDMPrecondition",
    "ErrorBudget",
    "ExactDenoiser",
    "GaussianMixture",
    "Heat",
    "Interpolant",
    "LearnedVariance",
    "LogLikelihood",
    "MeasuredOrder",
    "NetworkDenoiser",
    "NumericsError",
    "OrnsteinUhlenbeck",
    "ProbabilityFlow",
    "Problem",
    "Process",
    "ReverseSDE",
    "Samples",
    "SdekitError",
    "SetTable",
    "SubVP",
    "Table",
    "TrainResult",
    "bits_per_dim",
    "compare",
    "compare_sets",
    "data",
    "decode",
    "dequantise",
    "diagnose",
    "elbo",
    "encode",
    "error_budget",
    "log_likelihood",
    "measure_order",
    "metrics",
    "networks",
    "pde",
    "sample",
    "sampler_bias",
    "samplers",
    "schedules",
    "testing",
    "train",
    "training",
]
