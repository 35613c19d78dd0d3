"""A plan: a sampler as a table of numbers.

Nearly every diffusion sampler is affine in the states, the model predictions and the normals it has seen,
with weights that depend on the process and the time grid only. A plan is that table, row by row:

    x_k = sum_j x[j] x_j + sum_j p[j] P_j + sum_m z[m] z_m,      P_k = read[0] x_k + read[1] E[x_0 | x_k; t_k]

From the table alone follow the cost, the memory, the exact output law on Gaussian data, and the execution.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdekit.denoisers import conversion
from sdekit.errors import check_choice
from sdekit.processes import Process
from sdekit.sampling.forms import ClosedForm, Difference, closed_form, differences

#: A register: state x_k or prediction P_k of row k.
Register = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One state and how it is made.

    Attributes:
        t: clock at which the state lives.
        x: weights on earlier states, by row.
        p: weights on earlier predictions, by the row they were read at.
        z: weights on unit normals, by number.
        read: (a, b) if the model is called at this state, giving P = a x + b E[x_0 | x; t]; None if not.
        node: index of the grid node whose state this is; None for an inner stage.
    """

    t: float
    x: Mapping[int, float]
    p: Mapping[int, float]
    z: Mapping[int, float]
    read: tuple[float, float] | None = None
    node: int | None = None

    def inputs(self) -> Iterator[tuple[Register, float]]:
        """The registers this row adds up, with their weights."""
        yield from ((("x", j), c) for j, c in self.x.items())
        yield from ((("p", j), c) for j, c in self.p.items())


