"""A denoiser that also learns how far off its estimate is: the variance of a step back in time.

A step from t to s < t is drawn from N(mean, variance) per coordinate. The mean follows from E[x_0 | x_t], as
in every ancestral sampler, and lies at keep x_t + pull E[x_0 | x_t] with the weights of `Process.bridge`. The
variance is that of the bridge, beta-tilde, and on top of it the spread of x_0 about its mean,
pull^2 Var(x_0 | x_t), which the network learns beside the mean.
"""

from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.denoisers import NetworkDenoiser, call_network, conversion
from sdekit.elementary import Number
from sdekit.errors import check_choice
from sdekit.processes import Process, expand

Parameterisation = Literal["relative", "interpolated"]

#: (keep, pull, std) of `Process.bridge`.
Bridge = tuple[Number, Number, Number]


@runtime_checkable
class StepModel(Protocol):
    """What knows the law of a step: `LearnedVariance`, `ExactDenoiser`, or a model of your own."""

    process: Process

    def reverse(self, x: Tensor, t: Number, s: Number, **conditions: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of each coordinate of x_s given x_t = x, s < t, in the shape of x."""
        ...


class LearnedVariance(NetworkDenoiser):
    """A network of twice the event, whose halves are a prediction and a reading r of the variance.

    It is a `NetworkDenoiser` of the first half, for every sampler, likelihood and metric; `reverse` gives
    the law of a step, which `LearnedAncestral` draws from and `PerStepKL` trains.

    Args:
        network: called as those of `NetworkDenoiser`; its output has twice the channels, that is for x of
            shape (n, c, *rest) the shape (n, 2 c, *rest), predictions first.
        process: the forward process it was trained for.
        parameterisation: "relative" takes (sigma / alpha)^2 softplus(r) as Var(x_0 | x_t), so r = 0 starts
            near what a flat law of x_0 has and one reading serves steps of any length. "interpolated"
            takes exp(v log beta + (1 - v) log beta-tilde) with v = (1 + r) / 2 for the variance of the
            step, beta that of the forward transition (Nichol & Dhariwal 2021, eq. 15); where sigma(s) = 0
            there is no logarithm of beta-tilde, and it takes beta.
        prediction: of the first half, as for `NetworkDenoiser`, like the next two.
        time: what the network expects as time.
        labels: N for `time="label"`.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterisation: str = "relative",
        *,
        prediction: str = "noise",
        time: str = "unit",
        labels: int | None = None,
    ) -> None:
        super().__init__(network, process, prediction, time=time, labels=labels)
        known = get_args(Parameterisation)
        self.parameterisation = check_choice("parameterisation", parameterisation, known)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments but for network and process, ready for JSON."""
        return {**super().settings, "parameterisation": self.parameterisation}

    def predict(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """The network's prediction at x and t, the first half of its output."""
        return self.halves(x, t, **conditions)[0]

    def halves(self, x: Tensor, t: Number, **conditions: Any) -> tuple[Tensor, Tensor]:
        """Prediction and reading r of the variance, each in the shape and dtype of x: one model call."""
        out = call_network(self.network, x, self._network_time(t), conditions)
        if not isinstance(out, Tensor):
            raise TypeError(f"the model must return a tensor, got {type(out).__name__}")
        wanted = (len(x), 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else (len(x), 2)
        if out.shape != wanted:
            raise ValueError(
                "the network must return a prediction and a variance, twice the channels of x "
                f"{tuple(x.shape)}: {wanted}, got {tuple(out.shape)}"
            )
        first, second = out.to(x.dtype).chunk(2, dim=1)
        return first.reshape(x.shape), second.reshape(x.shape)

    def reverse(self, x: Tensor, t: Number, s: Number, **conditions: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of each coordinate of p(x_s | x_t = x), in the shape of x: one model call.

        Args:
            x: states at t, (n, *event).
            t: a number or (n,), in [t_min, t_max].
            s: as t, each below its t, in [0, T].
            conditions: passed to the network.

        Raises:
            ValueError: s does not lie below t, or at alpha(t) = 0 nothing is known relative to alpha.
        """
        self._check_step(t, s)
        bridge = self.process.bridge(t, s)
        return self.step(*self.halves(x, t, **conditions), x, t, s, bridge)

    def step(
        self, out: Tensor, reading: Tensor, x: Tensor, t: Number, s: Number, bridge: Bridge
    ) -> tuple[Tensor, Tensor]:
        """`reverse` from the two halves of the network's output at x and t, and the bridge from t to s."""
        process = self.process
        keep, pull, std = (expand(c, x) for c in bridge)
        a, b = (expand(c, x) for c in conversion(process, self.prediction, "data", t))
        mean = keep * x + pull * (a * x + b * out)
        if self.parameterisation == "relative":
            spread = expand(process.sigma(t) / process.alpha(t), x) * pull
            return mean, std**2 + spread**2 * F.softplus(reading)
        forward, shrink = (expand(c, x) for c in _interval(process, t, s))
        return mean, forward**2 * torch.exp((1 - reading) * shrink)

    def _check_step(self, t: Number, s: Number) -> None:
        self.process.check_readable(t)
        first, last = (torch.as_tensor(u, dtype=torch.float64) for u in (s, t))
        if not bool((first < last).all()):
            raise ValueError(f"a step goes back in time: s must lie below t, got s = {s}, t = {t}")
        if not isinstance(t, Tensor) and self.process.alpha(t) == 0:
            if self.parameterisation == "relative":
                raise ValueError(
                    f"at t = {t} alpha is 0, and a variance relative to alpha has no value: start at t_max = "
                    f'{self.process.t_max:g}, or use parameterisation="interpolated"'
                )
            conversion(self.process, self.prediction, "data", t)


def _interval(process: Process, t: Number, s: Number) -> tuple[Number, Number]:
    """The root of beta, and log(sigma_s / sigma_t), half of log(beta-tilde / beta); 0 at sigma_s = 0."""
    ratio = torch.as_tensor(process.sigma(s) / process.sigma(t), dtype=torch.float64)
    shrink = torch.where(ratio > 0, ratio, 1.0).log()
    return process.transition(s, t)[1], shrink if shrink.ndim else float(shrink)
