"""`sample`: any denoiser, any sampler, any grid, one call."""

import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdekit.denoisers import Denoiser, evaluating
from sdekit.errors import NumericsError, check_choice, check_finite, check_integer, check_seed
from sdekit.processes import Process
from sdekit.sampling.engine import Callback, Engine, Program, Stop, plan_of
from sdekit.sampling.grids import Tabulated, TimeGrid, check_times, resolve_grid, usual_end
from sdekit.sampling.noise import BLOCK, SLAB
from sdekit.sampling.one_step import DDIM
from sdekit.sampling.paths import NoiseSource, Normals
from sdekit.sampling.plan import Plan
from sdekit.sampling.sampler import FINAL, Sampler, frozen
from sdekit.world import ALONE, World

#: Samples run together unless told otherwise: large enough to be fast, small enough that a slab of normals
#: stays near a hundred megabytes.
CHUNK = 16_384
_SLAB_NUMBERS = 1 << 25


@dataclass(frozen=True)
class Samples:
    """What a run gave and what it cost.

    Attributes:
        x: the samples, (n, *event).
        nfe: model calls a sample cost; the most of any, where a solver chooses its steps.
        times: the grid, N + 1 decreasing times.
        seed: what reproduces the run.
        plan: the rows that ran, None for samplers that are not plans.
        trajectory: the states at the grid's times (N + 1, n, *event), if asked for.
        nfe_per_sample: model calls of each sample, (n,) int64; None where a chunk's samples cost the same.
    """

    x: Tensor
    nfe: int
    times: tuple[float, ...]
    seed: int
    plan: Plan | None = None
    trajectory: Tensor | None = None
    nfe_per_sample: Tensor | None = None

    def __repr__(self) -> str:
        plan = self.plan.name if self.plan else "no plan"
        return f"Samples(x={tuple(self.x.shape)}, nfe={self.nfe}, seed={self.seed}, {plan})"


def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    sampler: Sampler | None = None,
    steps: int | None = None,
    grid: str | TimeGrid | Tensor | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    final: str = "none",
    x_init: Tensor | None = None,
    cond: Tensor | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
    trajectory: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
    path_steps: int | None = None,
    world: World = ALONE,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Samples:
    """Draw samples from a model.

    Args:
        denoiser: exact or trained.
        shape: (n, *event).
        sampler: one of `sdekit.samplers`; DDIM() if not given.
        steps: intervals of the grid; if not given 50, or those of a `Tabulated` grid. N steps: N + 1 times.
        grid: None (the sampler's own), a name ("uniform", "quadratic", "cubic", "karras", "log-snr",
            "angle", "flow-time", "cosine", "beta", "beta6"), a `TimeGrid`, or the N + 1 decreasing times
            themselves.
        t_start: where to start, t_max of the process if not given; lower needs `x_init`.
        t_end: where to stop, 1e-3 T if not given; 0 (plans only) ends with E[x_0 | x] where sigma(0) = 0.
        final: "none" stops at t_end; "mean" drops the noise of the last step; "data" ends with E[x_0 | x] at
            t_end, one more call.
        x_init: starting states (n, *event) in place of draws from the prior; not modified.
        cond: one row a sample, split with the chunks, passed to the network as the keyword `cond`.
        seed: the run is a function of it; sample i is the same in any batch and any chunk, up to rounding
            inside the model. None draws one (see `Samples.seed`).
        generator: gives the seed instead.
        chunk: samples run together; if not given at most 16,384, fewer where an event has over 64 numbers.
        trajectory: keep the state at every grid time; a chunk that was stopped stays where it was.
        callback: called as callback(index, t, x) at every grid time with the states of the running chunk; a
            true return value stops that chunk there.
        progress: show a bar.
        path_steps: lay the noise out on the sampler's grid of so many steps, a multiple of `steps`: runs of
            different steps then share one Brownian path, sample by sample (plans on named grids only).
        world: `World.current()` shares the samples out over the processes of a group, all of which must call
            this; each gets all of them, the same as one process draws.
        dtype: of the states; of `x_init`, else the default dtype.
        device: of the states; of `x_init`, else of the model.

    Raises:
        ValueError, TypeError: an argument, before the model is called.
        NumericsError: the model gave NaN or infinity; the message says at which step, time and fraction.
    """
    sampler = DDIM() if sampler is None else sampler
    check_parts(denoiser, sampler, final, callback)
    n, event = _check_shape(shape, x_init)
    times = checked_times(sampler, denoiser.process, steps, grid, t_start, t_end)
    _check_start(denoiser.process, times[0], x_init)
    check_cond(cond, n)
    chunk = fitting(event) if chunk is None else check_integer("chunk", chunk, 1)
    key: int = world.every(_seed(seed, generator))[0]
    dtype, device = _placement(denoiser, x_init, dtype, device)
    program = sampler.program(denoiser, times, final)
    plan, finer = plan_of(program), None
    if path_steps is not None:
        _check_path_steps(path_steps, len(times) - 1, grid)
        fine = checked_times(sampler, denoiser.process, path_steps, grid, t_start, t_end)
        finer = plan_of(sampler.program(denoiser, fine, final))
        if plan is None or finer is None:
            raise ValueError(f"path_steps is for plans, which {sampler!r} is not")
    noise = NoiseSource(plan, finer)

    share = world.share(n)
    runs, bounds = [], [(i, min(i + chunk, share.stop)) for i in share[::chunk]]
    with (
        evaluating(denoiser),
        torch.no_grad(),
        progress_bar("sampling", "step", len(bounds) * (len(times) - 1))
        if progress
        else nullcontext() as bar,
    ):
        for low, high in bounds:
            normals = noise.normals(key, low, high, event, dtype, device)
            start = None if x_init is None else x_init[low:high].to(device, dtype)
            rows = {} if cond is None else {"cond": cond[low:high].to(device)}
            recorder = _Recorder(trajectory, callback, bar)
            runs.append(_run(program, denoiser, normals, start, rows, recorder))
    if not runs:
        nothing = torch.empty(0, *event, dtype=dtype, device=device)
        runs.append(_Chunk(nothing, 0, None, [nothing] * len(times)))
    own = _joined(runs, times, key, plan, trajectory=trajectory)
    return own if world.size == 1 else _gathered(own, world)


