"""Denoising score matching: an error of the model's output, and how it counts at each time.

Every weighting is written on the error of the noise, E_t w(t) |eps - eps_hat|^2 (mean over the elements of a
sample), whatever the network predicts: the error of its own target times a factor of t alone.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from sdekit.denoisers import (
    Denoiser,
    NetworkDenoiser,
    checked_output,
    conversion,
    target_weights,
)
from sdekit.elementary import Number
from sdekit.errors import check_choice, check_number
from sdekit.processes import Process, expand
from sdekit.training.times import log_snr_rate

Weighting = Literal["simple", "likelihood", "min-snr", "edm", "truncated-snr", "target"]
Norm = Literal["l2", "l1"]


@dataclass(frozen=True)
class DenoisingLoss:
    """E w(t) |eps - eps_hat(x_t, t)|^2, the mean over elements; with "l1" E sqrt(w) |eps - eps_hat|.

    With snr = alpha^2 / sigma^2 the weightings are

        simple         1                       Ho et al. 2020, eq. 14
        likelihood     g^2 / (2 sigma^2)       bounds the likelihood: Song et al. 2021b, theorem 1
        min-snr        min(snr, cap) / snr     Hang et al. 2023
        edm            1 + 1 / (snr std^2)     Karras et al. 2022, table 1; meant for log-normal times
        truncated-snr  max(snr, 1) / snr       Salimans & Ho 2022: max(snr, 1) on errors of the data
        target         error of what the model predicts, as it is: no two predictions have the same objective

    "edm" lets errors of the network inside an `EDMPrecondition` of the same std count alike at all levels.

    Args:
        weighting: one of these.
        norm: "l2", mean square, least at the posterior mean; "l1", mean absolute, least at the median of each
            element, which is no score.
        snr_cap: of min-snr.
        data_std: of edm.
    """

    weighting: str = "simple"
    norm: str = "l2"
    snr_cap: float = 5.0
    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_choice("norm", self.norm, get_args(Norm))
        check_number("snr_cap", self.snr_cap, 0, open_low=True)
        check_number("data_std", self.data_std, 0, open_low=True)

    def __call__(
        self, model: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """Loss of each sample, (n,).

        Args:
            model: reads x_t; gradients flow through it.
            x0: clean data (n, *event).
            t: times (n,).
            noise: unit normals of the shape of x0.
            cond: passed to the network as the keyword `cond`.
        """
        x_t = model.process.perturb(x0, t, noise)
        rows = {} if cond is None else {"cond": cond}
        out = checked_output(model.predict(x_t, t, **rows), x0)
        return self.of_output(model, out, x0, t, noise)

    def of_output(
        self, model: Denoiser, out: Tensor, x0: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        """Loss of each sample, (n,), from what the model predicted at x_t."""
        process, kind = model.process, model.prediction
        u, w = target_weights(process, kind, t)
        sizes = self.sizes(out, _combine(u, x0, w, noise))
        return self.counted(sizes, self.factor(process, t, kind, kind))

    def sizes(self, out: Tensor, target: Tensor) -> Tensor:
        """Squared or absolute errors, in the shape of the target."""
        return (mse_loss if self.norm == "l2" else l1_loss)(out, target, reduction="none")

    def counted(self, sizes: Tensor, factor: Number) -> Tensor:
        """Loss of each sample (n,) from its errors' sizes (n, *event) and the factor of their squares."""
        per_sample = sizes.flatten(1).mean(1) if sizes.ndim > 1 else sizes
        if not isinstance(factor, Tensor):
            return per_sample
        return per_sample * (factor if self.norm == "l2" else factor.sqrt()).to(per_sample)

    def weights(self, process: Process, t: Tensor, prediction: str = "noise") -> Tensor:
        """w(t), (n,) in the dtype of t; that of "target" depends on what the model predicts."""
        factor = self.factor(process, t, "noise", prediction)
        return factor if isinstance(factor, Tensor) else torch.full_like(t, factor)

    def factor(self, process: Process, t: Tensor, error: str, prediction: str) -> Number:
        """What a squared error of the kind `error` counts at t, for a model of this prediction; 1.0 or (n,).

        A weighting is finite as one on errors of its own kind; from there errors are converted.
        """
        kind, weight = self._own(process, t, prediction)
        slope = conversion(process, error, kind, t)[1]
        return weight * slope * slope if isinstance(slope, Tensor) else weight

    def breaks(self) -> tuple[float, ...]:
        """log_snr where w(t) has a kink."""
        return {"min-snr": (math.log(self.snr_cap),), "truncated-snr": (0.0,)}.get(
            self.weighting, ()
        )

    def _own(self, process: Process, t: Tensor, prediction: str) -> tuple[str, Number]:
        """The kind of errors that the weighting is written on, and what their squares count."""
        match self.weighting:
            case "simple":
                return "noise", 1.0
            case "target":
                return prediction, 1.0
            case "likelihood":
                return "noise", 0.5 * log_snr_rate(process, t)
        log_snr = torch.as_tensor(process.log_snr(t))
        match self.weighting:
            case "min-snr":
                return "noise", torch.exp(-(log_snr - math.log(self.snr_cap)).clamp(min=0))
            case "truncated-snr":
                return "data", log_snr.exp().clamp(min=1)
            case _:
                return "data", log_snr.exp() + self.data_std**-2


def labels_of(model: Denoiser) -> int | None:
    """N where the network knows its time as one of N labels, else None."""
    return model.labels if isinstance(model, NetworkDenoiser) and model.time == "label" else None


def reading(model: Denoiser, kind: str, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """`model.noise` and the like by kind, also at the last step of a chain that ends without signal."""
    rows = {} if cond is None else {"cond": cond}
    out = checked_output(model.predict(x, t, **rows), x)
    if kind == model.prediction:
        return out
    a, b = (expand(c, x) for c in conversion(model.process, model.prediction, kind, t))
    return a * x + b * out


def _combine(u: Number, x0: Tensor, w: Number, noise: Tensor) -> Tensor:
    """u x0 + w noise; the common targets without arithmetic."""
    if isinstance(u, float) and isinstance(w, float) and (u, w) in ((0.0, 1.0), (1.0, 0.0)):
        return noise if w else x0
    return expand(u, x0) * x0 + expand(w, x0) * noise
