"""Samplers, their grids, and the front door `sample`; public as `sdekit.samplers`."""

from sdekit.sampling.edm import EDMHeun
from sdekit.sampling.flow_ode import FlowODE, ProbabilityFlow
from sdekit.sampling.front_door import Samples, sample
from sdekit.sampling.grids import (
    GRIDS,
    Angle,
    Beta,
    Cosine,
    Karras,
    LogSNR,
    Power,
    Tabulated,
    TimeGrid,
)
from sdekit.sampling.multistep import (
    DEIS,
    DPMSolverMultistep,
    DPMSolverPP,
    ExponentialAB,
    VelocityAB,
)
from sdekit.sampling.one_step import DDIM, Ancestral, EulerMaruyama
from sdekit.sampling.plan import Plan, Row
from sdekit.sampling.predictor_corrector import PredictorCorrector
from sdekit.sampling.reverse_sde import ReverseSDE, TorchSDE
from sdekit.sampling.sampler import PlanSampler, Sampler
from sdekit.sampling.single_step import DPMSolver, ExponentialRK, LogSNRRungeKutta, SigmaRungeKutta
from sdekit.sampling.tape import Form, Tape
from sdekit.sampling.unipc import UniPC

#: The default instance of every sampler; tests, `compare` and the documentation iterate over it.
ALL: tuple[Sampler, ...] = (
    EulerMaruyama(),
    Ancestral(),
    Ancestral("beta"),
    DDIM(),
    DDIM(eta=1.0),
    PredictorCorrector(),
    ExponentialAB(),
    ExponentialAB(order=4, prediction="v"),
    DPMSolverPP(),
    DPMSolverPP(tau=1.0),
    DPMSolverMultistep(),
    DEIS(),
    VelocityAB(),
    UniPC(),
    EDMHeun(),
    DPMSolver(),
    DPMSolver(order=3),
    ExponentialRK(),
    SigmaRungeKutta(),
    LogSNRRungeKutta(),
    FlowODE(),
    TorchSDE(),
)

__all__ = [
    "ALL",
    "DDIM",
    "DEIS",
    "GRIDS",
    "Ancestral",
    "Angle",
    "Beta",
    "Cosine",
    "DPMSolver",
    "DPMSolverMultistep",
    "DPMSolverPP",
    "EDMHeun",
    "EulerMaruyama",
    "ExponentialAB",
    "ExponentialRK",
    "FlowODE",
    "Form",
    "Karras",
    "LogSNR",
    "LogSNRRungeKutta",
    "Plan",
    "PlanSampler",
    "Power",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseSDE",
    "Row",
    "Sampler",
    "Samples",
    "SigmaRungeKutta",
    "Tabulated",
    "Tape",
    "TimeGrid",
    "TorchSDE",
    "UniPC",
    "VelocityAB",
    "sample",
]
