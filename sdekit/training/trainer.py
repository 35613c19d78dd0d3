"""Training: `train` is a run around `fit`, the inner loop.

The randomness of step k (which data, times, noise) is a function of (seed, k), so a run that is stopped and
resumed is the run that was not, bit for bit on the same machine and number of threads.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.data.images import Scaling
from sdekit.denoisers import Denoiser, device_of, evaluating
from sdekit.errors import NumericsError, check_flag, check_integer, check_seed
from sdekit.storage import remove_leftovers, save_text
from sdekit.training.average import Average
from sdekit.training.batches import Batches, Data
from sdekit.training.checkpoints import TrainingState, checkpoints
from sdekit.training.draws import seed_layers
from sdekit.training.evaluation import Evaluation
from sdekit.training.fit import Batch, Loss, Step, check_model, fit
from sdekit.training.interrupts import signals
from sdekit.training.log import Reports, reports
from sdekit.training.losses import DenoisingLoss
from sdekit.training.rates import Schedule
from sdekit.training.settings import Settings
from sdekit.training.times import TimeLaw
from sdekit.world import World


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        model: the averaged (EMA) model, in eval mode.
        losses: batch loss of every step, float64 (steps,).
        seconds: wall time of the steps of this call.
        checkpoint: the last one, None without `out`.
        validation: (step, loss of the average on the held-out data) of every evaluation.
        best: the checkpoint with the least validation loss, where there is one.
    """

    model: Any
    losses: Tensor
    seconds: float
    checkpoint: Path | None
    validation: tuple[tuple[int, float], ...] = ()
    best: Path | None = None

    def __repr__(self) -> str:
        steps, last = len(self.losses), self.losses[-100:].mean().item()
        return (
            f"TrainResult({steps} steps, {self.seconds:.1f} s, loss {last:.4f}, {self.checkpoint})"
        )


