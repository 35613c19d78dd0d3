"""Sinkhorn's iteration for two marginals and a kernel, as fast as matrix products and as safe as logarithms.

The coupling exp(f_i) K_ij exp(g_j) is scaled to one marginal and then to the other (iterative proportional
fitting; Sinkhorn 1967). Potentials of a narrow kernel span thousands of nats, so they live in logarithms; but
between two updates they move little, so the sweeps multiply the coupling of the last update by factors near
one, a matrix-vector product each, until the factors are worth absorbing into the potentials (Schmitzer 2019,
"Stabilized sparse scaling algorithms for entropy regularized transport problems").
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import NumericsError

#: Factors beyond e^30 are absorbed: products of two of them stay far from the ends of float64.
_ABSORB = 30.0


@dataclass(frozen=True, eq=False)
class Potentials:
    """The coupling exp(f_i + log K_ij + g_j), and how it was found.

    Attributes:
        f: of the rows, (n,); the rows' sums are the first marginal to round-off.
        g: of the columns, (m,).
        errors: L1 distance of the columns' sums from the second marginal after each sweep.
    """

    f: Tensor
    g: Tensor
    errors: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Factor by which a sweep shrinks the error, over the last quarter of the sweeps; NaN for one."""
        steps = max(len(self.errors) // 4, 1)
        if len(self.errors) < 2:
            return math.nan
        return (self.errors[-1] / self.errors[-1 - steps]) ** (1 / steps)


def sinkhorn(
    log_kernel: Tensor,
    log_rows: Tensor,
    log_columns: Tensor,
    tol: float,
    max_sweeps: int,
    bar: Any = None,
) -> Potentials:
    """Potentials with the marginals exp(log_rows) (n,) and exp(log_columns) (m,), of equal mass.

    Args:
        log_kernel: (n, m).
        log_rows: logarithms of the sums of the rows; -inf for none.
        log_columns: the same for the columns.
        tol: the error to stop at.
        max_sweeps: the most sweeps, one a scaling of both marginals.
        bar: of tqdm, None for none.

    Raises:
        NumericsError: the error is above `tol` after `max_sweeps`.
    """
    rows, columns = log_rows.exp(), log_columns.exp()
    g, errors = torch.zeros_like(log_columns), []
    while True:
        f = log_rows - torch.logsumexp(log_kernel + g, 1)
        coupling = torch.exp(log_kernel + f[:, None] + g)
        a, b = _scaled(coupling, rows, columns, tol, max_sweeps, errors, bar)
        f = f + a.log()
        found = Potentials(f, g + b.log(), tuple(errors))
        if errors[-1] <= tol:
            return found
        if len(errors) >= max_sweeps:
            raise NumericsError(
                f"after max_sweeps={max_sweeps} the marginal is still missed by {errors[-1]:.1e}"
                f" (tol={tol:g}); the last sweeps shrank that by {found.rate:.6g} each"
            )
        # One scaling of the columns in logarithms: it cannot underflow.
        g = log_columns - torch.logsumexp(log_kernel + f[:, None], 0)


def _scaled(
    coupling: Tensor,
    rows: Tensor,
    columns: Tensor,
    tol: float,
    max_sweeps: int,
    errors: list[float],
    bar: Any,
) -> tuple[Tensor, Tensor]:
    """Factors of rows and columns after as many sweeps as they stay moderate; their errors are appended."""
    a, b = torch.ones_like(rows), torch.ones_like(columns)
    while True:
        sums = a @ coupling
        errors.append((b * sums - columns).abs().sum().item())
        if bar is not None:
            bar.update()
        if errors[-1] <= tol or len(errors) >= max_sweeps:
            return a, b
        new_b = torch.where(columns > 0, columns / sums, 1.0)
        new_a = torch.where(rows > 0, rows / (coupling @ new_b), 1.0)
        low, high = torch.cat([new_a, new_b]).log().aminmax()
        if not (low >= -_ABSORB and high <= _ABSORB):  # also where a sum is 0
            return a, b
        a, b = new_a, new_b
