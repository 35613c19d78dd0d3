"""Schedule, norm and prediction of continuous-time DDIM: the cells of a published study, with error bars.

    python experiments/ddim_study.py [--quick] [--data fashion] [--workers 2] [--out runs/ddim_study]

A published study of the DDIM of Beres 2022 (Keras examples) trained eight networks on 64 x 64 flowers and
eight on pets: a cosine or a linear schedule, an L1 or an L2 loss, of the noise or of the image. It compared
kernel distances (KID) after 4 network calls, one seed a cell, and preferred cosine, L1 and noise. Here every
cell has several seeds, its KID stands beside what data scores, and the two arms of the schedule, which were
not comparable, are taken apart. The published linear arm clips alpha^2 to [0.02, 0.95]:

- it never is noisier than alpha = 0.141, where the cosine arm reaches 0.02, yet starts from N(0, I) as well;
- on 45 % of its times nothing happens, so that a grid uniform in time wastes calls (1 of 4).

A third arm, "linear matched", is the same rate between the signal rates of the cosine arm, never idle.
All cells are sampled twice: "published" starts from N(0, I) and is uniform in time; "matched" starts from the
Gaussian with the moments of the data's own law at t = 1, and reads every model at the same noise levels.

What to see: schedules.png has the two faults of the clipped arm at a glance. In kid.png the order of the
schedules turns with the number of calls and with what is predicted: at 4 calls networks of the noise do
best on the matched linear arm, those of the image on the clipped one. On average over the other choices no
two schedules differ at 4 calls by much more than two standard errors: one seed a cell cannot order them.
The other two preferences do not hold on digits: L2 beats L1, whose least is a median and no score, and
networks of the image beat those of the noise, at every number of calls and well beyond their errors.
samples.png shows why: where the signal is 0.02, an error of the noise counts 50 times in the image, and a
small network leaves specks. Losses on own times cannot be compared between schedules; at shared noise
levels they hardly differ. The NN ratio, the median distance to the nearest training image over that of
unseen images, tells a good model (1) from one that copies (less): part of the low KID of networks of the
image is memory of a small data set.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from harness.study import option, study
from harness.sweep import SweepTable, folder_name, grid, sweep
from torch import Tensor, nn

import sdekit as sk
from sdekit import metrics, plotting, schedules
from sdekit.comparison.tables import mean_and_error, with_error
from sdekit.data import images
from sdekit.elementary import Number
from sdekit.errors import check_choice, check_integer
from sdekit.records import Records
from sdekit.storage import load_tensors, save_tensors

#: KID after 4 calls by (schedule, norm, prediction): flowers, pets.
PUBLISHED = {
    ("cosine", "l2", "data"): (0.1390257, 0.1500503),
    ("linear clipped", "l2", "data"): (0.2125010, 0.1741628),
    ("cosine", "l2", "noise"): (0.1315258, 0.1886360),
    ("linear clipped", "l2", "noise"): (0.1652256, 0.1187079),
    ("cosine", "l1", "data"): (0.1038467, 0.1487082),
    ("linear clipped", "l1", "data"): (0.1912024, 0.2122481),
    ("cosine", "l1", "noise"): (0.0934186, 0.1971107),
    ("linear clipped", "l1", "noise"): (0.1673736, 0.1810841),
}


# ------------------------------------------------------------------------------------- the schedules


@dataclass(frozen=True)
class Between(schedules.Schedule):
    """The part of a schedule between two signal rates, spread over [0, 1], or clipped and idle outside.

    Args:
        schedule: starts at data, and has both signal rates.
        signal_max: alpha at t = 0.
        signal_min: alpha at t = 1.
        clipped: keep the schedule's own times, and stand still before and after.
    """

    schedule: schedules.Schedule
    signal_max: float
    signal_min: float
    clipped: bool = False

    @cached_property
    def live(self) -> tuple[float, float]:
        """The schedule's own times at which it has the two signal rates."""
        first, last = (
            float(self.schedule.inverse(-2 * math.log(a)))
            for a in (self.signal_max, self.signal_min)
        )
        return first, last

    def _own(self, t: Number) -> Number:
        """The schedule's own time."""
        first, last = self.live
        if not self.clipped:
            return first + (last - first) * t
        return t.clamp(first, last) if isinstance(t, Tensor) else min(max(t, first), last)

    def beta(self, t: Number) -> Number:
        """The rate in the time of this schedule; 0 where it stands still."""
        first, last = self.live
        if not self.clipped:
            return (last - first) * self.schedule.beta(self._own(t))
        return self.schedule.beta(t) * ((t >= first) * (t <= last))

    def B(self, t: Number) -> Number:
        """-2 log alpha."""
        return self.schedule.B(self._own(t))

    def delta_B(self, s: Number, t: Number) -> Number:
        """The schedule's own increment."""
        return self.schedule.delta_B(self._own(s), self._own(t))

    def inverse(self, b: Number) -> Number:
        """The time, which is unique within (0, 1) unless the schedule stands still there."""
        first, last = self.live
        own = self.schedule.inverse(b)
        return own if self.clipped else (own - first) / (last - first)


