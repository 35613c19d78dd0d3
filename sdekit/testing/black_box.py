"""Anyone's sampler run as a black box, on given starts, replies and normals, with all that it asks kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdekit.processes import Process

#: A model as samplers call it: (state, time) to its reply, in the shape of the state.
Model = Callable[[Tensor, Any], Tensor]
#: Anyone's sampler: (model, start) to result.
BlackBox = Callable[[Model, Tensor], Tensor]


class _Normals(TorchFunctionMode):
    """Whatever draws normals gets them from `give(count)`, a flat tensor, instead."""

    def __init__(self, give: Callable[[int], Tensor]) -> None:
        super().__init__()
        self._give = give

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.normal:
            return self._normal(*args, **kwargs)
        if func is torch.Tensor.normal_:
            drawn = self._normal(*args[1:], size=args[0].shape, dtype=args[0].dtype, **kwargs)
            return args[0].copy_(drawn)
        if func in (torch.randn, torch.randn_like):
            kwargs.pop("generator", None)
            like = (torch.zeros if func is torch.randn else torch.zeros_like)(*args, **kwargs)
            return like.copy_(self._give(like.numel()).reshape(like.shape))
        return func(*args, **kwargs)

    def _normal(
        self,
        mean: Tensor | float = 0.0,
        std: Tensor | float = 1.0,
        size: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        **placing: Any,
    ) -> Tensor:
        """As torch.normal; the numbers do not depend on the generator."""
        centre, spread = torch.as_tensor(mean), torch.as_tensor(std)
        shape = torch.broadcast_shapes(centre.shape, spread.shape) if size is None else size
        unit = self._give(torch.Size(shape).numel()).reshape(tuple(shape))
        drawn = (centre + spread * unit).to(dtype or torch.result_type(centre, spread))
        return drawn if placing.get("out") is None else placing["out"].copy_(drawn)


@dataclass(frozen=True)
class Run:
    """What a black box was given, where it called the model, what it drew and what it returned."""

    process: Process
    start: Tensor
    reply: Callable[[int, Tensor], Tensor]
    times: list[float]
    states: list[Tensor]
    normals: list[Tensor]
    result: Tensor

    @property
    def nfe(self) -> int:
        """Model calls."""
        return len(self.times)


def _run(
    sampler: BlackBox,
    process: Process,
    start: Tensor,
    reply: Callable[[int, Tensor], Tensor],
    normal: Callable[[int], Tensor],
) -> Run:
    """Run a black box; `reply(k, x)` answers call k and `normal(m)` is draw m, in the shape of the start."""
    times: list[float] = []
    states: list[Tensor] = []
    normals: list[Tensor] = []

    def model(x: Tensor, t: Any) -> Tensor:
        _require_like_start("called the model at", x, start)
        times.append(_time(t, process))
        states.append(x.detach().double().reshape(start.shape).clone())
        return reply(len(times) - 1, states[-1]).to(x).reshape(x.shape)

    def give(count: int) -> Tensor:
        if count != start.numel():
            raise ValueError(
                f"the sampler drew {count} normals at once for a state of {start.numel()} numbers; a draw "
                "must have the shape of the state"
            )
        normals.append(normal(len(normals)))
        return normals[-1]

    with torch.no_grad(), _Normals(give):
        result = sampler(model, start.clone())
    _require_like_start("returned", result, start)
    result = result.detach().double().reshape(start.shape).clone()
    if not bool(torch.isfinite(result).all()):
        raise ValueError("the sampler returned NaN or infinity on bounded replies")
    return Run(process, start, reply, times, states, normals, result)


def trial(sampler: BlackBox, process: Process, seed: int) -> Run:
    """A run on a random start, random normals and a smooth nonlinear model; later seeds are larger.

    The model depends on the number of the call, so that swapped replies are found out, and changes no more
    than the state does, so that a long run does not amplify rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (seed % 3) / 3

    def draw(_: int) -> Tensor:
        return torch.randn(1, 7, generator=generator, dtype=torch.float64)

    start, slopes = process.prior.std * draw(0), torch.tanh(draw(0))

    def reply(k: int, x: Tensor) -> Tensor:
        return scale * torch.sin(slopes * x / scale + k)

    return _run(sampler, process, start, reply, draw)


def trials(sampler: BlackBox, process: Process) -> list[Run]:
    """Trials that ask the same questions, at the seeds 0 to 5.

    Raises:
        ValueError: the calls depend on the data, or the result on something besides what was given.
    """
    first, again, *others = (trial(sampler, process, seed) for seed in (0, *range(6)))
    _require_same_calls(first, again)
    if not torch.equal(first.result, again.result):
        raise ValueError(
            "the sampler is not deterministic: the same start, replies and normals gave another result; it "
            "keeps a state, or has random numbers from elsewhere than torch's normals"
        )
    for other in others:
        _require_same_calls(first, other)
    return [first, *others]


def basis_run(sampler: BlackBox, like: Run) -> Run:
    """A run on unit vectors: the start, then the replies, then the normals."""
    unit = torch.eye(1 + like.nfe + len(like.normals), dtype=torch.float64)[:, None, :]
    run = _run(
        sampler,
        like.process,
        unit[0],
        lambda k, x: unit[min(1 + k, like.nfe)],
        lambda m: unit[min(1 + like.nfe + m, len(unit) - 1)],
    )
    _require_same_calls(like, run)
    return run


def _time(t: Any, process: Process) -> float:
    """The time of a call, one for all samples."""
    values = torch.as_tensor(t, dtype=torch.float64 if isinstance(t, float) else None)
    if not values.is_floating_point():
        raise TypeError(
            f"the sampler called the model at the integer {t!r}: a label of a discrete chain is no time; "
            "give it `lambda x, label: model(x, time_of(label))`"
        )
    each = values.flatten().tolist()
    if len(set(each)) != 1:
        raise ValueError(f"the sampler called the model at several times at once: {t!r}")
    time = process.snap(each[0], values.dtype)
    if not 0 <= time <= process.horizon:
        raise ValueError(
            f"the sampler called the model at t = {time:g}, outside [0, {process.horizon:g}] of {process}; "
            "convert its noise levels to times"
        )
    return time


def _require_like_start(what: str, x: Any, start: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"the sampler {what} {type(x).__name__}, not a tensor")
    if x.numel() != start.numel():
        raise ValueError(
            f"the sampler {what} shape {tuple(x.shape)}, its start had {tuple(start.shape)}"
        )


def _require_same_calls(one: Run, other: Run) -> None:
    made = [f"{run.nfe} model calls and {len(run.normals)} normals" for run in (one, other)]
    if made[0] != made[1]:
        raise ValueError(
            f"what the sampler does depends on the data: {made[0]} on one input, {made[1]} on another"
        )
    for k, (s, t) in enumerate(zip(one.times, other.times, strict=True)):
        if s != t:
            raise ValueError(
                f"what the sampler does depends on the data: call {k} at t = {s:g} on one input, at "
                f"t = {t:g} on another"
            )
