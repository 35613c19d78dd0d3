# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import csv
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import bad_input
from torch import Tensor, nn

from sdekit import EDM, VP, Denoiser, GaussianMixture, Interpolant, NetworkDenoiser
from sdekit.ddpm import linear_betas
from sdekit.training import (
    DenoisingLoss,
    ImplicitScoreMatching,
    draw_times,
    excess_by_level,
    excess_loss,
    minimum_loss,
    resolve_times,
)
from sdekit.training.losses import Weighting

TWO_MODES = GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
WEIGHTINGS = Weighting.__args__


class Tanh(Denoiser):
    """eps_hat = 0.8 tanh(x) + 0.1 t / T."""

    def __init__(self, process, prediction="noise") -> None:
        self.process, self.prediction = process, prediction

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return 0.8 * torch.tanh(x) + 0.1 * t[:, None] / self.process.horizon


class Labelled(nn.Module):
    def forward(self, x, t):
        return torch.tanh(x)


def losses_of(model, target, loss, times, n: int, seed: int = 1):
    g, law = torch.Generator().manual_seed(seed), resolve_times(times)
    t = law.draw(n, model.process, g)
    x0 = target.sample(n, generator=g)
    noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    values, weight = loss(model, x0, t, noise), law.importance(model.process, t)
    return values if weight is None else values * weight


@pytest.mark.parametrize("times", ["importance", "log-normal"])
@pytest.mark.parametrize(
    ("weighting", "norm"), [*((w, "l2") for w in WEIGHTINGS), ("edm", "l1"), ("target", "l1")]
)
def test_excess_is_loss_minus_minimum(weighting, norm, times):
    """Within 4 standard errors of both together."""
    loss, model, n = DenoisingLoss(weighting, norm), Tanh(VP(), "v"), 20_000
    values = losses_of(model, TWO_MODES, loss, times, n)
    least = minimum_loss(TWO_MODES, VP(), loss=loss, times=times, prediction="v")
    excess, error = excess_loss(model, TWO_MODES, loss=loss, times=times, n=n)
    both = math.hypot(error, values.std().item() / math.sqrt(n))
    assert abs(values.mean().item() - least - excess) < 4 * both
    assert excess > 4 * error > 0


@pytest.mark.parametrize(
    ("process", "norm"), [(VP(), "l2"), (EDM(), "l2"), (Interpolant(), "l1")], ids=repr
)
def test_levels_add_up(process, norm):
    """The mean of the rows by their shares is `excess_loss`; 4 standard errors of both."""
    model, loss = Tanh(process), DenoisingLoss(norm=norm)
    table = excess_by_level(model, TWO_MODES, loss=loss, levels=6, n=8000)
    assert len(table.rows) == 6
    assert sum(row["share"] for row in table.rows) == pytest.approx(1, abs=1e-12)
    excess, error = table.total
    direct, spread = excess_loss(model, TWO_MODES, loss=loss, n=20_000)
    assert abs(excess - direct) < 4 * math.hypot(error, spread)
    least = math.fsum(row["share"] * row["minimum"] for row in table.rows)
    assert least == pytest.approx(minimum_loss(TWO_MODES, process, loss=loss), abs=1e-8)
    for row in table.rows:
        assert row["loss"] == row["minimum"] + row["excess"]
        assert row["log_snr low"] == pytest.approx(process.log_snr(row["t high"]))


def test_rows_go_from_noise_to_data_in_equal_ranges():
    rows = excess_by_level(Tanh(VP()), TWO_MODES, levels=5, n=2000).rows
    widths = [row["log_snr high"] - row["log_snr low"] for row in rows]
    assert widths == pytest.approx([widths[0]] * 5, rel=1e-9)
    for before, after in pairwise(rows):
        assert before["t low"] == after["t high"]
    assert (rows[0]["t high"], rows[-1]["t low"]) == (VP().t_max, VP().t_min)


def test_rows_are_loss_minus_minimum_in_their_range():
    """Draws in one range alone; within 4 standard errors of both."""
    model, n = Tanh(VP()), 40_000
    for row in excess_by_level(model, TWO_MODES, levels=4, n=20_000).rows[:2]:
        g = torch.Generator().manual_seed(0)
        u = torch.rand(n, generator=g, dtype=torch.float64)
        t = row["t low"] + (row["t high"] - row["t low"]) * u
        x0 = TWO_MODES.sample(n, generator=g)
        noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
        values = DenoisingLoss()(model, x0, t, noise)
        both = math.hypot(row["excess se"], values.std().item() / math.sqrt(n))
        assert abs(values.mean().item() - row["loss"]) < 4 * both


def test_a_shift_at_some_levels_is_found_there():
    process, exact = VP(), TWO_MODES.denoiser(VP())

    class Shifted(Denoiser):
        prediction = "noise"

        def __init__(self) -> None:
            self.process = process

        def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
            return exact.noise(x, t) + 0.3 * (t[:, None] < 0.1).double()

    for row in excess_by_level(Shifted(), TWO_MODES, levels=20, n=5000).rows:
        if row["t high"] < 0.1:
            assert row["excess"] == pytest.approx(0.09, rel=1e-9)
            assert row["excess se"] < 1e-9
        elif row["t low"] > 0.1:
            assert row["excess"] < 1e-25


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_best_models_have_no_excess(norm):
    """The posterior mean for squares. On one Gaussian it is the median too."""
    exact = TWO_MODES.denoiser(VP())
    gauss = GaussianMixture(None, [0.7], 0.5)
    assert excess_loss(exact, TWO_MODES, n=1000) == (0.0, 0.0)
    found, _ = excess_loss(gauss.denoiser(VP()), gauss, loss=DenoisingLoss(norm=norm), n=1000)
    assert abs(found) < 1e-9
    found, error = excess_loss(exact, TWO_MODES, loss=DenoisingLoss(norm="l1"), n=1000)
    assert found > 4 * error > 0


