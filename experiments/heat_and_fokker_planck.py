"""Heat forward and back, as densities: which drift undoes dx = sqrt(2) dW, and what does a learned score do?

Forward, t from 0 to T: p_t = p_xx. Backward, with s = T - t from 0 to T, the law goes back to the data under
dy = 2 grad log p_{T-s}(y) ds + sqrt(2) dW (in the clock of the process, which then runs down:
dx = -2 grad log p_t(x) dt + sqrt(2) dW; Anderson 1982). Some texts print the factor 1 for 2. That is the
drift of the probability flow, right without noise and wrong with it.

    python experiments/heat_and_fokker_planck.py [--quick] [--out runs/heat_and_fokker_planck]
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness.study import option, study
from torch import Tensor

import sdekit as sk
from sdekit import plotting
from sdekit.density_pictures import density_picture
from sdekit.pde import (
    SDE,
    Density1D,
    ScoreReport,
    Solution,
    heat_equation,
    score_report,
    solve_fokker_planck,
)
from sdekit.training import DenoisingLoss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HORIZON = 1.0
HEAT = sk.Heat(horizon=HORIZON)
BELL = sk.GaussianMixture(None, [0.0], 0.5)
TWO = sk.data.two_mode()
#: Where runs with a learned score end: time of the process.
END = 1e-3
#: grad log p_t at points (n,) and a time of the process.
Score = Callable[[Tensor, float], Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Counts."""

    cells: int = option(800, "cells of the grid on the line, over 26 units")
    particles: int = option(20_000, "particles of the Monte Carlo runs")
    steps: int = option(500, "Euler-Maruyama steps of the Monte Carlo runs")
    seeds: int = option(3, "networks trained")
    train_steps: int = option(4_000, "optimiser steps of each")
    levels: int = option(16, "noise levels of the score report")


# ------------------------------------------------------------------- laws on the grid


def grid(cells: int) -> np.ndarray:
    return np.linspace(-13, 13, cells + 1)


def averages(law: sk.GaussianMixture, edges: np.ndarray) -> np.ndarray:
    """Exact cell averages of a law."""
    return np.diff(law.cdf(torch.from_numpy(edges)).numpy()) / np.diff(edges)


def law_of(solution: Solution, row: int = -1) -> Density1D:
    """The density at one time, point values to fourth order from the cell averages."""
    mean, x = solution.density[row], solution.x[row]
    inner = mean[1:-1] - (mean[2:] - 2 * mean[1:-1] + mean[:-2]) / 24
    return Density1D(solution.centers, np.pad(inner, 1), x, np.ones_like(x))


def exact_score(law: sk.GaussianMixture) -> Score:
    return lambda x, t: law.at(HEAT, t).score(x[:, None])[:, 0]


