"""Likelihoods along the flow, held to the densities of mixtures and to torchdiffeq itself."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.likelihood.flow import METHODS
from sdekit.processes import ALL as PROCESSES
from sdekit.sampling.flow_ode import FIXED
from sdekit.sampling.noise_clock import NoiseClock
from tests.helpers import bad_input, normal, variance_at

F64 = torch.float64
VP = sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def mixture(d: int) -> sk.GaussianMixture:
    """Two correlated components in d dimensions; the toy in one."""
    if d == 1:
        return TOY
    roots = normal(2, d, d, seed=d) / math.sqrt(d)
    covariances = 0.1 * torch.eye(d, dtype=F64) + roots @ roots.mT
    return sk.GaussianMixture([0.4, 0.6], normal(2, d, seed=d + 1), covariances=covariances)


def random_mlp(dim: int, **keywords: Any) -> sk.NetworkDenoiser:
    """A network as training leaves it: of no symmetry, in float64."""
    torch.manual_seed(0)
    net = sk.networks.MLP(dim, hidden=24, depth=2, **keywords).double()
    nn.init.normal_(net.out.weight, std=0.05)
    return sk.NetworkDenoiser(net, VP)


class Broken(sk.Denoiser):
    """The exact denoiser of the toy with something done to its output."""

    def __init__(self, change: Any) -> None:
        self.process, self.change = VP, change

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return self.change(TOY.denoiser(VP).predict(x, t), t)


def worst(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# ---------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_gaussian_to_eleven_digits(process: sk.Process) -> None:
    """Latents are x scaled by the standard deviations, log p is that of N(0, v(t_end))."""
    t_end = 1e-2 * process.horizon
    target = sk.GaussianMixture(None, [0.0], 0.5)
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None] * math.sqrt(variance_at(process, t_end))
    out = sk.log_likelihood(
        target.denoiser(process),
        x,
        method="dopri8",
        rtol=1e-12,
        atol=1e-12,
        t_end=t_end,
        prior=target.at(process, process.t_max),
    )
    scale = math.sqrt(variance_at(process, process.t_max) / variance_at(process, t_end))
    assert worst(out.latent, scale * x) < 1e-11 * scale
    assert worst(out.value, target.at(process, t_end).log_prob(x)) < 1e-11
    assert out.prior_mismatch is not None
    assert out.prior_mismatch.abs().max() == 0


@pytest.mark.parametrize("process", [VP, sk.VE(), sk.EDM(), sk.SubVP(), sk.Interpolant()], ids=repr)
@pytest.mark.parametrize("d", [1, 2, 16])
def test_mixtures(process: sk.Process, d: int) -> None:
    """From t_min, with the true end: 1e-6 nats at tolerances of 1e-9."""
    target = mixture(d)
    x, end = target.sample(24, seed=1), target.at(process, process.t_max)
    out = sk.log_likelihood(target.denoiser(process), x, prior=end, **TIGHT)
    assert worst(out.value, target.at(process, process.t_min).log_prob(x)) < 1e-6
    assert out.t_end == process.t_min
    assert out.stderr.shape == (24,)
    assert not out.stderr.any()


@pytest.mark.parametrize("process", [VP, sk.VE(), VP.__class__(schedule=sk.schedules.Cosine())])
def test_what_the_prior_costs_is_reported(process: sk.Process) -> None:
    """Of data that are not standardised; the mismatch is the whole error."""
    target = sk.GaussianMixture([0.5, 0.5], [[0.0, 1.5], [2.5, 0.5]], 0.3)
    x = target.sample(24, seed=1)
    out = sk.log_likelihood(target.denoiser(process), x, **TIGHT)
    exact = target.at(process, process.t_min).log_prob(x)
    assert out.prior_mismatch is not None
    assert worst(out.value + out.prior_mismatch, exact) < 1e-6
    assert worst(out.value, exact) > 1e-5
    assert sk.log_likelihood(random_mlp(2), x, method="rk4", steps=2).prior_mismatch is None


def test_mass_is_one() -> None:
    """By the trapezoid rule, which is spectral here."""
    x = torch.linspace(-4, 4, 201, dtype=F64)[:, None]
    out = sk.log_likelihood(TOY.denoiser(VP), x, rtol=1e-8, atol=1e-8)
    assert abs(torch.trapezoid(out.value.exp(), x[:, 0]) - 1) < 1e-6


def test_mass_is_one_for_any_model() -> None:
    """The flow of any smooth field carries a normal density to a density."""
    x = torch.linspace(-5, 5, 251, dtype=F64)[:, None]
    model = Broken(lambda out, t: out + 0.2 * torch.sin(3 * out))
    out = sk.log_likelihood(model, x, rtol=1e-8, atol=1e-8, t_end=0.1)
    assert (out.value - TOY.at(VP, 0.1).log_prob(x)).abs().max() > 0.1
    assert abs(torch.trapezoid(out.value.exp(), x[:, 0]) - 1) < 1e-6


def test_turning_and_moving_the_data() -> None:
    """log p of Q x for data Q x_0, and of x + alpha c for data x_0 + c."""
    target, t = mixture(2), VP.t_min
    turn, shift = torch.linalg.qr(normal(2, 2)).Q, normal(2, seed=3)
    x = target.sample(16, seed=1)

    def value(law: sk.GaussianMixture, points: Tensor) -> Tensor:
        out = sk.log_likelihood(law.denoiser(VP), points, prior=law.at(VP, 1.0), **TIGHT)
        return out.value

    first = value(target, x)
    turned = sk.GaussianMixture(
        [0.4, 0.6], target.means @ turn.T, covariances=turn @ target.covariances @ turn.T
    )
    moved = sk.GaussianMixture([0.4, 0.6], target.means + shift, covariances=target.covariances)
    assert worst(value(turned, x @ turn.T), first) < 1e-6
    assert worst(value(moved, x + VP.alpha(t) * shift), first) < 1e-6


# ---------------------------------------------------------------------------- the solve


@pytest.mark.parametrize("process", [VP, sk.SubVP(), sk.VE(), sk.EDM()], ids=repr)
def test_the_clock_and_back(process: sk.Process) -> None:
    """Times to 1e-12 of the clock's slope, which is that of differences."""
    clock = NoiseClock(process)
    for t in (process.t_min, 0.01 * process.horizon, 0.5 * process.horizon, process.t_max):
        u = clock.reading(t)
        back, slope = clock.time(u)
        assert abs(back - t) < 1e-12 * (t + slope)
        ahead = process.snap(t * (1 - 1e-6) if t > process.t_min else t * (1 + 1e-6), F64)
        assert (ahead - t) / (clock.reading(ahead) - u) == pytest.approx(slope, rel=1e-5)


