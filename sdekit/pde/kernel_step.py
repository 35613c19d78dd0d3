"""One step of a Markov chain with Gaussian noise, on densities: q(y) = int p(u) N(y; m(u), sigma^2) du.

Point values and the trapezoid rule in u (Nystrom's method), which is spectrally accurate where the kernel is
wider than the images of neighbouring nodes: the aliasing is exp(-2 pi^2 (sigma / (h m'))^2), 4e-14 at the
width kept here. Integrating the kernel over cells instead would add h^2 / 12 of variance in every step. The
map m need not be monotone.

Every source is spread with a width of a grid spacing or two, and a filter in Fourier space does the rest of a
wider kernel. For a narrower one, density and map are interpolated between the nodes first.
"""

import math
from typing import NamedTuple

import numpy as np

from sdekit.pde.density import NOISE, spline

#: Width of the spread, in spacings of the new grid: sources one spacing apart do not alias.
_SPREAD = 1.5
#: Least width of a kernel in spacings of the images: aliasing exp(-2 pi^2 1.25^2) = 4e-14.
_RESOLVED = 1.25
#: Reach of a Gaussian in its standard deviations: exp(-8.3^2 / 2) = 1e-15.
_REACH = 8.3
#: Values of Gaussians a step may take: about 50 ms.
_WORK = 1 << 22


class Grid1D(NamedTuple):
    """A density at uniform nodes."""

    nodes: np.ndarray
    rho: np.ndarray

    @property
    def spacing(self) -> float:
        """Distance of neighbouring nodes."""
        return float(self.nodes[-1] - self.nodes[0]) / (len(self.nodes) - 1)


def noisy_step(density: Grid1D, mean: np.ndarray, sigma: float) -> tuple[Grid1D, bool]:
    """The density of m(u) + sigma z on as many nodes, and whether the kernel was wide enough to resolve.

    Args:
        density: of u.
        mean: m(u) at the nodes.
        sigma: standard deviation of the noise, > 0.
    """
    n = len(density.nodes)
    low, high = _range(density.rho, mean, sigma)
    h = (high - low) / (n - 1)
    width = min(sigma, _SPREAD * h)
    present = density.rho > NOISE * density.rho.max()
    apart = np.abs(np.diff(mean))[present[1:] | present[:-1]].max(initial=0.0)
    finest = max(1, _WORK // (n * (2 * _reach(width, h) + 1)))
    between = max(1, math.ceil(_RESOLVED * apart / width))
    sources, weights = _sources(density, mean, min(between, finest))
    spread = _spread(sources, weights, low, h, n, width, padding=math.ceil(_REACH * sigma / h) + 1)
    rest = sigma**2 - width**2
    values = spread if rest <= 0 else _filtered(spread, math.sqrt(rest) / h)
    middle = (len(values) - n) // 2
    return Grid1D(
        np.linspace(low, high, n), values[middle : middle + n].clip(0.0)
    ), between <= finest


def _range(rho: np.ndarray, mean: np.ndarray, sigma: float) -> tuple[float, float]:
    """Where the new density is above round-off: each source reaches as far as its own height lets it."""
    height = np.log(np.maximum(rho / rho.max(), 1e-300)) - math.log(NOISE)
    reach = sigma * np.sqrt(2 * height.clip(0.0))
    kept = height > 0
    return float((mean - reach)[kept].min()), float((mean + reach)[kept].max())


def _sources(density: Grid1D, mean: np.ndarray, between: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights of the sources: the nodes, or `between` times as many."""
    nodes, rho = density
    if between > 1:
        fine = np.linspace(nodes[0], nodes[-1], between * (len(nodes) - 1) + 1)
        rho, mean = spline(nodes, rho)(fine), spline(nodes, mean)(fine)
    kept = rho > NOISE * rho.max()
    return mean[kept], rho[kept] * (density.spacing / between)


def _spread(
    sources: np.ndarray,
    weights: np.ndarray,
    low: float,
    h: float,
    n: int,
    width: float,
    padding: int,
) -> np.ndarray:
    """The sum of weighted Gaussians at n nodes from `low`, and at `padding` more on either side."""
    from scipy.fft import next_fast_len

    reach = _reach(width, h)
    padding = max(padding, reach)
    length = int(next_fast_len(n + 2 * padding, real=True) or 0)
    padding = (length - n) // 2
    places = (sources - low) / h
    nearest = np.rint(places)
    offsets = np.arange(-reach, reach + 1)
    away = (nearest - places)[:, None] + offsets
    heights = np.exp(-0.5 * (h / width * away) ** 2)
    heights *= (weights / (width * math.sqrt(2 * math.pi)))[:, None]
    index = (nearest.astype(np.int64) + padding)[:, None] + offsets
    # A source below round-off may lie beyond the range; what falls off the ends is nothing.
    inside = ((index >= 0) & (index < length)).ravel()
    return np.bincount(index.ravel()[inside], heights.ravel()[inside], minlength=length)


def _reach(width: float, h: float) -> int:
    """Spacings that a Gaussian of this width reaches, from the node nearest to it."""
    return math.ceil(_REACH * width / h) + 1


def _filtered(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values convolved with a Gaussian of standard deviation `sigma`, in spacings."""
    from scipy.fft import irfft, rfft, rfftfreq

    k = 2 * np.pi * rfftfreq(len(values))
    spectrum = np.asarray(rfft(values)) * np.exp(-0.5 * (sigma * k) ** 2)
    return np.asarray(irfft(spectrum, len(values)))
