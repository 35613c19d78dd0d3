"""The Schroedinger bridge on the line: of all diffusions from p0 to p1, the one nearest to a reference.

With the reference's transition density K from 0 to T, the joint law of the ends is

    p(x, y) = phi0(x) K(x, y) phi1(y)        phi0 = p0 / (K phi1),    phi1 = p1 / (K^T phi0)

(Schroedinger 1931; Fortet 1940), which Sinkhorn's iteration solves on points with the trapezoid rule,
spectrally accurate for smooth densities. The two equations give phi0 and phi1 between the points as well, so
that everything else is a sum over points as fine as its kernel needs: the density at t is
(K_0t^T phi0) (K_tT phi1), and the drift f x + g^2 d/dx log(K_tT phi1).
"""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import check_flag, check_integer, check_number, generator_of
from sdekit.pde.density import Density1D
from sdekit.pde.sinkhorn import sinkhorn
from sdekit.processes import Process

#: Kernels narrower than this many spacings alias: exp(-2 pi^2 1.2^2) = 5e-13.
_RESOLVED = 1.2
#: The largest mass that may be lost between the points or beyond them.
_LOST = 1e-6
#: The mass beyond the points, at each end.
_TAIL = 2.0**-53
#: Spacings asked of kernels to or from times between the ends; points made between two points at most.
_FINER, _FINEST = 2.0, 4096
#: Reach of a Gaussian in its standard deviations.
_REACH = 8.2
#: Numbers in a block worked on at once.
_BLOCK = 1 << 18
#: The density is nowhere above this many times the line through its values at resolving points.
_ABOVE_LINE = 1.25

#: What a sum over weighted Gaussians takes: points, log weights, factors of z and of the points, std.
Sum = tuple[Tensor, Tensor, float, float, float]


@runtime_checkable
class EndLaw(Protocol):
    """A law at one end of a bridge, such as a 1-D `GaussianMixture` or a `Density1D`."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log density in nats at x (n,) float64."""
        ...

    def quantile(self, u: Tensor, /) -> Tensor:
        """The x with P(X <= x) = u, elementwise."""
        ...