def train(
    model: Denoiser,
    data: Data,
    *,
    steps: int = 5_000,
    out: str | Path | None = None,
    cond: Tensor | None = None,
    cond_dropout: float = 0.0,
    cond_null: Tensor | int | None = None,
    scaling: Scaling | None = None,
    loss: Loss | None = None,
    times: str | TimeLaw = "stratified",
    seed: int = 0,
    batch: int = 512,
    accumulate: int = 1,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 3e-3,
    warmup: int = 100,
    schedule: str | Schedule = "cosine",
    weight_decay: float = 0.0,
    clip: float = 1.0,
    half_life: float = 700.0,
    precision: str = "float32",
    compile: bool = False,
    validation: Data | tuple[Data, Tensor] | None = None,
    evaluate_every: int = 500,
    patience: int | None = None,
    checkpoint_every: int = 1_000,
    keep: int = 2,
    resume: bool = False,
    log_every: int = 50,
    tensorboard: bool = False,
    progress: bool = True,
    callback: Callable[[Step, Any], Any] | None = None,
) -> TrainResult:
    """Train by denoising score matching, with warm-up, clipping and an averaged model.

    Started by `torchrun`, the same call is one process of a run that shares every batch: gradients are
    averaged by `DistributedDataParallel`, rank 0 writes, and all must see the same `out`.

    Args:
        model: a `NetworkDenoiser`, `EDMPrecondition` or other `Denoiser` that is a module; trained in place.
        data: samples (N, *event) as a tensor or an array, a `Dataset` of samples (held in memory), or
            anything with `.sample(n, generator=)`, from which every step draws afresh.
        steps: optimiser steps in total; a resumed run must have the same, with the cosine schedule.
        out: folder of the run: checkpoints/, log.csv and losses.json. None keeps nothing.
        cond: conditions (N, ...), one row a sample of `data`.
        cond_dropout: probability with which a condition is replaced by `cond_null`, for classifier-free
            guidance (Ho & Salimans 2022).
        cond_null: what stands for no condition: a label such as the number of classes, or a vector.
        scaling: applied to every batch, so that `data` may be levels in uint8; kept in the checkpoints.
        loss: what to minimise; `DenoisingLoss()` if not given.
        times: law of the training times: "stratified", "uniform", "importance", "log-normal" or an instance;
            see `resolve_times`.
        seed: of everything random in the run.
        batch: samples a step, over all processes and parts.
        accumulate: parts that a batch goes through the network in, where memory is short.
        optimizer: called as optimizer(parameters, lr=), and weight_decay= if it has one: a class of
            `torch.optim`, or a `functools.partial` of one with its other arguments.
        lr: peak learning rate, after `warmup` steps of linear rise.
        warmup: steps of the rise.
        schedule: "cosine" (falls to 0 at the last step), "constant", or an instance such as `Plateau()`.
        weight_decay: of the optimiser.
        clip: largest gradient norm.
        half_life: of the averaged weights, in optimiser steps; 0 for none. Early it is shorter: at step k the
            average keeps at most (1 + k) / (10 + k) of itself, from the weights after step 0.
        precision: "float32" or "bf16"; see `fit`.
        compile: run the network through `torch.compile`, which pays for large ones.
        validation: held-out data, or a pair of data and conditions; the average's loss on it is logged.
        evaluate_every: steps between evaluations.
        patience: evaluations without a lower validation loss after which the run ends early.
        checkpoint_every: steps between checkpoints; Ctrl-C and SIGTERM write one too.
        keep: newest checkpoints to keep, and the best by validation loss beside them.
        resume: continue the run in `out`, bit for bit, if there is one.
        log_every: steps between rows of log.csv.
        tensorboard: write TensorBoard's files to out/tensorboard as well.
        progress: show a bar with the loss.
        callback: called as callback(step, averaged module) after every step, by rank 0; true stops the run.

    Raises:
        ValueError, TypeError: an argument, before anything is written.
        CheckpointError: `resume` with other settings, or damaged files.
        NumericsError: NaN; names the step and the last good checkpoint.
    """
    check_model(model)
    assert isinstance(model, nn.Module)
    settings = Settings(
        steps=steps,
        seed=check_seed(seed) or 0,
        batch=batch,
        accumulate=accumulate,
        loss=DenoisingLoss() if loss is None else loss,
        times=times,  # type: ignore[arg-type]
        optimizer=optimizer,
        lr=lr,
        warmup=warmup,
        schedule=schedule,  # type: ignore[arg-type]
        weight_decay=weight_decay,
        clip=clip,
        half_life=half_life,
        precision=precision,
        cond_dropout=cond_dropout,
        evaluate_every=evaluate_every,
        patience=patience,
    )
    keep, every = (
        check_integer("keep", keep, 1),
        check_integer("checkpoint_every", checkpoint_every, 1),
    )
    log_every = check_integer("log_every", log_every, 1)
    _check_reporting(out, resume, tensorboard, callback)
    parameter = next((p for p in model.parameters() if p.requires_grad), None)
    if parameter is None:
        raise ValueError("model has no parameters to train, or all of them are frozen")
    if not (scaling is None or isinstance(scaling, Scaling)):
        raise TypeError(f"scaling must be a Scaling, got {type(scaling).__name__}")
    draw = Batches(
        data,
        batch=settings.batch,
        seed=settings.seed,
        like=parameter,
        cond=cond,
        dropout=cond_dropout,
        null=cond_null,
        scaling=scaling,
    )
    _check_null(model, draw)
    evaluate = _evaluation(validation, settings, draw)
    state, folder, world = _fresh(model, settings, draw), _folder_of(out), World.current()
    told = {"steps": settings.steps, "every": log_every, "tensorboard": tensorboard}
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(_forked(parameter.device))
        enter(_training(model, check_flag("compile", compile)))
        watch = _Watch(
            state,
            settings,
            folder,
            every,
            keep,
            callback,
            enter(signals()),
            world,
            parameter.device,
        )
        if folder is not None:
            watch.last = enter(_held(folder, state, resume, world))
        first = state.step
        shown = folder.parent if folder is not None and world.writes else None
        report = enter(reports(shown, first=state.step, progress=progress and world.writes, **told))
        began = time.perf_counter()
        try:
            for step in _steps(model, state, settings, draw, report, evaluate):
                if watch.ends(step):
                    break
        except NumericsError as error:
            raise NumericsError(f"{error}; training stopped and {watch.found()}") from error
        seconds = time.perf_counter() - began
        world.wait()
    watch.leave()
    if out is not None and world.writes:
        _record(Path(out) / "losses.json", state, seconds, since=first)
    return _result(state, seconds, watch.last)


