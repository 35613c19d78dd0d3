"""Samplers, their grids, and the front door `sample`; public as `sdekit.samplers`."""

from sdekit.sampling.computed_plan import ComputedPlan
from sdekit.sampling.edm import EDMHeun
from sdekit.sampling.flow_ode import FlowODE, ProbabilityFlow
from sdekit.sampling.front_door import Samples, sample
from sdekit.sampling.grids import GRIDS, Angle, Karras, LogSNR, Power, TimeGrid
from sdekit.sampling.multistep import DPMSolverPP, ExponentialAB
from sdekit.sampling.one_step import DDIM, Ancestral, EulerMaruyama
from sdekit.sampling.optimise import Optimised, Search, optimise_grid, optimise_plan
from sdekit.sampling.plan import Plan, Row
from sdekit.sampling.predictor_corrector import PredictorCorrector
from sdekit.sampling.reverse_sde import ReverseSDE, TorchSDE
from sdekit.sampling.sampler import PlanSampler, Sampler
from sdekit.sampling.single_step import DPMSolver, SigmaRungeKutta
from sdekit.sampling.tabulated import Tabulated
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
    DPMSolverPP(),
    DPMSolverPP(tau=1.0),
    UniPC(),
    EDMHeun(),
    DPMSolver(),
    DPMSolver(order=3),
    SigmaRungeKutta(),
    FlowODE(),
    TorchSDE(),
)

__all__ = [
    "ALL",
    "DDIM",
    "GRIDS",
    "Ancestral",
    "Angle",
    "ComputedPlan",
    "DPMSolver",
    "DPMSolverPP",
    "EDMHeun",
    "EulerMaruyama",
    "ExponentialAB",
    "FlowODE",
    "Form",
    "Karras",
    "LogSNR",
    "Optimised",
    "Plan",
    "PlanSampler",
    "Power",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseSDE",
    "Row",
    "Sampler",
    "Samples",
    "Search",
    "SigmaRungeKutta",
    "Tabulated",
    "Tape",
    "TimeGrid",
    "TorchSDE",
    "UniPC",
    "optimise_grid",
    "optimise_plan",
    "sample",
]
