"""Are data, model and process of one scale? Moments of the data, of the model's data, and the prior's."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdekit.denoisers import EDMPrecondition, conversion
from sdekit.diagnosis.findings import HARMFUL, NOTE, WRONG, Finding, row
from sdekit.diagnosis.probe import Probe, call
from sdekit.diagnosis.readings import Reading, Readings, conventions, declared_cost, reclocked

#: Share of the signal in x_t where the model's scale is read: little, so that noise alone looks like x_t.
_SIGNAL = 0.12
#: Times that are looked at until there is as much.
_LOOKS = 24
#: Mean off by this many standard deviations; ratio of scales; prior mismatch in nats.
_MEAN_OFF, _RATIO, _NATS = 0.3, 1.5, 0.05
#: What part of the loss (of the excess, where the law is known) may be left on data brought there.
_LEFT = {False: 0.95, True: 0.5}
#: Ratio of scales beyond which a model was not made for any: its output is constant, or noise.
_FARTHEST = 1e4


@dataclass(frozen=True)
class Scale:
    """Mean (*event) and standard deviation of the data that a model seems made for.

    `fits` says whether the model, as declared, fits the data brought there, better than any other reading of
    it fits the data as they are.
    """

    mean: Tensor
    std: float
    fits: bool


def find_scale(probe: Probe, readings: Readings) -> Scale:
    """The model's scale, as it is declared; as it is read best where the scale is not to blame."""
    mean, std = implied(probe, readings.declared)
    own, ratio = math.sqrt(probe.variance), std / max(math.sqrt(probe.variance), 1e-30)
    differs = not 1 / _RATIO <= ratio <= _RATIO or _off(probe, mean, std) > _MEAN_OFF
    if own and differs and 1 / _FARTHEST < ratio < _FARTHEST and bool(mean.isfinite().all()):
        found, floor = declared_cost(probe.moved(mean, ratio)), readings.floor.mean().item()
        declared, best = (r.cost / floor for r in (readings.declared, readings.best))
        left = _LEFT[probe.target is not None]
        if found < min(left * declared, best):
            return Scale(mean, std, True)
    if readings.best is not readings.declared:
        mean, std = implied(probe, readings.best)
    return Scale(mean, std, False)


def check_scale(probe: Probe, scale: Scale) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Mean, scale and range of the data beside the model's, and how far the prior is from the law at T."""
    low, high = probe.x0.min().item(), probe.x0.max().item()
    mean, std = probe.mean.mean().item(), math.sqrt(probe.variance)
    mismatch = prior_mismatch(probe)
    rows = [
        row("scale", "mean: data, and model's data", mean, scale.mean.mean().item()),
        row("scale", "std: data, and model's data", std, scale.std),
        row("scale", "largest of the data", high),
        row("scale", "least of the data", low),
        row("scale", "prior from the law at T, nats", mismatch, _NATS),
    ]
    findings = _disagreement(probe, scale) if scale.fits else []
    findings += _range_words(probe, low, high, bool(findings))
    findings += _prior_words(probe, mismatch)
    return rows, findings + _precondition_words(probe, std)


def _off(probe: Probe, mean: Tensor, std: float) -> float:
    """Distance of the means in standard deviations of the wider law."""
    larger = max(std, math.sqrt(probe.variance), 1e-30)
    return (mean - probe.mean).square().mean().sqrt().item() / larger


def implied(probe: Probe, reading: Reading) -> tuple[Tensor, float]:
    """Mean (*event) and standard deviation of the data that the model seems made for.

    The model is shown noise about its own mean, so the data's scale has no part in it. At the noisiest time
    E x_0-hat is the mean. The slope of x_0-hat on x_t is Cov(x_0, x_t) / Var(x_t) =
    alpha c / (alpha^2 c + sigma^2) for any law of variance c, which gives c; it is read at the noisiest time
    with a little signal.
    """
    process = probe.process
    model = reclocked(probe.model, conventions(probe.model)[1][reading.time])
    mean = probe.mean.new_zeros(probe.mean.shape)
    signal, alpha, sigma = 0.0, 1.0, 1.0
    for k, t in enumerate(_falling_times(probe)):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x = alpha * mean + sigma * probe.noise
        a, b = conversion(process, reading.kind, "data", t)
        found = (a * x + b * call(model, x, t, probe.cond)).flatten(1)
        if k == 0:
            mean = found.mean(0).reshape(probe.mean.shape)
        away = (x - x.mean(0)).flatten(1)
        slope = ((found - found.mean(0)) * away).sum().item() / away.square().sum().item()
        signal = min(max(alpha * slope, 0.0), 1 - 1e-9)
        if signal >= _SIGNAL:
            break
    return mean, sigma / alpha * math.sqrt(signal / (1 - signal))


