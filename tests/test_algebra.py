"""Plans run backwards, and which call's error matters."""

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import samplers as ss

F64, VP = torch.float64, sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
STARTS = torch.tensor([-1.5, -0.7, -0.2, 0.3, 1.1, 2.0], dtype=F64)[:, None]
PLANS = [s for s in ss.ALL if isinstance(s, ss.PlanSampler)]


@pytest.mark.parametrize("steps", [2, 10, 64])
def test_leapfrog_there_and_back(steps: int) -> None:
    model = TOY.denoiser(VP)
    out = sk.sample(
        model, (6, 1), sampler=ss.Leapfrog(), steps=steps, x_init=STARTS, trajectory=True
    )
    assert out.plan is not None
    assert out.trajectory is not None
    back = ss.invert(out.plan, model, list(out.trajectory[-2:]))
    assert (back - STARTS).abs().max() < 1e-12
    forth = sk.sample(model, (6, 1), sampler=ss.Leapfrog(), steps=steps, x_init=back).x
    assert (forth - out.x).abs().max() < 1e-12


def test_what_cannot_be_inverted_is_refused() -> None:
    model, times = TOY.denoiser(VP), [1.0, 0.6, 0.3, 0.1]
    tail = [STARTS, STARTS]
    for sampler, message in (
        (ss.DDIM(), "not linear in one unknown state"),
        (ss.ExponentialAB(2), "not linear in one unknown state"),
        (ss.DDIM(1.0), "adds noise"),
    ):
        with pytest.raises(ValueError, match=message):
            ss.invert(sampler.plan(VP, times), model, tail)
    with pytest.raises(ValueError, match="given a tail of 1"):
        ss.invert(ss.Leapfrog().plan(VP, times), model, tail[:1])


class Disturbed(sk.Denoiser):
    """The exact denoiser with something added to its reply at one call."""

    process = VP

    def __init__(self, exact: sk.Denoiser, call: int, error: Tensor) -> None:
        self.exact, self.call, self.error, self.calls = exact, call, error, 0

    def predict(self, x: Tensor, t: float | Tensor, **conditions: object) -> Tensor:
        self.calls += 1
        return self.exact.data(x, t) + (self.error if self.calls == self.call + 1 else 0.0)


@pytest.mark.parametrize("sampler", PLANS, ids=repr)
def test_sensitivity_is_what_a_disturbed_call_does(sampler: ss.PlanSampler) -> None:
    variances = torch.tensor([0.25, 1.0, 3.0], dtype=F64)
    law = sk.GaussianMixture(None, torch.zeros(1, 3), covariances=torch.diag(variances)[None])
    times = sampler.grid.times(VP, 5, 1.0, 1e-2)
    plan = sampler.plan(VP, times)
    found, error = ss.sensitivity(plan, variances), torch.tensor([0.1, -0.2, 0.3], dtype=F64)
    assert found.shape == (plan.nfe, 3)

    def run(call: int) -> Tensor:
        model = Disturbed(law.denoiser(VP), call, error)
        return sk.sample(model, (2, 3), sampler=sampler, grid=times, seed=0, dtype=F64).x

    still = run(-1)
    for call in range(plan.nfe):
        moved = run(call) - still
        assert (moved - found[call] * error).abs().max() < 1e-12 * (1 + found[call].abs().max())


def test_negative_variances_are_refused() -> None:
    with pytest.raises(ValueError, match="variances must be >= 0"):
        ss.sensitivity(ss.DDIM().plan(VP, [1.0, 0.1]), -1.0)