def test_tabulated_betas_cost_no_digits() -> None:
    """Their rates jump a thousand times; in t the default tolerances took 2,125 calls to be off by 2e-3."""
    process = sk.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=F64))
    x = TOY.sample(8, seed=1)
    out = sk.log_likelihood(TOY.denoiser(process), x, prior=TOY.at(process, 1.0))
    assert worst(out.value, TOY.at(process, process.t_min).log_prob(x)) < 1e-6
    assert out.nfe < 200


@pytest.mark.parametrize("d", [1, 3])
def test_calls_are_those_of_torchdiffeq(d: int) -> None:
    """On the same augmented right-hand side, written out with one backward pass a coordinate."""
    from torchdiffeq import odeint

    model, x, calls = random_mlp(d), normal(10, d), 0

    def field(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            log_snr = -2 * math.log(math.tan(float(u)))
            t = min(max(float(VP.time_at_log_snr(log_snr)), VP.t_min), VP.t_max)
            # d t / d u, with d log_snr / dt = -beta / sigma^2 and d log_snr / du = -2 / (sin u cos u)
            rate = 2 / math.sin(u) / math.cos(u) * VP.sigma(t) ** 2 / VP.schedule.beta(t)
            v = rate * model.velocity(y, t)
            rows = [torch.autograd.grad(v[:, i].sum(), y, retain_graph=True)[0] for i in range(d)]
        return v.detach(), torch.stack([rows[i][:, i] for i in range(d)]).sum(0)

    ends = [math.atan2(VP.sigma(t), VP.alpha(t)) for t in (VP.t_min, VP.t_max)]
    times = torch.tensor(ends, dtype=F64)
    with torch.no_grad():
        latents, changes = odeint(
            field,
            (x, x.new_zeros(10)),
            times,
            rtol=1e-6,
            atol=1e-6,
            method="dopri5",
            options=sk.ProbabilityFlow.options(times),
        )
    out = sk.log_likelihood(model, x, rtol=1e-6, atol=1e-6)
    assert out.nfe == calls
    assert worst(out.latent, latents[-1]) < 1e-9
    assert worst(out.value, VP.prior.log_prob(latents[-1]) + changes[-1]) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str) -> None:
    """Each to what its order allows."""
    x = TOY.sample(8, seed=1)
    steps = 200 if method in FIXED else None
    out = sk.log_likelihood(
        TOY.denoiser(VP), x, method=method, rtol=1e-6, atol=1e-6, steps=steps, t_end=1e-3
    )
    off = worst(out.value, TOY.at(VP, 1e-3).log_prob(x))
    assert off < {"euler": 5e-2, "midpoint": 1e-3, "heun2": 1e-3, "fehlberg2": 1e-3}.get(
        method, 1e-4
    )
    if steps:
        assert out.nfe == steps * (FIXED[method][1] or 0)


