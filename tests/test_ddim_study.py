"""The parts of the study of continuous-time DDIM: its schedules, its samplers, its losses, its arithmetic."""

import math
import sys
from pathlib import Path

import pytest
import torch
from helpers import bad_input
from torch.distributions import MultivariateNormal, kl_divergence

import sdekit as sk
from sdekit import metrics
from sdekit.data import images
from sdekit.schedules import Linear

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))

import ddim_study
from ddim_study import ARMS, Between, Cell, Config, Material
from harness.sweep import SweepTable, grid

LINEAR, CLIPPED = ARMS["linear matched"], ARMS["linear clipped"]
TIMES = torch.linspace(0, 1, 1001, dtype=torch.float64)
EVENT = (1, 2, 2)
TARGET = sk.GaussianMixture(
    [0.4, 0.6], torch.tensor([[-1.0, 0.2, 0.5, 0.0], [0.7, -0.3, -0.4, 0.2]]).double(), 0.4
)


class Shaped(sk.Denoiser):
    """The exact denoiser of TARGET for images (n, 1, 2, 2)."""

    def __init__(self, process):
        self.exact, self.process = TARGET.denoiser(process), process

    def predict(self, x, t):
        return self.exact.data(x.flatten(1), t).reshape(x.shape)


def material(n=200):
    train = TARGET.sample(400, seed=0).reshape(-1, *EVENT)
    unseen = TARGET.sample(n, seed=1).reshape(-1, *EVENT)
    features = metrics.FeatureSet(unseen.flatten(1))
    scaling = images.Scaling((0.1,), (2.0,))
    return Material(train, unseen, scaling, torch.nn.Flatten(), features)


# ------------------------------------------------------------------------------------- the schedules


def test_the_published_arm_clips_the_signal_power_of_a_linear_rate():
    linear = torch.as_tensor(sk.VP().alpha(TIMES)).square()
    got = torch.as_tensor(CLIPPED.alpha(TIMES)).square()
    torch.testing.assert_close(got, linear.clamp(0.02, 0.95), rtol=1e-13, atol=0)


def test_the_published_arm_stands_still_on_45_percent_of_its_times():
    first, last = CLIPPED.schedule.live
    assert 1 - (last - first) == pytest.approx(0.4449, abs=1e-4)
    assert CLIPPED.diffusion(0.5 * first) == CLIPPED.diffusion(0.5 * (1 + last)) == 0
    assert CLIPPED.alpha(1.0) == pytest.approx(math.sqrt(0.02), rel=1e-14)


def test_the_matched_arm_has_the_ends_of_the_cosine_arm_and_a_linear_rate():
    cosine = ARMS["cosine"]
    for t in (0.0, 1.0):
        assert LINEAR.log_snr(t) == pytest.approx(cosine.log_snr(t), rel=1e-12)
    rate = torch.as_tensor(LINEAR.schedule.beta(TIMES))
    assert float(rate.diff().diff().abs().max()) < 1e-12 * float(rate.max())


@pytest.mark.parametrize("clipped", [False, True])
def test_a_part_of_a_schedule_is_consistent(clipped):
    part = Between(Linear(), 0.9, 0.1, clipped)
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.65, 0.9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.as_tensor(part.B(t)).sum(), t)
    torch.testing.assert_close(slope, torch.as_tensor(part.beta(t)).detach(), rtol=1e-12, atol=0)
    for s in (0.2, 0.4, 0.6):
        assert part.inverse(part.B(s)) == pytest.approx(s, rel=1e-12)
        assert part.B(s) == float(part.B(torch.tensor(s, dtype=torch.float64)))
        assert part.delta_B(s, 0.62) == pytest.approx(part.B(0.62) - part.B(s), rel=1e-12)


# -------------------------------------------------------------------------------------- the protocols


def published(model, x, calls):
    """The sampler of the Keras example: predict noise and image, mix them for the next time; last image."""
    size, image = 1 / calls, x
    for i in range(calls):
        t = 1 - i * size
        alpha, sigma = model.process.alpha(t), model.process.sigma(t)
        image = model.data(x, t)
        noise = (x - alpha * image) / sigma
        x = model.process.alpha(t - size) * image + model.process.sigma(t - size) * noise
    return image


@pytest.mark.parametrize("arm", ARMS)
def test_the_published_protocol_is_the_loop_of_the_keras_example(arm):
    data = material()
    normals = torch.randn(400, 4, generator=torch.Generator().manual_seed(5)).unflatten(1, EVENT)
    want = published(Shaped(ARMS[arm]), normals.double(), 4)
    got = ddim_study.drawn(Shaped(ARMS[arm]), data, 4, "published", 5, 2)
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_the_matched_protocol_has_the_noise_levels_of_the_cosine_arm(arm, monkeypatch):
    runs = []
    real = sk.sample
    monkeypatch.setattr(sk, "sample", lambda *a, **k: runs.append(real(*a, **k)) or runs[-1])
    process = ARMS[arm]
    ddim_study.drawn(Shaped(process), material(), 5, "matched", 0)
    angles = [ddim_study.noise_angle(process, t) for t in runs[0].times]
    first, last = math.acos(process.alpha(1.0)), math.acos(0.95)
    want = [first + (last - first) * i / 5 for i in range(5)]
    assert angles == pytest.approx(want, rel=1e-10)
    assert runs[0].nfe == 5