def test_networks_of_labels_have_the_times_of_their_chain():
    """Against the mean over all steps of the squared distance, by quadrature in x."""
    n = 12
    process = VP.from_betas(linear_betas(n, 1e-2, 0.4))
    model = NetworkDenoiser(Labelled(), process, time="label")
    exact, total = TWO_MODES.denoiser(process), 0.0
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    for k in range(1, n + 1):
        gap = (torch.tanh(x) - exact.noise(x, k / n)).square()[:, 0]
        p = TWO_MODES.at(process, k / n).log_prob(x).exp()
        total += torch.trapezoid(p * gap, x[:, 0]).item() / n
    table = excess_by_level(model, TWO_MODES, levels=4, n=60_000)
    for excess, error in (table.total, excess_loss(model, TWO_MODES, n=60_000)):
        assert abs(excess - total) < 4 * error
    assert sum(row["share"] for row in table.rows) == pytest.approx(1)
    few = excess_by_level(model, TWO_MODES, levels=50, n=100)
    assert len(few.rows) <= n
    least = math.fsum(row["share"] * row["minimum"] for row in few.rows)
    assert least == pytest.approx(minimum_loss(TWO_MODES, process, labels=n), rel=1e-9)


def test_planes(toy2):
    """Mixtures that have no quadrature: loss minus minimum, 4 standard errors of both."""
    model, n = Tanh(VP()), 20_000
    table = excess_by_level(model, toy2, levels=3, n=n)
    values = losses_of(model, toy2, DenoisingLoss(), "stratified", n)
    loss = math.fsum(row["share"] * row["loss"] for row in table.rows)
    both = math.hypot(table.total[1], values.std().item() / math.sqrt(n))
    assert abs(values.mean().item() - loss) < 4 * both


def test_reads_as_text_markdown_and_csv(tmp_path):
    table = excess_by_level(Tanh(VP()), TWO_MODES, levels=3, n=2000)
    assert repr(table) == f"LevelExcess(3 levels, {table.n} draws)"
    assert str(table).splitlines()[0].split()[:2] == ["log_snr", "low"]
    assert "excess over all times" in str(table)
    assert table.markdown().splitlines()[1].count("---") == 9
    table.to_csv(tmp_path / "levels.csv")
    with (tmp_path / "levels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["excess"]) for row in rows] == [row["excess"] for row in table.rows]


def test_other_losses_of_the_same_mean_have_the_same_excess():
    model = Tanh(VP())
    for function in (excess_loss, excess_by_level):
        found = function(model, TWO_MODES, loss=ImplicitScoreMatching(), n=500)
        assert found == function(model, TWO_MODES, n=500)


def test_default_draws_are_those_of_stratified_times():
    model, g = Tanh(VP()), torch.Generator().manual_seed(4)
    t = draw_times(300, VP(), g)
    x0 = TWO_MODES.sample(300, generator=g)
    x = VP().perturb(x0, t, torch.randn(x0.shape, generator=g, dtype=torch.float64))
    gap = (model.predict(x, t) - TWO_MODES.denoiser(VP()).noise(x, t)).square().mean()
    assert excess_loss(model, TWO_MODES, n=300, seed=4)[0] == pytest.approx(gap.item(), rel=1e-12)


MODEL = Tanh(VP())
test_bad_input = bad_input(
    [
        ("levels", lambda: excess_by_level(MODEL, TWO_MODES, levels=0), ValueError, ["levels"]),
        ("levels float", lambda: excess_by_level(MODEL, TWO_MODES, levels=2.0), TypeError, ["lev"]),
        ("target", lambda: excess_by_level(MODEL, torch.ones(3, 1)), TypeError, ["target"]),
        ("target in all", lambda: excess_loss(MODEL, torch.ones(3, 1)), TypeError, ["target"]),
        ("n", lambda: excess_by_level(MODEL, TWO_MODES, n=1), ValueError, ["n must be >= 2"]),
        ("loss", lambda: excess_loss(MODEL, TWO_MODES, loss="l1"), TypeError, ["loss", "'l1'"]),
        ("times", lambda: excess_loss(MODEL, TWO_MODES, times=1), TypeError, ["times"]),
        ("seed", lambda: excess_loss(MODEL, TWO_MODES, seed=-1), ValueError, ["seed"]),
    ]
)


class Halved(Denoiser, nn.Module):
    """Predicts x in eval mode and something random in train mode."""

    prediction = "noise"

    def __init__(self) -> None:
        super().__init__()
        self.process, self.dropout = VP(), nn.Dropout(0.5)

    def predict(self, x, t, **conditions):
        return self.dropout(x)


@pytest.mark.parametrize("measure", [excess_loss, excess_by_level])
def test_a_model_in_train_mode_is_measured_in_eval_mode(measure):
    target, model = GaussianMixture([1.0], [0.5], 0.7), Halved()
    with pytest.warns(UserWarning, match="training mode"):
        found = measure(model.train(), target, n=2_000)
    assert model.training
    assert model.dropout.training
    assert found == measure(model.eval(), target, n=2_000)
