"""Exact and near-exact densities from partial differential equations."""

from sdekit.pde.bridge import SchrodingerBridge1D
from sdekit.pde.fokker_planck import Solution, heat_equation, solve_fokker_planck
from sdekit.pde.residuals import (
    ScoreResidual,
    TweedieCheck,
    curl_ratio,
    score_fpe_residual,
    tweedie_check,
)
from sdekit.pde.score_report import ScoreReport, score_report

__all__ = [
    "SchrodingerBridge1D",
    "ScoreReport",
    "ScoreResidual",
    "Solution",
    "TweedieCheck",
    "curl_ratio",
    "heat_equation",
    "score_fpe_residual",
    "score_report",
    "solve_fokker_planck",
    "tweedie_check",
]
