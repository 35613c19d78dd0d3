"""Exact and near-exact densities from partial differential equations."""

from sdekit.pde.equations import ScalarSDE
from sdekit.pde.fokker_planck import Solution, heat_equation, solve_fokker_planck

__all__ = ["ScalarSDE", "Solution", "heat_equation", "solve_fokker_planck"]
