"""Which drift undoes heat: final variances in closed form, by their equation, and on the grid."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sdekit as sk


@pytest.fixture
def heat(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "experiments"))
    return importlib.import_module("heat_and_fokker_planck")


def test_factor_two_returns_the_data_and_one_does_not(heat):
    assert heat.final_variance(2.0, 0.25) == pytest.approx(0.25, rel=1e-14)
    assert heat.final_variance(1.0, 0.25) == pytest.approx(0.25 * (1 + math.log(9)), rel=1e-14)
    assert heat.final_variance(1.0, 0.25) / 0.25 == pytest.approx(3.197, abs=5e-4)
    assert heat.final_variance(0.0, 0.25) == pytest.approx(0.25 + 4, rel=1e-14)  # noise alone


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.7, 2.0, 3.0])
def test_the_closed_form_solves_its_equation(heat, factor):
    from scipy.integrate import solve_ivp

    def slope(s: float, variance: list[float]) -> list[float]:
        return [2 - 2 * factor * variance[0] / (0.4 + 2 * (1 - s))]

    solved = solve_ivp(slope, (0, 1), [2.4], rtol=1e-11, atol=1e-12).y[0, -1]
    assert heat.final_variance(factor, 0.4) == pytest.approx(solved, rel=1e-9)


def test_the_closed_form_is_continuous_at_one(heat):
    around = 0.5 * (heat.final_variance(1 + 1e-5, 0.4) + heat.final_variance(1 - 1e-5, 0.4))
    assert around == pytest.approx(heat.final_variance(1.0, 0.4), rel=1e-9)


def test_euler_steps_approach_it_at_order_one(heat):
    gaps = [
        heat.stepped_variance(1.0, 0.25, n) - heat.final_variance(1.0, 0.25) for n in (800, 1600)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_fokker_planck_equation_ends_with_it(heat, factor):
    """400 cells, eight to the narrowest standard deviation: the scheme is of fourth order."""
    start = heat.BELL.at(heat.HEAT, heat.HORIZON)
    end = heat.backward(heat.exact_score(heat.BELL), start, factor, [heat.HORIZON], heat.grid(400))
    found = heat.law_of(end)
    assert found.mass == pytest.approx(1, abs=1e-9)
    assert found.variance == pytest.approx(heat.final_variance(factor, 0.25), rel=2e-5)


def test_factor_one_without_noise_is_the_flow(heat):
    start = heat.TWO.at(heat.HEAT, heat.HORIZON)
    score = heat.exact_score(heat.TWO)
    end = heat.backward(score, start, 1.0, [heat.HORIZON], heat.grid(400), noise=0.0)
    assert heat.law_of(end).w1(heat.TWO) < 1e-4
    noisy = heat.backward(score, start, 1.0, [heat.HORIZON], heat.grid(400))
    assert heat.law_of(noisy).w1(heat.TWO) > 0.2


def test_particles_scatter_as_the_steps_say(heat):
    """Within four standard errors of the exact variance of 50 Euler-Maruyama steps."""
    n, start = 20_000, heat.BELL.at(heat.HEAT, heat.HORIZON)
    x = start.sample(n, seed=1)[:, 0]
    found = float(heat.particles(heat.exact_score(heat.BELL), x, 1.0, 50, seed=2).var())
    assert abs(found / heat.stepped_variance(1.0, 0.25, 50) - 1) < 4 * math.sqrt(2 / n)


def test_the_bound_holds_a_score_that_is_off_by_a_constant(heat):
    """Noise off by e at every level: half e^2 over the log-SNR range."""

    class Off(sk.Denoiser):
        prediction = "noise"

        def __init__(self) -> None:
            self.process, self.exact = heat.HEAT, heat.TWO.denoiser(heat.HEAT)

        def predict(self, x: torch.Tensor, t: Any, **conditions: Any) -> torch.Tensor:
            return self.exact.noise(x, t) + 0.1

    report = heat.score_report(Off(), heat.TWO, levels=3, n=10)
    width = heat.HEAT.log_snr(report.rows[-1]["t"]) - heat.HEAT.log_snr(report.rows[0]["t"])
    assert heat.bound(report) == pytest.approx(0.5 * 0.01 * width, rel=1e-9)
