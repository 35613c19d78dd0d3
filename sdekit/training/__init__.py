"""Denoising score matching: losses with their exact minima, the training loop, checkpoints."""

from sdekit.training.losses import DenoisingLoss, draw_times, excess_loss, minimum_loss
from sdekit.training.trainer import Step, TrainResult, fit, train

__all__ = [
    "DenoisingLoss",
    "Step",
    "TrainResult",
    "draw_times",
    "excess_loss",
    "fit",
    "minimum_loss",
    "train",
]