def test_a_fixed_method_converges_at_its_order() -> None:
    x, errors = TOY.sample(8, seed=1), []
    for steps in (20, 40, 80):
        out = sk.log_likelihood(
            TOY.denoiser(VP), x, method="rk4", steps=steps, prior=TOY.at(VP, 1.0)
        )
        errors.append(worst(out.value, TOY.at(VP, VP.t_min).log_prob(x)))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 3.7, (errors, orders)


def test_batch_mates_do_not_matter_to_fixed_steps() -> None:
    """Nor do chunks, with any divergence."""
    model, x = random_mlp(6), normal(9, 6)
    for divergence, probes in (("exact", None), ("hutchinson", 2), ("hutch++", 6)):

        def run(points: Tensor, divergence: str = divergence, **keywords: Any) -> sk.LogLikelihood:
            return sk.log_likelihood(
                model, points, divergence=divergence, method="heun3", steps=5, **keywords
            )

        whole = run(x, probes=probes)
        for part in (run(x, chunk=2, probes=probes), run(x, chunk=1, probes=probes)):
            assert worst(part.value, whole.value) < 1e-11
            assert worst(part.latent, whole.latent) < 1e-12
        assert worst(run(x[:4], probes=probes).value, whole.value[:4]) < 1e-11


def test_batch_mates_matter_within_the_tolerance_error() -> None:
    """Alone or together, the largest errors are what the tighter solve says, to a tenth."""
    model, exact = TOY.denoiser(VP), TOY.at(VP, VP.t_min)
    x = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    keywords: dict[str, Any] = {
        "prior": TOY.at(VP, 1.0),
        "rtol": 1e-5,
        "atol": 1e-5,
        "tolerance_error": True,
    }
    together = sk.log_likelihood(model, x, **keywords)
    alone = sk.log_likelihood(model, x, chunk=1, **keywords)
    bare = sk.log_likelihood(model, x[5:6], **keywords)
    assert torch.equal(alone.value[5:6], bare.value)  # chunk=1 is to be alone
    assert bare.nfe <= alone.nfe
    largest = []
    for out in (together, alone):
        assert out.tolerance_error is not None
        largest.append(out.tolerance_error.max().item())
        assert worst(out.value, exact.log_prob(x)) < 1.1 * largest[-1]
    assert 1e-6 < worst(together.value, alone.value) < 1.1 * sum(largest)
    assert sk.log_likelihood(model, x, rtol=1e-5, atol=1e-5).nfe == together.nfe


def test_the_tolerance_error_of_fixed_steps_is_that_of_twice_as_many() -> None:
    x, keywords = TOY.sample(8, seed=1), {"method": "rk4", "prior": TOY.at(VP, 1.0)}
    model = TOY.denoiser(VP)
    out = sk.log_likelihood(model, x, steps=30, tolerance_error=True, **keywords)
    twice = sk.log_likelihood(model, x, steps=60, **keywords)
    assert out.tolerance_error is not None
    assert torch.equal(out.tolerance_error, (out.value - twice.value).abs())
    assert out.nfe == 120


# ---------------------------------------------------------------------------- estimates


def test_hutchinson_on_a_flow() -> None:
    """Unbiased within 4 standard errors over 400 points, of the errors that it reports."""
    target = mixture(5)
    x, end, t = target.sample(400, seed=1), target.at(VP, 1.0), 1e-3
    out = sk.log_likelihood(
        target.denoiser(VP), x, divergence="hutchinson", probes=16, prior=end, t_end=t
    )
    z = (out.value - target.at(VP, t).log_prob(x)) / out.stderr
    # Student's t with 15 degrees of freedom has the variance 15 / 13.
    assert abs(z.mean()) < 4 * math.sqrt(15 / 13 / 400)
    assert abs(z.square().mean() / (15 / 13) - 1) < 0.35


