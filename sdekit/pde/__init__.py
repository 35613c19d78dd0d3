"""Exact and near-exact densities: the Fokker-Planck equation, and the laws of samplers."""

from sdekit.pde.density import Density1D, Law
from sdekit.pde.fokker_planck import Solution, heat_equation, solve_fokker_planck
from sdekit.pde.pushforward import has_exact_law, sampler_density

__all__ = [
    "Density1D",
    "Law",
    "Solution",
    "has_exact_law",
    "heat_equation",
    "sampler_density",
    "solve_fokker_planck",
]
