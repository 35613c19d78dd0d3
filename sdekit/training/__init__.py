"""Denoising score matching: losses with their exact minima, the training loop, checkpoints."""

from sdekit.training.excess import LevelExcess, excess_by_level, excess_loss
from sdekit.training.fit import Loss, Step, fit
from sdekit.training.losses import DenoisingLoss
from sdekit.training.minima import minimum_loss, minimum_with_error
from sdekit.training.per_step_kl import Hybrid, PerStepKL, kl_minima
from sdekit.training.rates import Plateau
from sdekit.training.score_matching import ImplicitScoreMatching, SlicedScoreMatching
from sdekit.training.times import (
    ImportanceTimes,
    LogNormalTimes,
    TimeLaw,
    UniformTimes,
    draw_times,
    resolve_times,
)
from sdekit.training.trainer import TrainResult, train
from sdekit.world import World

__all__ = [
    "DenoisingLoss",
    "Hybrid",
    "ImplicitScoreMatching",
    "ImportanceTimes",
    "LevelExcess",
    "LogNormalTimes",
    "Loss",
    "PerStepKL",
    "Plateau",
    "SlicedScoreMatching",
    "Step",
    "TimeLaw",
    "TrainResult",
    "UniformTimes",
    "World",
    "draw_times",
    "excess_by_level",
    "excess_loss",
    "fit",
    "kl_minima",
    "minimum_loss",
    "minimum_with_error",
    "resolve_times",
    "train",
]
