"""How wrong is a Gaussian fitted by maximum likelihood, and how wrong is a score model of the same points?

The fit is computed in closed form and by gradient descent on the negative log-likelihood; its divergence from
the truth has a known mean. A score model whose noise is affine in x has the fit for its optimum, an MLP does
not know that the law is Gaussian. All divergences are computed, none is estimated from samples.

    python experiments/gaussian_baseline.py [--quick] [--out runs/gaussian_baseline]
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness.study import option, study
from torch import Tensor, nn
from torch.nn import functional as F

import sdekit as sk
from sdekit import plotting, samplers
from sdekit.networks.embeddings import TimeFeatures
from sdekit.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEAN = torch.tensor([1.0, 2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
LAW = sk.GaussianMixture(None, MEAN[None], covariances=COVARIANCE[None])
PROCESS = sk.VP()
#: Where sampling and likelihoods end.
END = 1e-3


@dataclass(frozen=True)
class Config:
    """Counts and rates."""

    points: int = option(2_000, "points in the data set that is fitted by descent and drawn")
    descent_steps: int = option(500, "gradient steps on the negative log-likelihood")
    rate: float = option(0.1, "step size of the descent")
    minibatch: int = option(64, "points a step of the stochastic descent on the mean")
    repeats: int = option(1_000, "data sets at every size, for the mean divergence of the fit")
    sizes: str = option("100 400 2000", "points that score models are trained on")
    seeds: int = option(4, "data sets, and score models, at every such size")
    train_steps: int = option(2_000, "optimiser steps of a score model")
    hidden: int = option(64, "width of the MLP")
    samples: int = option(5_000, "samples drawn from every model for its Wasserstein distances")


# ------------------------------------------------------------------- the fit, and what it must cost


def maximum_likelihood(data: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., d) and covariance with divisor n (..., d, d) of data (..., n, d)."""
    centred = data - data.mean(-2, keepdim=True)
    return data.mean(-2), centred.mT @ centred / data.shape[-2]


def descended(data: Tensor, steps: int, rate: float) -> tuple[Tensor, Tensor]:
    """The same by full-batch descent on the mean negative log-likelihood, from N(0, I).

    In the mean and the factor A of the precision A^T A, lower triangular with exponentials on its diagonal;
    leading axes of `data` are runs of their own.
    """
    d = data.shape[-1]
    mean = torch.zeros(*data.shape[:-2], d, dtype=data.dtype, requires_grad=True)
    factor = torch.zeros(*data.shape[:-2], d, d, dtype=data.dtype, requires_grad=True)
    optimizer = torch.optim.SGD([mean, factor], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        white = (data - mean[..., None, :]) @ _lower(factor).mT
        logs = factor.diagonal(dim1=-2, dim2=-1).sum(-1)
        (0.5 * white.square().sum(-1).mean(-1) - logs).sum().backward()
        optimizer.step()
    with torch.no_grad():
        lower = _lower(factor)
        return mean.detach(), torch.linalg.inv(lower.mT @ lower)


def _lower(factor: Tensor) -> Tensor:
    return factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).exp())


def stochastic_mean(data: Tensor, steps: int, rate: float, batch: int, seed: int) -> Tensor:
    """The last iterate (runs, d) of descent on the mean of N(mu, I) by mini-batches of data (runs, n, d)."""
    generator = torch.Generator().manual_seed(seed)
    runs, n, d = data.shape
    mean = data.new_zeros(runs, d)
    for _ in range(steps):
        rows = torch.randint(n, (runs, batch, 1), generator=generator).expand(-1, -1, d)
        mean = mean - rate * (mean - data.gather(1, rows).mean(1))
    return mean


