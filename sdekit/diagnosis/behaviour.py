"""How the model behaves: at and beyond the ends of its times, in train mode, alone and in a batch."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.denoisers import NetworkDenoiser, target_weights
from sdekit.diagnosis.findings import HARMFUL, NOTE, WRONG, Finding, row
from sdekit.diagnosis.probe import Probe, call, undisturbed
from sdekit.diagnosis.readings import REFUSALS
from sdekit.training.losses import labels_of

#: A posterior mean has no more power than its target; a network that has so much more blows up.
_BLOWN_UP = 3.0
#: Jump at the ends, in root mean squares of the target, that no continuous network makes.
_JUMP = 1.0
#: Difference of outputs, relative to their size, that is no rounding.
_DIFFERENT = 1e-3
_FEW, _SOME = 8, 64


def check_ends(probe: Probe) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The size of the outputs at the ends of the model's times and beyond, in units of their target's."""
    rows, findings = [], list[Finding]()
    for inside, beyond in _ends(probe):
        x, edge = _output(probe, inside, inside)
        rows.append(_sized(probe, f"at t = {inside:.4g}", edge, inside, inside))
        if edge is None or not bool(edge.isfinite().all()):
            text = f"The model gives NaN or infinity at t = {inside:.4g}, where samplers read it."
            findings.append(Finding(WRONG, "finite", text))
            continue
        for t in beyond:
            _, out = _output(probe, t, inside, x)
            case = f"beyond, at t = {t:.4g}" + ("" if out is not None else ", refused")
            rows.append(_sized(probe, case, out, t, inside))
            words = None if out is None else _trouble(probe, out, edge, t, inside)
            if words:
                findings.append(Finding(NOTE, "outside", words))
    return rows, findings


def _ends(probe: Probe) -> list[tuple[float, list[float]]]:
    """The last times inside, and times beyond each."""
    process, labels = probe.process, labels_of(probe.model)
    first = process.t_min if labels is None else process.horizon / labels
    low = [t for t in (first / 2, 0.0) if math.isfinite(_clock(probe, t))]
    high = [
        t
        for t in (process.horizon * (1 + 1 / (labels or 1000)),)
        if math.isfinite(_clock(probe, t))
    ]
    if process.t_max < process.horizon and math.isfinite(_clock(probe, process.horizon)):
        high.insert(0, process.horizon)
    return [(process.t_max, high), (min(first, process.t_max), low)]


def _clock(probe: Probe, t: float) -> float:
    """What the network is told at t; NaN where it can be told nothing."""
    if not isinstance(probe.model, NetworkDenoiser):
        return 0.0 if 0 <= t <= probe.process.horizon else math.nan
    try:
        return float(probe.model._network_time(t))
    except REFUSALS:
        return math.nan


def _output(
    probe: Probe, t: float, inside: float, x: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """States of the time inside, and the model's output there at time t; None where it refuses."""
    cond = None if probe.cond is None else probe.cond[:_SOME]
    if x is None:
        x = probe.process.perturb(probe.x0[:_SOME], inside, probe.noise[:_SOME])
    try:
        return x, call(probe.model, x, t, cond)
    except REFUSALS:
        return x, None


def _target_size(probe: Probe, t: float) -> float:
    """Root mean square of what the model predicts at t."""
    u, w = (float(c) for c in target_weights(probe.process, probe.model.prediction, t))
    power = probe.mean.square().mean().item() + probe.variance
    return math.sqrt(u * u * power + w * w)


def _sized(probe: Probe, case: str, out: Tensor | None, t: float, inside: float) -> dict[str, Any]:
    log_snr = math.nan if t > probe.process.horizon else float(probe.process.log_snr(t))
    size = math.nan if out is None else _rms(out) / _target_size(probe, inside)
    return row("outside", case, size, _BLOWN_UP, t=t, log_snr=log_snr)


def _trouble(probe: Probe, out: Tensor, edge: Tensor, t: float, inside: float) -> str | None:
    """What is wrong with an output beyond an end."""
    where = f"Beyond its times, at t = {t:.4g}, the model"
    rest = f"; do not read it outside [{probe.process.t_min:.3g}, {probe.process.t_max:.4g}]."
    if not bool(out.isfinite().all()):
        return f"{where} gives NaN or infinity{rest}"
    scale = _target_size(probe, inside)
    if _rms(out) > _BLOWN_UP * max(scale, _rms(edge)):
        return (
            f"{where} blows up to {_rms(out) / scale:.3g} times the size of what it predicts{rest}"
        )
    if _rms(out - edge) > _JUMP * max(scale, _rms(edge)):
        return (
            f"{where} jumps by {_rms(out - edge) / scale:.2g} of the size of what it predicts{rest}"
        )
    return None


def check_mode(probe: Probe) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Whether outputs change when nothing does: the same states twice, and alone or in a batch.

    In the mode that the model was left in, then in eval mode.
    """
    module = probe.model
    if not isinstance(module, nn.Module):
        return [], []
    left = [m for m in module.modules() if m.training]
    rows, findings = [], list[Finding]()
    for mode in ("as left", "eval mode") if left else ("eval mode",):
        twice, batch = _in_mode(probe, left if mode == "as left" else [])
        rows.append(row("mode", f"{mode}: the same states twice", twice, _DIFFERENT))
        rows.append(row("mode", f"{mode}: alone and in a batch", batch, _DIFFERENT))
        if max(twice, batch) > _DIFFERENT:
            findings = [Finding(HARMFUL, "mode", _mode_words(mode, twice, batch))]
    return rows, findings


def _in_mode(probe: Probe, training: list[nn.Module]) -> tuple[float, float]:
    """Relative change of the outputs, twice on the same states, and without the rest of the batch."""
    t = probe.times[len(probe.times) // 2]
    x = probe.process.perturb(probe.x0[:_SOME], t, probe.noise[:_SOME])
    cond = None if probe.cond is None else probe.cond[:_SOME]
    few = None if cond is None else cond[:_FEW]
    with undisturbed(probe.model):
        torch.manual_seed(0)
        for m in training:
            m.training = True
        first, second = call(probe.model, x, t, cond), call(probe.model, x, t, cond)
        alone = call(probe.model, x[:_FEW], t, few)
        for m in training:
            m.training = False
    size = max(_rms(first), 1e-30)
    return _rms(first - second) / size, _rms(first[:_FEW] - alone) / size


def _mode_words(mode: str, twice: float, batch: float) -> str:
    """Eval mode is said last and so overrules: what `eval()` does not cure is in the network."""
    if twice > _DIFFERENT:
        what = f"give different outputs for the same states (by {twice:.0%}): dropout or noise"
    else:
        what = f"depend on the rest of the batch (by {batch:.0%}): batch norm or the like"
    if mode == "as left":
        return f"The model was left in train mode, where its layers {what}. Call model.eval()."
    return f"Even in eval mode the network's layers {what}. Samples depend on chance or on their batch mates."


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
