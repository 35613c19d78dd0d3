"""`check_sampler`: what every sampler must do, for yours as for ours.

Each check is a function of the sampler that raises `AssertionError` with what it found. They ask what a user
relies on: the declared cost, order and randomness, a result that is a function of the seed and of nothing
that ran before or beside it, and the law that theory gives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.targets import two_mode
from sdekit.denoisers import Denoiser
from sdekit.orders import measure_order
from sdekit.processes import VP
from sdekit.sampling import PlanSampler, Sampler, Samples, sample

_T_END = 1e-2


@dataclass(frozen=True)
class Report:
    """What `check_sampler` found.

    Attributes:
        subject: repr of what was checked.
        passed_checks: names of the checks that held.
        failures: by check, what was found instead.
    """

    subject: str
    passed_checks: tuple[str, ...]
    failures: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return not self.failures

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.passed_checks)} checks hold"]
        lines += [f"  {name}: {found}" for name, found in self.failures.items()]
        return "\n".join(lines)


def check_sampler(sampler: Sampler) -> Report:
    """Hold a sampler to its claims, with exact scores under VP.

    A few seconds. An order must be reached, up to 0.15, on the finest octave of 64, 128 and 256 steps: of the
    endpoint by deterministic samplers with fixed steps, of the exact law by stochastic plans. Other
    stochastic samplers have the mean and variance of 4,000 samples at 200 steps held to 5 standard errors
    plus their first-order error.

    Raises:
        TypeError: not a sampler.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler must be a Sampler, got {sampler!r}")
    held, failures = [], dict[str, str]()
    for name, check in _CHECKS.items():
        try:
            check(sampler)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}".removeprefix("AssertionError: ")
        else:
            held.append(name)
    return Report(repr(sampler), tuple(held), failures)


class _Watched(Denoiser):
    """The exact denoiser of the two-mode mixture, with a count of its calls and their times."""

    process = VP()

    def __init__(self) -> None:
        self._exact = two_mode().denoiser(self.process)
        self.calls, self.times = 0, list[Tensor]()

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        self.calls += 1
        self.times.append(torch.as_tensor(t, dtype=torch.float64).reshape(-1))
        return self._exact.data(x, t)


def _run(sampler: Sampler, n: int = 6, steps: int = 12, **options: Any) -> Samples:
    model = options.pop("model", None) or _Watched()
    options = {"seed": 3, "t_end": _T_END, "dtype": torch.float64, **options}
    return sample(model, (n, 1), sampler=sampler, steps=steps, **options)


def _same(a: Tensor, b: Tensor, what: str, tol: float = 1e-10) -> None:
    off = (a - b).abs().max().item()
    assert off <= tol, f"{what} by {off:.2g}"


def _cost(sampler: Sampler) -> None:
    """The model is called as often as `nfe` says and `nfe_per_step` declares."""
    for steps in (1, 2, 3, 12):
        model = _Watched()
        out = _run(sampler, steps=steps, model=model)
        rows = sum(len(t) if len(t) > 1 else 6 for t in model.times) / 6
        assert torch.isfinite(out.x).all(), f"{steps} steps give NaN or infinity"
        assert len(out.times) == steps + 1, f"{steps} steps have {len(out.times)} times"
        if sampler.nfe_per_step is not None:
            said = steps * sampler.nfe_per_step
            assert said <= out.nfe <= said + 1, f"{steps} steps cost {out.nfe} calls, said {said}"
            assert out.nfe == model.calls, f"{model.calls} calls were counted as {out.nfe}"
        assert rows <= out.nfe, f"{rows:g} calls a sample were counted as {out.nfe}"


def _times(sampler: Sampler) -> None:
    """The model is asked within the grid only, first in its first interval."""
    model = _Watched()
    out = _run(sampler, model=model)
    asked = torch.cat(model.times)
    low, high = asked.min().item(), asked.max().item()
    inside = out.times[-1] - 1e-9 <= low and high <= out.times[0] + 1e-9
    assert inside, f"the model is asked in [{low:g}, {high:g}], outside the grid"
    first = model.times[0].max().item()
    assert first > out.times[1] - 1e-9, f"the first question is at {first:g}, after an interval"


