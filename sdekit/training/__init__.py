"""Denoising score matching: losses with their exact minima, the training loop, checkpoints."""

from sdekit.training.fit import Loss, Step, fit
from sdekit.training.losses import DenoisingLoss, draw_times, excess_loss, minimum_loss
from sdekit.training.rates import Plateau
from sdekit.training.trainer import TrainResult, train
from sdekit.training.world import World

__all__ = [
    "DenoisingLoss",
    "Loss",
    "Plateau",
    "Step",
    "TrainResult",
    "World",
    "draw_times",
    "excess_loss",
    "fit",
    "minimum_loss",
    "train",
]
