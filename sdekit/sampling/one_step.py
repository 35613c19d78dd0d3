"""One-step samplers: each step uses the model at its start only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, sqrt

from sdekit.errors import check_choice, check_number
from sdekit.processes import Node, Process
from sdekit.sampling.grids import Angle, Power, TimeGrid
from sdekit.sampling.sampler import PlanSampler
from sdekit.sampling.tape import Form, Tape


@dataclass(frozen=True)
class EulerMaruyama(PlanSampler):
    """Reverse SDE dx = [f x - g^2 score] dt + g dW by Euler-Maruyama.

    Anderson 1982; Song et al. 2021, eq. 6.
    """

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """x - h (f x - g^2 score) + g sqrt(h) z."""
        for s, t in pairwise(nodes):
            h = s.t - t.t
            f, g2 = (float(rate) for rate in process.rates(s.t))
            z = tape.normal((s.t, t.t))
            x = tape.node(x - h * (f * x - g2 * tape.score(x, s)) + sqrt(g2 * h) * z, t)
        return x


@dataclass(frozen=True)
class Ancestral(PlanSampler):
    """Ancestral sampling, for any two times and any process.  Ho et al. 2020, algorithm 2.

    x_t | x_s, x_0 is Gaussian with variance beta-tilde; "beta" takes the variance of the forward transition
    instead, the other choice of that paper. beta-tilde is exact for data at a point, beta for N(0, I).
    """

    variance: str = "beta_tilde"

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("beta", "beta_tilde"))

    def write(self, tape: Tape, process: Process, nodes: Sequence[Node], x: Form) -> Form:
        """Posterior mean of x_t given x_s and E[x_0 | x_s], plus noise."""
        for s, t in pairwise(nodes):
            scale, std = (float(c) for c in process.transition(t.t, s.t))
            keep, pull = scale * (t.sigma / s.sigma) ** 2, t.alpha * (std / s.sigma) ** 2
            noise = std if self.variance == "beta" else std * t.sigma / s.sigma
            z = tape.normal((s.rho**-2, t.rho**-2))
            x = tape.node(keep * x + pull * tape.data(x, s) + noise * z, t)
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
