"""Exact and near-exact densities from partial differential equations."""

from sdekit.pde.fokker_planck import Solution, heat_equation, solve_fokker_planck
from sdekit.pde.plane import PlaneSolution, solve_fokker_planck_2d
from sdekit.pde.plane_equations import PlaneSDE

__all__ = [
    "PlaneSDE",
    "PlaneSolution",
    "Solution",
    "heat_equation",
    "solve_fokker_planck",
    "solve_fokker_planck_2d",
]
