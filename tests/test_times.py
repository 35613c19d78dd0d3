# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import math

import numpy as np
import pytest
import torch
from helpers import bad_input
from scipy import stats

from sdekit import EDM, VE, VP, Interpolant, SubVP
from sdekit.ddpm import linear_betas, rescale_zero_terminal_snr
from sdekit.processes import ALL as PROCESSES
from sdekit.training import (
    DenoisingLoss,
    ImportanceTimes,
    LogNormalTimes,
    UniformTimes,
    draw_times,
    resolve_times,
)
from sdekit.training.times import NAMES

LAWS = tuple(NAMES.values())
each_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)
each_law = pytest.mark.parametrize("law", LAWS, ids=repr)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@each_law
@each_process
def test_times_stay_inside_and_follow_the_generator_alone(process, law):
    for seed in range(10):
        t = law.draw(64, process, generator(seed))
        assert t.dtype == torch.float64
        assert t.min() >= process.t_min
        assert t.max() <= process.t_max
        assert torch.equal(t, law.draw(64, process, generator(seed)))
    assert law.draw(0, process, generator(0)).shape == (0,)


@each_process
def test_importance_times_are_uniform_in_log_snr(process):
    """Kolmogorov-Smirnov, 1 in 10,000."""
    high, low = process.log_snr(process.t_min), process.log_snr(process.t_max)
    t = ImportanceTimes(stratified=False).draw(2000, process, generator(3))
    share = (process.log_snr(t) - low) / (high - low)
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("process", "range_"), [(VP(), 23.864472), (SubVP(), 37.678946)], ids=["VP", "SubVP"]
)
def test_range_of_log_snr_normalises_the_importance(process, range_):
    """(t_max - t_min) importance = range / rate; the ranges are those of beta from 0.1 to 20."""
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    weight = DenoisingLoss("likelihood").weights(process, t)
    flat = ImportanceTimes().importance(process, t) * 2 * weight * (1 - 1e-5)
    torch.testing.assert_close(flat, torch.full_like(t, range_), rtol=1e-7, atol=0)


@each_process
def test_importance_keeps_the_mean_of_uniform_times(process):
    """E[importance f] over importance times, by quadrature in the probability, is the uniform mean of f."""

    def f(t):
        return torch.as_tensor(process.sigma(t)).square() / (1 + t)

    law, n = ImportanceTimes(), 200_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t = law.quantile(u, process)
    t = t.clamp(process.t_min, process.t_max)
    nodes, weights = UniformTimes().nodes(process)
    expected = (weights @ f(nodes)).item()
    found = (law.importance(process, t) * f(t)).mean().item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("process", [VP(), VE(), EDM(), Interpolant()], ids=repr)
@pytest.mark.parametrize("law", [LogNormalTimes(), LogNormalTimes(4.0, 0.5)], ids=repr)
def test_log_normal_times_are_a_truncated_normal(process, law):
    """Quantiles against scipy's law, and no mass at the ends."""
    ends = [-0.5 * process.log_snr(t) for t in (process.t_min, process.t_max)]
    a, b = ((v - law.mean) / law.std for v in ends)
    u = torch.linspace(0.001, 0.999, 201, dtype=torch.float64)
    found = -0.5 * process.log_snr(law.quantile(u, process))
    expected = stats.truncnorm(a, b, law.mean, law.std).ppf(u.numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-8)
    t = law.draw(1000, process, generator(1))
    assert len(t.unique()) == 1000


def test_tails_keep_their_digits():
    """The normal's upper tail alone, where its distribution function is 1 to rounding."""
    process, law = VP(), LogNormalTimes(-10.0, 0.4)
    a = (-0.5 * process.log_snr(process.t_min) + 10) / 0.4
    b = (-0.5 * process.log_snr(process.t_max) + 10) / 0.4
    assert a > 7
    t = law.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), process)
    z = torch.as_tensor((-0.5 * process.log_snr(t) + 10) / 0.4)
    tail = stats.norm.sf(z.numpy()) / stats.norm.sf(a)
    assert b > 20
    np.testing.assert_allclose(tail, [0.9, 0.5, 0.1], rtol=1e-9)


