"""Training: `fit` is the inner loop, yours to own; `train` is the run around it.

The randomness of step k (which data, times, noise) is a function of (seed, k), so a run that is stopped and
resumed is the run that was not, bit for bit on the same machine and number of threads.
"""

import copy
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sdekit.denoisers import Denoiser
from sdekit.errors import (
    NumericsError,
    check_choice,
    check_integer,
    check_number,
    check_seed,
)
from sdekit.processes import Process
from sdekit.training.batches import Batches, Data, step_generator
from sdekit.training.checkpoints import TrainingState, checkpoints, remove_leftovers
from sdekit.training.losses import DenoisingLoss, labels_of
from sdekit.training.times import draw_times


@dataclass(frozen=True)
class Step:
    """One optimiser step: its index from 0, mean loss of the batch, and gradient norm before clipping."""

    index: int
    loss: float
    gradient_norm: float


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        model: the averaged (EMA) model, in eval mode.
        losses: batch loss of every step, float64 (steps,).
        seconds: wall time of the steps of this call.
        checkpoint: the last one, None without `out`.
    """

    model: Any
    losses: Tensor
    seconds: float
    checkpoint: Path | None

    def __repr__(self) -> str:
        steps, last = len(self.losses), self.losses[-100:].mean().item()
        return (
            f"TrainResult({steps} steps, {self.seconds:.1f} s, loss {last:.4f}, {self.checkpoint})"
        )


def fit(
    model: Denoiser,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    loss: DenoisingLoss | None = None,
    times: str = "stratified",
    clip: float | None = None,
    seed: int = 0,
    first: int = 0,
) -> Iterator[Step]:
    """Take one optimiser step a batch, yielding after each; log, average, stop as you like.

    Args:
        model: a `Denoiser` that is a module.
        batches: x0 (n, *event), or (x0, cond) pairs.
        optimizer: over the model's parameters.
        loss: what to minimise; `DenoisingLoss()` if not given.
        times: "stratified" or "uniform", on [t_min, t_max] or the steps of a network that knows labels.
        clip: largest gradient norm.
        seed: of times and noise.
        first: index of the first step, for a run that goes on.

    Raises:
        NumericsError: a loss or gradient that is not finite; the parameters are as before that step.
    """
    loss = DenoisingLoss() if loss is None else loss
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    limit = math.inf if clip is None else check_number("clip", clip, 0, open_low=True)
    for index, batch in enumerate(batches, first):
        x0, cond = batch if isinstance(batch, tuple) else (batch, None)
        generator = step_generator(seed, index, "noise")
        t = draw_times(len(x0), model.process, generator, times, labels_of(model)).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
        value = loss(model, x0, t, noise, cond).mean()
        optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, limit).item()
        if not (math.isfinite(value.item()) and math.isfinite(norm)):
            raise NumericsError(
                f"loss {value.item():g} and gradient norm {norm:g} at step {index} are not finite"
            )
        optimizer.step()
        yield Step(index, value.item(), norm)


def train(
    model: Denoiser,
    data: Data,
    *,
    steps: int = 5_000,
    out: str | Path | None = None,
    cond: Tensor | None = None,
    seed: int = 0,
    batch: int = 512,
    lr: float = 3e-3,
    warmup: int = 100,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    clip: float = 1.0,
    ema: float = 0.999,
    weighting: str = "simple",
    times: str = "stratified",
    checkpoint_every: int = 1_000,
    keep: int = 2,
    resume: bool = False,
    progress: bool = True,
    callback: Callable[[Step, nn.Module], Any] | None = None,
) -> TrainResult:
    """Train by denoising score matching with AdamW, warm-up, clipping and an averaged model.

    Args:
        model: a `NetworkDenoiser`, `EDMPrecondition` or other `Denoiser` that is a module; trained in place.
        data: samples (N, *event) as a tensor or an array, a `Dataset` of samples (held in memory), or
            anything with `.sample(n, generator=)`, from which every step draws afresh.
        steps: optimiser steps in total; a resumed run must have the same, with the cosine schedule.
        out: folder of the run: checkpoints/ and losses.json. None keeps nothing.
        cond: conditions (N, ...), one row a sample of `data`.
        seed: of everything random in the run.
        batch: samples a step.
        lr: peak learning rate, after `warmup` steps of linear rise.
        warmup: steps of the rise.
        schedule: "cosine" (falls to 0 at the last step) or "constant".
        weight_decay: of AdamW.
        clip: largest gradient norm.
        ema: decay of the averaged weights; at step k it is min(ema, (1 + k) / (10 + k)), from the weights
            after step 0.
        weighting: "simple", "likelihood" or "min-snr"; see `DenoisingLoss`.
        times: "stratified" or "uniform".
        checkpoint_every: steps between checkpoints; Ctrl-C and SIGTERM write one too.
        keep: checkpoints to keep.
        resume: continue the run in `out`, bit for bit, if there is one.
        progress: show a bar with the loss.
        callback: called as callback(step, averaged module) after every step; true stops the run.

    Raises:
        ValueError, TypeError: an argument, before anything is written.
        CheckpointError: `resume` with other settings, or damaged files.
        NumericsError: NaN; names the step and the last good checkpoint.
    """
    if not (isinstance(model, Denoiser) and isinstance(model, nn.Module)):
        raise TypeError(f"model must be a Denoiser and a torch module, got {type(model).__name__}")
    settings = Settings(
        steps=steps,
        seed=check_seed(seed) or 0,
        batch=batch,
        lr=lr,
        warmup=warmup,
        schedule=schedule,
        weight_decay=weight_decay,
        clip=clip,
        ema=ema,
        weighting=weighting,
        times=times,
    )
    keep = check_integer("keep", keep, 1)
    every = check_integer("checkpoint_every", checkpoint_every, 1)
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError("model has no parameters to train")
    draw = Batches(data, cond, settings.batch, settings.seed, parameter)
    state = _fresh(model, settings, draw)
    folder = _folder(out, resume)
    last: Path | None = None

    with torch.random.fork_rng(), _signals() as stopped, _training(model):
        torch.manual_seed(settings.seed)
        if folder is not None:
            last = _prepare(folder, state, resume)
        began = time.perf_counter()
        try:
            with _bar(progress, state.step, settings.steps) as show:
                for step in _steps(model, state, settings, draw):
                    show(step)
                    halt = callback is not None and callback(step, state.average.module)
                    due = state.step % every == 0 or state.step == settings.steps
                    if folder is not None and (due or halt or stopped):
                        last = state.save(folder, keep)
                    if halt or stopped:
                        break
        except NumericsError as error:
            where = f"the last good checkpoint is {last}" if last else "no checkpoint was written"
            raise NumericsError(f"{error}; training stopped and {where}") from error
        if stopped:
            stopped[0](last)
        seconds = time.perf_counter() - began
    if out is not None:
        record = {"config": state.config, "seconds": seconds, "losses": state.losses}
        (Path(out) / "losses.json").write_text(json.dumps(record))
    averaged = copy.deepcopy(state.average.module).eval()
    losses = torch.tensor(state.losses, dtype=torch.float64)
    return TrainResult(averaged, losses, seconds, last)


@dataclass(frozen=True)
class Settings:
    """The numbers that decide what a run computes; a resumed run must have the same."""

    steps: int
    seed: int
    batch: int
    lr: float
    warmup: int
    schedule: str
    weight_decay: float
    clip: float
    ema: float
    weighting: str
    times: str

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warmup", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), least))
        for name, open_low in (("lr", True), ("weight_decay", False), ("clip", True)):
            value = check_number(name, getattr(self, name), 0, open_low=open_low)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "ema", check_number("ema", self.ema, 0, 1, open_high=True))
        check_choice("schedule", self.schedule, ("cosine", "constant"))
        check_choice("times", self.times, ("stratified", "uniform"))
        DenoisingLoss(self.weighting)

    def rate(self, k: int) -> float:
        """Learning rate of step k: a function of the step, so nothing to restore."""
        rate = self.lr * min(1.0, (k + 1) / self.warmup) if self.warmup else self.lr
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * k / self.steps))
        return rate

    def recorded(self, model: Denoiser, draw: Batches) -> dict[str, Any]:
        """What a checkpoint keeps, with the model's side and the data's; JSON-able."""
        return {
            **asdict(self),
            "steps": self.steps if self.schedule == "cosine" else None,
            "process": _fingerprint(model.process),
            "prediction": model.prediction,
            "samples": len(draw.data) if isinstance(draw.data, Tensor) else None,
            "event": list(draw.event),
        }


def _fresh(model: nn.Module, settings: Settings, draw: Batches) -> TrainingState:
    """The state before step 0."""
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=fused
    )
    average = AveragedModel(model, multi_avg_fn=_Warmed(settings.ema), use_buffers=False)
    assert isinstance(model, Denoiser)
    return TrainingState(model, average, optimizer, 0, [], settings.recorded(model, draw))


def _steps(
    model: Denoiser, state: TrainingState, settings: Settings, draw: Batches
) -> Iterator[Step]:
    """`fit` from where the state is, with the learning rate set before and the average after each step."""

    def batches() -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for k in range(state.step, settings.steps):
            for group in state.optimizer.param_groups:
                group["lr"] = settings.rate(k)
            yield draw(k)

    for step in fit(
        model,
        batches(),
        state.optimizer,
        loss=DenoisingLoss(settings.weighting),
        times=settings.times,
        clip=settings.clip,
        seed=settings.seed,
        first=state.step,
    ):
        state.average.update_parameters(state.model)
        state.step = step.index + 1
        state.losses.append(step.loss)
        yield step


def _fingerprint(process: Process) -> str:
    """The repr, and a value of the curves: a table of betas shows only its ends."""
    plain = type(process).__repr__ is object.__repr__  # an address, another in the next run
    name = type(process).__name__ if plain else repr(process)
    return f"{name} with log_snr {float(process.log_snr(0.5 * process.t_max)):.9g} half way"


class _Warmed:
    """EMA with the decay min(ema, (1 + k) / (10 + k)) at update k, in one fused pass."""

    def __init__(self, ema: float) -> None:
        self.ema = ema

    def __call__(self, averages: Any, current: Any, updates: Tensor | int) -> None:
        k = int(updates)
        decay = min(self.ema, (1 + k) / (10 + k))
        torch._foreach_lerp_(list(averages), list(current), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def _folder(out: str | Path | None, resume: bool) -> Path | None:
    """Where the checkpoints go."""
    if out is not None:
        return Path(out) / "checkpoints"
    if resume:
        raise ValueError("resume needs out=, the folder of the run to continue")
    return None


def _prepare(folder: Path, state: TrainingState, resume: bool) -> Path | None:
    """The folder of the run, and its newest checkpoint restored if wanted."""
    if not resume and checkpoints(folder):
        raise ValueError(f"{folder.parent} already holds a run; give resume=True or another out=")
    state.check_describable()
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    return state.restore_newest(folder) if resume else None


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was)


@contextmanager
def _signals() -> Iterator[list[Callable[[Path | None], None]]]:
    """Ctrl-C and SIGTERM let the step finish; the list then holds what to raise after saving."""
    stopped: list[Callable[[Path | None], None]] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handler(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt

        def leave(last: Path | None) -> None:
            print(f"stopped; the last checkpoint is {last}", file=sys.stderr)
            if number == signal.SIGTERM:
                raise SystemExit(143)
            raise KeyboardInterrupt

        stopped.append(leave)

    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _bar(progress: bool, first: int, steps: int) -> Iterator[Callable[[Step], None]]:
    """A progress bar with a running mean of the loss."""
    if not progress:
        yield lambda step: None
        return
    from tqdm import tqdm

    with tqdm(total=steps, initial=first, desc="training", unit="step") as bar:
        smooth: list[float] = []

        def show(step: Step) -> None:
            smooth[:] = [step.loss if not smooth else 0.98 * smooth[0] + 0.02 * step.loss]
            if step.index % 20 == 0:
                bar.set_postfix(loss=f"{smooth[0]:.4f}", refresh=False)
            bar.update()

        yield show