class SchrodingerBridge1D:
    """The diffusion from p0 at time 0 to p1 at time T that is nearest (in KL of paths) to a reference.

    Args:
        p0: law at time 0: `log_prob` and `quantile`, such as a 1-D `GaussianMixture`.
        p1: law at time T.
        reference: a process; its horizon is T. Brownian motion dX = D dW is
            `OrnsteinUhlenbeck(theta=0.0, D=D, horizon=T)`.
        points: uniform points on each of the two laws, out to 1e-16 of its mass.
        tol: L1 distance from p1 at which the sweeps end (p0 is met to round-off), in [1e-14, 0.01].
        max_sweeps: most sweeps. Little noise needs many: with r the maximal correlation of the ends (of
            Gaussians their correlation) a sweep shrinks the error by r^2, or by r^4 where symmetry leaves out
            the slowest mode.
        progress: whether to show a bar on stderr.

    Attributes:
        x0: points of p0, (points,) float64.
        x1: points of p1.
        sweeps: sweeps made.
        marginal_error: the distance from p1 that is left.
        rate: factor by which the last sweeps shrank it; NaN for one sweep.
        aliasing: L1 change of the marginals when the points move by half a spacing: what they do not resolve.

    Raises:
        ValueError: points that do not hold or resolve a law, the reference's noise, or the bridge.
        TypeError: no law, no process.
        NumericsError: `max_sweeps` are not enough.
    """

    def __init__(
        self,
        p0: EndLaw,
        p1: EndLaw,
        reference: Process,
        *,
        points: int = 400,
        tol: float = 1e-12,
        max_sweeps: int = 20_000,
        progress: bool = False,
    ) -> None:
        points, tol = check_integer("points", points, 16), check_number("tol", tol, 1e-14, 1e-2)
        max_sweeps = check_integer("max_sweeps", max_sweeps, 1)
        check_flag("progress", progress)
        if not isinstance(reference, Process):
            raise TypeError(f"reference must be a Process, got {type(reference).__name__}")
        self.reference, self._laws = reference, (_checked_law("p0", p0), _checked_law("p1", p1))
        self.x0, self.x1 = self._x = tuple(_points(law, points) for law in self._laws)
        self._h = tuple(float(x[-1] - x[0]) / (points - 1) for x in self._x)
        self._log_norm = self._check_laws()
        self._scale, self._std = map(float, reference.transition(0.0, reference.horizon))
        self._check_noise()
        rows, columns = (self._log_mass(end, x) for end, x in enumerate(self._x))
        with _bar(progress) as bar:
            found = sinkhorn(self._log_kernel(), rows, columns, tol, max_sweeps, bar)
        self._potentials = found.f, found.g
        self.sweeps, self.marginal_error = len(found.errors), found.errors[-1]
        self.rate = found.rate
        self.aliasing = max(self._aliasing(0), self._aliasing(1))
        if self.aliasing > _LOST + 2 * self.marginal_error:
            raise ValueError(
                f"points must resolve the bridge: {points} of them moved by half a spacing change its"
                f" marginals by {self.aliasing:.1e}, at most {_LOST:g} is allowed; try points={2 * points}"
            )

    def __repr__(self) -> str:
        return (
            f"SchrodingerBridge1D({len(self.x0)} points, {self.sweeps} sweeps,"
            f" marginal_error={self.marginal_error:.1e}, rate={self.rate:.4g})"
        )

    # ---- what it gives ---------------------------------------------------------------------------
    def coupling(self) -> Tensor:
        """The joint density of X_0 and X_T at (x0, x1), (points, points)."""
        return self._masses() / math.prod(self._h)

    @property
    def log_potentials(self) -> tuple[Tensor, Tensor]:
        """(log phi0 at x0, log phi1 at x1), up to a constant moved from one to the other."""
        f, g = self._potentials
        return f - math.log(self._h[0]), g - math.log(self._h[1])

    @property
    def covariance(self) -> float:
        """Cov(X_0, X_T)."""
        p = self._masses()
        return float((self.x0 - p.sum(1) @ self.x0) @ p @ (self.x1 - p.sum(0) @ self.x1))

    def marginal(self, t: float) -> Density1D:
        """The law of X_t, t in [0, T], on as many points as the ends have."""
        t = check_number("t", t, 0.0, self.reference.horizon)
        if t in (0.0, self.reference.horizon):
            end = 0 if t == 0 else 1
            z, log_p = self._x[end], self._log_mass(end, self._x[end]) - math.log(self._h[end])
        else:
            a, b, std = self._pinned(0.0, t)
            low, high = (float(a * self.x0[i] + b * self.x1[i]) for i in (0, -1))
            z = _linspace(low - _REACH * std, high + _REACH * std, len(self.x0))
            log_p = _log_sum(z, self._seen(0, t)) + _log_sum(z, self._seen(1, t))
        nodes = z.numpy()
        return Density1D(nodes, log_p.exp().numpy(), nodes, np.ones_like(nodes), t=t)

    def drift(self, x: Tensor, t: float) -> Tensor:
        """f x + g^2 d/dx log E[phi1(X_T) | X_t = x], of the bridge's own SDE; any shape, t in [0, T)."""
        t = check_number("t", t, 0.0, self.reference.horizon, open_high=True)
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
        f, g2 = (float(c) for c in self.reference.rates(t))
        z = x.detach().flatten().double().cpu()
        points, _, scale, _, std = seen = self._seen(1, t)
        ends = torch.cat([terms.softmax(1) @ points for terms in _terms(z, seen)])
        return (f * z + g2 * scale * (ends - scale * z) / std**2).to(x).reshape(x.shape)

    def sample(
        self,
        n: int,
        *,
        times: Iterable[float] | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`n` independent paths at increasing `times`, (n, len(times)); the two ends if none are given.

        Draws are exact: X_0 by its quantiles, X_T given X_0 by rejection from the piecewise linear density
        through the points, and between them the reference pinned at its ends.
        """
        n, generator = check_integer("n", n, 0), generator_of(seed, generator)
        T = self.reference.horizon
        clock = [0.0, T] if times is None else [check_number("times", t, 0.0, T) for t in times]
        if any(s >= t for s, t in pairwise(clock)):
            raise ValueError(f"times must increase, got {clock}")
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        x = torch.as_tensor(self._laws[0].quantile(u.clamp(_TAIL, 1 - _TAIL)))
        end = self._draw_end(x, generator)
        columns, s = [], 0.0
        for t in clock:
            if t == T:
                x = end
            elif t > s:
                a, b, std = self._pinned(s, t)
                z = torch.randn(n, generator=generator, dtype=torch.float64)
                x, s = a * x + b * end + std * z, t
            columns.append(x)
        return torch.stack(columns, 1)

    # ---- private ---------------------------------------------------------------------------------
    def _log_mass(self, end: int, x: Tensor) -> Tensor:
        """Log of the density of an end times the spacing of its points, at x."""
        return self._laws[end].log_prob(x).double() + self._log_norm[end]

    def _log_kernel(self) -> Tensor:
        return _log_gaussian(self.x1 - self._scale * self.x0[:, None], self._std)

    def _masses(self) -> Tensor:
        """The coupling times both spacings."""
        f, g = self._potentials
        return torch.exp(f[:, None] + self._log_kernel() + g)

    def _log_potential(self, end: int, x: Tensor) -> Tensor:
        """log(phi times the spacing) at any x: what the equation of this end says."""
        other = 1 - end
        found = self._sum(other, self._x[other], self._potentials[other], self._scale, self._std)
        return self._log_mass(end, x) - _log_sum(x, found)

    def _sum(self, end: int, points: Tensor, logs: Tensor, scale: float, std: float) -> Sum:
        """The sum over points of an end of transitions of this scale and std: from 0 to z, or from z to 1."""
        return points, logs, *((scale, 1.0) if end else (1.0, scale)), std

    def _seen(self, end: int, t: float) -> Sum:
        """The potential of an end carried to t, on points as fine as that needs."""
        T, x = self.reference.horizon, self._x[end]
        scale, std = map(float, self.reference.transition(*((t, T) if end else (0.0, t))))
        finer = math.ceil(_FINER * self._h[end] * (1.0 if end else scale) / std)
        if finer > _FINEST:
            raise ValueError(
                f"t must be an end, or further from it than {t:g}: the noise in between has standard"
                f" deviation {std:.1e}, below {_FINER / _FINEST:.1e} spacings"
            )
        logs = self._potentials[end]
        if finer > 1:
            x = _linspace(float(x[0]), float(x[-1]), (len(x) - 1) * finer + 1)
            logs = self._log_potential(end, x) - math.log(finer)
        return self._sum(end, x, logs, scale, std)

    def _pinned(self, s: float, t: float) -> tuple[float, float, float]:
        """(a, b, std) of the reference at t given X_s and X_T: N(a X_s + b X_T, std^2)."""
        before = tuple(map(float, self.reference.transition(s, t)))
        after = tuple(map(float, self.reference.transition(t, self.reference.horizon)))
        total = math.hypot(after[0] * before[1], after[1])
        a, b = before[0] * (after[1] / total) ** 2, after[0] * (before[1] / total) ** 2
        return a, b, before[1] * after[1] / total

    def _draw_end(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """X_T given each X_0: what is refused is proposed again."""
        end, left = torch.empty_like(x), torch.arange(len(x))
        while len(left):
            refused = []
            for part in left.split(max(1, _BLOCK // len(self.x1))):
                y, accepted = self._propose(x[part], generator)
                end[part[accepted]] = y[accepted]
                refused.append(part[~accepted])
            left = torch.cat(refused)
        return end

    def _propose(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points from the line through the density of X_T given x at `x1`, and which of them to keep."""
        terms = self._potentials[1] - ((self.x1 - self._scale * x[:, None]) / self._std) ** 2 / 2
        weights, log_total = terms.softmax(1), terms.logsumexp(1)
        u, v, w = torch.rand(3, len(x), generator=generator, dtype=torch.float64)
        # A hat around each point, as heavy as the density there: together the line through its values.
        place = torch.multinomial(weights, 1, generator=generator)[:, 0] + u + v - 1
        left = place.floor().long().clamp(0, len(self.x1) - 2)
        y, part = self.x1[0] + self._h[1] * place, place - left
        low, high = (weights.gather(1, k[:, None])[:, 0] for k in (left, left + 1))
        line = torch.lerp(low, high, part)
        log_p = self._log_potential(1, y) - ((y - self._scale * x) / self._std) ** 2 / 2 - log_total
        inside = (place >= 0) & (place <= len(self.x1) - 1)
        return y, inside & (w * _ABOVE_LINE * line < log_p.exp())

    def _check_laws(self) -> tuple[float, float]:
        """log(spacing / mass on the points) of both laws, whose points must hold and resolve them."""
        norms = []
        for name, law, x, h in zip(("p0", "p1"), self._laws, self._x, self._h, strict=True):
            narrowest, points = getattr(law, "narrowest", math.inf), len(x)
            if narrowest < _RESOLVED * h:
                enough = 1 + math.ceil((points - 1) * _RESOLVED * h / narrowest)
                raise ValueError(
                    f"points must be at least {enough} to give {_RESOLVED} spacings to the narrowest standard"
                    f" deviation of {name}, {narrowest:.3g}, got {points}"
                )
            mass = h * float(law.log_prob(x).double().exp().sum())
            if not abs(mass - 1) <= _LOST:
                raise ValueError(
                    f"points must hold and resolve {name}: on {points} of them in [{x[0]:g}, {x[-1]:g}] its"
                    f" mass is {mass:.9g}, off 1 by more than {_LOST:g}"
                )
            norms.append(math.log(h / mass))
        return norms[0], norms[1]

    def _check_noise(self) -> None:
        """Small noise spreads one end, given the other, by about std sqrt(h1 / (scale h0))."""
        h, points = math.sqrt(self._scale * self._h[0] * self._h[1]), len(self.x0)
        if self._std < _RESOLVED * h:
            enough = 1 + math.ceil((points - 1) * _RESOLVED * h / self._std)
            raise ValueError(
                f"points must be at least {enough} for the noise of {self.reference!r}: its standard"
                f" deviation {self._std:.3g} must span {_RESOLVED} spacings; got {points}"
            )

    def _aliasing(self, end: int) -> float:
        """L1 change of the other end's marginal when the points of this end move by half a spacing."""
        moved = self._x[end][:-1] + self._h[end] / 2
        logs, z = self._log_potential(end, moved), self._x[1 - end]
        sums = _log_sum(z, self._sum(end, moved, logs, self._scale, self._std))
        found = (self._potentials[1 - end] + sums).exp()
        return float((found - self._log_mass(1 - end, z).exp()).abs().sum())


def _log_gaussian(difference: Tensor, std: float) -> Tensor:
    return -0.5 * (difference / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


def _log_sum(z: Tensor, found: Sum) -> Tensor:
    """log sum_j exp(logs_j) N(p z; q points_j, std^2) at each z."""
    std = found[-1]
    sums = torch.cat([terms.logsumexp(1) for terms in _terms(z, found)])
    return sums - math.log(std * math.sqrt(2 * math.pi))


def _terms(z: Tensor, found: Sum) -> Iterator[Tensor]:
    """Exponents of that sum, (part of z, points), a block at a time."""
    points, logs, p, q, std = found
    for part in z.split(max(1, _BLOCK // len(points))):
        yield logs - 0.5 * ((p * part[:, None] - q * points) / std) ** 2


def _points(law: EndLaw, points: int) -> Tensor:
    """Uniform points over all but 1e-16 of the mass at each end."""
    low, high = law.quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)).tolist()
    return _linspace(low, high, points)


def _linspace(low: float, high: float, points: int) -> Tensor:
    return torch.linspace(low, high, points, dtype=torch.float64)


def _checked_law(name: str, law: Any) -> EndLaw:
    dim = getattr(law, "dim", 1)
    if not isinstance(law, EndLaw) or dim != 1:
        given = f"d = {dim}" if isinstance(law, EndLaw) else type(law).__name__
        raise TypeError(
            f"{name} must be a law on the line with log_prob and quantile, such as a 1-D GaussianMixture,"
            f" got {given}"
        )
    if getattr(law, "narrowest", 1.0) == 0:
        raise ValueError(f"{name} must have a density: no component of standard deviation 0")
    return law


def _bar(progress: bool) -> Any:
    """A progress bar of the sweeps, or nothing."""
    if not progress:
        return nullcontext()
    from tqdm import tqdm

    return tqdm(desc="sweeping", unit="sweep", file=sys.stderr)