@each_law
@each_process
def test_nodes_are_the_mean_over_the_objective(process, law):
    """alpha^2 / (alpha^2 + sigma^2) against midpoints in the law's probability, each with its importance."""

    def f(t):
        return torch.sigmoid(torch.as_tensor(process.log_snr(t)))

    t, weights = law.nodes(process)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    n = 100_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = law.quantile(u, process)
    factor = law.importance(process, drawn)
    values = f(drawn) if factor is None else factor * f(drawn)
    assert (weights @ f(t)).item() == pytest.approx(values.mean().item(), rel=2e-4, abs=1e-7)


def test_chains_have_importance_times_in_proportion_to_the_weight():
    betas = linear_betas(20, 1e-3, 0.3)
    process, law, n = VP.from_betas(betas), ImportanceTimes(), 20
    weight = DenoisingLoss("likelihood").weights(process, UniformTimes().nodes(process, n)[0])
    t = law.draw(200_000, process, generator(0), labels=n)
    steps = (t * n).round().long()
    counts = torch.bincount(steps, minlength=n + 1)[1:] / len(t)
    odds = weight / weight.sum()
    assert (counts - odds).abs().max() < 1e-5  # stratified: one part in n off at most
    torch.testing.assert_close(t, steps.double() / n, rtol=1e-15, atol=0)
    factor = law.importance(process, t, labels=n)
    torch.testing.assert_close(factor, 1 / (n * odds)[steps - 1], rtol=1e-12, atol=0)


def test_log_normal_objective_is_its_own_law():
    assert LogNormalTimes().importance(VP(), torch.tensor([0.5])) is None
    assert UniformTimes().importance(VP(), torch.tensor([0.5])) is None


@each_law
def test_names_and_laws_are_the_same(law):
    name = next(k for k, v in NAMES.items() if v is law)
    assert resolve_times(name) is law
    assert resolve_times(law) is law
    assert torch.equal(draw_times(16, VP(), generator(5), name), law.draw(16, VP(), generator(5)))


@pytest.mark.parametrize("law", [UniformTimes(), ImportanceTimes(), LogNormalTimes()], ids=repr)
def test_stratified_times_have_one_in_each_part_of_the_probability(law):
    process, n = VP(), 50
    t = law.draw(n, process, generator(2)).sort().values
    edges = law.quantile(torch.arange(n + 1, dtype=torch.float64) / n, process)
    assert (t >= edges[:-1] * (1 - 1e-9)).all()
    assert (t <= edges[1:] * (1 + 1e-9)).all()


def test_log_normal_ends_are_the_ends_of_the_process():
    process, ends = EDM(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    t = LogNormalTimes().quantile(ends, process)
    assert t.tolist() == pytest.approx([0.002, 80.0], rel=1e-12)
    assert math.log(t[1].item()) == pytest.approx(math.log(80))


ZERO = VP.from_betas(rescale_zero_terminal_snr(linear_betas(10, 1e-3, 0.1)), zero_terminal_snr=True)
HALF = torch.full((3,), 0.5, dtype=torch.float64)
test_bad_input = bad_input(
    [
        ("name", lambda: resolve_times("importnace"), ValueError, ["times", "'importance'"]),
        ("class", lambda: resolve_times(UniformTimes), TypeError, ["times", "UniformTimes"]),
        ("number", lambda: resolve_times(3), TypeError, ["times", "int"]),
        ("flag", lambda: UniformTimes(1), TypeError, ["stratified", "True or False"]),
        ("std", lambda: LogNormalTimes(std=0.0), ValueError, ["std", "(0"]),
        ("mean", lambda: LogNormalTimes(mean=math.nan), ValueError, ["mean", "finite"]),
        ("mean bool", lambda: LogNormalTimes(mean=True), TypeError, ["mean"]),
        ("n", lambda: draw_times(-1, VP(), generator(0)), ValueError, ["n must be >= 0"]),
        ("labels", lambda: draw_times(4, VP(), generator(0), labels=0), ValueError, ["labels"]),
        (
            "log-normal on a chain",
            lambda: draw_times(4, VP(), generator(0), "log-normal", labels=10),
            ValueError,
            ["times", "chain of 10 steps", "continuous"],
        ),
        (
            "mean far off",
            lambda: draw_times(4, VP(), generator(0), LogNormalTimes(60.0, 1.0)),
            ValueError,
            ["mean", "standard deviations"],
        ),
        (
            "no signal at the end",
            lambda: draw_times(4, ZERO, generator(0), "importance", labels=10),
            ValueError,
            ["importance", "no signal"],
        ),
    ]
)
