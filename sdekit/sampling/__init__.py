"""Samplers, their grids, and the front door `sample`; public as `sdekit.samplers`."""

import re

from sdekit.sampling.adaptive import AdaptiveDPMSolver
from sdekit.sampling.algebra import invert, sensitivity
from sdekit.sampling.ancestral import Ancestral
from sdekit.sampling.computed_plan import ComputedPlan
from sdekit.sampling.edm import EDMHeun
from sdekit.sampling.er_sde import ERSDE
from sdekit.sampling.flow_ode import FlowODE, ProbabilityFlow
from sdekit.sampling.front_door import Samples, sample
from sdekit.sampling.grids import (
    GRIDS,
    Angle,
    Beta,
    Cosine,
    FlowTime,
    Karras,
    LogSNR,
    Power,
    Tabulated,
    TimeGrid,
)
from sdekit.sampling.langevin import AnnealedLangevin
from sdekit.sampling.leapfrog import Leapfrog
from sdekit.sampling.learned_ancestral import LearnedAncestral
from sdekit.sampling.multistep import (
    DEIS,
    DPMSolverMultistep,
    DPMSolverPP,
    ExponentialAB,
    VelocityAB,
)
from sdekit.sampling.one_step import DDIM, EulerMaruyama, ItoExponential, ReverseDiffusion
from sdekit.sampling.optimise import Optimised, Search, optimise_grid, optimise_plan
from sdekit.sampling.parallel import ParallelInTime
from sdekit.sampling.plan import Plan, Row
from sdekit.sampling.predictor_corrector import NormCorrector, PredictorCorrector
from sdekit.sampling.restart import Restart
from sdekit.sampling.reverse_sde import ReverseSDE, TorchSDE
from sdekit.sampling.sa_solver import SASolver
from sdekit.sampling.sampler import PlanSampler, Sampler
from sdekit.sampling.single_step import DPMSolver, ExponentialRK, LogSNRRungeKutta, SigmaRungeKutta
from sdekit.sampling.tape import Form, Tape
from sdekit.sampling.two_stage import DPMSolverPP2SAncestral
from sdekit.sampling.unipc import UniPC

#: The default instance of every sampler; tests, `compare` and the documentation iterate over it.
ALL: tuple[Sampler, ...] = (
    EulerMaruyama(),
    EulerMaruyama("integrated"),
    ReverseDiffusion(),
    Ancestral(),
    Ancestral("beta"),
    DDIM(),
    DDIM(eta=1.0),
    ItoExponential(),
    PredictorCorrector(),
    NormCorrector(norm="batch"),  # its default warns in one and two dimensions
    AnnealedLangevin(),
    ExponentialAB(),
    ExponentialAB(order=4, prediction="v"),
    ExponentialAB(order=4, prediction="flow", clock=FlowTime()),
    DPMSolverPP(),
    DPMSolverPP(tau=1.0),
    DPMSolverMultistep(),
    DEIS(),
    VelocityAB(),
    SASolver(),
    ERSDE(),
    UniPC(),
    EDMHeun(),
    Restart(),
    DPMSolverPP2SAncestral(),
    DPMSolver(),
    DPMSolver(order=3),
    AdaptiveDPMSolver(),
    SigmaRungeKutta(),
    Leapfrog(),
    ParallelInTime(),
    ExponentialRK(),
    LogSNRRungeKutta(),
    FlowODE(),
    TorchSDE(),
)


def by_name() -> dict[str, Sampler]:
    """The first of each class in `ALL`, by the class in kebab case, such as "euler-maruyama", "uni-pc"."""
    words = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
    found: dict[str, Sampler] = {}
    for sampler in ALL:
        found.setdefault(words.sub("-", type(sampler).__name__).lower(), sampler)
    return found


__all__ = [
    "ALL",
    "DDIM",
    "DEIS",
    "ERSDE",
    "GRIDS",
    "AdaptiveDPMSolver",
    "Ancestral",
    "Angle",
    "AnnealedLangevin",
    "Beta",
    "ComputedPlan",
    "Cosine",
    "DPMSolver",
    "DPMSolverMultistep",
    "DPMSolverPP",
    "DPMSolverPP2SAncestral",
    "EDMHeun",
    "EulerMaruyama",
    "ExponentialAB",
    "ExponentialRK",
    "FlowODE",
    "FlowTime",
    "Form",
    "ItoExponential",
    "Karras",
    "Leapfrog",
    "LearnedAncestral",
    "LogSNR",
    "LogSNRRungeKutta",
    "NormCorrector",
    "Optimised",
    "ParallelInTime",
    "Plan",
    "PlanSampler",
    "Power",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Restart",
    "ReverseDiffusion",
    "ReverseSDE",
    "Row",
    "SASolver",
    "Sampler",
    "Samples",
    "Search",
    "SigmaRungeKutta",
    "Tabulated",
    "Tape",
    "TimeGrid",
    "TorchSDE",
    "UniPC",
    "VelocityAB",
    "by_name",
    "invert",
    "optimise_grid",
    "optimise_plan",
    "sample",
    "sensitivity",
]