@dataclass
class _Watch:
    """What comes after a step: the callback, signals, a checkpoint if one is due."""

    state: TrainingState
    settings: Settings
    folder: Path | None
    every: int
    keep: int
    callback: Callable[[Step, Any], Any] | None
    #: Filled by a signal to this process.
    stopped: list[Callable[[Path | None], None]]
    world: World
    device: torch.device
    last: Path | None = None
    #: A signal came, to this process or another.
    interrupted: bool = False

    def ends(self, step: Step) -> bool:
        """Whether the run is to end here, in every process alike."""
        state, world = self.state, self.world
        asked = world.writes and self.callback and self.callback(step, state.average.module)
        self.interrupted = world.any(bool(self.stopped), self.device)
        halt = self.interrupted or world.any(bool(asked), self.device)
        due = state.step % self.every == 0 or state.step in (self.settings.steps, state.best)
        if self.folder and (due or halt or state.exhausted(self.settings.patience)):
            writes = world.writes
            self.last = state.save(self.folder, self.keep) if writes else state.path(self.folder)
        return halt

    def found(self) -> str:
        """What there is to go on from."""
        return (
            f"the last good checkpoint is {self.last}" if self.last else "no checkpoint was written"
        )

    def leave(self) -> None:
        """Pass a signal on, now that the checkpoint is written."""
        if self.stopped:
            self.stopped[0](self.last)
        if self.interrupted:
            raise KeyboardInterrupt


def _fresh(model: nn.Module, settings: Settings, draw: Batches) -> TrainingState:
    """The state before step 0."""
    optimizer = settings.built_optimizer(model)
    _fuse(optimizer)
    assert isinstance(model, Denoiser)
    average = Average(model, settings.half_life)
    return TrainingState(model, average, optimizer, settings.recorded(model, draw))


def _steps(
    model: Denoiser,
    state: TrainingState,
    settings: Settings,
    draw: Batches,
    report: Reports,
    evaluate: Evaluation | None,
) -> Iterator[Step]:
    """`fit` from where the state is, moving it: rate before, average and evaluation after a step."""
    rate, world = settings.rates(state.losses), World.current()
    device = device_of(model)

    def batches() -> Iterator[Batch]:
        for k in range(state.step, settings.steps):
            if state.exhausted(settings.patience):
                return
            for group in state.optimizer.param_groups:
                group["lr"] = rate(k)
            seed_layers(settings.seed, k, world, device)
            yield draw(k)

    for step in fit(
        model,
        batches(),
        state.optimizer,
        loss=settings.loss,
        times=settings.times,
        clip=settings.clip,
        accumulate=settings.accumulate,
        precision=settings.precision,
        seed=settings.seed,
        first=state.step,
    ):
        state.average.follow(step.index)
        state.step = step.index + 1
        state.losses.append(step.loss)
        state.norms.append(step.gradient_norm)
        report.step(state.losses, state.norms, state.optimizer.param_groups[0]["lr"])
        last = state.step == settings.steps
        if evaluate is not None and (last or state.step % settings.evaluate_every == 0):
            state.validation.append((state.step, evaluate(state.average.module)))
            report.evaluation(*state.validation[-1])
        yield step


