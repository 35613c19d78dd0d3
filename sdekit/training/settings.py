"""The numbers that decide what a run computes, and how a checkpoint tells runs apart."""

import hashlib
import importlib.metadata
import inspect
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sdekit.denoisers import Denoiser
from sdekit.errors import check_choice, check_integer, check_number
from sdekit.processes import Process
from sdekit.training.batches import Batches
from sdekit.training.fit import PRECISIONS, Loss, check_loss
from sdekit.training.rates import Constant, Plateau, Schedule, resolve_schedule
from sdekit.training.times import TimeLaw, resolve_times
from sdekit.world import World


@dataclass(frozen=True)
class Settings:
    """What a resumed run must have the same; see `train` for each."""

    steps: int
    seed: int
    batch: int
    accumulate: int
    loss: Loss
    times: TimeLaw
    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float
    warmup: int
    schedule: Schedule
    weight_decay: float
    clip: float
    half_life: float
    precision: str
    cond_dropout: float
    evaluate_every: int
    patience: int | None

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), least))
        for name, open_low in _NUMBERS.items():
            value = check_number(name, getattr(self, name), 0, open_low=open_low)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "schedule", resolve_schedule(self.schedule))
        object.__setattr__(self, "times", resolve_times(self.times))
        check_choice("precision", self.precision, PRECISIONS)
        check_loss(self.loss)
        _check_optimizer(self.optimizer)
        parts = self.accumulate * (size := World.current().size)
        if self.batch % parts:
            raise ValueError(
                f"batch must be a multiple of accumulate x processes, {self.accumulate} x {size}, got "
                f"{self.batch}"
            )
        if self.patience is not None:
            object.__setattr__(self, "patience", check_integer("patience", self.patience, 1))

    def rates(self, losses: list[float]) -> Callable[[int], float]:
        """The learning rate as a function of the step and of the losses before it."""
        factor = self.schedule.factors(self.steps, losses)
        return lambda k: (
            self.lr * (min(1.0, (k + 1) / self.warmup) if self.warmup else 1.0) * factor(k)
        )

    def built_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model's parameters; one without weight decay is not asked for it."""
        known = inspect.signature(self.optimizer).parameters
        takes = "weight_decay" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())
        if self.weight_decay and not takes:
            raise ValueError(
                f"weight_decay must be 0 for {name_of(self.optimizer)}, which has none, got "
                f"{self.weight_decay:g}"
            )
        decay = {"weight_decay": self.weight_decay} if takes else {}
        optimizer = self.optimizer(model.parameters(), lr=self.lr, **decay)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "optimizer must step from one gradient, got LBFGS, which asks for more"
            )
        return optimizer

    def recorded(self, model: Denoiser, draw: Batches) -> dict[str, Any]:
        """What a checkpoint keeps, with the model's side and the data's; JSON-able."""
        plain = {
            name: value if isinstance(value, int | float | str | None) else name_of(value)
            for name, value in vars(self).items()
        }
        if isinstance(self.schedule, Constant | Plateau):  # which never ask how many there are
            plain["steps"] = None
        return plain | {
            "process": _fingerprint(model.process),
            "prediction": model.prediction,
            "samples": len(draw.data) if isinstance(draw.data, torch.Tensor) else None,
            "event": list(draw.event),
            "scaling": None if draw.scaling is None else draw.scaling.config,
            "cond": None if draw.cond is None else list(draw.cond.shape[1:]),
            "cond_null": None if draw.null is None else draw.null.tolist(),
        }


_INTEGERS = {"steps": 1, "batch": 1, "accumulate": 1, "warmup": 0, "evaluate_every": 1}
_NUMBERS = {"lr": True, "weight_decay": False, "clip": True, "half_life": False}


def _check_optimizer(optimizer: Any) -> None:
    if not callable(optimizer):
        raise TypeError(
            "optimizer must be a class of torch.optim or a functools.partial of one, got an instance of "
            f"{type(optimizer).__name__}"
        )
    fixed = {"lr", "weight_decay"} & getattr(optimizer, "keywords", {}).keys()
    if fixed:
        raise ValueError(
            f"optimizer must leave {sorted(fixed)} to train(), which has arguments for it"
        )


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 of a config as canonical JSON: the same for the same run anywhere."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of everything that decides the bits of a run."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sdekit": importlib.metadata.version("sdekit"),
    }


def name_of(value: Any) -> str:
    """How a config names an object: a class, a `partial` of one, or a dataclass."""
    if isinstance(value, partial):
        told = ", ".join(f"{k}={v!r}" for k, v in sorted(value.keywords.items()))
        return f"{name_of(value.func)}({told})"
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    plain = type(value).__repr__ is object.__repr__  # an address, another in the next run
    return type(value).__name__ if plain else repr(value)


def _fingerprint(process: Process) -> str:
    """The repr, and a value of the curves: a table of betas shows only its ends."""
    return f"{name_of(process)} with log_snr {float(process.log_snr(0.5 * process.t_max)):.9g} half way"
