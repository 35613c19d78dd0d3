"""torchsde's methods that need a word: log_ode, reversible_heun; conditions by hand."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit import samplers as ss

F64 = torch.float64
VP = sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
GAUSS1 = sk.GaussianMixture(None, [0.7], 0.5)


class Moved(nn.Module):
    """The exact denoiser of data moved by `cond`."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return TOY.denoiser(VP).data(x - VP.alpha(t)[:, None] * cond, t) + cond


def run(method: str, steps: int, n: int = 200, target: sk.GaussianMixture = TOY) -> sk.Samples:
    return sk.sample(
        target.denoiser(VP), (n, 1), sampler=ss.TorchSDE(method), steps=steps, seed=0, dtype=F64
    )


def test_log_ode_is_the_midpoint_rule_for_additive_noise() -> None:
    one, other = run("log_ode", 20), run("midpoint", 20)
    assert torch.equal(one.x, other.x)
    assert one.nfe == other.nfe == 2 * 20 + 1


def test_reversible_heun_warns_and_says_its_cost() -> None:
    with pytest.warns(UserWarning, match="reversible_heun is unstable") as caught:
        out = run("reversible_heun", 20, 3)
    assert out.nfe == 20 + 2
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("heun", 2, 3)


@pytest.mark.filterwarnings("ignore:reversible_heun is unstable")
def test_reversible_heun_is_unstable_with_few_steps_only() -> None:
    """Against the exact standard deviation 0.5, 2000 samples: far off at 20 steps, within 10 % at 400."""
    spreads = [run("reversible_heun", steps, 2000, GAUSS1).x.std().item() for steps in (20, 400)]
    assert spreads[0] > 1
    assert spreads[1] == pytest.approx(0.5, rel=0.1)


def test_the_reverse_sde_takes_conditions() -> None:
    """Data moved by a condition are those of the moved mixture, on the same noise."""
    from torchsde import BrownianInterval, sdeint

    n, dt = 50, 0.99 / 40
    start = torch.randn(n, 1, generator=torch.Generator().manual_seed(3), dtype=F64)
    model = sk.NetworkDenoiser(Moved(), VP, prediction="data")
    mixture = sk.GaussianMixture([0.3, 0.7], [-1.4 + 1.5, 0.6 + 1.5], 0.4)
    conditioned = sk.ReverseSDE(model, cond=torch.full((n, 1), 1.5, dtype=F64))
    ends = []
    for reverse in (conditioned, sk.ReverseSDE(mixture.denoiser(VP))):
        path = BrownianInterval(0.0, 0.99, size=(n, 1), dtype=F64, dt=dt, entropy=5)
        states = sdeint(reverse, start, reverse.clock([1.0, 1e-2]), bm=path, dt=dt, method="euler")
        assert isinstance(states, Tensor)
        ends.append(states[-1])
    assert (ends[0] - ends[1]).abs().max() < 1e-11
    assert (ends[0] - 1.5).abs().max() > 0.1
