"""The chain of learned variances: its exact law where it is exact, its order elsewhere, and how it runs."""

# pyright: reportArgumentType=false
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import BadRow, bad_input, log_snr_times, normal
from torch import Tensor, nn

import sdekit as sk
from sdekit import samplers as ss
from sdekit.data.mixtures import GaussianMixture
from sdekit.ddpm import DDPM, linear_betas
from sdekit.processes import ALL as PROCESSES
from sdekit.sampling.engine import Engine

F64 = torch.float64
VP = sk.VP()
CHAIN = DDPM(linear_betas(20, 1e-3, 0.3))
LEARNED = ss.LearnedAncestral()
STRETCHED = GaussianMixture(None, [[0.7, -1.0]], [[0.1, 1.5]])


def run(denoiser: sk.Denoiser, times: list[float], start: Tensor, normals: Tensor, **how: Any):
    """The final state from given normals (M, n, *event); the sampler and what to do last can be told."""
    sampler, final = how.get("sampler", LEARNED), how.get("final", "none")
    engine = Engine(denoiser, lambda m: normals[m])
    with torch.no_grad():
        return sampler.program(denoiser, times, final)(engine, start.clone()), engine.nfe


def affine_law(denoiser: sk.Denoiser, times: list[float], mean: Tensor, std: Tensor):
    """Mean and variance (d,) of an affine chain from N(mean, std^2), by its responses to unit impulses."""
    steps, d = len(times) - 1, len(mean)
    start = mean.repeat(steps + 2, 1)
    start[1] += std
    normals = torch.zeros(steps, steps + 2, d, dtype=F64)
    for m in range(steps):
        normals[m, m + 2] = 1
    out, _ = run(denoiser, times, start, normals)
    return out[0], (out[1:] - out[0]).square().sum(0)


# --------------------------------------------------------------------------- exact on Gaussians


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 13])
def test_exact_on_independent_gaussians(process, steps):
    """Any number of steps, any path, a width for each coordinate: the mean and variance recursion closes."""
    times = log_snr_times(process, steps)
    first, last = (STRETCHED.at(process, t) for t in (times[0], times[-1]))
    mean, variance = affine_law(
        STRETCHED.denoiser(process), times, first.means[0], first.variances[0].sqrt()
    )
    scale = first.variances.sqrt().max().item()
    assert (mean - last.means[0]).abs().max() < 1e-10 * scale
    assert (variance / last.variances[0] - 1).abs().max() < 1e-9


class OfGaussian(nn.Module):
    """The exact noise and spread of independent normal coordinates N(0, c), as a network's output."""

    def __init__(self, c: Tensor, process: sk.Process) -> None:
        super().__init__()
        self.c, self.process = nn.Parameter(c), process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v[:, None] for v in (self.process.alpha(t), self.process.sigma(t)))
        total = alpha**2 * self.c + sigma**2
        # Var(x_0 | x) = (sigma / alpha)^2 softplus(r)
        r = torch.log(torch.expm1(alpha**2 * self.c / total))
        return torch.cat([sigma * x / total, r.expand_as(x)], 1)


def test_a_network_that_knows_its_variance_is_exact():
    c = torch.tensor([0.01, 2.25], dtype=F64)
    model = sk.LearnedVariance(OfGaussian(c, VP), VP)
    for steps in (1, 5, 20):
        times = log_snr_times(VP, steps)
        law = [VP.alpha(t) ** 2 * c + VP.sigma(t) ** 2 for t in (times[0], times[-1])]
        mean, variance = affine_law(model, times, torch.zeros(2, dtype=F64), law[0].sqrt())
        assert not mean.any()
        assert (variance / law[1] - 1).abs().max() < 1e-10


def test_drawn_samples_have_a_variance_in_each_coordinate():
    """4 standard errors of 20,000 draws; a scalar variance would be 15 times that off."""
    out = sk.sample(
        STRETCHED.denoiser(VP), (20_000, 2), sampler=LEARNED, steps=6, seed=0, dtype=F64
    )
    law = STRETCHED.at(VP, out.times[-1])
    off = (out.x.var(0) / law.variances[0] - 1).abs()
    assert off.max() < 4 * math.sqrt(2 / 20_000)
    assert ((out.x.mean(0) - law.means[0]) / law.variances[0].sqrt()).abs().max() < 4 / math.sqrt(
        2e4
    )


