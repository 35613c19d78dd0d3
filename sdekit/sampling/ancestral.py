"""Ancestral sampling, and the variance that makes it exact on Gaussian data.

x_t | x_s, x_0 is Gaussian for t < s, with a mean keep x_s + pull x_0 and the variance beta-tilde. A step
draws from it with E[x_0 | x_s] in place of x_0. What that leaves out is the spread of x_0 about its posterior
mean, pull^2 Var(x_0 | x_s), which "optimal" adds on average.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser, evaluating
from sdekit.errors import check_choice, check_finite, check_integer, check_seed
from sdekit.processes import Node, Process
from sdekit.sampling.engine import Program
from sdekit.sampling.grids import check_times
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class Ancestral(PlanSampler):
    """Ancestral sampling, for any two times and any process.  Ho et al. 2020, algorithm 2.

    Args:
        variance: of a step. "beta_tilde" is that of x_t given x_s and x_0, exact for data at a point; "beta"
            that of the forward transition, exact for N(0, I), the other choice of that paper; "optimal" adds
            to beta-tilde the average posterior variance (Analytic-DPM, Bao et al. 2022), exact for any
            isotropic Gaussian. It depends on the model: see `fitted`. On the two-mode mixture its W2 is less
            than theirs, but of order 1 too: a variance that depends on the state is not affine.
    """

    variance: str = "beta_tilde"

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("beta", "beta_tilde", "optimal"))

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Posterior mean of x_t given x_s and E[x_0 | x_s], plus noise."""
        if self.variance == "optimal":
            raise ValueError(
                "variance='optimal' depends on the model, so it has no plan of its own; take that of "
                "Ancestral('optimal').fitted(denoiser, times)"
            )
        return _write(tape, process, nodes, x, lambda s: 0.0, whole=self.variance == "beta")

    def fitted(
        self,
        denoiser: Denoiser,
        times: Tensor | Sequence[float],
        *,
        data: Tensor | None = None,
        samples: int = 10_000,
        seed: int = 0,
    ) -> PlanSampler:
        """This sampler with the optimal variances of one model on one grid: a plan sampler like any other.

        Args:
            denoiser: exact or trained.
            times: N + 1 strictly decreasing times.
            data: draws of x_0 (n, *event), of the training set or of the model itself (`sample(...).x`).
                Needed unless the denoiser is exact.
            samples: draws of an exact denoiser's mixture, where its average has no closed form and d > 1.
            seed: of the draws and of the noise on them.
        """
        if self.variance != "optimal":
            raise ValueError(
                f"variance={self.variance!r} needs no fit; only 'optimal' depends on a model"
            )
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
        process = denoiser.process
        read = [t for t in check_times(times, process)[:-1] if process.alpha(t) > 0]
        values = posterior_variances(denoiser, read, data=data, samples=samples, seed=seed)
        return _FittedAncestral(tuple(read), tuple(values))

    def program(self, denoiser: Denoiser, times: list[float], final: str) -> Program:
        """The plan; "optimal" is fitted first, anew in every run."""
        if self.variance != "optimal":
            return super().program(denoiser, times, final)
        return self.fitted(denoiser, times).program(denoiser, times, final)


@dataclass(frozen=True, repr=False)
class _FittedAncestral(PlanSampler):
    """Ancestral sampling whose steps add an average posterior variance.  Bao et al. 2022, theorem 1.

    Args:
        times: at which the model is read.
        variances: average variance of x_0 given x at these times, per coordinate.
    """

    times: tuple[float, ...]
    variances: tuple[float, ...]

    def __repr__(self) -> str:
        numbers = np.array([self.times, self.variances]).tobytes()
        digest = blake2b(numbers, digest_size=4).hexdigest()
        return f"Ancestral(variance='optimal', {len(self.times)} times, {digest})"

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Ancestral steps with the variances of their starts."""
        known = dict(zip(self.times, self.variances, strict=True))
        if missing := [s.t for s in nodes[:-1] if s.t not in known]:
            raise ValueError(
                f"the variances were fitted at other times: t = {missing[0]:g} is none of these "
                f"{len(known)}; fit on this grid"
            )
        return _write(tape, process, nodes, x, known.__getitem__)


def _write(
    tape: Tape,
    process: Process,
    nodes: Sequence[Node],
    x: Form,
    spread: Callable[[float], float],
    *,
    whole: bool = False,
) -> Form:
    """Steps with the variance beta-tilde + pull^2 spread(s), or with the whole of the forward transition."""
    for s, t in pairwise(nodes):
        keep, pull, noise = (float(c) for c in process.bridge(s.t, t.t))
        extra = spread(s.t)
        noise = float(process.transition(t.t, s.t)[1]) if whole else noise
        noise = sqrt(noise**2 + pull**2 * extra) if extra else noise
        z = tape.normal((s.rho**-2, t.rho**-2))
        x = tape.node(keep * x + pull * tape.data(x, s) + noise * z, t)
    return x


def posterior_variances(
    denoiser: Denoiser,
    times: Sequence[float],
    *,
    data: Tensor | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> list[float]:
    """E |x_0 - E[x_0 | x_t]|^2 / d at each time: the average variance of x_0 given x_t.

    From data it is the mean squared error of the model's own estimate of them. That is never negative and
    keeps its digits at both ends, unlike sigma^2 / alpha^2 (1 - E |noise|^2 / d), the same number for the
    exact model; for an inexact one it is the variance that is optimal about an imperfect mean (Bao et al.
    2022b). An exact denoiser of one component has it in closed form, one in 1-D by quadrature.
    """
    samples, generator = check_integer("samples", samples, 2), _own_generator(seed)
    if data is None:
        mixture = getattr(denoiser, "mixture", None)
        if not isinstance(mixture, GaussianMixture):
            raise ValueError(
                "the optimal variance of a trained model is an average over data: give data=, draws of x_0 "
                "(n, *event) from the training set or from the model itself (sample(...).x)"
            )
        if len(mixture.means) == 1 or mixture.dim == 1:
            return [_exact_average(mixture, denoiser.process, t) for t in times]
        data = mixture.sample(samples, generator=generator)
    elif not len(check_finite("data", data)):
        raise ValueError("data must have at least one row, got none")
    with evaluating(denoiser), torch.no_grad():
        return [_mean_square_error(denoiser, data, t, generator) for t in times]


def _own_generator(seed: int) -> torch.Generator:
    """A stream of its own: data drawn with the same seed must not come with their own noise."""
    check_seed(check_integer("seed", seed, 0))
    key = blake2b(b"noise on data" + int(seed).to_bytes(8), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(key))


def _mean_square_error(
    denoiser: Denoiser, data: Tensor, t: float, generator: torch.Generator
) -> float:
    total = 0.0
    for x0 in data.split(8192):
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0)
        x = denoiser.process.perturb(x0, t, noise)
        total += (x0 - denoiser.data(x, t)).double().square().sum().item()
    return total / data.numel()


def _exact_average(mixture: GaussianMixture, process: Process, t: float) -> float:
    """Of one Gaussian, or of a mixture in 1-D by panels no wider than half of a component of x_t."""
    alpha2, sigma2 = float(process.alpha(t)) ** 2, float(process.sigma(t)) ** 2
    if len(mixture.means) == 1:
        variances = mixture.variances
        return float((variances * sigma2 / (alpha2 * variances + sigma2)).mean())
    x, weights = mixture.at(process, t).quadrature()
    return float(weights @ mixture.denoiser(process).variance(x, t).flatten())
