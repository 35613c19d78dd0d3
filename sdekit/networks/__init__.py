"""Plain torch modules: `network(x, t, cond=None)` has x's shape, and `config` rebuilds it."""

from torch import nn

from sdekit.networks.embeddings import FourierEmbedding, SinusoidalEmbedding, TimeFeatures
from sdekit.networks.mlp import MLP
from sdekit.networks.unet import UNet

ALL: tuple[type[nn.Module], ...] = (MLP, UNet)

__all__ = ["ALL", "MLP", "FourierEmbedding", "SinusoidalEmbedding", "TimeFeatures", "UNet"]
