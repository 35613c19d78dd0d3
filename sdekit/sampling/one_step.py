"""One-step samplers: each step uses the model at its start only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, sqrt

import torch

from sdekit.errors import check_choice, check_number
from sdekit.processes import Node, Process
from sdekit.quadrature import even_panels
from sdekit.sampling.grids import Angle, Power, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True, repr=False)
class EulerMaruyama(PlanSampler):
    """Reverse SDE dx = [f x - g^2 score] dt + g dW by Euler-Maruyama.

    Anderson 1982; Song et al. 2021, eq. 6.

    Args:
        variance: of the noise of a step. "step" is g^2 h with g^2 where the step starts; "integrated" is that
            of the stochastic integral itself, int g^2 dt. The drift is the same; integrating g^2 in it too is
            worse than either. Neither is better everywhere: the second halves W2 on the two-mode mixture
            (0.022 for 0.042 at 25 steps) and doubles the error of the variance on N(0.7, 0.25).
    """

    variance: str = "step"

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("step", "integrated"))

    def __repr__(self) -> str:
        return f"EulerMaruyama({'' if self.variance == 'step' else f'variance={self.variance!r}'})"

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """x - h (f x - g^2 score) + g sqrt(h) z."""
        for s, t in pairwise(nodes):
            h = s.t - t.t
            f, g2 = (float(rate) for rate in process.rates(s.t))
            v = g2 * h if self.variance == "step" else integrated_g2(process, t.t, s.t)
            z = tape.normal((s.t, t.t))
            x = tape.node(x - h * (f * x - g2 * tape.score(x, s)) + sqrt(v) * z, t)
        return x


def integrated_g2(process: Process, s: float, t: float) -> float:
    """The integral of g^2 from s to t > s, with all its digits when they are close.

    g^2 dt = -sigma^2 d log_snr, where sigma^2 is a smooth positive function of the log-SNR for every process:
    the kinks of a tabulated beta are gone.
    """
    width = -float(process.delta_log_snr(s, t))
    places, weights = even_panels(0.0, width, 2.0)
    sigma = torch.as_tensor(process.sigma(process.time_at_log_snr(process.log_snr(s) - places)))
    return float(weights @ sigma.square())


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

    tau = 1 is SDE-DPM-Solver-1 (Lu et al. 2022b) and SEEDS-1 (Gonzalez et al. 2023), tau = 0 is DDIM. The
    mean is exact on Gaussian data. Freezing E[x_0 | x] instead, which is exact on point data as well, is
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
        """As of DDIM."""
        return Power(1.0) if self.tau else Angle()

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
