"""What does the network predict, and what does it take as time? Its outputs under every reading.

A network that is declared wrongly still computes something right: under another prediction kind, or with
another time, its data prediction is far better. All pairs are tried.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser, NetworkDenoiser, Prediction, conversion
from sdekit.diagnosis.probe import Probe, call
from sdekit.processes import VP
from sdekit.schedules import Tabulated

KINDS: tuple[str, ...] = get_args(Prediction)
#: Chain lengths that networks of labels are often made for.
_CHAINS = (100, 500, 1000, 4000)
#: A reading is better if it leaves at most this part of the excess (against exact laws) ...
_LEFT = 0.25
#: ... or takes this part off the loss, by so many standard errors, to within this of the linear bound.
_TAKEN, _SIGNIFICANT, _SLACK = 0.02, 5.0, 1.02
#: Excess that is rounding: there is nothing to improve.
_ROUNDING = 1e-8
#: What a network may raise at a time it was not made for.
REFUSALS = (
    ValueError, TypeError, IndexError, RuntimeError, OverflowError, ZeroDivisionError,
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One way to read the network's outputs.

    Attributes:
        kind: prediction kind.
        time: name of the time convention.
        loss: of each draw at each level, (levels, m), as shares of the variance of x_t.
        excess: distance from the exact data prediction, alike; None where no law is known.
        useful: whether the outputs say at least half of what there is to say beyond an output of zero.
        constant: whether the outputs do not depend on x_t.
    """

    kind: str
    time: str
    loss: Tensor
    excess: Tensor | None
    useful: bool
    constant: bool

    @property
    def cost(self) -> float:
        """Mean over levels of the excess where it is known, else of the loss; infinite for NaN."""
        value = (self.loss if self.excess is None else self.excess).mean().item()
        return value if math.isfinite(value) else math.inf


@dataclass(frozen=True)
class Readings:
    """All readings, which was declared, and which is the best (the declared one unless another is better).

    `floor` is the least loss at each level: exact on these draws, or that of the best linear denoiser.
    """

    every: dict[tuple[str, str], Reading]
    declared: Reading
    best: Reading
    floor: Tensor
    refused: tuple[str, ...]


def read(probe: Probe) -> Readings:
    """The model's outputs under every kind and time, on the same draws."""
    declared_time, clocks = conventions(probe.model)
    every: dict[tuple[str, str], Reading] = {}
    refused, (exact, floor) = [], _floor(probe)
    for name, clock in clocks.items():
        try:
            outputs = _outputs(probe, reclocked(probe.model, clock))
        except REFUSALS:
            if name == declared_time:
                raise
            refused.append(name)
            continue
        for kind in KINDS:
            every[kind, name] = _reading(probe, kind, name, outputs, exact, floor)
    declared = every[probe.model.prediction, declared_time]
    return Readings(every, declared, _best(every, declared, floor), floor, tuple(refused))


def declared_cost(probe: Probe) -> float:
    """Cost of the declared reading alone, over the least loss there is."""
    exact, floor = _floor(probe)
    outputs, kind = _outputs(probe, probe.model), probe.model.prediction
    return _reading(probe, kind, "declared", outputs, exact, floor).cost / floor.mean().item()


def conventions(model: Denoiser) -> tuple[str, dict[str, Callable[[Any], Any] | None]]:
    """The declared time convention, and the clocks of all by name; None is the model's own clock."""
    if not isinstance(model, NetworkDenoiser):
        return "its own", {"its own": None}
    process, schedule = model.process, getattr(model.process, "schedule", None)
    table = len(schedule.betas) if isinstance(schedule, Tabulated) else None
    clocks: dict[str, Callable[[Any], Any] | None] = {}
    for time in ("unit", "log_snr", "sigma"):
        clocks[time] = NetworkDenoiser(model.network, process, time=time)._network_time
    clocks["reversed unit"] = lambda t: 1 - t / process.horizon
    own = model.labels or (table if isinstance(process, VP) else None)
    chains: list[int] = [own, *(c for c in _CHAINS if c != own)] if own else list(_CHAINS)
    for chain in chains:
        label = _label_clock(model, chain)
        clocks[f"label of {chain}"] = label
        if chain == own:
            clocks[f"label of {chain} plus one"] = lambda t, label=label: label(t) + 1
            clocks[f"label of {chain} minus one"] = lambda t, label=label: max(label(t) - 1, 0)
            clocks[f"reversed label of {chain}"] = lambda t, label=label, last=chain - 1: (
                last - label(t)
            )
    declared = f"label of {model.labels}" if model.time == "label" else model.time
    clocks[declared] = None
    return declared, clocks