def learned_score(model: sk.Denoiser) -> Score:
    def score(x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            return model.score(x[:, None], t)[:, 0]

    return score


def backward(
    score: Score,
    start: Any,
    factor: float,
    times: Sequence[float],
    edges: np.ndarray,
    noise: float = 1.0,
) -> Solution:
    """The law of dy = factor grad log p_{T-s} ds + noise sqrt(2) dW at times s, by its equation."""

    def drift(y: Tensor, s: float) -> Tensor:
        return factor * score(y, max(HORIZON - s, 0.0))

    return solve_fokker_planck(SDE(drift, noise * math.sqrt(2)), start, edges, times)


def particles(score: Score, x: Tensor, factor: float, steps: int, seed: int) -> Tensor:
    """The same by Euler-Maruyama from states x (n,), down to the data."""
    generator, h = torch.Generator().manual_seed(seed), HORIZON / steps
    for k in range(steps):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + h * factor * score(x, HORIZON - k * h) + math.sqrt(2 * h) * z
    return x


# ------------------------------------------------------------------- a Gaussian, in closed form


def final_variance(factor: float, v0: float, horizon: float = HORIZON) -> float:
    """Variance at s = T of Gaussian data of variance v0.

    The score of N(0, v), v = v0 + 2 t, is -x / v, so the variance V of y obeys dV/ds = 2 - 2 c V / v with
    dv = -2 ds: dV/dv = c V / v - 1, V = v_T at v = v_T. For c = 2 that is V = v. For c = 1 it is
    V = v (1 + log(v_T / v)), at the data v0 (1 + log(v_T / v0)); otherwise
    V = v / (c - 1) + (c - 2) / (c - 1) v_T (v / v_T)^c.
    """
    end = v0 + 2 * horizon
    if factor == 1:
        return v0 * (1 + math.log(end / v0))
    return v0 / (factor - 1) + (factor - 2) / (factor - 1) * end * (v0 / end) ** factor


def stepped_variance(factor: float, v0: float, steps: int) -> float:
    """The variance that Euler-Maruyama has after `steps`, exactly."""
    h, variance = HORIZON / steps, v0 + 2 * HORIZON
    for k in range(steps):
        variance = (1 - factor * h / (v0 + 2 * (HORIZON - k * h))) ** 2 * variance + 2 * h
    return variance


def gaussian_rows(config: Config) -> list[Row]:
    """Final variance over v0 by factor: closed form, Fokker-Planck equation, particles."""
    v0, edges = float(BELL.covariance), grid(config.cells)
    start = BELL.at(HEAT, HORIZON)
    rows = []
    for factor in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        solved = law_of(backward(exact_score(BELL), start, factor, [HORIZON], edges)).variance
        x = start.sample(config.particles, seed=1)[:, 0]
        found = float(particles(exact_score(BELL), x, factor, config.steps, seed=2).var())
        stepped = stepped_variance(factor, v0, config.steps)
        row = {"factor": factor, "closed form": final_variance(factor, v0), "Fokker-Planck": solved}
        row |= {
            "particles": found,
            "stderr": stepped * math.sqrt(2 / config.particles),
            "Euler": stepped,
        }
        rows.append({k: v if k == "factor" else v / v0 for k, v in row.items()})
    return rows


# ------------------------------------------------------------------- the mixture


def forward_rows(config: Config) -> list[Row]:
    """L1 error of the heat equation from the mixture against the exact law, by cells."""
    rows: list[Row] = []
    for cells in (config.cells // 2, config.cells, 2 * config.cells):
        edges = grid(cells)
        solution = heat_equation(TWO, edges, [0.1, 0.3, HORIZON])
        exact = np.stack([averages(TWO.at(HEAT, t), edges) for t in solution.times.tolist()])
        error = float(np.abs(solution.density - exact).sum(1).max() * (edges[1] - edges[0]))
        order = math.log2(rows[-1]["L1 error"] / error) if rows else math.nan
        rows.append({"cells": cells, "L1 error": error, "order": order, "scheme": solution.scheme})
    return rows


def against(name: str, found: Density1D, truth: sk.GaussianMixture) -> Row:
    """Distances of a law that was carried back from the data's; KL is of the data from that law."""
    p, x = truth.log_prob(torch.from_numpy(found.x)[:, None]).exp(), found.x
    row = {"run": name, "variance": found.variance, "true variance": float(truth.covariance)}
    kl = sk.metrics.kl_divergence(p, torch.from_numpy(found.rho.clip(0)), float(x[1] - x[0]))
    return row | {"W1": found.w1(truth), "W2": found.w2(truth), "KL": kl}


def mixture_rows(config: Config) -> tuple[list[Row], dict[str, Any]]:
    """Both factors with noise, and factor 1 without, from the exact end; and the films."""
    edges, score = grid(config.cells), exact_score(TWO)
    start, times = TWO.at(HEAT, HORIZON), np.linspace(0, HORIZON, 41).tolist()
    films = {
        "factor 2 with noise": backward(score, start, 2.0, times, edges),
        "factor 1 with noise": backward(score, start, 1.0, times, edges),
        "factor 1 without noise": backward(score, start, 1.0, times, edges, noise=0.0),
    }
    rows = [against(f"exact score, {name}", law_of(film), TWO) for name, film in films.items()]
    x = start.sample(config.particles, seed=3)[:, 0]
    drawn = {c: particles(score, x, c, config.steps, seed=4) for c in (2.0, 1.0)}
    for factor, y in drawn.items():
        name, law = f"factor {factor:g} with noise", law_of(films[f"factor {factor:g} with noise"])
        row = {"run": f"particles, {name}", "variance": float(y.var())}
        row |= {"W1": sk.metrics.wasserstein_1d(y, TWO)}
        row |= {"W1 to Fokker-Planck": sk.metrics.wasserstein_1d(y, law)}
        rows.append(row)
    floor = sk.metrics.floor(sk.metrics.wasserstein_1d, TWO, n=config.particles, repeats=20)
    rows.append({"run": "exact samples, mean", "W1": floor.mean})
    return rows, {"films": films, "drawn": drawn}


# ------------------------------------------------------------------- a learned score


def trained(config: Config, seed: int) -> sk.NetworkDenoiser:
    """A network for the loss that bounds the divergence: weights g^2 / (2 sigma^2), times even in log-SNR."""
    torch.manual_seed(seed)
    model = sk.NetworkDenoiser(sk.networks.MLP(1, hidden=64), HEAT)
    done = sk.train(
        model, TWO, steps=config.train_steps, loss=DenoisingLoss("likelihood"), times="importance",
        seed=seed, progress=False,
    )  # fmt: skip
    return done.model.double()


def bound(report: ScoreReport) -> float:
    """What a score's errors allow KL(data || law carried back from p_T) to be, in nats.

    The integral of g^2 / 2 E |score - exact score|^2 dt, theorem 1 of Song et al. 2021b: half that of the
    excess over the log-SNR; by the trapezoidal rule over the levels.
    """
    excess, log_snr = ([row[key] for row in report.rows] for key in ("excess", "log_snr"))
    return 0.5 * float(np.trapezoid(excess, log_snr))


def learned_rows(config: Config) -> tuple[list[Row], list[ScoreReport], ScoreReport]:
    """Laws that learned scores carry back to t = END, their score reports, and the exact score's."""
    edges, truth, times = grid(config.cells), TWO.at(HEAT, END), [HORIZON - END]
    prior = sk.GaussianMixture(None, [0.0], HEAT.prior.std)
    ends = {"p_T": TWO.at(HEAT, HORIZON), "N(0, 2T)": prior}
    exact = law_of(backward(exact_score(TWO), prior, 2.0, times, edges))
    rows, reports = [against("exact score, factor 2 from N(0, 2T)", exact, truth)], []
    for seed in range(config.seeds):
        model = trained(config, seed)
        reports.append(score_report(model, TWO, levels=config.levels, n=2_000))
        for factor, end in ((2.0, "p_T"), (2.0, "N(0, 2T)"), (1.0, "p_T")):
            found = law_of(backward(learned_score(model), ends[end], factor, times, edges))
            row = against(f"learned score {seed}, factor {factor:g} from {end}", found, truth)
            if (factor, end) == (2.0, "p_T"):
                row["bound on KL"] = bound(reports[-1])
            rows.append(row)
    return rows, reports, score_report(TWO.denoiser(HEAT), TWO, levels=config.levels, n=2_000)


# ------------------------------------------------------------------- pictures


def films_picture(config: Config, films: dict[str, Solution]) -> "Figure":
    """The density forward in t, and back in s = T - t, over the exact laws."""
    times = np.linspace(0, HORIZON, 41).tolist()
    laws = [TWO.at(HEAT, t) for t in times]
    shown: dict[str, Any] = {"Forward": (heat_equation(TWO, grid(config.cells), times), laws)}
    for factor in (2, 1):
        shown[f"Back, factor {factor}"] = (films[f"factor {factor} with noise"], laws[::-1])
    figure = density_picture(shown, title="The heat equation on two modes, and two ways back")
    backs = [axes for axes in figure.axes if axes.get_title().startswith("Back")]
    for axes in backs:
        if (legend := axes.get_legend()) is None:
            axes.set_xlabel("s = T - t")
            continue
        for text in legend.get_texts():
            text.set_text(text.get_text().replace("t = ", "s = "))
    return figure


@plotting.styled
def factors_picture(gaussian: list[Row], pictures: dict[str, Any]) -> "Figure":
    """Where each factor ends: one bell, two modes, and the variance for factors between 0 and 3."""
    figure, (bell, two, curve) = plotting.figure_of(1, 3, (13.5, 4.2))
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)
    v0 = float(BELL.covariance)
    ends = {
        c: sk.GaussianMixture(None, [0.0], math.sqrt(final_variance(c, v0))) for c in (2.0, 1.0)
    }
    _ends(bell, x, BELL, {c: law.log_prob(x[:, None]).exp() for c, law in ends.items()})
    bell.set_title("One bell, variance 0.25, closed form", fontsize=10)
    laws = {c: law_of(pictures["films"][f"factor {c:g} with noise"]) for c in (2.0, 1.0)}
    _ends(two, x, TWO, {c: law.pdf(x) for c, law in laws.items()}, pictures["drawn"])
    two.set_title("Two modes: Fokker-Planck, and particles in grey", fontsize=10)
    factors = np.linspace(0, 3.1, 200)
    theory = [final_variance(float(c), v0) / v0 for c in factors]
    curve.plot(factors, theory, color="#000000", lw=1.2, label="closed form")
    at = [row["factor"] for row in gaussian]
    solved = [row["Fokker-Planck"] for row in gaussian]
    curve.plot(at, solved, "o", mfc="none", ms=9, color=plotting.COLOURS[0], label="Fokker-Planck")
    means, bars = [row["particles"] for row in gaussian], [4 * row["stderr"] for row in gaussian]
    label = "particles, 4 standard errors"
    curve.errorbar(at, means, bars, fmt=".", capsize=3, color=plotting.COLOURS[1], label=label)
    curve.axhline(1.0, color="#999999", ls=":", label="the data")
    curve.set(xlabel="factor of the score in the drift", ylabel="final variance / v0", yscale="log")
    curve.set_title("One bell, by factor", fontsize=10)
    curve.legend()
    figure.suptitle("Back from heat: factor 2 returns the data, factor 1 a law too wide")
    return figure


def _ends(
    axes: "Axes",
    x: Tensor,
    data: sk.GaussianMixture,
    found: dict[float, Tensor],
    drawn: dict[float, Tensor] | None = None,
) -> None:
    """The data's density and those that the factors end with."""
    axes.plot(x, data.log_prob(x[:, None]).exp(), color="#D4D4D4", lw=6, label="the data")
    for k, (factor, density) in enumerate(found.items()):
        style: Any = {"color": plotting.COLOURS[k], "ls": plotting.DASHES[k], "lw": 1.7}
        axes.plot(x, density, label=f"factor {factor:g}", **style)
        if drawn is not None:
            y, weight = drawn[factor].numpy(), 80 / (8 * len(drawn[factor]))
            weights = np.full(len(y), weight)
            axes.hist(
                y, 80, range=(-4, 4), weights=weights, histtype="step", color="#777777", lw=0.6
            )
    axes.set(xlabel="x", ylabel="density", ylim=(0, None))
    axes.legend(loc="upper right", fontsize=8)


@plotting.styled
def report_picture(reports: list[ScoreReport], exact: ScoreReport) -> "Figure":
    """Residual of the score's Fokker-Planck equation, and excess loss, by noise level."""
    figure, (left, right) = plotting.figure_of(1, 2, (10.4, 4.2))
    sigma = [math.sqrt(2 * row["t"]) for row in exact.rows]
    for axes, column in ((left, "residual"), (right, "excess")):
        values = torch.tensor([[row[column] for row in report.rows] for report in reports])
        low, high = values.amin(0), values.amax(0)
        axes.plot(sigma, values.mean(0), "o-", color=plotting.COLOURS[1], label="learned, mean")
        label = f"least and greatest of {len(reports)} networks"
        axes.fill_between(sigma, low, high, color=plotting.COLOURS[1], alpha=0.2, label=label)
        axes.set(xscale="log", yscale="log", xlabel="noise level sigma = sqrt(2 t)")
    left.plot(
        sigma,
        [row["residual"] for row in exact.rows],
        "s--",
        color=plotting.COLOURS[0],
        label="exact",
    )
    least = [row["minimum"] for row in exact.rows]
    right.plot(sigma, least, "s--", color=plotting.COLOURS[0], label="least possible loss")
    left.set(ylabel="rms residual / rms of d s / d t")
    right.set(ylabel="E |noise - exact noise|^2")
    left.set_title("Score's Fokker-Planck residual", fontsize=10)
    right.set_title("Excess over the least loss", fontsize=10)
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.suptitle("A learned score by noise level")
    return figure


# ------------------------------------------------------------------- the study


def printed(title: str, rows: list[Row], path: Path) -> None:
    """Rows as aligned columns, and as a CSV file."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n{title}")
    cells = [[_shown(row.get(key, "")) for key in head] for row in rows]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    for line in [head, *cells]:
        first, *rest = (text.rjust(w) for text, w in zip(line, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *rest]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        writer.writerows(rows)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(config: Config, out: Path) -> dict[str, Any]:
    forward = forward_rows(config)
    printed(
        "The heat equation from two modes, largest L1 error at three times",
        forward,
        out / "forward.csv",
    )
    gaussian = gaussian_rows(config)
    printed("One bell back: final variance / v0", gaussian, out / "gaussian.csv")
    mixture, pictures = mixture_rows(config)
    printed("Two modes back to t = 0", mixture, out / "mixture.csv")
    learned, reports, exact = learned_rows(config)
    printed(f"Two modes back to t = {END:g}", learned, out / "learned.csv")
    for name, report in {"exact score": exact, "learned score 0": reports[0]}.items():
        print(f"\n{name}\n{report}")
    plotting.save(films_picture(config, pictures["films"]), out / "films.png")
    plotting.save(factors_picture(gaussian, pictures), out / "factors.png")
    plotting.save(report_picture(reports, exact), out / "score_report.png")
    levels = {"exact": exact.rows, "learned": [report.rows for report in reports]}
    tables = {"forward": forward, "gaussian": gaussian, "mixture": mixture, "learned": learned}
    return {**tables, "levels": levels}


if __name__ == "__main__":
    quick = {
        "cells": 480,
        "particles": 4_000,
        "steps": 200,
        "seeds": 1,
        "train_steps": 800,
        "levels": 6,
    }
    study(run, Config, quick)