def _falling_times(probe: Probe) -> list[float]:
    """Times from t_max to the cleanest that is probed, equally spaced in log-SNR; of a chain its steps."""
    process = probe.process
    low, high = (float(process.log_snr(t)) for t in (process.t_max, probe.times[-1]))
    found = [
        float(process.time_at_log_snr(low + k / (_LOOKS - 1) * (high - low))) for k in range(_LOOKS)
    ]
    labels = getattr(probe.model, "labels", None)
    if labels is None:
        return found
    steps = [max(round(t / process.horizon * labels), 1) for t in found]
    return [
        min(k / labels * process.horizon, process.t_max) for k in sorted(set(steps), reverse=True)
    ]


def prior_mismatch(probe: Probe) -> float:
    """KL(normal of the moments of x_T || prior) in nats a coordinate, mean and average variance alone."""
    process, prior = probe.process, probe.process.prior.std
    signal = float(process.alpha(process.t_max)) ** 2
    ratio = probe.power(process.t_max) / prior**2
    moved = signal * probe.mean.square().mean().item() / prior**2
    return 0.5 * (moved + ratio - 1 - math.log(ratio))


def _disagreement(probe: Probe, scale: Scale) -> list[Finding]:
    """In words, how the model's scale differs."""
    std, off = math.sqrt(probe.variance), _off(probe, scale.mean, scale.std)
    if max(std, scale.std) > _RATIO * min(std, scale.std):
        text = (
            f"Model and data disagree on the scale: the data have standard deviation {std:.3g}, the model "
            f"denoises towards data of {scale.std:.3g}. Scale the data as in training."
        )
    else:
        text = (
            f"Model and data disagree on the mean, by {off:.2g} standard deviations: the data have "
            f"{probe.mean.mean().item():.3g}, the model denoises towards {scale.mean.mean().item():.3g}. "
            "Centre the data as in training."
        )
    return [Finding(WRONG, "scale", text)]


def _range_words(probe: Probe, low: float, high: float, disagree: bool) -> list[Finding]:
    """Data that look like levels of an image."""
    whole = bool((probe.x0 == probe.x0.round()).all())
    if whole and low >= 0 and 2 < high <= 255:
        text = f"The data are whole numbers from {low:g} to {high:g}, like bytes: bring them to [-1, 1]."
        return [Finding(HARMFUL, "scale", text)]
    if disagree and low >= 0 and high <= 1:
        text = "The data lie in [0, 1]: models are often made for [-1, 1]."
        return [Finding(NOTE, "scale", text)]
    return []


def _prior_words(probe: Probe, mismatch: float) -> list[Finding]:
    if mismatch <= _NATS:
        return []
    process = probe.process
    text = (
        f"Sampling starts from N(0, {process.prior.std:.3g}^2), but x_T has standard deviation "
        f"{math.sqrt(probe.power(process.t_max)):.3g} and mean "
        f"{float(process.alpha(process.t_max)) * probe.mean.mean().item():.3g} ({mismatch:.2g} nats a "
        "coordinate apart): standardise the data, or end with more noise."
    )
    return [Finding(HARMFUL, "scale", text)]


def _precondition_words(probe: Probe, std: float) -> list[Finding]:
    model = probe.model
    if not isinstance(model, EDMPrecondition) or not std:
        return []
    if 0.5 <= model.sigma_data / std <= 2:
        return []
    text = f"sigma_data is {model.sigma_data:.3g}, the data have standard deviation {std:.3g}."
    return [Finding(NOTE, "scale", text)]