@dataclass(frozen=True)
class Plan:
    """A sampler on one time grid, as rows of numbers; row 0 is the start, the last row the result.

    Attributes:
        process: the process it was written for.
        rows: the table.
        normals: per unit normal the clock interval it belongs to, or None for an independent draw.
        name: the sampler's repr.
    """

    process: Process
    rows: tuple[Row, ...]
    normals: tuple[tuple[float, float] | None, ...]
    name: str

    @property
    def nfe(self) -> int:
        """Model calls for one batch."""
        return sum(row.read is not None for row in self.rows)

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise after the start."""
        return any(row.z for row in self.rows)

    @cached_property
    def last_use(self) -> dict[Register, int]:
        """The last row that adds up each register; a register never used again is absent."""
        last = {register: k for k, row in enumerate(self.rows) for register, _ in row.inputs()}
        last["x", len(self.rows) - 1] = len(self.rows)
        return last

    @cached_property
    def registers(self) -> int:
        """States and predictions alive at once: the memory of a run, in states."""
        peak, alive = 0, set[Register]()
        for k, row in enumerate(self.rows):
            peak = max(peak, len(alive))
            alive = {r for r in alive if self.last_use.get(r, -1) > k} | {("x", k)}
            if row.read is not None:
                alive.add(("p", k))
            peak = max(peak, len(alive))
            alive = {r for r in alive if self.last_use.get(r, -1) > k}
        return peak

    def describe(self) -> str:
        """The rows as a readable table."""
        lines = [
            f"{self.name}: {len(self.rows)} rows, {self.nfe} model calls, {self.registers} registers"
        ]
        for k, row in enumerate(self.rows):
            terms = [f"{c:+.6g} {kind}{j}" for (kind, j), c in row.inputs()]
            terms += [f"{c:+.6g} z{m}" for m, c in row.z.items()]
            made = " ".join(terms) if k else "start"
            read = (
                f"   P{k} = {row.read[0]:.6g} x{k} + {row.read[1]:.6g} E[x0|x{k}]"
                if row.read
                else ""
            )
            node = "" if row.node is None else f" [{row.node}]"
            lines.append(f"t={row.t:<10.6g}{node:>6} x{k} = {made}{read}")
        return "\n".join(lines)

    def closed_form(self) -> ClosedForm:
        """Every state as weights on the start, the E[x_0 | x] of each call and the normals."""
        return closed_form(self)

    def diff(self, other: "Plan", tol: float = 1e-10) -> list[Difference]:
        """Where another plan departs from this one's rule, state by state; empty if it is the same sampler.

        Raises:
            ValueError: the plans make different numbers of calls or draw different numbers of normals.
        """
        check_plan(other, "other")
        return differences(self, other, tol)

    def native(self, prediction: str) -> "Plan":
        """The same plan on the model's own output: E[x_0 | x] = a x + b output is worked into the weights.

        The part in x of a reading moves into the rows that use it wherever that costs no register, so the
        run does no arithmetic on readings at all.
        """
        rows = list(self.rows)
        for j, row in enumerate(self.rows):
            if row.read is None:
                continue
            a, b = conversion(self.process, prediction, "data", row.t)
            on_x, on_output = float(row.read[0] + row.read[1] * a), float(row.read[1] * b)
            if self.last_use.get(("p", j), -1) > max(self.last_use.get(("x", j), -1), j + 1):
                rows[j] = replace(rows[j], read=(on_x, on_output))
                continue
            rows[j] = replace(rows[j], read=(0.0, 1.0))
            for k in range(j + 1, len(rows)):
                if (weight := rows[k].p.get(j)) is None:
                    continue
                x = {**rows[k].x, j: rows[k].x.get(j, 0.0) + weight * on_x}
                p = {**rows[k].p, j: weight * on_output}
                rows[k] = replace(rows[k], x=_nonzero(x), p=_nonzero(p))
        return replace(self, rows=tuple(rows))

    def gaussian_law(
        self, mean: Tensor | float, variances: Tensor | float, *, start: str = "prior"
    ) -> tuple[Tensor, Tensor]:
        """Exact mean and variances of the output when the data are N(mean, diag(variances)).

        The exact denoiser of Gaussian data is affine in x, so the joint law of the live registers stays
        Gaussian and is carried from row to row: no sampling, any dimension.

        Args:
            mean: a number or (d,).
            variances: a number or (d,), eigenvalues of the data covariance, >= 0.
            start: "prior" starts from the prior of the process, "exact" from the law of the data at the first
                time.

        Returns:
            mean and variances, float64 (d,) each.
        """
        check_choice("start", start, ("prior", "exact"))
        given = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (mean, variances))
        means, spreads = torch.broadcast_tensors(*given)
        if bool((spreads < 0).any()):
            raise ValueError(f"variances must be >= 0, got {spreads.tolist()}")
        law = _GaussianLaw(self.process, means, spreads)
        law.start(self.rows[0].t, exact=start == "exact")
        for k, row in enumerate(self.rows):
            if k:
                law.add(("x", k), dict(row.inputs()), fresh=sum(c * c for c in row.z.values()))
            if row.read is not None:
                law.read(k, row.t, row.read)
            law.keep({r for r in law.means if self.last_use.get(r, -1) > k})
        last = ("x", len(self.rows) - 1)
        return law.means[last], law.covariance(last, last)


def check_plan(plan: Any, name: str = "plan") -> None:
    """Refuse what is no plan: most often a sampler, whose plan needs a process and times."""
    if not isinstance(plan, Plan):
        raise TypeError(f"{name} must be a Plan such as sampler.plan(process, times), got {plan!r}")


def _nonzero(weights: Mapping[int, float]) -> dict[int, float]:
    return {j: c for j, c in weights.items() if c != 0.0}


class _GaussianLaw:
    """Means and covariances of a plan's live registers on Gaussian data, per eigen-direction."""

    def __init__(self, process: Process, mean: Tensor, variances: Tensor) -> None:
        self.process, self.mean, self.variances = process, mean, variances
        self.means: dict[Register, Tensor] = {}
        self._covariances: dict[frozenset[Register], Tensor] = {}

    def start(self, t: float, *, exact: bool) -> None:
        """The law of row 0."""
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        first, zero = ("x", 0), torch.zeros_like(self.mean)
        self.means[first] = alpha * self.mean if exact else zero
        variance = alpha**2 * self.variances + sigma**2 if exact else self.process.prior.std**2
        self._covariances[frozenset([first])] = zero + variance

    def covariance(self, a: Register, b: Register) -> Tensor:
        """Cov(a, b), (d,)."""
        return self._covariances[frozenset((a, b))]

    def add(
        self,
        name: Register,
        weights: Mapping[Register, float | Tensor],
        fresh: float = 0.0,
        shift: float | Tensor = 0.0,
    ) -> None:
        """A new register: a combination of old ones, plus fresh variance and a constant."""
        zero = torch.zeros_like(self.mean)
        shared = {
            other: sum((c * self.covariance(r, other) for r, c in weights.items()), zero)
            for other in self.means
        }
        own = sum((c * shared[r] for r, c in weights.items()), zero)
        mean = sum((c * self.means[r] for r, c in weights.items()), zero)
        for other, value in shared.items():
            self._covariances[frozenset((name, other))] = value
        self._covariances[frozenset([name])] = own + fresh
        self.means[name] = mean + shift

    def read(self, k: int, t: float, read: tuple[float, float]) -> None:
        """P_k = a x_k + b E[x_0 | x_k], with E[x_0 | x] = m + gain (x - alpha m)."""
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        a, b = read
        self.add(
            ("p", k), {("x", k): a + b * gain}, shift=b * (self.mean - gain * alpha * self.mean)
        )

    def keep(self, alive: set[Register]) -> None:
        """Forget every register but these."""
        self.means = {r: v for r, v in self.means.items() if r in alive}
        self._covariances = {pair: v for pair, v in self._covariances.items() if pair <= alive}