def reclocked(model: Denoiser, clock: Callable[[Any], Any] | None) -> Denoiser:
    """The same model, weights shared, told its time by another clock."""
    if clock is None:
        return model
    other = copy.copy(model)
    vars(other)["_network_time"] = clock
    return other


def _label_clock(model: NetworkDenoiser, chain: int) -> Callable[[Any], Any]:
    wrapped = NetworkDenoiser(model.network, model.process, time="label", labels=chain)
    return wrapped._network_time


def _outputs(probe: Probe, model: Denoiser) -> list[Tensor]:
    """The model's own outputs at every level."""
    levels = enumerate(probe.times)
    return [call(model, probe.states[j], t, probe.rows(j)[2]) for j, t in levels]


def _floor(probe: Probe) -> tuple[list[Tensor] | None, Tensor]:
    """The exact data predictions at every level, where the law is known, and the least loss (levels,)."""
    if probe.target is None:
        line = [probe.linear(t) for t in probe.times]
        return None, torch.tensor(line, dtype=torch.float64)
    denoiser = probe.target.denoiser(probe.process)
    exact = [denoiser.predict(probe.states[j], t) for j, t in enumerate(probe.times)]
    return exact, _losses(probe, exact)[0].mean(1)


def _reading(
    probe: Probe,
    kind: str,
    time: str,
    outputs: list[Tensor],
    exact: list[Tensor] | None,
    floor: Tensor,
) -> Reading:
    affine = [conversion(probe.process, kind, "data", t) for t in probe.times]
    levels = list(zip(affine, probe.states, outputs, strict=True))
    loss, excess = _losses(probe, [a * x + b * out for (a, b), x, out in levels], exact)
    unsaid = _losses(probe, [a * x for (a, _), x, _ in levels])[0].mean()
    useful = bool(unsaid - loss.mean() > 0.5 * (unsaid - floor.mean()))
    constant = all(bool((out == out[:1]).all()) for out in outputs)
    return Reading(kind, time, loss, excess, useful, constant)


def _losses(
    probe: Probe, found: list[Tensor], exact: list[Tensor] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Loss, and excess where the exact predictions are given, of each draw at each level: (levels, m)."""
    loss = torch.stack([probe.share(x0, probe.rows(j)[0], j) for j, x0 in enumerate(found)])
    if exact is None:
        return loss, None
    levels = enumerate(zip(found, exact, strict=True))
    return loss, torch.stack([probe.share(x0, truth, j) for j, (x0, truth) in levels])


def _best(every: dict[tuple[str, str], Reading], declared: Reading, floor: Tensor) -> Reading:
    """The reading that the outputs speak for: one thing changed if that does, else both."""
    single = [r for r in every.values() if r.kind == declared.kind or r.time == declared.time]
    best = declared
    for candidates in (_useful(single), _useful(every.values())):
        found = min(candidates, key=lambda r: r.cost, default=declared)
        if _better(best, found, floor):
            best = found
    return best


def _useful(readings: Any) -> Iterator[Reading]:
    return (r for r in readings if r.useful)


def _better(declared: Reading, other: Reading, floor: Tensor) -> bool:
    """Whether another reading is better beyond doubt, and by enough to matter."""
    if declared.excess is not None:
        return declared.cost > _ROUNDING and other.cost < _LEFT * declared.cost
    if other.cost > _SLACK * floor.mean().item() + 2 * _standard_error(other.loss):
        return False
    if declared.cost == math.inf:
        return other.cost < math.inf
    gain = declared.loss - other.loss
    mean = gain.mean().item()
    return mean > _TAKEN * declared.cost and mean > _SIGNIFICANT * _standard_error(gain)


def _standard_error(values: Tensor) -> float:
    """Of the mean over levels of the mean over draws."""
    levels, draws = values.shape
    return (values.var(1).sum() / draws).sqrt().item() / levels