def _record(path: Path, state: TrainingState, seconds: float, *, since: int) -> None:
    """What the run came to; a call that had nothing left to do leaves it as it is."""
    if state.step > since or not path.exists():
        plain = {"config": state.config, "seconds": seconds, "best": state.best}
        record = {**plain, "validation": state.validation, "losses": state.losses}
        save_text(path, json.dumps(record))


def _result(state: TrainingState, seconds: float, last: Path | None) -> TrainResult:
    """What `train` returns."""
    return TrainResult(
        model=copy.deepcopy(state.average.module).eval(),
        losses=torch.tensor(state.losses, dtype=torch.float64),
        seconds=seconds,
        checkpoint=last,
        validation=tuple(state.validation),
        best=None if last is None or state.best is None else state.path(last.parent, state.best),
    )


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """One kernel for all parameters, where the optimiser has one and nothing was said about it."""
    kinds = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
    for group in optimizer.param_groups:
        device = group["params"][0].device.type
        told = [group.get(name) for name in ("fused", "foreach")]
        free = told == [None, None] and not group.get("differentiable")
        if isinstance(optimizer, kinds) and free and device in ("cpu", "cuda"):
            group["fused"] = True


def _evaluation(
    validation: Data | tuple[Data, Tensor] | None, settings: Settings, draw: Batches
) -> Evaluation | None:
    if validation is None:
        if settings.patience is not None:
            raise ValueError("patience needs validation=, the held-out data that it watches")
        return None
    return Evaluation(
        validation,
        settings.loss,
        settings.times,
        batch=settings.batch,
        seed=settings.seed,
        like=draw,
    )


def _check_null(model: Denoiser, draw: Batches) -> None:
    """Raise now for a `cond_null` that the network would refuse in the first batch that has it."""
    if draw.null is None:
        return
    x0, cond = draw(0)
    null = draw.null.to(cond).expand(1, *cond.shape[1:])
    try:
        with evaluating(model), torch.no_grad():
            model.predict(x0[:1], model.process.t_max, cond=null)
    except (ValueError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"cond_null must be a condition that the network takes, got {draw.null.tolist()}: {error}"
        ) from error


def _check_reporting(
    out: str | Path | None, resume: bool, tensorboard: bool, callback: Any
) -> None:
    """Raise for what would only be noticed after the first step."""
    if check_flag("resume", resume) and out is None:
        raise ValueError("resume needs out=, the folder of the run to continue")
    if check_flag("tensorboard", tensorboard) and out is None:
        raise ValueError("tensorboard needs out=, the folder that its files go to")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")


def _forked(device: torch.device) -> AbstractContextManager[None]:
    """torch's generators that layers draw from, put back afterwards: the CPU's and the model's own."""
    cuda = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(cuda, device_type="cuda")


def _folder_of(out: str | Path | None) -> Path | None:
    """Where the checkpoints go."""
    return None if out is None else Path(out) / "checkpoints"


@contextmanager
def _held(folder: Path, state: TrainingState, resume: bool, world: World) -> Iterator[Path | None]:
    """The folder of the run, ours alone, and its newest checkpoint restored if wanted."""
    from filelock import FileLock, Timeout

    files = [folder.parent / name for name in ("log.csv", "losses.json")]
    if not resume and (checkpoints(folder) or any(file.exists() for file in files)):
        raise ValueError(f"{folder.parent} already holds a run; give resume=True or another out=")
    state.check_describable()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / ".lock", timeout=0)
    with ExitStack() as stack:
        if world.writes:
            try:
                stack.enter_context(lock)
            except Timeout:
                raise ValueError(f"{folder.parent} is in use by another process") from None
            remove_leftovers(folder, "step-*")
        world.wait()
        yield state.restore_newest(folder) if resume else None


@contextmanager
def _training(model: nn.Module, compile: bool) -> Iterator[None]:
    """Train mode, and the network compiled in place if wanted."""
    was, network = model.training, getattr(model, "network", model)
    before = network._compiled_call_impl
    model.train()
    if compile:
        network.compile()
    try:
        yield
    finally:
        model.train(was)
        network._compiled_call_impl = before