def _seed(sampler: Sampler) -> None:
    """The result is a function of the seed: not of global state, nor of what ran before."""
    first = _run(sampler).x
    torch.manual_seed(torch.initial_seed() % 2**32)
    _run(sampler, n=3, steps=5, seed=4)
    _same(_run(sampler).x, first, "a second run with the same seed differs", 0.0)


def _randomness(sampler: Sampler) -> None:
    """Noise is drawn if and only if `stochastic` says so; the start is left alone."""
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]
    given = x.clone()
    runs = [_run(sampler, x_init=x, seed=seed).x for seed in (0, 1)]
    _same(x, given, "x_init was modified", 0.0)
    random = not torch.equal(*runs)
    assert random == sampler.stochastic, f"stochastic is {sampler.stochastic}, but {random}"


def _batch(sampler: Sampler) -> None:
    """A sample is the same alone, among others and in any chunk."""
    if sampler.coupled:
        return
    many = _run(sampler, n=40).x
    _same(_run(sampler, n=1).x, many[:1], "a sample alone differs from itself in a batch")
    _same(_run(sampler, n=40, chunk=7).x, many, "chunks of 7 differ from one batch")


def _events(sampler: Sampler) -> None:
    """Event shapes are carried along: images are vectors in another layout."""
    model = _Bounded()
    flat = sample(model, (2, 4), sampler=sampler, steps=5, seed=0, dtype=torch.float64).x
    shaped = sample(model, (2, 1, 2, 2), sampler=sampler, steps=5, seed=0, dtype=torch.float64).x
    _same(shaped.reshape(2, 4), flat, "an event of shape (1, 2, 2) differs from (4,)")


class _Bounded(Denoiser):
    """A model of any shape that is not affine."""

    process = VP()

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return torch.tanh(x)


def _nodes(sampler: Sampler) -> None:
    """A state is reported at every time of the grid, the last one being the result."""
    out = _run(sampler, trajectory=True)
    assert out.trajectory is not None
    assert len(out.trajectory) == 13, f"{len(out.trajectory)} states for 13 times"
    _same(out.trajectory[-1], out.x, "the last state of the trajectory is not the result", 0.0)
    _same(_run(sampler).x, out.x, "keeping the trajectory changes the result", 0.0)


def _single(sampler: Sampler) -> None:
    """States keep their dtype."""
    out = _run(sampler, dtype=torch.float32)
    assert out.x.dtype == torch.float32, f"float32 states came back as {out.x.dtype}"


def _order(sampler: Sampler) -> None:
    """The error falls with the declared order at least, to the truth."""
    measured = isinstance(sampler, PlanSampler) if sampler.stochastic else sampler.nfe_per_step
    if not measured or sampler.biased:
        return
    found = measure_order(sampler, steps=(64, 128, 256))
    slope = found.octaves[-1]
    assert slope >= sampler.law_order - 0.15, f"order {slope:.2f}, declared {sampler.law_order}"


def _law(sampler: Sampler) -> None:
    """On N(0.7, 0.25): 4,000 samples have the plan's law, or else the law of the data."""
    n, steps, target = 4000, 200, GaussianMixture(None, [0.7], stds=0.5)
    model = target.denoiser(VP())
    if isinstance(sampler, PlanSampler):
        steps = 10
    out = sample(
        model, (n, 1), sampler=sampler, steps=steps, t_end=_T_END, seed=5, dtype=torch.float64
    )
    if out.plan is not None:
        mean, variance = (float(v) for v in out.plan.gaussian_law(0.7, 0.25))
        slack = 0.0
    else:
        law = target.at(model.process, _T_END)
        mean, variance, slack = float(law.mean), float(law.covariance), 0.06
    off_mean = abs(out.x.mean().item() - mean) / math.sqrt(variance)
    off_variance = abs(out.x.var().item() / variance - 1)
    assert off_mean <= 5 / math.sqrt(n) + slack, f"the mean is off by {off_mean:.3f} deviations"
    assert off_variance <= 5 * math.sqrt(2 / n) + slack, (
        f"the variance is off by {off_variance:.1%}"
    )


_CHECKS: dict[str, Callable[[Any], None]] = {
    "cost": _cost,
    "times": _times,
    "seed": _seed,
    "randomness": _randomness,
    "batch": _batch,
    "events": _events,
    "nodes": _nodes,
    "dtype": _single,
    "order": _order,
    "law": _law,
}
