"""Plain torch modules: `network(x, t, cond=None)` has x's shape, and `config` rebuilds it."""

from torch import nn

from sdekit.networks.diffusers_unet import DiffusersUNet
from sdekit.networks.embeddings import FourierEmbedding, SinusoidalEmbedding, TimeFeatures
from sdekit.networks.mlp import MLP
from sdekit.networks.per_step_mlp import PerStepMLP
from sdekit.networks.unet import UNet

ALL: tuple[type[nn.Module], ...] = (MLP, PerStepMLP, UNet, DiffusersUNet)

__all__ = [
    "ALL",
    "MLP",
    "DiffusersUNet",
    "FourierEmbedding",
    "PerStepMLP",
    "SinusoidalEmbedding",
    "TimeFeatures",
    "UNet",
]