@pytest.mark.parametrize("target", [TOY, sk.GaussianMixture(None, torch.zeros(1, 7), 0.6)])
def test_hutchinson_is_exact_for_isotropic_data(target: sk.GaussianMixture) -> None:
    """The toy is one-dimensional, the other N(0, 0.36 I)."""
    x, model = target.sample(6, seed=1), target.denoiser(VP)
    keywords: dict[str, Any] = {"method": "rk4", "steps": 20}
    exact = sk.log_likelihood(model, x, **keywords)
    found = sk.log_likelihood(model, x, divergence="hutchinson", probes=3, **keywords)
    assert worst(found.value, exact.value) < 1e-12 * exact.value.abs().max()
    assert found.stderr.max() < 1e-12 * exact.value.abs().max()


def test_one_probe_tells_no_spread() -> None:
    for divergence in ("hutchinson", "hutch++"):
        out = sk.log_likelihood(
            random_mlp(5), normal(3, 5), divergence=divergence, method="rk4", steps=3
        )
        assert out.stderr.isnan().all()
        assert out.value.isfinite().all()


def test_hutch_plus_plus_sees_data_near_a_plane() -> None:
    """Two large variances of twelve, in directions off the axes: Hutchinson's error is ten times larger."""
    axes = torch.linalg.qr(normal(12, 12)).Q
    variances = torch.tensor([2.0, 1.0] + [1e-6] * 10, dtype=F64)
    target = sk.GaussianMixture(
        None, torch.zeros(1, 12), covariances=((axes * variances) @ axes.T)[None]
    )
    t = 5e-3
    x, errors = target.at(VP, t).sample(60, seed=1), []
    for divergence in ("hutchinson", "hutch++"):
        out = sk.log_likelihood(
            target.denoiser(VP),
            x,
            divergence=divergence,
            probes=9,
            t_end=t,
            prior=target.at(VP, 1.0),
        )
        errors.append((out.value - target.at(VP, t).log_prob(x)).square().mean().sqrt().item())
    assert errors[1] < errors[0] / 10


def test_the_seed_decides() -> None:
    model, x = random_mlp(4), normal(5, 4)

    def run(seed: int) -> Tensor:
        return sk.log_likelihood(
            model, x, divergence="hutchinson", seed=seed, method="rk4", steps=3
        ).value

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


# ---------------------------------------------------------------------------- models and states


@pytest.mark.parametrize("event", [(), (1,), (2, 3)])
def test_event_shapes(event: tuple[int, ...]) -> None:
    target = mixture(math.prod(event)) if event == (2, 3) else TOY
    x = target.sample(6, seed=1)
    model, flat = target.denoiser(VP), sk.log_likelihood(target.denoiser(VP), x)
    out = sk.log_likelihood(model, x.reshape(6, *event))
    assert out.latent.shape == (6, *event)
    assert worst(out.value, flat.value) < 1e-12
    assert worst(out.latent.reshape(flat.latent.shape), flat.latent) < 1e-12
    assert out.value.shape == (6,)


def test_images_through_a_unet() -> None:
    """Convolutions, norms and attention have batched reverse passes; one image alone is the same."""
    torch.manual_seed(0)
    net = sk.networks.UNet(1, widths=[8, 8]).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    model, x = sk.NetworkDenoiser(net, VP), normal(2, 1, 8, 8)
    keywords: dict[str, Any] = {"method": "midpoint", "steps": 2, "t_end": 0.1}
    out = sk.log_likelihood(model, x, **keywords)
    assert worst(sk.log_likelihood(model, x[1:], **keywords).value, out.value[1:]) < 1e-9


def test_single_precision() -> None:
    """The state is float64, the model is called in float32: its rounding is what is left."""
    target = mixture(2)
    model, x = target.denoiser(VP), target.sample(20, seed=1, dtype=torch.float32)
    out = sk.log_likelihood(model, x, prior=target.at(VP, 1.0))
    assert out.latent.dtype == torch.float32
    assert out.value.dtype == F64
    assert worst(out.value, target.at(VP, VP.t_min).log_prob(x.double())) < 1e-3


