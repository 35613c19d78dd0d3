"""Denoising score matching: losses with their exact minima, the training loop, checkpoints."""

from sdekit.training.losses import DenoisingLoss, draw_times, excess_loss, minimum_loss
from sdekit.training.per_step_kl import Hybrid, PerStepKL, kl_minima
from sdekit.training.trainer import Step, TrainResult, fit, train

__all__ = [
    "DenoisingLoss",
    "Hybrid",
    "PerStepKL",
    "Step",
    "TrainResult",
    "draw_times",
    "excess_loss",
    "fit",
    "kl_minima",
    "minimum_loss",
    "train",
]
