"""What the checks share: the model, draws of x_t at several noise levels, and the best linear denoiser.

Errors are counted so that all noise levels and all readings are comparable: with x_t = signal + noise, an
error of the data by d is one of the signal by alpha d, and one of the noise by -alpha d. Its square is told
as a share of the variance of x_t, of which the best linear denoiser leaves a quarter at most.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser, checked_output, device_of
from sdekit.elementary import widest
from sdekit.errors import check_finite
from sdekit.processes import Process
from sdekit.sampling.grids import LogSNR, usual_end
from sdekit.training.batches import Data, as_data
from sdekit.training.draws import step_generator
from sdekit.training.losses import labels_of

#: Noise levels, and how far from even odds of signal and noise they reach in log-SNR.
LEVELS, REACH = 9, 8.0
#: Rows that the mean and covariance of the data are taken from, and that the model sees at once.
_MOMENTS, _ROWS = 20_000, 1024
#: Numbers in an event up to which the covariance is full; the best linear denoiser of each number beyond.
_FULL = 1024


@dataclass(frozen=True)
class Probe:
    """A model and draws to try it on, all on the CPU in float64.

    Attributes:
        model: what is diagnosed.
        target: the exact law of the data, where it is known.
        x0: data (n, *event), shared out among the levels.
        noise: unit normals like x0.
        cond: conditions (n, ...) of the rows, if the model takes them.
        spectrum: variances of the data along the axes of the best linear denoiser.
        mean: of the data, (*event).
    """

    model: Denoiser
    target: GaussianMixture | None
    x0: Tensor
    noise: Tensor
    cond: Tensor | None
    spectrum: Tensor
    mean: Tensor

    @property
    def process(self) -> Process:
        """The model's."""
        return self.model.process

    @property
    def variance(self) -> float:
        """Of the data, a coordinate."""
        return self.spectrum.mean().item()

    @cached_property
    def times(self) -> list[float]:
        """From noise to data, equally spaced in log-SNR where signal and noise are both seen; or steps."""
        process, labels = self.process, labels_of(self.model)
        centre = -math.log(max(self.variance, 1e-30))
        first, last = process.t_max, max(usual_end(process), process.t_min)
        ends = float(process.log_snr(first)), float(process.log_snr(last))
        low, high = (min(max(centre + s, ends[0]), ends[1]) for s in (-REACH, REACH))
        if high - low > 1:
            first, last = (float(process.time_at_log_snr(v)) for v in (low, high))
        times = LogSNR().times(process, LEVELS - 1, first, last)
        if labels is None:
            return times
        steps = dict.fromkeys(max(round(t / process.horizon * labels), 1) for t in times)
        return [min(k / labels * process.horizon, process.t_max) for k in steps]

    def rows(self, j: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """x_0, noise and conditions of level j: as many rows at every level."""
        step, count = len(self.times), len(self.x0) // len(self.times)
        cond = None if self.cond is None else self.cond[j::step][:count]
        return self.x0[j::step][:count], self.noise[j::step][:count], cond

    @cached_property
    def states(self) -> list[Tensor]:
        """x_t of every level."""
        pairs = (self.rows(j)[:2] for j in range(len(self.times)))
        levels = zip(pairs, self.times, strict=True)
        return [self.process.perturb(x0, t, noise) for (x0, noise), t in levels]

    def power(self, t: float) -> float:
        """Variance of x_t, a coordinate."""
        return float(self.process.alpha(t)) ** 2 * self.variance + float(self.process.sigma(t)) ** 2

    def linear(self, t: float) -> float:
        """What the best linear denoiser gets wrong at t: no sensible model is worse."""
        signal, noise = float(self.process.alpha(t)) ** 2, float(self.process.sigma(t)) ** 2
        left = self.spectrum * noise / (signal * self.spectrum + noise)
        return signal * left.mean().item() / self.power(t)

    def moved(self, mean: Tensor, ratio: float) -> "Probe":
        """The same draws of the data brought to this mean (*event), and to `ratio` times their scale."""
        x0 = mean + ratio * (self.x0 - self.mean)
        target, flat = self.target, (mean - ratio * self.mean).flatten()
        if target is not None:
            means, variances = flat + ratio * target.means, ratio**2 * target.variances
            target = GaussianMixture._make(target.log_weights, means, variances, target.axes)
        spectrum = ratio**2 * self.spectrum
        return Probe(self.model, target, x0, self.noise, self.cond, spectrum, mean)

    def share(self, found: Tensor, truth: Tensor, j: int) -> Tensor:
        """Error of data predictions (n, *event) of level j as a share of the variance of x_t: (n,)."""
        return (found - truth).square().flatten(1).mean(1) * self._signal[j]

    @cached_property
    def _signal(self) -> list[float]:
        """alpha^2 / Var x_t of every level."""
        return [float(self.process.alpha(t)) ** 2 / self.power(t) for t in self.times]


def call(model: Denoiser, x: Tensor, t: float, cond: Tensor | None = None) -> Tensor:
    """The model's own output at x (n, *event) as float64 on the CPU, in blocks of rows."""
    device, parts = device_of(model), []
    there = x.to(device, widest(device))
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        given = {} if cond is None else {"cond": cond[rows].to(device)}
        parts.append(checked_output(model.predict(there[rows], t, **given), there[rows]))
    return torch.cat(parts).double().cpu()


def make_probe(model: Denoiser, data: Data, cond: Tensor | None, n: int, seed: int) -> Probe:
    """Draws of the data and its moments.

    Raises:
        ValueError, TypeError: data that is none, not finite, or does not fit its conditions.
    """
    given = as_data(data)
    target = given if isinstance(given, GaussianMixture) else None
    if isinstance(given, Tensor):
        some, given_cond, pool = _drawn(given, cond, n, seed)
    else:
        if cond is not None:
            raise ValueError("cond needs data with as many rows; endless data has none")
        pool = given.sample(max(n, _MOMENTS), generator=step_generator(seed, 0, "data"))
        some, given_cond = pool[:n], None
    pool = check_finite("data", pool.double().cpu())
    some = some.double().cpu()
    if target is not None:
        mean, spectrum = target.mean, torch.linalg.eigvalsh(target.covariance).clamp(min=0)
    else:
        mean, spectrum = _moments(pool)
    generator = step_generator(seed, 0, "noise")
    noise = torch.randn(some.shape, generator=generator, dtype=torch.float64)
    return Probe(model, target, some, noise, given_cond, spectrum, mean.reshape(some.shape[1:]))


def _drawn(
    data: Tensor, cond: Tensor | None, n: int, seed: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """n rows of the data, all of them equally often, their conditions, and rows for the moments."""
    if data.ndim == 0 or len(data) < 2:
        raise ValueError(f"data must hold two samples (N, *event) or more, got {tuple(data.shape)}")
    if data.is_complex() or data.dtype == torch.bool:
        raise TypeError(f"data must be real numbers, got {data.dtype}")
    if cond is not None and (not isinstance(cond, Tensor) or len(cond) != len(data)):
        shape = tuple(cond.shape) if isinstance(cond, Tensor) else type(cond).__name__
        raise ValueError(f"cond must be a tensor of one row a sample, {len(data)}, got {shape}")
    order = torch.randperm(len(data), generator=step_generator(seed, 0, "data"))
    places = order.repeat(-(-n // len(order)))[:n]
    return data[places], None if cond is None else cond[places], data[order[:_MOMENTS]]


def _moments(pool: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and variances along principal axes; along the coordinates where rows are too few for axes."""
    flat = pool.flatten(1)
    count, dim = flat.shape
    if dim > _FULL or count < 4 * dim:
        return flat.mean(0), flat.var(0)
    return flat.mean(0), torch.linalg.eigvalsh(torch.cov(flat.T).reshape(dim, dim)).clamp(min=0)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Eval mode without gradients; modes, buffers and torch's generators as they were afterwards."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    training = [m for m in module.modules() if m.training]
    buffers = [(b, b.clone()) for b in module.buffers()]
    with torch.random.fork_rng(), torch.no_grad():
        try:
            for m in training:
                m.training = False
            yield
        finally:
            for m in training:
                m.training = True
            for own, before in buffers:
                own.copy_(before)
