"""Checks anyone can run: the PDE against exact mixtures, and samplers against their exact Gaussian laws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.targets import two_mode
from sdekit.denoisers import Denoiser
from sdekit.elementary import widest
from sdekit.errors import check_integer
from sdekit.pde import Solution, solve_fokker_planck
from sdekit.pde.arguments import cell_averages
from sdekit.processes import VP, Heat, Process
from sdekit.records import Records
from sdekit.sampling import ALL, PlanSampler, Sampler, sample
from sdekit.sampling.engine import Engine
from sdekit.sampling.grids import usual_end
from sdekit.sampling.noise import BlockNormals


@dataclass(frozen=True)
class Run:
    """One process carried through the PDE, with the exact laws at the same times."""

    name: str
    solution: Solution
    laws: tuple[GaussianMixture, ...]

    def l1_errors(self) -> list[float]:
        """L1 distance between the cell averages and the exact ones, at each time."""
        edges = torch.from_numpy(self.solution.edges)
        h = float(edges[1] - edges[0])
        exact = [torch.from_numpy(cell_averages(law, self.solution.edges)[0]) for law in self.laws]
        found = torch.from_numpy(self.solution.density)
        return [h * (a - b).abs().sum().item() for a, b in zip(found, exact, strict=True)]


@dataclass(frozen=True)
class FokkerPlanckCheck(Records):
    """Rows of equation, t, l1 (error), mass and minimum, and the runs that they are of."""

    runs: tuple[Run, ...]

    def _cells(self) -> list[list[str]]:
        """Head and rows as text."""
        lines = [["equation", "t", "L1 error", "mass - 1", "minimum"]]
        for r in self.rows:
            numbers = [f"{r['l1']:.1e}", f"{r['mass'] - 1:.0e}", f"{r['minimum']:.0e}"]
            lines.append([r["equation"], f"{r['t']:g}", *numbers])
        return lines


def fokker_planck_check(
    cells: int = 800, times: Sequence[float] = (0.05, 0.1, 0.25, 0.5, 1.0), tol: float = 1e-7
) -> FokkerPlanckCheck:
    """VP on [-8, 8] and the heat equation on [-12, 12], from the two-mode mixture."""
    runs, rows = _fokker_planck_runs(check_integer("cells", cells, 8), times, tol), []
    for run in runs:
        solution = run.solution
        found = zip(times, run.l1_errors(), solution.mass, solution.minimum, strict=True)
        rows += [
            {"equation": run.name, "t": t, "l1": l1, "mass": float(mass), "minimum": float(least)}
            for t, l1, mass, least in found
        ]
    return FokkerPlanckCheck(rows, runs)


def fokker_planck_film(cells: int = 400, frames: int = 121) -> tuple[Run, ...]:
    """The runs of `fokker_planck_check` at `frames` equally spaced times from 0 to 1, for a picture."""
    times = torch.linspace(0, 1, check_integer("frames", frames, 2), dtype=torch.float64)
    return _fokker_planck_runs(check_integer("cells", cells, 8), times.tolist(), 1e-7)


def _fokker_planck_runs(cells: int, times: Sequence[float], tol: float) -> tuple[Run, ...]:
    """The two processes on their grids."""
    target, runs = two_mode(), []
    cases: tuple[tuple[str, Process, float], ...] = (
        ("VP", VP(), 8.0),
        ("heat equation", Heat(horizon=max(times)), 12.0),
    )
    for name, process, half in cases:
        edges = torch.linspace(-half, half, cells + 1, dtype=torch.float64)
        # Steps in time, as they read the rates f and g^2 that are to be checked.
        solution = solve_fokker_planck(process, target, edges, times, scheme="fv4", tol=tol)
        runs.append(Run(name, solution, tuple(target.at(process, t) for t in times)))
    return tuple(runs)


def law_check(
    n: int = 100_000, steps: int = 20, seed: int = 0, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Every plan of `samplers.ALL` run on N(0.7, 0.25) and held against its exact output law.

    Returns:
        A row a sampler: its name, the exact mean and variance of its output, and how many standard errors
        the mean and variance of `n` samples are off. Beyond 5 something is wrong, on this device too.
    """
    n = check_integer("n", n, 2)
    process, rows = VP(), []
    target = GaussianMixture(None, [0.7], stds=0.5)
    for sampler in (s for s in ALL if isinstance(s, PlanSampler)):
        out = sample(
            target.denoiser(process),
            (n, 1),
            sampler=sampler,
            steps=steps,
            seed=seed,
            dtype=widest(torch.device(device)),
            device=device,
        )
        assert out.plan is not None
        mean, variance = (float(v) for v in out.plan.gaussian_law(0.7, 0.25))
        x = out.x.double().cpu()
        off_mean = (x.mean().item() - mean) / math.sqrt(variance / n)
        off_variance = (x.var().item() / variance - 1) / math.sqrt(2 / n)
        rows.append(
            {
                "sampler": repr(sampler),
                "mean": mean,
                "variance": variance,
                "z_mean": off_mean,
                "z_variance": off_variance,
            }
        )
    return rows


@dataclass(frozen=True)
class PrecisionAudit:
    """How far single precision is from double on the same normals.

    Attributes:
        sampler: its repr.
        steps: of its grid.
        worst: largest difference of any coordinate of any sample.
        median: of the largest difference within each sample.
        scale: root mean square of the samples in double precision.
    """

    sampler: str
    steps: int
    worst: float
    median: float
    scale: float

    def __str__(self) -> str:
        return (
            f"{self.sampler}, {self.steps} steps: float32 is off by {self.worst:.1e} at most, "
            f"{self.median:.1e} in the median, at a scale of {self.scale:.2g}"
        )


def precision_audit(
    denoiser: Denoiser,
    sampler: Sampler,
    shape: Sequence[int],
    *,
    steps: int = 100,
    t_end: float | None = None,
    seed: int = 0,
) -> PrecisionAudit:
    """Run a sampler in float32 and in float64 on the same starts and normals, drawn in float32.

    Args:
        denoiser: exact or trained; a network computes in its own dtype in both runs.
        sampler: an instance.
        shape: (n, *event).
        steps: intervals of the sampler's own grid.
        t_end: where to stop, 1e-3 T if not given.
        seed: of the normals.
    """
    process = denoiser.process
    steps = check_integer("steps", steps, 1)
    end = usual_end(process) if t_end is None else t_end
    times = sampler.grid.times(process, steps, process.t_max, end)
    program = sampler.program(denoiser, times, "none")
    n, event = shape[0], tuple(shape[1:])

    def run(dtype: torch.dtype) -> Tensor:
        normals = BlockNormals(seed, 0, n, event, torch.float32, torch.device("cpu"))
        engine = Engine(denoiser, lambda m: normals(m).to(dtype))
        with torch.no_grad():
            return program(engine, process.prior.std * normals.start().to(dtype)).double()

    single, double = run(torch.float32), run(torch.float64)
    off = (single - double).abs().flatten(1).amax(1)
    return PrecisionAudit(
        repr(sampler),
        steps,
        off.max().item(),
        off.median().item(),
        double.square().mean().sqrt().item(),
    )
