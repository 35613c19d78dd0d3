"""Picard sweeps end in the plan's own result."""

import pytest
import torch

import sdekit as sk
from sdekit import samplers as ss

F64, VP = torch.float64, sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=F64)[:, None]
PLANS = [s for s in ss.ALL if isinstance(s, ss.PlanSampler)]


@pytest.mark.parametrize("sampler", PLANS, ids=repr)
def test_sweeps_agree_with_the_steps(sampler: ss.PlanSampler) -> None:
    def run(s: ss.Sampler) -> sk.Samples:
        return sk.sample(TOY.denoiser(VP), (40, 1), sampler=s, steps=12, seed=0, dtype=F64)

    steps, swept = run(sampler), run(ss.ParallelInTime(sampler, 1e-12))
    assert (swept.x - steps.x).abs().max() < 1e-9
    assert swept.nfe % steps.nfe == 0
    assert swept.plan is not None
    assert swept.plan.name == repr(sampler)


def test_a_hundred_steps_take_nine_sweeps() -> None:
    """DDIM to 1e-4, with a tenth sweep to see that nothing moves."""
    options = {"steps": 100, "t_end": 1e-2, "x_init": STARTS, "grid": "log-snr", "seed": 0}
    exact = sk.sample(TOY.denoiser(VP), (6, 1), sampler=ss.DDIM(), **options).x
    errors = []
    for sweeps in range(1, 16):
        sampler = ss.ParallelInTime(ss.DDIM(), 1e-14, sweeps)
        out = sk.sample(TOY.denoiser(VP), (6, 1), sampler=sampler, **options)
        assert out.nfe == 100 * sweeps
        errors.append((out.x - exact).abs().max().item())
    assert errors[8] < 1e-4
    assert errors[14] < 1e-8


def test_as_many_sweeps_as_calls_are_exact() -> None:
    """The k-th state is final after k sweeps."""
    options = {"steps": 6, "x_init": STARTS, "seed": 0}
    exact = sk.sample(TOY.denoiser(VP), (6, 1), sampler=ss.ExponentialAB(), **options).x
    sampler = ss.ParallelInTime(ss.ExponentialAB(), 1e-300)
    out = sk.sample(TOY.denoiser(VP), (6, 1), sampler=sampler, **options)
    assert (out.x - exact).abs().max() < 1e-13
    assert out.nfe == 36


def test_a_sample_does_not_wait_for_its_batch_mates() -> None:
    sampler = ss.ParallelInTime(ss.DDIM(1.0), 1e-3)
    many = sk.sample(TOY.denoiser(VP), (64, 1), sampler=sampler, steps=20, seed=1, dtype=F64).x
    one = sk.sample(TOY.denoiser(VP), (1, 1), sampler=sampler, steps=20, seed=1, dtype=F64).x
    assert (many[:1] - one).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["data", "noise", "v", "score"])
def test_any_prediction_any_shape_and_conditions(kind: str) -> None:
    class Moved(sk.Denoiser):
        """Data at a place that is given as a condition; one row a sample, whatever is evaluated."""

        process, prediction = VP, kind

        def predict(self, x, t, cond=None):
            from sdekit.denoisers import conversion

            assert cond.shape == x.shape[:1]
            data = cond.view(-1, 1, 1, 1).expand_as(x) * torch.tanh(x)
            a, b = conversion(VP, kind, "data", t)
            a, b = (torch.as_tensor(w, dtype=x.dtype).view(-1, 1, 1, 1) for w in (a, b))
            return (data - a * x) / b

    cond = torch.arange(5.0, dtype=F64)
    runs = [
        sk.sample(Moved(), (5, 1, 4, 4), sampler=s, steps=8, seed=0, cond=cond, dtype=F64).x
        for s in (ss.DDIM(), ss.ParallelInTime(ss.DDIM(), 1e-10))
    ]
    assert (runs[0] - runs[1]).abs().max() < 1e-8


def test_nodes_are_reported_when_all_have_settled() -> None:
    out = sk.sample(
        TOY.denoiser(VP),
        (6, 1),
        sampler=ss.ParallelInTime(tolerance=1e-12),
        steps=9,
        x_init=STARTS,
        trajectory=True,
    )
    steps = sk.sample(TOY.denoiser(VP), (6, 1), steps=9, x_init=STARTS, trajectory=True)
    assert out.trajectory is not None
    assert steps.trajectory is not None
    assert (out.trajectory - steps.trajectory).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ss.ParallelInTime(ss.FlowODE()), TypeError, "sampler must be a PlanSampler"),  # type: ignore[arg-type]
        (lambda: ss.ParallelInTime(tolerance=0.0), ValueError, "tolerance must"),
        (lambda: ss.ParallelInTime(sweeps=0), ValueError, "sweeps must"),
    ],
    ids=["sampler", "tolerance", "sweeps"],
)
def test_bad_hyper_parameters(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
