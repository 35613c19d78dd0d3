"""Denoising score matching: losses with their exact minima, the training loop, checkpoints."""

from sdekit.training.losses import DenoisingLoss
from sdekit.training.minima import excess_loss, minimum_loss
from sdekit.training.times import (
    ImportanceTimes,
    LogNormalTimes,
    TimeLaw,
    UniformTimes,
    draw_times,
    resolve_times,
)
from sdekit.training.trainer import Step, TrainResult, fit, train

__all__ = [
    "DenoisingLoss",
    "ImportanceTimes",
    "LogNormalTimes",
    "Step",
    "TimeLaw",
    "TrainResult",
    "UniformTimes",
    "draw_times",
    "excess_loss",
    "fit",
    "minimum_loss",
    "resolve_times",
    "train",
]