class Moved(nn.Module):
    """The exact denoiser of the toy moved by `cond`."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return TOY.denoiser(VP).data(x - torch.as_tensor(VP.alpha(t))[:, None] * cond, t) + cond


def test_conditions_are_split_with_the_chunks() -> None:
    shifts, x = torch.linspace(-3, 3, 6, dtype=F64)[:, None], TOY.sample(6, seed=1)
    model = sk.NetworkDenoiser(Moved(), VP, prediction="data")
    keywords: dict[str, Any] = {"t_end": 1e-3, "method": "dopri5"}
    moved = x + VP.alpha(1e-3) * shifts
    out = sk.log_likelihood(model, moved, cond=shifts, chunk=4, **keywords)
    plain = sk.log_likelihood(TOY.denoiser(VP), x, prior=TOY.at(VP, 1.0), **keywords)
    # With the prior of data moved by the shift the two would agree.
    ends = TOY.at(VP, 1.0).log_prob(out.latent - VP.alpha(1.0) * shifts)
    assert worst(out.value - VP.prior.log_prob(out.latent) + ends, plain.value) < 1e-5
    latent = sk.encode(model, moved, cond=shifts, **keywords)
    assert worst(sk.decode(model, latent, cond=shifts, **keywords), moved) < 1e-5


@pytest.mark.parametrize("process", [VP, sk.EDM(), sk.Interpolant()], ids=repr)
def test_there_and_back(process: sk.Process) -> None:
    target = mixture(2)
    model, x = target.denoiser(process), target.sample(16, seed=1)
    latent = sk.encode(model, x, rtol=1e-8, atol=1e-8)
    assert worst(sk.decode(model, latent, rtol=1e-8, atol=1e-8), x) < 1e-6
    assert worst(latent, sk.log_likelihood(model, x, **TIGHT).latent) < 1e-5
    assert sk.decode(model, latent.float()).dtype == torch.float32


def test_nothing_is_left_behind() -> None:
    """The points, gradients, the model's mode and the caller's are as before; also in inference mode."""
    model, x = random_mlp(2), normal(3, 2)
    keywords: dict[str, Any] = {"method": "rk4", "steps": 2}
    before = x.clone().requires_grad_()
    out = sk.log_likelihood(model, before, **keywords)
    assert not out.value.requires_grad
    assert not out.latent.requires_grad
    assert before.grad is None
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        inside = sk.log_likelihood(model, x.clone(), **keywords)
    assert torch.equal(inside.value, out.value)
    assert torch.equal(x, before)


def test_progress_counts_calls(capsys: pytest.CaptureFixture[str]) -> None:
    sk.log_likelihood(TOY.denoiser(VP), normal(2, 1), method="rk4", steps=3, progress=True)
    assert "12call" in capsys.readouterr().err


def test_repr() -> None:
    out = sk.log_likelihood(TOY.denoiser(VP), torch.zeros(1, 1), method="rk4", steps=40)
    assert repr(out).startswith("LogLikelihood(n=1, mean=")
    assert repr(out).endswith(" nats at t = 1e-05, nfe=160)")


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_nan_has_a_time(method: str) -> None:
    model = Broken(lambda out, t: out * math.nan if t > 0.5 else out)
    steps = 10 if method == "rk4" else None
    with pytest.raises(sk.NumericsError, match=r"NaN or infinity at call \d+, t = 0\.[5-9]"):
        sk.log_likelihood(model, normal(3, 1), method=method, steps=steps)
    words = r"gave up between arctan\(sigma / alpha\) = 0\.001" if steps is None else "became NaN"
    with pytest.raises(sk.NumericsError, match=words):
        sk.encode(model, normal(3, 1), method=method, steps=steps)


def test_an_overflow_is_an_error() -> None:
    """Euler's method at steps far too long, of a field that grows."""
    model = Broken(lambda out, t: -1e300 * out)
    with pytest.raises(sk.NumericsError, match="NaN or infinit"):
        sk.log_likelihood(model, normal(3, 1), method="euler", steps=9)


X = normal(4, 2)
MODEL = mixture(2).denoiser(VP)


def refused(model: Any = MODEL, x: Any = X, **keywords: Any) -> Any:
    """A call to be."""
    return lambda: sk.log_likelihood(model, x, **keywords)


