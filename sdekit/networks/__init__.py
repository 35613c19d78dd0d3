"""Plain torch modules: `network(x, t, cond=None)` has x's shape, and `config` rebuilds it."""

from torch import nn

from sdekit.networks.embeddings import FourierEmbedding, SinusoidalEmbedding, TimeFeatures
from sdekit.networks.mlp import MLP
from sdekit.networks.per_step_mlp import PerStepMLP
from sdekit.networks.unet import UNet

ALL: tuple[type[nn.Module], ...] = (MLP, PerStepMLP, UNet)

__all__ = [
    "ALL",
    "MLP",
    "FourierEmbedding",
    "PerStepMLP",
    "SinusoidalEmbedding",
    "TimeFeatures",
    "UNet",
]