class _Chunk(NamedTuple):
    """What became of the samples that ran together: `Samples` of them, and the states at the nodes."""

    x: Tensor
    nfe: int
    nfe_per_sample: Tensor | None
    states: list[Tensor]


def _joined(
    runs: list[_Chunk], times: list[float], seed: int, plan: Plan | None, *, trajectory: bool
) -> Samples:
    costs = [run.nfe_per_sample for run in runs if run.nfe_per_sample is not None]
    return Samples(
        x=runs[0].x if len(runs) == 1 else torch.cat([run.x for run in runs]),
        nfe=max(run.nfe for run in runs),
        times=tuple(times),
        seed=seed,
        plan=plan,
        trajectory=_side_by_side([run.states for run in runs]) if trajectory else None,
        nfe_per_sample=torch.cat(costs) if costs else None,
    )


def _gathered(own: Samples, world: World) -> Samples:
    """The samples of all processes, in order."""

    def joined(part: Tensor | None, dim: int = 0) -> Tensor | None:
        # All processes must take part, also one without a sample, which has no counts.
        parts = world.every(None if part is None else part.cpu())
        there = [p for p in parts if p is not None]
        return torch.cat(there, dim).to(own.x.device) if there else None

    return replace(
        own,
        x=joined(own.x),
        nfe=max(world.every(own.nfe)),
        trajectory=joined(own.trajectory, 1),
        nfe_per_sample=joined(own.nfe_per_sample),
    )


class _Recorder:
    """The node callback of one chunk: trajectory, the caller's callback and the progress bar."""

    def __init__(self, trajectory: bool, callback: Callback | None, bar: Any) -> None:
        self.states: list[Tensor] = []
        self._trajectory, self._callback, self._bar = trajectory, callback, bar

    @property
    def needed(self) -> bool:
        return self._trajectory or self._callback is not None or self._bar is not None

    def __call__(self, index: int, t: float, x: Tensor) -> Any:
        if self._trajectory:
            self.states.append(x)
        if self._bar is not None and index:
            self._bar.update()
        return self._callback is not None and self._callback(index, t, x)


def _run(
    program: Program,
    denoiser: Denoiser,
    normals: Normals,
    x_init: Tensor | None,
    conditions: dict[str, Any],
    recorder: _Recorder,
) -> _Chunk:
    """One chunk of samples."""

    def start() -> Tensor:
        if x_init is not None:
            return x_init.clone()
        return denoiser.process.prior.std * normals.start()

    callback = recorder if recorder.needed else None
    engine = Engine(denoiser, normals, conditions, callback)
    try:
        x = program(engine, start())
    except Stop as stop:
        x = stop.x.clone()
    # A sum that is finite clears all at once; one that is not may have overflowed by itself.
    if not (x.is_meta or isfinite(x.sum().item()) or torch.isfinite(x).all()):
        # Watching every step would cost up to 58 us each; the run is a function of its seed, so replay it.
        program(Engine(denoiser, normals, conditions, check=True), start())
        bad = int((~torch.isfinite(x)).reshape(len(x), -1).any(1).sum())
        raise NumericsError(
            f"{bad} of {len(x)} samples became NaN or infinite, though every model call was finite: the "
            "states overflowed"
        )
    return _Chunk(x, engine.nfe, engine.nfe_per_sample, recorder.states)


def _side_by_side(chunks: list[list[Tensor]]) -> Tensor:
    """The trajectories of all chunks as one; one that was stopped repeats its last state."""
    longest = max(map(len, chunks))
    full = [torch.stack(states + states[-1:] * (longest - len(states))) for states in chunks]
    return torch.cat(full, 1)


def fitting(event: tuple[int, ...]) -> int:
    """Samples whose normals fit into memory: whole blocks, CHUNK at most."""
    fitting = _SLAB_NUMBERS // (SLAB * prod(event))
    return max(BLOCK, min(CHUNK, fitting - fitting % BLOCK))