DETACHED = ["does not depend differentiably on x"]


class Normal01:
    """A prior of one number at a time."""

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x.square()


test_bad_input = bad_input(
    [
        ("denoiser", refused("x"), TypeError, ["denoiser must be a Denoiser", "got str"]),
        ("x-type", refused(x=[1.0]), TypeError, ["x must be a torch.Tensor, got list"]),
        ("x-int", refused(x=torch.ones(4, 2).int()), TypeError, ["x must be a floating", "int32"]),
        ("x-half", refused(x=X.half()), ValueError, ["x must be float32 or float64", "float16"]),
        ("x-nan", refused(x=X * math.nan), ValueError, ["x has 8 NaN"]),
        ("x-0d", refused(x=X[0, 0]), ValueError, ["x must be a batch (n, *event)", "()"]),
        ("x-empty", refused(x=X[:0]), ValueError, ["n >= 1", "(0, 2)"]),
        ("divergence", refused(divergence="huch++"), ValueError, ["divergence must", "'hutch++'?"]),
        ("probes-exact", refused(probes=2), ValueError, ['probes is for "hutchinson"', "got 2"]),
        ("probes-0", refused(divergence="hutchinson", probes=0), ValueError, ["probes", ">= 1"]),
        ("probes-2", refused(divergence="hutch++", probes=2), ValueError, ["probes", ">= 3"]),
        ("probes-bool", refused(divergence="hutchinson", probes=True), TypeError, ["probes"]),
        ("method", refused(method="tsit5"), ValueError, ["method must be one of", "'tsit5'"]),
        ("adams", refused(method="implicit_adams"), ValueError, ["method must be one of"]),
        ("rtol", refused(rtol=0.0), ValueError, ["rtol must be", "0.0"]),
        ("rtol-type", refused(rtol="1e-5"), TypeError, ["rtol must be a number"]),
        ("atol", refused(atol=-1e-5), ValueError, ["atol must be", "-1e-05"]),
        ("steps", refused(steps=5), ValueError, ["steps is for fixed methods", "'dopri5'", "5"]),
        ("steps-0", refused(method="rk4", steps=0), ValueError, ["steps", "'rk4'", ">= 1"]),
        ("steps-none", refused(method="rk4"), TypeError, ["steps", "'rk4'", "None"]),
        ("t_end", refused(t_end=1e-6), ValueError, ["t_end must be", "1e-05, 1)", "1e-06"]),
        ("t_end-1", refused(t_end=1.0), ValueError, ["t_end must be"]),
        ("t_end-bool", refused(t_end=True), TypeError, ["t_end"]),
        ("prior", refused(prior=3), TypeError, ["prior must have .log_prob(x), got int"]),
        (
            "prior-shape",
            refused(prior=Normal01(), method="euler", steps=1),
            ValueError,
            ["prior.log_prob must return shape (n,) = (4,), got (4, 2)", "Independent"],
        ),
        ("cond", refused(cond=X[:2]), ValueError, ["cond must be a tensor of n = 4 rows"]),
        ("seed", refused(seed=-1), ValueError, ["seed must be >= 0"]),
        ("seed-none", refused(seed=None), TypeError, ["seed must be an integer"]),
        ("chunk", refused(chunk=0), ValueError, ["chunk must be >= 1"]),
        ("flag", refused(tolerance_error=1), TypeError, ["tolerance_error must be True or False"]),
        ("progress", refused(progress="yes"), TypeError, ["progress must be True or False"]),
        ("detached", refused(Broken(lambda out, t: out.detach()), X[:, :1]), ValueError, DETACHED),
        (
            "elsewhere",
            refused(Broken(lambda out, t: torch.zeros_like(out)), X[:, :1]),
            ValueError,
            DETACHED,
        ),
        ("tuple", refused(Broken(lambda out, t: (out, t)), X[:, :1]), TypeError, ["must return a"]),
        ("shape", refused(Broken(lambda out, t: out[:1]), X[:, :1]), ValueError, ["shape of x"]),
        ("encode", lambda: sk.encode(MODEL, X[:0]), ValueError, ["x must be a batch"]),
        ("decode", lambda: sk.decode(MODEL, X.int()), TypeError, ["latent must be a floating"]),
        ("decode-cond", lambda: sk.decode(MODEL, X, cond=X[:1]), ValueError, ["cond must be"]),
    ]
)