def gaussian_kl(
    mean: Tensor, covariance: Tensor, other: Tensor, other_covariance: Tensor
) -> Tensor:
    """KL(N(mean, covariance) || N(other, other_covariance)) in nats, over leading axes."""
    factor = torch.linalg.cholesky(other_covariance)
    ratio = torch.linalg.solve_triangular(factor, torch.linalg.cholesky(covariance), upper=False)
    away = torch.linalg.solve_triangular(factor, (other - mean)[..., None], upper=False)
    logs = ratio.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    trace = ratio.square().sum((-2, -1)) - mean.shape[-1]
    return 0.5 * (trace + away.square().sum((-2, -1))) - logs


def expected_kl(n: int, d: int) -> tuple[float, float]:
    """Mean of KL(truth || fit) over sets of n > d + 2 points, exactly and to leading order.

    n C_hat is a Wishart matrix of n - 1 degrees of freedom, independent of the mean: E C_hat^-1 = n C^-1 /
    (n - d - 2), E log det C_hat = log det C + sum_i psi((n - i) / 2) + d log(2 / n), and the mean adds
    d / (n - d - 2). To leading order it is half a nat for each of the d (d + 3) / 2 parameters, over n.
    """
    places = torch.tensor([(n - i) / 2 for i in range(1, d + 1)], dtype=torch.float64)
    logs = float(torch.digamma(places).sum()) + d * math.log(2 / n)
    return 0.5 * ((n + 1) * d / (n - d - 2) - d + logs), d * (d + 3) / (4 * n)


# ------------------------------------------------------------------- score models