COSINE = schedules.Angle(0.95, 0.02)
ARMS: dict[str, sk.VP] = {
    "cosine": sk.VP(schedule=COSINE),
    "linear clipped": sk.VP(
        schedule=Between(schedules.Linear(), math.sqrt(0.95), math.sqrt(0.02), clipped=True)
    ),
    "linear matched": sk.VP(
        schedule=Between(schedules.Linear(), COSINE.signal_max, COSINE.signal_min)
    ),
}


def noise_angle(process: sk.Process, t: float) -> float:
    """atan(sigma / alpha)."""
    return math.atan(math.exp(-0.5 * float(process.log_snr(t))))


def time_at_angle(process: sk.Process, angle: float) -> float:
    """The time at which atan(sigma / alpha) has this value."""
    return float(process.time_at_log_snr(-2 * math.log(math.tan(angle))))


# ------------------------------------------------------------------------------------------ the data


@dataclass(frozen=True)
class Material:
    """Standardised images, what the networks see and what not, and the features they are judged by."""

    train: Tensor
    unseen: Tensor
    scaling: images.Scaling
    extractor: nn.Module
    features: metrics.FeatureSet

    def pictures(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], cut off there as a screen does."""
        return self.scaling.backward(x).clamp(-1, 1)

    def seen(self, x: Tensor) -> metrics.FeatureSet:
        """The classifier's features of generated images."""
        return metrics.extract_features(self.extractor, self.pictures(x), name="LeNet")

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of the training images."""
        flat = metrics.FeatureSet(self.train.flatten(1))
        return flat.mean, flat.covariance


@lru_cache
def material(data: str) -> Material:
    """The digits, or Fashion-MNIST at half its size, divided, standardised, and a LeNet trained on all."""
    if data == "fashion":
        found = images.fashion_mnist()
        assert found.labels is not None
        levels, labels = images.balanced_subset(found.images, found.labels, 1000, seed=0)
        pixels = nn.functional.avg_pool2d(images.Scaling.symmetric(256).forward(levels), 2)
        unseen, epochs = 1000, 8
    else:
        pixels, labels = images.digits(), images.digit_labels()
        unseen, epochs = 500, 20
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    train, rest = pixels[order[unseen:]], pixels[order[:unseen]]
    fit = metrics.train_lenet(pixels, labels, epochs=epochs)
    scaling = images.Scaling.standardising(train)
    return Material(
        scaling.forward(train),
        scaling.forward(rest),
        scaling,
        fit.network,
        metrics.extract_features(fit.network, rest, name="LeNet"),
    )


# ------------------------------------------------------------------------------------------ one cell


@dataclass(frozen=True)
class Cell:
    """One network: what it is trained with, and how it is judged."""

    schedule: str = "cosine"
    norm: str = "l1"
    prediction: str = "noise"
    data: str = "digits"
    steps: int = 4_000
    batch: int = 128
    lr: float = 3e-3
    hidden: int = 256
    calls: tuple[int, ...] = (4, 10, 20, 50)
    sets: int = 4
    seed: int = 0


def run_cell(cell: Cell, folder: Path) -> dict[str, float]:
    """Train one cell, sample it under both protocols, and hold the samples against unseen images."""
    data, process = material(cell.data), ARMS[cell.schedule]
    torch.manual_seed(cell.seed)
    network = sk.networks.MLP(data.train[0].numel(), cell.hidden, time_scale=0.05)
    model = sk.train(
        sk.NetworkDenoiser(network, process, cell.prediction, time="log_snr"),
        data.train,
        steps=cell.steps,
        batch=cell.batch,
        lr=cell.lr,
        loss=sk.training.DenoisingLoss("target", cell.norm),
        half_life=cell.steps / 10,
        seed=cell.seed,
        progress=False,
    ).model
    figures, kept = losses(model, data.unseen, cell.seed), {}
    for protocol in ("published", "matched"):
        for calls in cell.calls:
            x = drawn(model, data, calls, protocol, cell.seed, cell.sets)
            found, parts = data.seen(x), torch.arange(len(x)).split(len(data.unseen))
            name = f"{calls} {protocol}"
            figures[f"KID {name}"] = metrics.kid(found, data.features).value
            distances = [frechet(found[rows], data.features).value for rows in parts]
            figures[f"FD {name}"] = sum(distances) / len(distances)
            near = metrics.memorisation(*map(data.pictures, (x, data.train, data.unseen)))
            figures[f"NN ratio {name}"] = near.ratio
            kept[name] = x[:32].contiguous()
    save_tensors(folder / "samples.safetensors", kept, {})
    return figures


def frechet(x: metrics.FeatureSet, y: metrics.FeatureSet) -> metrics.Frechet:
    """FD-LeNet."""
    return metrics.frechet_distance(x, y, allow_singular=True)


def drawn(
    model: sk.Denoiser, data: Material, calls: int, protocol: str, seed: int, sets: int = 1
) -> Tensor:
    """Sets of as many samples as there are unseen images, by DDIM; the last of its `calls` gives x_0.

    The published grid is t = 1, 1 - 1/calls, .. 1/calls; the matched one has the noise levels that this is on
    the cosine arm, from the terminal level of the model's own. Both start from the same normals.
    """
    process, event = model.process, data.unseen.shape[1:]
    normals = torch.randn(
        sets * len(data.unseen), math.prod(event), generator=torch.Generator().manual_seed(seed)
    )
    if protocol == "published":
        start, spacing, end = normals, "uniform", 1 / calls
    else:
        mean, covariance = terminal(process, data)
        start = mean.to(normals) + normals @ torch.linalg.cholesky(covariance).T.to(normals)
        first, last = noise_angle(process, 1.0), math.acos(COSINE.signal_max)
        spacing, end = "angle", time_at_angle(process, last + (first - last) / calls)
    start = start.unflatten(1, event)
    run: dict[str, Any] = {
        "steps": calls - 1,
        "grid": spacing,
        "t_end": end,
        "final": "data",
        "x_init": start,
    }
    return sk.sample(model, tuple(start.shape), seed=seed, **run).x


def terminal(process: sk.Process, data: Material) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of x at t = 1."""
    mean, covariance = data.moments
    alpha, sigma = process.alpha(1.0), process.sigma(1.0)
    noise = sigma**2 * torch.eye(len(mean), dtype=torch.float64)
    return alpha * mean, alpha**2 * covariance + noise