def check_parts(denoiser: Any, sampler: Any, final: Any, callback: Any = None) -> None:
    """Refuse what is no denoiser, sampler, ending or callback."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            "denoiser must be a Denoiser such as sk.NetworkDenoiser(network, process), got"
            f" {type(denoiser).__name__}"
        )
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler must be a Sampler such as sk.samplers.DDIM(), got {sampler!r}")
    check_choice("final", final, FINAL)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable as callback(index, t, x), got {callback!r}")


def _check_start(process: Process, t: float, x_init: Tensor | None) -> None:
    if x_init is None and t < process.t_max:
        raise ValueError(
            f"starting at t = {t:g}, below t_max = {process.t_max:g}, needs x_init: the prior is the law at "
            "the end only"
        )


def _check_path_steps(path_steps: Any, steps: int, grid: Any) -> None:
    if not (grid is None or isinstance(grid, (str, TimeGrid))):
        raise ValueError(
            "path_steps needs a grid that can be refined: a name or a TimeGrid, not times"
        )
    if check_integer("path_steps", path_steps, 1) % steps:
        raise ValueError(f"path_steps must be a multiple of steps = {steps}, got {path_steps}")


def check_cond(cond: Any, n: int) -> None:
    """Raise unless `cond` is None or a tensor of n rows."""
    if cond is not None and (not isinstance(cond, Tensor) or cond.shape[:1] != (n,)):
        given = f"shape {tuple(cond.shape)}" if isinstance(cond, Tensor) else type(cond).__name__
        raise ValueError(f"cond must be a tensor of n = {n} rows, got {given}")


def _check_shape(shape: Sequence[int], x_init: Tensor | None) -> tuple[int, tuple[int, ...]]:
    if x_init is not None:
        check_finite("x_init", x_init)
    if not isinstance(shape, Sequence) or not len(shape):
        raise ValueError(f"shape must be (n, *event), got {shape!r}")
    sizes = tuple(check_integer(f"shape[{i}]", size, min(i, 1)) for i, size in enumerate(shape))
    if x_init is not None and tuple(x_init.shape) != sizes:
        raise ValueError(f"x_init must have shape {sizes}, got {tuple(x_init.shape)}")
    return sizes[0], sizes[1:]


def checked_times(
    sampler: Sampler,
    process: Process,
    steps: int | None,
    grid: str | TimeGrid | Tensor | Sequence[float] | None,
    t_start: float | None,
    t_end: float | None,
) -> list[float]:
    """The checked grid; every time at which the model may be read is readable."""
    if grid is None or isinstance(grid, (str, TimeGrid)):
        chosen = sampler.grid if grid is None else resolve_grid(grid)
        own = len(chosen.nodes) - 1 if isinstance(chosen, Tabulated) else 50
        count = own if steps is None else check_integer("steps", steps, 1)
        start = process.t_max if t_start is None else t_start
        end = usual_end(process) if t_end is None else t_end
        plain = all(type(t) in (int, float) for t in (start, end))
        keep = plain and frozen(chosen, process)
        make = _readable_times if keep else _readable_times.__wrapped__
        return list(make(chosen, process, count, start, end))
    if t_start is not None or t_end is not None:
        raise ValueError("a grid of times has its own ends; leave out t_start and t_end")
    times = check_times(grid, process, "grid")
    if steps is not None and check_integer("steps", steps, 1) != len(times) - 1:
        raise ValueError(
            f"steps = {steps} does not fit a grid of {len(times)} times: {len(times) - 1} intervals"
        )
    _check_readable(times, process)
    return times


@lru_cache(maxsize=64)
def _readable_times(
    grid: TimeGrid, process: Process, steps: int, t_start: float, t_end: float
) -> tuple[float, ...]:
    """The times of a grid, kept: making them outweighs a small run."""
    times = grid.times(process, steps, t_start, t_end)
    _check_readable(times, process)
    return tuple(times)


def _check_readable(times: Sequence[float], process: Process) -> None:
    for t in times if times[-1] > 0 else times[:-1]:
        try:
            process.check_readable(t)
        except ValueError as error:
            raise ValueError(f"the grid has a time at which no model is read: {error}") from None


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    seed = check_seed(seed, generator)
    if generator is not None:
        return int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return secrets.randbits(62) if seed is None else seed


def _placement(
    denoiser: Denoiser,
    x_init: Tensor | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[torch.dtype, torch.device]:
    if dtype is None:
        dtype = torch.get_default_dtype() if x_init is None else x_init.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"states must be float32 or float64, got {dtype}: half precision cannot tell grid times apart"
        )
    if device is None:
        parameters = denoiser.parameters() if isinstance(denoiser, nn.Module) else iter(())
        own = next(parameters, None)
        device = (
            (own if own is not None else torch.empty(0)).device if x_init is None else x_init.device
        )
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: CUDA is not available in this build of torch")
    return dtype, device


@contextmanager
def progress_bar(what: str, unit: str, total: int | None = None) -> Iterator[Any]:
    """A bar on standard error, with `.update()`; a counter where the total is not known."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, file=sys.stderr) as bar:
        yield bar
