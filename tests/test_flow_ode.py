"""torchdiffeq's methods: what is refused and why, conditions by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.flow_ode import ADAPTIVE, FIXED, REFUSED

F64 = torch.float64
VP, VE = sk.VP(), sk.VE()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=F64)[:, None]


class Moved(nn.Module):
    """The exact denoiser of data moved by `cond`."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return TOY.denoiser(VP).data(x - torch.as_tensor(VP.alpha(t))[:, None] * cond, t) + cond


def test_every_method_of_torchdiffeq_is_offered_or_refused() -> None:
    from torchdiffeq._impl.odeint import SOLVERS

    assert sorted(SOLVERS) == sorted([*ADAPTIVE, *FIXED, *REFUSED])


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("explicit_adams", "it is unstable"),
        ("fixed_adams", "older name of 'implicit_adams'"),
        ("scipy_solver", "'dopri5', 'bosh3' and 'dopri8' again"),
    ],
)
def test_a_refusal_has_a_reason(method: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"method '{method}' is not offered: .*{reason}"):
        ss.FlowODE(method)


def test_explicit_adams_is_unstable() -> None:
    """On VE its error grows with the steps, where that of rk4 falls."""
    from torchdiffeq import odeint

    start, flow = VE.prior.std * STARTS, sk.ProbabilityFlow(TOY.denoiser(VE))
    exact = TOY.at(VE, 1e-3).quantile(TOY.at(VE, VE.t_max).cdf(start))

    def error(method: str, steps: int) -> float:
        times = torch.linspace(VE.t_max, 1e-3, steps + 1, dtype=F64)
        states = odeint(flow, start, times, method=method)
        assert isinstance(states, Tensor)
        return (states[-1] - exact).abs().max().item()

    assert error("explicit_adams", 128) > error("explicit_adams", 32) > 1e3
    assert error("rk4", 128) < 1e-6 < error("rk4", 32) < 1e-3


def test_the_flow_takes_conditions() -> None:
    from torchdiffeq import odeint

    shifts = torch.linspace(-3, 3, 6, dtype=F64)[:, None]
    model = sk.NetworkDenoiser(Moved(), VP, prediction="data")
    flow = sk.ProbabilityFlow(model, cond=shifts)
    assert torch.equal(flow(0.3, STARTS), model.velocity(STARTS, 0.3, cond=shifts))
    times, moved = torch.tensor([1.0, 1e-2], dtype=F64), STARTS + VP.alpha(1.0) * shifts
    states = odeint(flow, moved, times, rtol=1e-8, atol=1e-8, options=flow.options(times))
    assert isinstance(states, Tensor)
    exact = TOY.at(VP, 1e-2).quantile(TOY.at(VP, 1.0).cdf(STARTS)) + VP.alpha(1e-2) * shifts
    assert (states[-1] - exact).abs().max() < 1e-6


@pytest.mark.parametrize("bad", ["explicit", None, 5])
def test_unknown_methods(bad: Any) -> None:
    with pytest.raises(ValueError, match="method must be one of"):
        ss.FlowODE(bad)


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_coupled_says_whether_batch_mates_matter(method: str) -> None:
    """At a middling tolerance, of the six starts alone and together."""
    sampler = ss.FlowODE(method, rtol=1e-4, atol=1e-4)

    def run(x: Tensor) -> Tensor:
        return sk.sample(
            TOY.denoiser(VP), (len(x), 1), sampler=sampler, steps=12, grid="uniform", x_init=x
        ).x

    alone = torch.cat([run(x[None]) for x in STARTS])
    off = (run(STARTS) - alone).abs().max().item()
    assert off > 1e-8 if sampler.coupled else off < 1e-12


def test_jumping_rates_cost_nothing():
    """A chain of 1,000 betas beside the process it discretises: as many calls, as small an error."""
    target, z = sk.data.two_mode(), torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    calls = []
    for process in (sk.VP(), sk.VP.from_betas(betas)):
        sampler = sk.samplers.FlowODE(rtol=1e-7, atol=1e-7)
        out = sk.sample(target.denoiser(process), (21, 1), sampler=sampler, x_init=z)
        ranks = target.at(process, out.times[0]).cdf(z)
        exact = target.at(process, out.times[-1]).quantile(ranks)
        assert (out.x - exact).abs().max() < 5e-6
        calls.append(out.nfe)
    assert calls[1] <= 1.1 * calls[0] < 130


class CosineFlow(nn.Module):
    """The velocity of data N(0.7, 0.25) under VP with the cosine schedule, written out."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle, first = (t + 0.008) / 1.008 * math.pi / 2, 0.008 / 1.008 * math.pi / 2
        alpha = (angle.cos() / math.cos(first))[:, None]
        slope = (-angle.sin() * math.pi / 2 / 1.008 / math.cos(first))[:, None]
        return 0.7 * slope - 0.75 * alpha * slope / (1 - 0.75 * alpha**2) * (x - 0.7 * alpha)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_from_where_the_signal_has_vanished(method: str) -> None:
    """At t = 1 alpha is 0 and beta infinite; the velocity is neither, and a network may tell it."""
    process = sk.VP(schedule=sk.schedules.Cosine())
    assert process.alpha(1.0) == 0
    model = sk.NetworkDenoiser(CosineFlow(), process, prediction="velocity")
    sampler = ss.FlowODE(method, rtol=1e-9, atol=1e-9)
    out = sk.sample(model, (6, 1), sampler=sampler, x_init=STARTS, t_start=1.0, t_end=1e-2)
    alpha = process.alpha(1e-2)
    exact = 0.7 * alpha + (1 - 0.75 * alpha**2) ** 0.5 * STARTS
    assert (out.x - exact).abs().max() < 1e-7
