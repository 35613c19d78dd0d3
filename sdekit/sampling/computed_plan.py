"""A deterministic plan whose weights are given as numbers: what `optimise_plan` finds."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from sdekit.errors import CheckpointError, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.grids import Tabulated
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape
from sdekit.sampling.unrolled import Unrolled
from sdekit.storage import load_tensors, save_tensors

#: What a row may err on constant predictions, relative to its largest weight, and count as exact.
_EXACT = 1e-7


@dataclass(frozen=True, repr=False)
class ComputedPlan(PlanSampler):
    """A non-stationary linear solver of the probability flow (Shaul et al. 2024), for one process and grid.

    With D_j = E[x_0 | x_j; t_j] the states are

        x_k = sigma_k / sigma_{k-1} x_{k-1} + c D_{k-1} + sum_{j < k-1} w_kj (D_j - D_{k-1}),
        c = alpha_k - alpha_{k-1} sigma_k / sigma_{k-1},

    so whatever the weights w, every state is exact where the predictions are constant. All earlier
    predictions are kept: as many states of memory as there are model calls.

    Args:
        process: the only process it runs on.
        times: of the start, of every state at which the model is read, and of the result; not increasing.
        nodes: index of the grid time each of them belongs to, None for an inner stage.
        weights: w_k for k = 1, 2, ...: one tuple of k - 1 numbers each.
    """

    process: Process
    times: tuple[float, ...]
    nodes: tuple[int | None, ...]
    weights: tuple[tuple[float, ...], ...]

    stochastic = False

    def __post_init__(self) -> None:
        if not isinstance(self.process, Process):
            raise TypeError(f"process must be a Process, got {type(self.process).__name__}")
        low, high = self.process.t_min, self.process.t_max
        for i, t in enumerate(self.times):
            check_number(f"times[{i}]", t, low, self.times[i - 1] if i else high)
        indices = [i for i in self.nodes if i is not None]
        ends = None not in (*self.nodes[:1], *self.nodes[-1:])
        if len(self.nodes) != len(self.times) or not ends or indices != [*range(len(indices))]:
            raise ValueError(
                f"nodes must number the grid times 0, 1, ... from the first of the {len(self.times)} "
                f"times to the last, None between, got {self.nodes}"
            )
        sizes = [len(row) for row in self.weights]
        if sizes != list(range(len(self.times) - 1)):
            raise ValueError(
                f"weights must be rows of 0 .. {len(self.times) - 2} numbers, got {sizes}"
            )
        for k, row in enumerate(self.weights):
            for j, w in enumerate(row):
                check_number(f"weights[{k}][{j}]", w)
        self.grid  # noqa: B018  its times must decrease

    def __repr__(self) -> str:
        numbers = repr((self.process, self.times, self.nodes, self.weights)).encode()
        digest = hashlib.sha256(numbers).hexdigest()[:8]
        return f"ComputedPlan(id='{digest}', steps={self.steps}, calls={len(self.weights)})"

    @property
    def grid(self) -> Tabulated:
        """The one grid it runs on."""
        return Tabulated(
            tuple(t for t, i in zip(self.times, self.nodes, strict=True) if i is not None)
        )

    @property
    def steps(self) -> int:
        """Intervals of its grid."""
        return len(self.grid.nodes) - 1

    @property
    def nfe_per_step(self) -> int | None:  # type: ignore[override]
        """Model calls a step where all steps have as many, else None."""
        calls, rest = divmod(len(self.weights), self.steps)
        return None if rest else calls

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """The rows; the newest prediction takes what the others leave of the sum.

        Raises:
            ValueError: another process or another grid.
        """
        if process != self.process:
            raise ValueError(f"{self!r} was computed for {self.process!r}, not for {process!r}")
        if tuple(node.t for node in nodes) != self.grid.nodes:
            raise ValueError(
                f"{self!r} runs on its own grid only: steps={self.steps} from t = {self.times[0]:g} to "
                f"{self.times[-1]:g}, leave out grid; got {len(nodes) - 1} steps from {nodes[0].t:g} to "
                f"{nodes[-1].t:g}"
            )
        own = [process.node(t, i) for t, i in zip(self.times, self.nodes, strict=True)]
        past: list[Form] = []
        for (s, t), row in zip(pairwise(own), self.weights, strict=True):
            newest, keep = tape.data(x, s), t.sigma / s.sigma
            form = keep * x + (t.alpha - keep * s.alpha) * newest
            for weight, older in zip(row, past, strict=True):
                form = form + weight * (older - newest)
            past.append(newest)
            x = tape.node(form, t)
        return x

    @classmethod
    def from_unrolled(cls, process: Process, form: Unrolled) -> "ComputedPlan":
        """The plan with these times and these weights on all predictions but the newest.

        Raises:
            ValueError: a row is not exact on constant predictions, so it is not made of such weights alone;
                or the times increase.
        """
        curves = [(float(process.alpha(t)), float(process.sigma(t))) for t in form.times]
        alpha, sigma = np.array(curves).T
        keep = (sigma[1:] / sigma[:-1])[:, None]
        rows = form.table[1:] - keep * form.table[:-1]
        # What a row has of the start and what it leaves of the sum, over its largest weight. Rounding reaches
        # 1e-8 where an unrolled row is a small difference of numbers as large as 1 / alpha.
        excess = np.abs([rows[:, 0], rows[:, 1:].sum(1) - alpha[1:] + keep[:, 0] * alpha[:-1]])
        excess = excess.max(0) / np.abs(form.table[1:]).max(1)
        if excess.max() > _EXACT:
            raise ValueError(
                f"every row must be exact on constant predictions, row {1 + int(excess.argmax())} errs by "
                f"{excess.max():.2g} of its largest weight"
            )
        weights = tuple(tuple(row[1 : k + 1].tolist()) for k, row in enumerate(rows))
        return cls(process, tuple(form.times.tolist()), form.nodes, weights)

    def save(self, path: str | Path) -> None:
        """Write times and weights to one safetensors file, atomically."""
        flat = [w for row in self.weights for w in row]
        tensors = {
            "times": torch.tensor(self.times, dtype=torch.float64),
            "weights": torch.tensor(flat, dtype=torch.float64),
        }
        header = {"process": repr(self.process), "nodes": self.nodes}
        save_tensors(path, tensors, {"computed_plan": header})

    @classmethod
    def load(cls, path: str | Path, process: Process) -> "ComputedPlan":
        """The plan in a file written by `save`, for the process it was computed for.

        Raises:
            CheckpointError: a damaged file, one that holds no plan, or the plan of another process.
        """
        tensors, header = load_tensors(path)
        if "computed_plan" not in header:
            raise CheckpointError(f"{path} holds no computed plan, only {sorted(header)}")
        found = header["computed_plan"]
        if found["process"] != repr(process):
            raise CheckpointError(f"{path} is a plan for {found['process']}, not for {process!r}")
        times, flat = tensors["times"].tolist(), tensors["weights"].tolist()
        starts = [k * (k - 1) // 2 for k in range(len(times))]
        weights = tuple(tuple(flat[a:b]) for a, b in pairwise(starts))
        return cls(process, tuple(times), tuple(found["nodes"]), weights)
