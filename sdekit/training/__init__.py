"""Denoising score matching: losses with their exact minima, the training loop, checkpoints."""

from sdekit.training.fit import Loss, Step, fit
from sdekit.training.losses import DenoisingLoss
from sdekit.training.minima import excess_loss, minimum_loss
from sdekit.training.per_step_kl import Hybrid, PerStepKL, kl_minima
from sdekit.training.rates import Plateau
from sdekit.training.times import (
    ImportanceTimes,
    LogNormalTimes,
    TimeLaw,
    UniformTimes,
    draw_times,
    resolve_times,
)
from sdekit.training.trainer import TrainResult, train
from sdekit.training.world import World

__all__ = [
    "DenoisingLoss",
    "Hybrid",
    "ImportanceTimes",
    "LogNormalTimes",
    "Loss",
    "PerStepKL",
    "Plateau",
    "Step",
    "TimeLaw",
    "TrainResult",
    "UniformTimes",
    "World",
    "draw_times",
    "excess_loss",
    "fit",
    "kl_minima",
    "minimum_loss",
    "resolve_times",
    "train",
]
