"""Where the error of a trained model's samples comes from: each approximation swapped for its exact twin."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.comparison.front_door import (
    Grid,
    check_pair,
    checked_end,
    checked_metrics,
    checked_seeds,
)
from sdekit.comparison.runs import Metric, default_metrics
from sdekit.comparison.tables import mean_and_error, with_error
from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser, device_of
from sdekit.errors import check_integer
from sdekit.records import Records
from sdekit.sampling import DDIM, Sampler, sample
from sdekit.sampling.noise import BlockNormals

#: What each swap replaces, and what it takes away from the error.
SWAPS = {
    "as it runs": "total",
    "exact score": "score error",
    "exact start": "prior mismatch",
    "exact steps": "discretisation",
    "exact end": "truncation",
}
_FLOOR = "floor of exact samples"


@dataclass(frozen=True)
class ErrorBudget(Records):
    """Rows of `error_budget`.

    Attributes:
        rows: one dict a part, with the keys part, swapped (what is exact from this row on) and for each
            metric its name (what the part adds to the error) and "... left" (the error that is left when
            the part is gone), each with its "... se" (standard error over seeds). The first row is the
            total, the last the floor, what exact samples of the same number score; the rows between add up
            with the floor to the total.
        n: samples a run.
        metric_names: of the metrics.
    """

    n: int
    metric_names: tuple[str, ...]

    def _cells(self) -> list[list[str]]:
        """Head and rows as text."""
        names = self.metric_names
        table = [["part", "swapped", *(f"{m}{left}" for m in names for left in ("", " left"))]]
        for row in self.rows:
            columns = [key for m in names for key in (m, f"{m} left")]
            found = [with_error(row[key], row[f"{key} se"]) for key in columns]
            table.append([row["part"], row["swapped"], *found])
        return table


def error_budget(
    denoiser: Denoiser,
    truth: GaussianMixture,
    *,
    sampler: Sampler | None = None,
    steps: int = 50,
    grid: Grid = None,
    metrics: Mapping[str, Metric] | None = None,
    n: int = 10_000,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    t_end: float | None = None,
) -> ErrorBudget:
    """Split the error of a model's samples into score, prior, discretisation and truncation error.

    Five sets of samples are held against the law of the data itself, at t = 0, each with one more
    approximation swapped for its exact twin:

        as it runs     the model, from the prior, in N steps to t_end
        exact score    the score of the truth in place of the model
        exact start    and x_T = alpha(T) x_0 + sigma(T) z with x_0 from the truth, in place of the prior
        exact steps    and samples of the exact law at t_end, in place of N steps
        exact end      and samples of the truth: what is left is the floor

    A part is the difference of two neighbours, so parts and floor add up to the total. All sets of a seed
    share their random numbers: the same z starts the first three, which draw the same normals on the way,
    and the last two are the images of x_T under the exact flow in 1-D (by quantiles), made of the x_0 behind
    x_T above. The standard errors are of the differences, and small where the sets stay close.

    A distance is not linear in its causes: a part is what its swap takes away in this order. Parts may be
    negative (errors can cancel), and one far below the floor hardly shows. A signed linear
    metric, such as an error of a moment, has parts that add without such effects.

    Args:
        denoiser: the model, usually trained.
        truth: the law of the data.
        sampler: DDIM() if not given.
        steps: intervals of the grid.
        grid: as for `sample`; times given as numbers must leave `t_end` out.
        metrics: by name, functions (samples, law) -> float, as for `compare`.
        n: samples a set.
        seeds: of the sets, at least two.
        t_end: where the sampler stops, 1e-3 T if not given.
    """
    check_pair(denoiser, truth)
    n, numbers = check_integer("n", n, 2), checked_seeds(seeds)
    if len(numbers) < 2:
        raise ValueError(f"seeds must be at least two, for a standard error; got {seeds!r}")
    if t_end is not None:
        checked_end(t_end, denoiser.process)
    chosen = default_metrics(truth) if metrics is None else checked_metrics(metrics)
    law = truth.at(denoiser.process, 0.0)
    how = {"sampler": sampler or DDIM(), "steps": steps, "grid": grid, "t_end": t_end}
    found: dict[str, list[list[float]]] = {name: [] for name in chosen}
    for seed in numbers:
        sets = list(_sets(denoiser, truth, seed, n, how))
        for name, metric in chosen.items():
            found[name].append([float(metric(x, law)) for x in sets])
    return ErrorBudget(_rows(found), n, tuple(chosen))


def _sets(
    denoiser: Denoiser, truth: GaussianMixture, seed: int, n: int, how: Mapping[str, Any]
) -> Iterator[Tensor]:
    """The samples of one seed: as it runs, exact score, exact start, exact steps, exact end."""
    exact, process, device = truth.denoiser(denoiser.process), denoiser.process, device_of(denoiser)
    shape, dtype = (n, truth.dim), torch.get_default_dtype()
    run = sample(denoiser, shape, seed=seed, device=device, **how)
    yield run.x
    yield sample(exact, shape, seed=seed, device=device, **how).x
    # A seed of its own: x_0 must not depend on the normals of the run.
    x_0, start = truth.sample(n, seed=seed ^ 1 << 40), run.times[0]
    z = BlockNormals(seed, 0, n, (truth.dim,), dtype, torch.device("cpu")).start().double()
    x_t = process.perturb(x_0, start, z)
    yield sample(exact, shape, seed=seed, x_init=x_t.to(device, dtype), **how).x
    end = truth.at(process, run.times[-1])
    if truth.dim > 1:
        again = torch.Generator().manual_seed(seed ^ 1 << 41)
        noise = torch.randn(shape, generator=again, dtype=torch.float64)
        yield process.perturb(x_0, run.times[-1], noise)
        yield x_0
        return
    # On the line the flow carries quantiles to quantiles.
    u = truth.at(process, start).cdf(x_t)
    yield end.quantile(u)
    yield truth.at(process, 0.0).quantile(u)


def _rows(found: Mapping[str, Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    """Total, parts and floor from the errors of each set, by metric and seed."""
    swaps = list(SWAPS)
    rows: list[dict[str, Any]] = [{"part": SWAPS[s], "swapped": s} for s in swaps]
    rows.append({"part": _FLOOR, "swapped": ""})
    for name, by_seed in found.items():
        errors = list(zip(*by_seed, strict=True))
        for k, row in enumerate(rows):
            left = errors[min(k, len(swaps) - 1)]
            before = errors[k - 1] if 0 < k < len(swaps) else [0.0] * len(left)
            part = [a - b for a, b in zip(before, left, strict=True)]
            if k in (0, len(swaps)):
                part = list(left)
            row[name], row[f"{name} se"] = mean_and_error(part)
            row[f"{name} left"], row[f"{name} left se"] = mean_and_error(left)
    return rows