class AffineNoise(nn.Module):
    """A(t) x + b(t), A and b by a small network of the time alone.

    On points of mean m and covariance S the least loss has sigma (alpha^2 S + sigma^2 I)^-1 (x - alpha m):
    the noise of the Gaussian fit, whatever law the points come from.
    """

    broadcasts_time = True

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.dim, self.features = dim, TimeFeatures()
        self.hidden = nn.Linear(self.features.features, hidden)
        self.out = nn.Linear(hidden, dim * (dim + 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predicted noise at x (n, d) and t (n,) or (1,)."""
        rows = self.out(F.silu(self.hidden(self.features(t))))
        matrix, shift = rows.split((self.dim**2, self.dim), dim=1)
        return (matrix.reshape(-1, self.dim, self.dim) @ x[..., None])[..., 0] + shift


def trained(network: str, data: Tensor, config: Config, seed: int) -> sk.NetworkDenoiser:
    """A score model of the points, in float64."""
    torch.manual_seed(seed)
    dim = data.shape[1]
    net = AffineNoise(dim) if network == "affine" else sk.networks.MLP(dim, hidden=config.hidden)
    model = sk.NetworkDenoiser(net, PROCESS)
    done = sk.train(model, data.float(), steps=config.train_steps, seed=seed, progress=False)
    return done.model.double()


def affine_law(model: sk.Denoiser) -> tuple[Tensor, Tensor]:
    """Mean and covariance at END of an affine score model: its flow is affine, so three points tell it."""
    std = PROCESS.prior.std
    start = torch.cat([torch.zeros(1, 2), std * torch.eye(2)]).double()
    origin, *ends = sk.decode(model, start, t_end=END, rtol=1e-10, atol=1e-10)
    matrix = torch.stack(ends, 1) - origin[:, None]
    return origin, matrix @ matrix.mT


def quadrature_kl(model: sk.Denoiser, nodes: int = 20) -> tuple[float, float]:
    """KL(p || q) at END, p the exact law and q the model's, by Gauss-Hermite nodes under p.

    Then the same of a model that starts from the true end of its process, where that is known (else NaN).
    """
    from numpy.polynomial.hermite_e import hermegauss

    points, weights = (torch.from_numpy(v) for v in hermegauss(nodes))
    law = LAW.at(PROCESS, END)
    white, weight = torch.cartesian_prod(points, points), torch.outer(weights, weights).flatten()
    seen = weight / weight.sum() > 1e-10  # beyond, the network extrapolates and nothing weighs
    x = law.mean + white[seen] @ torch.linalg.cholesky(law.covariance).mT
    found = sk.log_likelihood(model, x, t_end=END)
    weight, gap = weight[seen] / weight[seen].sum(), law.log_prob(x) - found.value
    if found.prior_mismatch is None:
        return float(weight @ gap), math.nan
    return float(weight @ gap), float(weight @ (gap - found.prior_mismatch))


def distances(x: Tensor) -> dict[str, float]:
    """W2 of the Gaussian with the samples' moments, and sliced W2 to as many exact draws; at END."""
    return {name: metric(x, LAW.at(PROCESS, END)) for name, metric in METRICS.items()}


def moment_distance(x: Tensor, law: sk.GaussianMixture) -> float:
    found = sk.metrics.FeatureSet(x)
    return sk.metrics.gaussian_wasserstein(found.mean, found.covariance, law.mean, law.covariance)


def sliced_distance(x: Tensor, law: sk.GaussianMixture) -> float:
    return sk.metrics.sliced_wasserstein(x, law.sample(len(x), seed=77))


METRICS = {"W2 of moments": moment_distance, "sliced W2": sliced_distance}
MODELS = ("Gaussian fit", "affine score", "MLP score")


@dataclass(frozen=True)
class Models(Records):
    """A row a model, size and seed, and what exact samples score."""

    floors: dict[str, sk.metrics.Floor]

    def mean(self, model: str, size: int, column: str) -> tuple[float, float]:
        """Mean over seeds and its standard error (0 for one seed)."""
        found = [r[column] for r in self.rows if (r["model"], r["points"]) == (model, size)]
        values = torch.tensor(found, dtype=torch.float64)
        spread = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return float(values.mean()), spread

    @property
    def sizes(self) -> list[int]:
        """Points in a data set."""
        return list(dict.fromkeys(r["points"] for r in self.rows))

    def _cells(self) -> list[list[str]]:
        cells = [["model", "points", "KL (nats)", *METRICS]]
        for size in self.sizes:
            for model in MODELS:
                found = [self.mean(model, size, column) for column in ("KL", *METRICS)]
                cells.append([model, f"{size:,}", *(f"{m:.2e} ± {e:.0e}" for m, e in found)])
        limits = (self.floors[name] for name in METRICS)
        return [*cells, ["exact samples", "", "", *(f"{f.mean:.2e} ± {f.std:.0e}" for f in limits)]]


def measured(config: Config) -> tuple[Models, dict[str, Any]]:
    """Every model at every size; and the models of the first seed at the largest size, for the picture."""
    rows, shown = [], {}
    for size in map(int, config.sizes.split()):
        for seed in range(config.seeds):
            data = LAW.sample(size, seed=1_000 * size + seed)
            fit = maximum_likelihood(data)
            fitted = sk.GaussianMixture(None, fit[0][None], covariances=fit[1][None])
            affine, mlp = (trained(name, data, config, seed) for name in ("affine", "mlp"))
            noisy = LAW.at(PROCESS, END)
            kls = {
                "Gaussian fit": float(gaussian_kl(MEAN, COVARIANCE, *fit)),
                "affine score": float(
                    gaussian_kl(noisy.mean, noisy.covariance, *affine_law(affine))
                ),
                "MLP score": quadrature_kl(mlp)[0],
            }
            drawn = {
                "Gaussian fit": fitted.at(PROCESS, END).sample(config.samples, seed=seed),
                **{
                    name: sk.sample(
                        model, (config.samples, 2), sampler=samplers.DPMSolverPP(), steps=40,
                        t_end=END, seed=seed, dtype=torch.float64,
                    ).x
                    for name, model in (("affine score", affine), ("MLP score", mlp))
                },
            }  # fmt: skip
            head = {"points": size, "seed": seed}
            rows += [{"model": m, **head, "KL": kls[m], **distances(drawn[m])} for m in MODELS]
            if seed == 0:
                shown = {"data": data, "fit": fit, "MLP score": mlp}
    floors = {
        name: sk.metrics.floor(metric, LAW.at(PROCESS, END), n=config.samples, repeats=20)
        for name, metric in METRICS.items()
    }
    return Models(rows, floors), shown


# ------------------------------------------------------------------- pictures


@plotting.styled
def fits_picture(shown: dict[str, Any]) -> "Figure":
    """The truth's contours at 1, 2 and 3 standard deviations, with those of the fit and of the MLP."""
    figure, panels = plotting.figure_of(1, 2, (9.6, 4.6), sharex=True, sharey=True)
    places = [torch.linspace(m - 3.6, m + 3.6, 61, dtype=torch.float64) for m in MEAN.tolist()]
    x = torch.cartesian_prod(*places)
    peak = float(LAW.log_prob(MEAN[None]))
    mean, covariance = shown["fit"]
    fit = sk.GaussianMixture(None, mean[None], covariances=covariance[None]).log_prob(x)
    learned = sk.log_likelihood(shown["MLP score"], x, t_end=END, rtol=1e-5, atol=1e-5).value
    for axes, (name, values) in zip(
        panels, {"Gaussian fit": fit, "MLP score model": learned}.items(), strict=True
    ):
        axes.plot(*shown["data"].T, ".", color="#BBBBBB", ms=2.5, zorder=0)
        _contours(axes, places, LAW.log_prob(x) - peak, plotting.COLOURS[0], "-")
        _contours(axes, places, values - peak, plotting.COLOURS[1], "--")
        lines = ((plotting.COLOURS[0], "-", "truth"), (plotting.COLOURS[1], "--", name))
        for colour, dash, label in lines:
            axes.plot([], [], color=colour, ls=dash, label=label)
        axes.legend(loc="upper left")
        axes.set(title=name, xlabel="x[0]", aspect="equal")
        axes.set(xlim=(float(places[0][0]), float(places[0][-1])))
        axes.set(ylim=(float(places[1][0]), float(places[1][-1])))
    panels[0].set_ylabel("x[1]")
    figure.suptitle(
        f"Densities fitted to {len(shown['data']):,} points: e^-1/2, e^-2, e^-9/2 of the true peak"
    )
    return figure


def _contours(axes: "Axes", places: list[Tensor], logs: Tensor, colour: str, dash: str) -> None:
    square = logs.reshape(len(places[0]), len(places[1])).T
    levels = [-4.5, -2.0, -0.5]
    axes.contour(*places, square, levels, colors=colour, linestyles=dash, linewidths=1.6)


@plotting.styled
def kl_picture(curve: list[dict[str, float]], table: Models) -> "Figure":
    """Divergence against the number of points: measured means, the exact mean and its leading order."""
    figure, (axes,) = plotting.figure_of(1, 1, (7.2, 4.8))
    n = [row["points"] for row in curve]
    every = sorted({round(10 * 1.05**k) for k in range(128)})
    exact, leading = zip(*(expected_kl(count, 2) for count in every), strict=True)
    axes.plot(every, leading, color="#999999", ls=":", label="d (d + 3) / 4n")
    axes.plot(every, exact, color="#000000", lw=1, label="exact mean of the fit")
    style: Any = {"ls": "none", "capsize": 3, "ms": 6}
    means, errors = [r["mean"] for r in curve], [r["stderr"] for r in curve]
    label = f"Gaussian fit, {curve[0]['repeats']:,} data sets"
    axes.errorbar(n, means, errors, marker="o", color=plotting.COLOURS[0], label=label, **style)
    for k, model in enumerate(MODELS[1:], 1):
        found = [table.mean(model, size, "KL") for size in table.sizes]
        where = [size * 1.04 ** (k - 1) for size in table.sizes]
        colour, marker = plotting.COLOURS[k], plotting.MARKERS[k]
        means, errors = zip(*found, strict=True)
        axes.errorbar(where, means, errors, marker=marker, color=colour, label=model, **style)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="points in the data set",
        ylabel="KL(truth || model), nats",
    )
    axes.set_title(
        "Divergence of models of n points; bars are standard errors over data sets", fontsize=10
    )
    axes.legend()
    return figure


# ------------------------------------------------------------------- the study


def descent(config: Config) -> dict[str, Any]:
    """Both descents against the closed form, and the scatter of the stochastic one against its own."""
    data = LAW.sample(config.points, seed=0)
    exact, found = maximum_likelihood(data), descended(data, config.descent_steps, config.rate)
    gap = max(float((a - b).abs().max()) for a, b in zip(exact, found, strict=True))
    runs = torch.randn(
        400, config.points, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    last = stochastic_mean(runs, config.descent_steps, config.rate, config.minibatch, seed=2)
    per_step = config.rate / ((2 - config.rate) * config.minibatch)
    return {
        "mean by closed form": exact[0].tolist(),
        "mean by descent": found[0].tolist(),
        "descent against closed form": gap,
        "standard error of the mean": 1 / math.sqrt(config.points),
        "scatter of the last mini-batch iterate": float(last.square().mean().sqrt()),
        "the same by theory": math.sqrt(1 / config.points + per_step),
    }


def optimum(fit: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Divergences of the best affine score model of some points, by its likelihood and in closed form."""
    law = sk.GaussianMixture(None, fit[0][None], covariances=fit[1][None])
    truth, there = LAW.at(PROCESS, END), law.at(PROCESS, END)
    ends = truth.mean, truth.covariance, there.mean, there.covariance
    plain, corrected = quadrature_kl(law.denoiser(PROCESS))
    return {
        "optimal affine score model, KL from N(0, I)": plain,
        "the same from its own end": corrected,
        "KL of the Gaussian fit, closed form": float(gaussian_kl(*ends)),
    }


def fit_curve(config: Config) -> list[dict[str, float]]:
    """Mean divergence of the fit over many data sets, beside its exact mean, by size."""
    rows = []
    for n in (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000):
        generator = torch.Generator().manual_seed(n)
        parts = []
        for count in [200] * (config.repeats // 200) or [config.repeats]:
            z = torch.randn(count, n, 2, generator=generator, dtype=torch.float64)
            data = MEAN + z @ torch.linalg.cholesky(COVARIANCE).mT
            parts.append(gaussian_kl(MEAN, COVARIANCE, *maximum_likelihood(data)))
        values = torch.cat(parts)
        exact, leading = expected_kl(n, 2)
        mean, stderr = float(values.mean()), float(values.std()) / math.sqrt(len(values))
        row = {"points": n, "repeats": len(values), "mean": mean, "stderr": stderr}
        rows.append({**row, "exact mean": exact, "leading order": leading})
    return rows


def run(config: Config, out: Path) -> dict[str, Any]:
    fitted, curve = descent(config), fit_curve(config)
    for name, value in fitted.items():
        print(f"{name}: {value}")
    print("\n   points   mean KL of the fit   exact mean   d(d+3)/4n")
    for row in curve:
        mean = f"{row['mean']:.3e} ± {row['stderr']:.0e}"
        print(
            f"{row['points']:>9,}{mean:>21}{row['exact mean']:>13.3e}{row['leading order']:>12.3e}"
        )
    table, shown = measured(config)
    print(f"\n{table}")
    optimal = optimum(shown["fit"])
    print("\n" + "\n".join(f"{name}: {value:.6e}" for name, value in optimal.items()))
    table.to_csv(out / "models.csv")
    (out / "models.md").write_text(table.markdown() + "\n")
    plotting.save(fits_picture(shown), out / "fits.png")
    plotting.save(kl_picture(curve, table), out / "kl.png")
    return {
        "descent": fitted,
        "fit": curve,
        "optimal affine score model": optimal,
        "models": table.rows,
    }


if __name__ == "__main__":
    quick = {"sizes": "400", "seeds": 1, "train_steps": 600, "repeats": 200, "samples": 1_000}
    study(run, Config, quick)
