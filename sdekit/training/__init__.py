"""Denoising score matching: losses with their exact minima, the training loop, checkpoints."""

from sdekit.training.excess import LevelExcess, excess_by_level, excess_loss
from sdekit.training.losses import DenoisingLoss
from sdekit.training.minima import minimum_loss, minimum_with_error
from sdekit.training.score_matching import ImplicitScoreMatching, SlicedScoreMatching
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
    "ImplicitScoreMatching",
    "ImportanceTimes",
    "LevelExcess",
    "LogNormalTimes",
    "SlicedScoreMatching",
    "Step",
    "TimeLaw",
    "TrainResult",
    "UniformTimes",
    "draw_times",
    "excess_by_level",
    "excess_loss",
    "fit",
    "minimum_loss",
    "minimum_with_error",
    "resolve_times",
    "train",
]
