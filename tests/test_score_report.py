import math

import pytest
import torch
from helpers import bad_input

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.targets import ring, two_mode
from sdekit.denoisers import NetworkDenoiser
from sdekit.networks import MLP
from sdekit.pde import score_report
from sdekit.processes import ALL, VP, SubVP
from sdekit.training import train


@pytest.fixture(scope="module")
def trained():
    """A small network after 300 steps: far from exact."""
    torch.manual_seed(0)
    model = NetworkDenoiser(MLP(1, hidden=32, depth=2), VP())
    return train(model, two_mode(), steps=300, batch=256, seed=0, progress=False).model


@pytest.mark.parametrize("process", ALL, ids=repr)
def test_the_exact_model_passes_at_every_level(process):
    report = score_report(ring().denoiser(process), ring(), levels=4, n=50)
    assert [row["log_snr"] for row in report.rows] == sorted(row["log_snr"] for row in report.rows)
    for row in report.rows:
        # Where the law stands still d_t s vanishes, and the ratio is of round-off.
        assert row["residual"] <= 1e-11 or row["log_snr"] < -7
        assert row["curl"] <= 1e-27
        assert row["negative"] == 0
        assert row["excess"] == row["excess se"] == 0


def test_a_trained_network_shows_at_every_level(trained):
    report = score_report(trained, two_mode(), levels=5, n=4_000)
    for row in report.rows:
        assert row["residual"] > 1e-2
        assert row["curl"] <= 1e-10  # on the line every field is a gradient: float32 round-off
        assert row["excess"] > 4 * row["excess se"] > 0
        assert 0 <= row["negative"] <= 1


def test_excess_and_minimum_against_quadrature(trained):
    """E (noise - exact)^2 and 1 - sigma^2 E s^2 by the trapezoid rule over p_t; 4 standard errors."""
    process, t, n = VP(), 0.3, 20_000
    row = score_report(trained, two_mode(), levels=[t], n=n).rows[0]
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    law, exact = two_mode().at(process, t), two_mode().denoiser(process).noise(x, t)
    weights = law.log_prob(x).exp() * 0.004
    with torch.no_grad():
        gap = (trained.noise(x, t) - exact)[:, 0].square() @ weights
    assert abs(row["excess"] - gap) <= 4 * row["excess se"]
    least = 1 - (exact[:, 0].square() @ weights)
    assert abs(row["minimum"] - least) <= 4 * math.sqrt(
        3 / n
    )  # |noise - exact|^2 varies less than chi^2


def test_networks_of_labels_are_read_at_steps_of_their_chain():
    model = NetworkDenoiser(MLP(2, hidden=8), VP(), time="label", labels=50)
    report = score_report(model, ring(), levels=5, n=20)
    for row in report.rows:
        assert row["t"] * 50 == pytest.approx(round(row["t"] * 50), abs=1e-12)
        assert math.isnan(row["residual"])
        assert row["excess"] > 0
    assert "nan" not in str(report)


def test_many_coordinates_are_probed():
    target = GaussianMixture(None, torch.zeros(1, 80), stds=0.5)
    row = score_report(target.denoiser(VP()), target, levels=[0.3], n=20).rows[0]
    assert row["residual"] <= 1e-11
    assert row["curl"] <= 1e-28
    assert math.isnan(row["negative"])


def test_the_table_reads():
    report = score_report(ring().denoiser(SubVP()), ring(), levels=[0.5, 0.1], n=20)
    lines = str(report).splitlines()
    assert lines[0].split()[:6] == ["t", "log_snr", "residual", "curl", "negative", "minimum"]
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 4
    assert report.markdown().splitlines()[2].startswith("| 0.5 | ")
    assert repr(report) == "ScoreReport(2 levels, 20 samples each)"
    again = score_report(ring().denoiser(SubVP()), ring(), levels=[0.5, 0.1], n=20)
    assert again.rows == report.rows


EXACT = two_mode().denoiser(VP())

test_bad_input = bad_input(
    [
        ("denoiser", lambda: score_report(MLP(1), two_mode()), TypeError, ["denoiser", "MLP"]),
        ("target", lambda: score_report(EXACT, torch.zeros(3, 1)), TypeError, ["target", "Tensor"]),
        (
            "one level",
            lambda: score_report(EXACT, two_mode(), levels=1),
            ValueError,
            ["levels", "2"],
        ),
        (
            "no level",
            lambda: score_report(EXACT, two_mode(), levels=[]),
            ValueError,
            ["levels", "none"],
        ),
        (
            "a level",
            lambda: score_report(EXACT, two_mode(), levels=[0.0]),
            ValueError,
            ["levels", "1e-05"],
        ),
        ("n", lambda: score_report(EXACT, two_mode(), n=1), ValueError, ["n must"]),
        ("seed", lambda: score_report(EXACT, two_mode(), seed=-1), ValueError, ["seed"]),
    ]
)