def prior_gap(process: sk.Process, data: Material) -> float:
    """KL of the Gaussian with these moments from N(0, I), in nats: what a start from N(0, I) gets wrong."""
    mean, covariance = terminal(process, data)
    excess = covariance.diagonal().sum() + mean.square().sum() - len(mean)
    return 0.5 * float(excess - torch.linalg.slogdet(covariance).logabsdet)


def losses(model: sk.Denoiser, x0: Tensor, seed: int, repeats: int = 8) -> dict[str, float]:
    """Mean absolute errors of noise and image on unseen images, on own times and on shared noise levels.

    Shared levels are uniform in the angle between the largest log-SNR at t = 1 and the least at t = 0 that an
    arm has, so that they are there on all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    x0 = x0.repeat(repeats, *[1] * (x0.ndim - 1))
    noise = torch.randn(x0.shape, generator=generator)
    u = (torch.arange(len(x0), dtype=torch.float64) + 0.5) / len(x0)
    u = u[torch.randperm(len(x0), generator=generator)]
    first = max(noise_angle(process, 0.0) for process in ARMS.values())
    last = min(noise_angle(process, 1.0) for process in ARMS.values())
    shared = model.process.time_at_log_snr(-2 * torch.log(torch.tan(first + (last - first) * u)))
    own = model.process.t_min + (model.process.t_max - model.process.t_min) * u
    found = {}
    for name, t in (("", own), (" shared", torch.as_tensor(shared))):
        x_t = model.process.perturb(x0, t, noise)
        with torch.no_grad():
            found[f"noise loss{name}"] = float((model.noise(x_t, t) - noise).abs().mean())
            found[f"image loss{name}"] = float((model.data(x_t, t) - x0).abs().mean())
    return found


# ----------------------------------------------------------------------------------- what comes of it


@dataclass(frozen=True)
class Differences(Records):
    """Mean KID of some cells less that of others, by network calls; negative where the first are better."""

    calls: tuple[int, ...]

    def _cells(self) -> list[list[str]]:
        head = ["KID, difference", "protocol", *(f"{c} calls" for c in self.calls)]
        body = [
            [r["difference"], r["protocol"], *(signed(r[str(c)], r[f"{c} se"]) for c in self.calls)]
            for r in self.rows
        ]
        return [head, *body]


def signed(value: float, error: float) -> str:
    """With its sign, and the error where it is known."""
    return f"{value:+.4f}" + (f" ± {error:.4f}" if math.isfinite(error) else "")


#: (field, first, second, protocol): which cells less which others.
CONTRASTS = (
    ("schedule", "cosine", "linear clipped", "published"),
    ("schedule", "cosine", "linear clipped", "matched"),
    ("schedule", "cosine", "linear matched", "published"),
    ("schedule", "cosine", "linear matched", "matched"),
    ("norm", "l1", "l2", "published"),
    ("norm", "l1", "l2", "matched"),
    ("prediction", "noise", "data", "published"),
    ("prediction", "noise", "data", "matched"),
)


def differences(tables: Sequence[SweepTable], calls: tuple[int, ...]) -> Differences:
    """Every contrast, averaged over the other choices, from a table for each seed.

    Cells of one seed start from the same weights and normals, so that errors are those of the differences.
    """
    rows = []
    for name, first, second, protocol in CONTRASTS:
        row: dict[str, Any] = {"difference": f"{first} - {second}", "protocol": protocol}
        for count in calls:
            found = []
            for table in tables:
                sides = [[r for r in table.rows if r[name] == side] for side in (first, second)]
                means = [sum(r[f"KID {count} {protocol}"] for r in s) / len(s) for s in sides]
                found.append(means[0] - means[1])
            row[str(count)], row[f"{count} se"] = mean_and_error(found)
        rows.append(row)
    return Differences(rows, calls)


@dataclass(frozen=True)
class Ranking(Records):
    """The published eight cells by KID at the fewest calls here, beside the published values."""

    calls: int

    def _cells(self) -> list[list[str]]:
        head = ["cell", f"KID {self.calls} here", "rank", "flowers", "rank", "pets", "rank"]
        body = [
            [row["cell"], with_error(row["here"], row["here se"]), str(row["here rank"])]
            + [
                text
                for k in ("flowers", "pets")
                for text in (f"{row[k]:.4f}", str(row[f"{k} rank"]))
            ]
            for row in self.rows
        ]
        return [head, *body]


def ranking(table: SweepTable, calls: int) -> Ranking:
    """The cells that were published, best first."""
    figure, rows = f"KID {calls} published", []
    for row in table.rows:
        cell = (row["schedule"], row["norm"], row["prediction"])
        if cell in PUBLISHED:
            found = {"cell": ", ".join(cell), "here": row[figure], "here se": row[f"{figure} se"]}
            rows.append(found | dict(zip(("flowers", "pets"), PUBLISHED[cell], strict=True)))
    for key in ("pets", "flowers", "here"):
        rows.sort(key=lambda row: row[key])
        for place, row in enumerate(rows, 1):
            row[f"{key} rank"] = place
    return Ranking(rows, calls)


# ---------------------------------------------------------------------------------------- the pictures


@plotting.styled
def schedule_picture(calls: int) -> Any:
    """The log-SNR of each arm, with the times at which the published grid calls the network."""
    figure, (axes,) = plotting.figure_of(1, 1, (6.4, 4.0))
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    used = torch.tensor([1 - i / calls for i in range(calls)], dtype=torch.float64)
    for i, (name, process) in enumerate(ARMS.items()):
        colour, marker = plotting.COLOURS[i], plotting.MARKERS[i]
        axes.plot(t, process.log_snr(t), color=colour, ls=plotting.DASHES[i])
        axes.plot(used, process.log_snr(used), color=colour, ls="", marker=marker, label=name)
    axes.set(
        xlabel="t",
        ylabel="log SNR",
        title=f"Where {calls} calls, uniform in time, read the network",
    )
    axes.legend()
    return figure


@plotting.styled
def kid_picture(table: SweepTable, calls: tuple[int, ...], floor: metrics.Floor) -> Any:
    """KID by network calls, a panel for each protocol, norm and prediction, a line for each schedule."""
    figure, panels = plotting.figure_of(2, 4, (12.5, 6.0), sharex=True, sharey=True)
    places = grid(Cell, prediction=["noise", "data"], norm=["l1", "l2"])
    for i, axes in enumerate(panels):
        protocol, place = ("published", "matched")[i // 4], places[i % 4]
        axes.axhspan(2 * floor.mean - floor.quantile95, floor.quantile95, color="#DDDDDD", zorder=0)
        for j, name in enumerate(ARMS):
            kind = {"schedule": name, "norm": place.norm, "prediction": place.prediction}
            row = next(r for r in table.rows if kind.items() <= r.items())
            values = [row[f"KID {c} {protocol}"] for c in calls]
            errors = [row[f"KID {c} {protocol} se"] for c in calls]
            style: Any = {"color": plotting.COLOURS[j], "ls": plotting.DASHES[j], "ms": 5}
            bars = errors if all(map(math.isfinite, errors)) else None
            axes.errorbar(calls, values, bars, marker=plotting.MARKERS[j], label=name, **style)
        axes.set(xscale="log")
        axes.set_yscale("symlog", linthresh=max(floor.quantile95, 1e-3))
        axes.set_xticks(calls, [str(c) for c in calls])
        axes.minorticks_off()
        axes.set_title(f"{protocol}: {place.prediction}, {place.norm.upper()}", fontsize=10)
        if i >= 4:
            axes.set_xlabel("network calls")
        if i % 4 == 0:
            axes.set_ylabel("KID (LeNet features)")
    panels[0].legend(fontsize=8)
    figure.suptitle("KID by network calls, ± a standard error over seeds; grey: training data")
    return figure


def sample_picture(
    table: SweepTable, cells: Sequence[Cell], out: Path, calls: tuple[int, ...]
) -> Any:
    """Samples of the best and the worst cell at the fewest and the most calls, beside data."""
    first = f"KID {calls[0]} published"
    ordered = sorted(zip(table.rows, cells, strict=True), key=lambda pair: pair[0][first])
    data = material(cells[0].data)
    groups = {}
    for count in (calls[0], calls[-1]):
        for name, (row, cell) in (("best", ordered[0]), ("worst", ordered[-1])):
            found = load_tensors(out / folder_name(cell) / "samples.safetensors")[0]
            what = f"{cell.schedule}, {cell.norm.upper()}, {cell.prediction}"
            title = f"{name}: {what}\n{count} calls, KID {row[f'KID {count} published']:.3f}"
            groups[title] = data.pictures(found[f"{count} published"])
        groups.setdefault("unseen data", data.pictures(data.unseen[:32]))
    return plotting.image_grids(groups, columns=8)


# ------------------------------------------------------------------------------------------- the study


@dataclass(frozen=True)
class Config:
    """What the command line can change."""

    data: str = option("digits", "digits (8 x 8) or fashion (Fashion-MNIST at 14 x 14).")
    steps: int = option(Cell.steps, "Optimiser steps a cell.")
    batch: int = option(Cell.batch, "Images a step.")
    lr: float = option(Cell.lr, "Peak learning rate.")
    hidden: int = option(Cell.hidden, "Width of the three hidden layers.")
    seeds: int = option(3, "Networks a cell.")
    sets: int = option(
        Cell.sets, "Sets of samples a network, each of as many as there are unseen images."
    )
    calls: str = option("4,10,20,50", "Network calls of DDIM, least first.")
    workers: int = option(1, "Processes that train side by side.")


def run(config: Config, out: Path) -> dict[str, Any]:
    """Train what is not trained yet in `out`, print the tables, draw the pictures."""
    check_choice("data", config.data, ("digits", "fashion"))
    calls = calls_of(config.calls)
    check_integer("sets", config.sets, 1)
    workers, seeds = (
        check_integer("workers", config.workers, 1),
        check_integer("seeds", config.seeds, 1),
    )
    same = {
        name: getattr(config, name) for name in ("data", "steps", "batch", "lr", "hidden", "sets")
    }
    choices = {"schedule": list(ARMS), "norm": ["l1", "l2"], "prediction": ["noise", "data"]}
    cells = grid(Cell(**same, calls=calls), **choices)
    spawn = get_context("spawn")  # a fork after a computation on several threads may hang
    pool = ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else nullcontext()
    with pool as executor:
        table = sweep(run_cell, cells, out / "cells", seeds=range(seeds), executor=executor)
    done = partial(sweep, run_cell, cells, out / "cells", progress=False)
    effects = differences([done(seeds=[seed]) for seed in range(seeds)], calls)
    floors = floors_of(material(config.data))
    report(table, calls, floors, effects, material(config.data))
    table.to_csv(out / "cells.csv")
    effects.to_csv(out / "differences.csv")
    plotting.save(schedule_picture(calls[0]), out / "schedules.png")
    plotting.save(kid_picture(table, calls, floors["KID"]), out / "kid.png")
    plotting.save(sample_picture(table, cells, out / "cells", calls), out / "samples.png")
    means = {name: {"mean": f.mean, "95 %": f.quantile95} for name, f in floors.items()}
    return {"floors": means, "differences": effects.rows}


def calls_of(text: str) -> tuple[int, ...]:
    """The numbers of network calls, increasing."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"calls must be integers with commas between, got {text!r}") from None
    if min(counts) < 2 or sorted(set(counts)) != list(counts):
        raise ValueError(f"calls must increase from at least 2, got {text!r}")
    return counts