# --------------------------------------------------------------------------- order on a mixture


def total_variation(law: GaussianMixture, steps: int, *, cells: int = 801) -> float:
    """Of the chain's law on the line from the exact law at t = 0.95, by a matrix of kernels."""
    denoiser, grid = law.denoiser(VP), torch.linspace(-7, 7, cells, dtype=F64)
    width = 14 / (cells - 1)
    times = ss.LogSNR().times(VP, steps, 0.95, 0.05)
    density = law.at(VP, times[0]).log_prob(grid[:, None]).exp()
    for t, s in pairwise(times):
        mean, variance = denoiser.reverse(grid[:, None], t, s)
        kernel = torch.exp(-0.5 * (grid - mean) ** 2 / variance) / (2 * math.pi * variance).sqrt()
        density = (density * width) @ kernel
    assert (density.sum() * width).item() == pytest.approx(1, abs=1e-8)
    exact = law.at(VP, times[-1]).log_prob(grid[:, None]).exp()
    return 0.5 * (density - exact).abs().sum().item() * width


def test_second_order_where_the_variance_of_each_state_is_exact(toy):
    errors = [total_variation(toy, steps) for steps in (128, 256)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(2, abs=0.15)


def test_a_variance_per_coordinate_leaves_first_order_on_correlated_data():
    """The covariance between coordinates that a step leaves out costs order 1, as its facts say."""
    rho = GaussianMixture(None, [[0.0, 0.0]], covariances=[[[1.0, 0.9], [0.9, 1.0]]])
    exact, errors = rho.denoiser(VP), []
    for steps in (32, 64, 128):
        times = ss.LogSNR().times(VP, steps, 0.95, 0.05)
        covariance = rho.at(VP, times[0]).covariance
        for t, s in pairwise(times):
            out, variance = exact.reverse(torch.eye(2, dtype=F64), t, s)
            covariance = out.T @ covariance @ out + torch.diag(variance[0])
        errors.append((covariance - rho.at(VP, times[-1]).covariance).abs().max().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(LEARNED.order, abs=0.15)


# --------------------------------------------------------------------------- beside the other samplers


class Readings(nn.Module):
    """A prediction that depends on x and t, and a constant reading."""

    def __init__(self, r: float) -> None:
        super().__init__()
        self.r = nn.Parameter(torch.tensor(r, dtype=F64))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        shift = 0.0 if cond is None else cond
        wide = t.view(-1, *[1] * (x.ndim - 1))
        return torch.cat([torch.sin(x + wide) + shift, self.r.expand_as(x)], 1)


def model(r: float = 1.0, **arguments: Any) -> sk.LearnedVariance:
    return sk.LearnedVariance(Readings(r), CHAIN.process, **arguments)


@pytest.mark.parametrize(("r", "variance"), [(-1.0, "beta_tilde"), (1.0, "beta")])
def test_the_ends_of_the_interpolation_are_ancestral_sampling(r, variance):
    times, start, normals = CHAIN.times(), normal(5, 2), normal(20, 5, 2, seed=1)
    interpolated = model(r, parameterisation="interpolated")
    known, plain = (
        run(interpolated, times, start, normals, sampler=sampler)
        for sampler in (LEARNED, ss.Ancestral(variance))
    )
    assert (known[0] - plain[0]).abs().max() < 1e-11
    assert known[1] == plain[1] == 20


@pytest.mark.parametrize("final", ["none", "mean", "data"])
def test_endings(final):
    times, start, normals = [1.0, 0.5, 0.2], normal(5, 2), normal(2, 5, 2, seed=1)
    x, nfe = run(model(), times, start, normals, final=final)
    silent = normals.clone()
    silent[1] = 0
    whole, quiet = (run(model(), times, start, z)[0] for z in (normals, silent))
    expected = {"none": whole, "mean": quiet, "data": model().data(whole, 0.2)}[final]
    assert (x - expected).abs().max() < 1e-12
    assert nfe == 2 + (final == "data")
    to_data = run(model(), [*times, 0.0], start, normals, final=final)
    assert (to_data[0] - model().data(whole, 0.2)).abs().max() < 1e-12
    assert to_data[1] == 3


# --------------------------------------------------------------------------- how it runs


def test_a_sample_is_the_same_alone_and_in_any_chunk():
    args = {"sampler": LEARNED, "steps": 40, "seed": 3, "dtype": F64}
    whole = sk.sample(model(), (700, 2), **args)
    for n, chunk in ((700, 100), (1, None), (300, 257)):
        part = sk.sample(model(), (n, 2), chunk=chunk, **args)
        assert (part.x - whole.x[:n]).abs().max() < 1e-12
    assert torch.equal(sk.sample(model(), (700, 2), **args).x, whole.x)
    other = sk.sample(model(), (700, 2), **{**args, "seed": 4})
    assert (other.x - whole.x).abs().min() > 0
    assert whole.nfe == 40
    assert whole.plan is None


def test_conditions_nodes_and_global_state():
    state, cond = torch.get_rng_state(), normal(6, 1)
    args = {"sampler": LEARNED, "grid": CHAIN.times(), "seed": 0, "dtype": F64}
    seen: list[int] = []
    out = sk.sample(
        model(), (6, 2), cond=cond, trajectory=True, callback=lambda i, t, x: seen.append(i), **args
    )
    assert seen == list(range(21))
    assert torch.equal(out.trajectory[-1], out.x)
    assert out.trajectory.shape == (21, 6, 2)
    assert (out.x - sk.sample(model(), (6, 2), cond=cond, chunk=4, **args).x).abs().max() < 1e-12
    assert (out.x - sk.sample(model(), (6, 2), **args).x).abs().max() > 1e-3
    early = sk.sample(model(), (6, 2), cond=cond, callback=lambda i, t, x: i == 7, **args)
    assert torch.equal(early.x, out.trajectory[7])
    assert torch.equal(torch.get_rng_state(), state)
    image = sk.sample(model(), (3, 1, 4, 4), sampler=LEARNED, steps=3, seed=0).x
    assert image.shape == (3, 1, 4, 4)
    assert image.dtype == torch.float32


def test_nan_is_named():
    class Broken(Readings):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            out = super().forward(x, t)
            out[:, x.shape[1] :] = torch.where(t[:, None] < 0.3, math.nan, 0.0)
            return out

    broken = sk.LearnedVariance(Broken(0.0), CHAIN.process)
    with pytest.raises(sk.NumericsError, match=r"call 16, t = 0.25"):
        sk.sample(broken, (4, 2), sampler=LEARNED, grid=CHAIN.times(), seed=0)


def test_comparisons_and_their_clocks_pass_the_variance_on(toy):
    """Beside fixed variances on the two-mode mixture, with the exact model; floors tell what is noise."""
    used = [LEARNED, ss.Ancestral(), ss.Ancestral("beta")]
    table = sk.compare(toy.denoiser(VP), used, [50], toy, n=5_000)
    w2 = {row["sampler"]: row["W2"] for row in table.rows}
    assert all(not row["error"] and row["nfe"] == 50 for row in table.rows)
    assert w2[repr(LEARNED)] == min(w2.values())
    assert w2["Ancestral(variance='beta_tilde')"] > 2 * w2[repr(LEARNED)]


BAD: list[BadRow] = [
    (
        "a model that knows no variance",
        lambda: sk.sample(
            sk.NetworkDenoiser(Readings(0.0), VP), (3, 2), sampler=LEARNED, steps=4, seed=0
        ),
        TypeError,
        ["reverse(x, t, s)", "LearnedVariance", "NetworkDenoiser has none", "use Ancestral"],
    ),
    ("final", lambda: LEARNED.program(model(), [1.0, 0.5], "noise"), ValueError, ["final must"]),
]
test_bad_input = bad_input(BAD)