def test_the_matched_start_is_made_of_the_same_normals(monkeypatch):
    """Whitened by its own mean and covariance, it is the start of the published protocol."""
    starts, real = [], sk.sample
    monkeypatch.setattr(sk, "sample", lambda *a, **k: starts.append(k["x_init"]) or real(*a, **k))
    for protocol in ("published", "matched"):
        ddim_study.drawn(Shaped(CLIPPED), material(), 2, protocol, 0)
    mean, covariance = ddim_study.terminal(CLIPPED, material())
    normals, x = (start.flatten(1).double() for start in starts)
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, (x - mean).T, upper=False).T
    torch.testing.assert_close(white, normals, rtol=1e-5, atol=1e-5)
    assert float(normals.mean().abs()) < 4 / math.sqrt(normals.numel())
    assert float((x - normals).abs().max()) > 1e-2


def test_the_start_of_the_matched_protocol_has_the_moments_of_the_diffused_data():
    data, process = material(), CLIPPED
    mean, covariance = ddim_study.terminal(process, data)
    flat = data.train.flatten(1)
    alpha, sigma = process.alpha(1.0), process.sigma(1.0)
    torch.testing.assert_close(mean, alpha * flat.mean(0))
    torch.testing.assert_close(covariance, alpha**2 * flat.T.cov() + sigma**2 * torch.eye(4))
    unit = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    gap = kl_divergence(MultivariateNormal(mean, covariance), unit)
    assert ddim_study.prior_gap(process, data) == pytest.approx(float(gap), rel=1e-10)


def test_losses_of_the_exact_denoiser_of_unit_normals():
    """The noise given x has variance alpha^2, the data sigma^2: means of sqrt(2 / pi) alpha and of sigma.

    Within four standard errors of as many half-normals as there are images; their deviation is at most 0.6.
    """
    process = ARMS["cosine"]
    unit = sk.GaussianMixture(None, torch.zeros(1, 4).double(), 1.0)
    model = unit.denoiser(process)
    got = ddim_study.losses(model, unit.sample(4000, seed=3), seed=0)
    low, high = process.t_min, process.t_max
    t = low + (high - low) * TIMES
    angle = max(ddim_study.noise_angle(p, 0.0) for p in ARMS.values())
    last = min(ddim_study.noise_angle(p, 1.0) for p in ARMS.values())
    shared = angle + (last - angle) * TIMES
    want = {
        "noise loss": torch.as_tensor(process.alpha(t)),
        "image loss": torch.as_tensor(process.sigma(t)),
        "noise loss shared": shared.cos(),
        "image loss shared": shared.sin(),
    }
    # Every image is used 8 times, with other noise, but counts once here.
    error = 4 * 0.6 / math.sqrt(4000 * 4)
    for name, curve in want.items():
        mean = float(torch.trapezoid(curve, TIMES)) * math.sqrt(2 / math.pi)
        assert got[name] == pytest.approx(mean, abs=error)


# ------------------------------------------------------------------------------------- the arithmetic


def made_table(cosine=1.0):
    """KID = 1 or as given for cosine, 2 clipped, 4 matched, plus 0.1 for L2 and 0.01 for images."""
    rows, sizes = [], {"cosine": cosine, "linear clipped": 2.0, "linear matched": 4.0}
    for cell in grid(Cell, schedule=list(ARMS), norm=["l1", "l2"], prediction=["noise", "data"]):
        value = (
            sizes[cell.schedule] + 0.1 * (cell.norm == "l2") + 0.01 * (cell.prediction == "data")
        )
        kid = {f"KID 4 {p}": value for p in ("published", "matched")}
        errors = {f"{name} se": 0.3 for name in kid}
        flags = {name: getattr(cell, name) for name in ("schedule", "norm", "prediction")}
        rows.append({**flags, **kid, **errors, "runs": 3, "error": "", "seconds": 1.0})
    return SweepTable(rows, ("schedule", "norm", "prediction"), tuple(kid), {})


def test_differences_are_means_over_the_other_choices_paired_by_seed():
    tables = [made_table(1.0), made_table(1.2)]
    found = {
        (r["difference"], r["protocol"]): (r["4"], r["4 se"])
        for r in ddim_study.differences(tables, (4,)).rows
    }
    assert found["cosine - linear clipped", "published"] == pytest.approx((-0.9, 0.1))
    assert found["cosine - linear matched", "matched"] == pytest.approx((-2.9, 0.1))
    assert found["l1 - l2", "published"] == pytest.approx((-0.1, 0.0))
    assert found["noise - data", "matched"] == pytest.approx((-0.01, 0.0))


def test_the_ranking_is_of_the_eight_published_cells():
    rows = ddim_study.ranking(made_table(), 4).rows
    assert [row["here rank"] for row in rows] == list(range(1, 9))
    assert rows[0]["cell"] == "cosine, l1, noise"
    assert (rows[0]["flowers rank"], rows[0]["pets rank"]) == (1, 7)
    assert next(r["cell"] for r in rows if r["pets rank"] == 1) == "linear clipped, l2, noise"


test_bad_input = bad_input(
    [
        ("words", lambda: ddim_study.calls_of("4,x"), ValueError, ["calls", "integers", "4,x"]),
        ("one call", lambda: ddim_study.calls_of("1,4"), ValueError, ["calls", "at least 2"]),
        ("order", lambda: ddim_study.calls_of("10,4"), ValueError, ["calls", "increase"]),
        ("data", lambda: ran(data="cats"), ValueError, ["data", "'cats'", "digits"]),
        ("seeds", lambda: ran(seeds=0), ValueError, ["seeds", ">= 1", "0"]),
        ("sets", lambda: ran(sets=0), ValueError, ["sets", ">= 1", "0"]),
        ("workers", lambda: ran(workers=0), ValueError, ["workers", ">= 1", "0"]),
    ]
)


def ran(**options):
    return ddim_study.run(Config(**options), Path("nowhere"))
