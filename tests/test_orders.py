"""Measured orders: the fit, the references, and what each sampler claims."""

import math

import pytest
import torch

import sdekit as sk
from sdekit import samplers as ss
from sdekit.orders import MeasuredOrder, Problem

F64 = torch.float64
PLANS = [s for s in ss.ALL if isinstance(s, ss.PlanSampler)]
GAUSS2 = sk.GaussianMixture(
    None, [[0.7, -0.2]], covariances=torch.tensor([[[0.5, 0.2], [0.2, 0.3]]])
)


# ------------------------------------------------------------------------------------------ the fit


def test_a_power_law_is_recovered_with_no_width() -> None:
    steps = (8, 16, 32, 64)
    found = MeasuredOrder("", "law", steps, tuple(3.0 * n**-2.5 for n in steps))
    assert found.slope == pytest.approx(2.5, abs=1e-12)
    assert found.octaves == pytest.approx([2.5] * 3, abs=1e-12)
    assert found.interval == pytest.approx((2.5, 2.5), abs=1e-12)


def test_the_interval_is_that_of_a_regression() -> None:
    """Against scipy's line through the same points."""
    from scipy.stats import linregress, t

    steps, errors = (10, 20, 50, 100, 300), (0.2, 0.07, 0.034, 0.012, 0.006)
    found = MeasuredOrder("", "law", steps, errors)
    line = linregress([math.log(n) for n in steps], [math.log(e) for e in errors])
    half = t.ppf(0.975, 3) * line.stderr  # type: ignore[union-attr]
    assert found.slope == pytest.approx(-line.slope, abs=1e-12)  # type: ignore[union-attr]
    assert found.interval == pytest.approx((found.slope - half, found.slope + half), abs=1e-10)
    assert MeasuredOrder("", "law", (10, 20), (0.2, 0.1)).interval == (-math.inf, math.inf)


# ------------------------------------------------------------------------------------- the references


def test_the_three_references_agree() -> None:
    """The quantile map, the affine map of a Gaussian, and the solve."""
    line = Problem()
    x = line.starts()
    assert (line._solved(x, 1.0) - line.endpoints(x)).abs().max() < 1e-10

    plane, process = Problem(GAUSS2), sk.VP()
    x = plane.starts()
    root = {}
    for t in (1.0, 1e-2):
        values, axes = torch.linalg.eigh(GAUSS2.at(process, t).covariance)
        root[t] = axes @ values.sqrt().diag() @ axes.T
    whitened = (x - GAUSS2.at(process, 1.0).mean) @ torch.linalg.inv(root[1.0])
    exact = GAUSS2.at(process, 1e-2).mean + whitened @ root[1e-2]
    assert (plane.endpoints(x) - exact).abs().max() < 1e-9


# ------------------------------------------------------------------------------------------- samplers


# On their own grids these do not fall as n^-4 from 128 to 256 steps: v prediction falls faster, and of the
# straight path the start shows. Their order is measured in test_exponential and test_flow_prediction.
FOURTH = [s for s in ss.ALL if isinstance(s, ss.ExponentialAB) and s.order == 4]


@pytest.mark.parametrize(
    "sampler", [s for s in PLANS if not s.stochastic and s not in FOURTH], ids=repr
)
def test_deterministic_samplers_have_their_order(sampler: ss.Sampler) -> None:
    """On the two-mode mixture; the finest octave.

    Order 4 in v falls faster on its own grid, as long as the noisy end rules the error.
    """
    slow = sampler == ss.ExponentialAB(4, prediction="v")
    options = {"steps": (256, 512), "grid": "log-snr"} if slow else {"steps": (64, 128, 256)}
    found = sk.measure_order(sampler, **options)
    assert found.kind == "endpoint"
    assert found.octaves[-1] == pytest.approx(sampler.order, abs=0.15)


def test_the_order_holds_in_the_plane_too() -> None:
    for sampler in (ss.DPMSolverPP(), ss.DPMSolver(3)):
        found = sk.measure_order(sampler, Problem(GAUSS2), steps=(64, 128), grid="log-snr")
        assert found.slope == pytest.approx(sampler.order, abs=0.15)


@pytest.mark.parametrize("sampler", [ss.EulerMaruyama(), ss.DDIM(1.0), ss.DPMSolverPP(tau=1.0)])
def test_the_law_of_a_correlated_gaussian(sampler: ss.Sampler) -> None:
    found = sk.measure_order(sampler, Problem(GAUSS2), steps=(128, 256, 512))
    assert found.kind == "law"
    assert found.octaves[-1] == pytest.approx(sampler.order, abs=0.15)


@pytest.mark.parametrize(
    "sampler",
    [ss.EulerMaruyama(), ss.Ancestral(), ss.DDIM(1.0), ss.DDIM(0.5), ss.DPMSolverPP(tau=0.7)],
    ids=repr,
)
def test_strong_order_one(sampler: ss.Sampler) -> None:
    """Additive noise: order 1 even by Euler; 500 paths move the slope by less than 0.05."""
    problem = Problem(sk.GaussianMixture(None, [0.7], 0.5))
    found = sk.measure_order(sampler, problem, steps=(256, 512), kind="strong", n=500)
    assert found.slope == pytest.approx(1, abs=0.15)


BAD = [
    (lambda: sk.measure_order("DDIM"), TypeError, "sampler must be a Sampler"),  # type: ignore[arg-type]
    (lambda: sk.measure_order(ss.DDIM(), steps=(8,)), ValueError, "at least two increasing"),
    (lambda: sk.measure_order(ss.DDIM(), steps=(8, 8)), ValueError, "at least two increasing"),
    (lambda: sk.measure_order(ss.DDIM(), steps=(8, 0)), ValueError, r"steps\[1\] must be"),
    (lambda: sk.measure_order(ss.DDIM(), steps=8), TypeError, "steps must be a sequence"),  # type: ignore[arg-type]
    (lambda: sk.measure_order(ss.DDIM(), "toy"), TypeError, "problem must be"),  # type: ignore[arg-type]
    (lambda: sk.measure_order(ss.DDIM(), kind="weak"), ValueError, "kind must be"),
    (lambda: sk.measure_order(ss.DDIM(), kind=""), ValueError, "got ''"),
    (lambda: sk.measure_order(ss.DDIM(1.0), kind="endpoint"), ValueError, "draws noise"),
    (lambda: sk.measure_order(ss.FlowODE()), ValueError, "chooses its own steps"),
    (lambda: sk.measure_order(ss.TorchSDE()), ValueError, "measured on plans"),
    (lambda: sk.measure_order(ss.DDIM(1.0), Problem(), kind="law"), ValueError, "one Gaussian"),
    (
        lambda: sk.measure_order(ss.DDIM(1.0), steps=(8, 24), kind="strong"),
        ValueError,
        "steps must double",
    ),
    (lambda: Problem(process="VP"), TypeError, "process must be"),  # type: ignore[arg-type]
    (lambda: Problem(target=None), TypeError, "target must be"),  # type: ignore[arg-type]
    (lambda: Problem(t_end=1.0), ValueError, "t_end must"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
