"""Exact densities: the Fokker-Planck equation, the laws of samplers, what a score must satisfy, a bridge."""

from sdekit.pde.bridge import SchrodingerBridge1D
from sdekit.pde.density import Density1D, Law
from sdekit.pde.fokker_planck import Solution, heat_equation, solve_fokker_planck
from sdekit.pde.plane import PlaneSolution, solve_fokker_planck_2d
from sdekit.pde.pushforward import has_exact_law, sampler_density
from sdekit.pde.residuals import (
    ScoreResidual,
    TweedieCheck,
    curl_ratio,
    score_fpe_residual,
    tweedie_check,
)
from sdekit.pde.score_report import ScoreReport, score_report
from sdekit.pde.sde import SDE

__all__ = [
    "SDE",
    "Density1D",
    "Law",
    "PlaneSolution",
    "SchrodingerBridge1D",
    "ScoreReport",
    "ScoreResidual",
    "Solution",
    "TweedieCheck",
    "curl_ratio",
    "has_exact_law",
    "heat_equation",
    "sampler_density",
    "score_fpe_residual",
    "score_report",
    "solve_fokker_planck",
    "solve_fokker_planck_2d",
    "tweedie_check",
]