def floors_of(data: Material) -> dict[str, metrics.Floor]:
    """What training images score against as many unseen ones: a generator without fault."""
    known, n = data.seen(data.train), len(data.unseen)
    kinds = {"KID": metrics.kid, "FD": frechet}
    return {k: metrics.data_floor(f, known, data.features, n) for k, f in kinds.items()}


def report(
    table: SweepTable,
    calls: tuple[int, ...],
    floors: dict[str, metrics.Floor],
    effects: Differences,
    data: Material,
) -> None:
    """All tables."""
    for name, process in ARMS.items():
        ends = ", ".join(f"{float(process.log_snr(t)):+.2f} at t = {t:g}" for t in (0.0, 1.0))
        print(f"{name}: log SNR {ends}; N(0, I) is {prior_gap(process, data):.3g} nats off there")
    kinds = ("noise loss", "image loss", "noise loss shared", "image loss shared")
    print("\nMean absolute errors on unseen images, on own times and at shared noise levels")
    print(replace(table, figures=kinds, best={k: table.best[k] for k in kinds[2:]}))
    for metric, floor in floors.items():
        told = f"training data scores {floor.mean:.4f}, 95 % below {floor.quantile95:.4f}"
        for protocol in ("published", "matched"):
            print(f"\n{metric}-LeNet by network calls, {protocol} protocol; {told}")
            print(replace(table, figures=tuple(f"{metric} {c} {protocol}" for c in calls)))
    print("\nMedian distance to the nearest training image over that of unseen images")
    print(replace(table, figures=tuple(f"NN ratio {c} matched" for c in calls), best={}))
    print(f"\nThe published eight cells, KID after {calls[0]} calls\n{ranking(table, calls[0])}")
    print(f"\n{effects}")


if __name__ == "__main__":
    study(run, Config, {"steps": 60, "seeds": 1, "sets": 1, "calls": "4,10", "hidden": 64})
