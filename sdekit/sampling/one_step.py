"""One-step samplers: each step uses the model at its start only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, log, sqrt

import torch

from sdekit.errors import check_choice, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.grids import Angle, LogSNR, Power, TimeGrid
from sdekit.sampling.quadrature import panels
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True, repr=False)
class EulerMaruyama(PlanSampler):
    """Reverse SDE dx = [f x - g^2 score] dt + g dW by Euler-Maruyama.

    Anderson 1982; Song et al. 2021, eq. 6.

    Args:
        rates: "start" takes f and g^2 where the step starts, times h; "integrated" their integrals over the
            step, in the drift and in the noise. The second depends on the log-SNR of the nodes alone, not on
            how the process runs through it, and errs about half as much on a uniform grid.
    """

    rates: str = "start"

    def __post_init__(self) -> None:
        check_choice("rates", self.rates, ("start", "integrated"))

    def __repr__(self) -> str:
        return "EulerMaruyama()" if self.rates == "start" else f"EulerMaruyama({self.rates!r})"

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """x - h (f x - g^2 score) + g sqrt(h) z."""
        for s, t in pairwise(nodes):
            if self.rates == "start":
                f, g2 = ((s.t - t.t) * float(rate) for rate in process.rates(s.t))
            else:
                f, g2 = integrated_rates(process, t.t, s.t)
            z = tape.normal((s.t, t.t))
            x = tape.node(x - f * x + g2 * tape.score(x, s) + sqrt(g2) * z, t)
        return x


def integrated_rates(process: Process, s: float, t: float) -> tuple[float, float]:
    """Integrals of f and g^2 from s to t > s, with all their digits when s and t are close.

    f is the slope of log alpha. g^2 dt = -sigma^2 d log_snr, and sigma^2 is a smooth positive function of the
    log-SNR for every process, with kinks of beta(t) gone.
    """
    scale, _ = process.transition(s, t)
    width = -float(process.delta_log_snr(s, t))
    places, weights = (torch.from_numpy(v) for v in panels(0.0, width, 2.0))
    sigma = torch.as_tensor(process.sigma(process.time_at_log_snr(process.log_snr(s) - places)))
    return log(float(scale)), float(weights @ sigma.square())


@dataclass(frozen=True)
class ReverseDiffusion(PlanSampler):
    """Reverse diffusion sampling: the forward chain discretised backwards.  Song et al. 2021, eq. 46.

    A forward step x_s = a x_t + v z of the chain (the exact transition from t to s) is undone by
    x - (a - 1) x + v^2 score + v z; for VP chains a = sqrt(1 - beta_i), v^2 = beta_i, for VE a = 1.
    """

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """(2 - a) x + v^2 score + v z."""
        for s, t in pairwise(nodes):
            scale, std = (float(c) for c in process.transition(t.t, s.t))
            z = tape.normal((s.rho**-2, t.rho**-2))
            x = tape.node((2 - scale) * x + std**2 * tape.score(x, s) + std * z, t)
        return x


@dataclass(frozen=True)
class DDIM(PlanSampler):
    """Denoising diffusion implicit models.  Song, Meng & Ermon 2021, eqs. 12 and 16, for any process.

    eta = 0 is the first-order exponential integrator of the probability flow (also DPM-Solver-1), eta = 1 is
    ancestral sampling with beta-tilde.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 0, 1)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """eta > 0."""
        return self.eta > 0

    @property
    def grid(self) -> TimeGrid:
        """The angle grid, optimal for the deterministic step on Gaussian data; uniform with noise."""
        return Power(1.0) if self.eta else Angle()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """alpha E[x_0 | x] + sqrt(sigma^2 - v) noise + sqrt(v) z."""
        for s, t in pairwise(nodes):
            shrink = -expm1(float(process.delta_log_snr(t.t, s.t)))  # 1 - snr_s / snr_t
            v = self.eta**2 * t.sigma**2 * shrink
            # x = alpha data + sigma noise, so the noise needs no second reading
            keep = sqrt(t.sigma**2 - v) / s.sigma
            form = keep * x + (t.alpha - keep * s.alpha) * tape.data(x, s)
            if self.eta:
                form = form + sqrt(v) * tape.normal((s.rho**-2, t.rho**-2))
            x = tape.node(form, t)
        return x


@dataclass(frozen=True)
class ItoExponential(PlanSampler):
    """Exact solution of the reverse SDE of constant tau with the noise prediction frozen over a step.

    tau = 1 is SDE-DPM-Solver-1 (Lu et al. 2022b) and SEEDS-1 (Gonzalez et al. 2023), tau = 0 is DDIM. The mean
    is exact on Gaussian data. Freezing E[x_0 | x] instead, which is exact on point data as well, is
    `DPMSolverPP(order=1, tau=tau)`: DDIM with 1 - e^(-2 tau^2 h) = eta^2 (1 - e^(-2h)) in every step.
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        check_number("tau", self.tau, 0)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """tau > 0."""
        return self.tau > 0

    @property
    def grid(self) -> TimeGrid:
        """Uniform in log-SNR."""
        return LogSNR()

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """alpha_t / alpha_s x - (1 + tau^2) sigma (e^h - 1) noise + tau sigma sqrt(e^(2h) - 1) z."""
        for s, t in pairwise(nodes):
            h = t.half_log_snr - s.half_log_snr
            gain = (1 + self.tau**2) * t.sigma * expm1(h)
            form = t.alpha / s.alpha * x - gain * tape.noise(x, s)
            if self.tau:
                z = tape.normal((s.rho**-2, t.rho**-2))
                form = form + self.tau * t.sigma * sqrt(expm1(2 * h)) * z
            x = tape.node(form, t)
        return x
