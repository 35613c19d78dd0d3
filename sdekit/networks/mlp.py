"""A multilayer perceptron of (x, t) for toy data."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.errors import check_integer
from sdekit.networks.embeddings import TimeFeatures, check_times, flat_events


class MLP(nn.Module):
    """SiLU layers on x, features of t and a condition; the output has x's shape and starts at zero.

    The time enters the first layer through a matrix of its own, so that a time shared by the batch, of
    shape (1,), is embedded once. Weights are drawn by torch's global generator, as torch modules are.

    Args:
        dim: numbers in an event; an event may have any shape with that many.
        hidden: width of the hidden layers.
        depth: how many of them there are.
        embedding: "sinusoidal" or "fourier".
        embedding_dim: features of each of the two time embeddings, even.
        cond_dim: length of the condition vectors; 0 means the network takes none.
        time_scale: multiplies t; 1 suits times in [0, 1], 1e-3 labels up to 1,000, 0.05 a log-SNR.
    """

    #: A time of shape (1,) is embedded once for the whole batch.
    broadcasts_time = True

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        depth: int = 3,
        embedding: str = "sinusoidal",
        embedding_dim: int = 16,
        cond_dim: int = 0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim, 1)
        self.hidden = check_integer("hidden", hidden, 1)
        self.depth = check_integer("depth", depth, 1)
        self.embedding = embedding
        self.embedding_dim = embedding_dim
        self.cond_dim = check_integer("cond_dim", cond_dim, 0)
        self.features = TimeFeatures(embedding, embedding_dim, time_scale)
        self.time_in = nn.Linear(self.features.features, hidden, bias=False)
        self.x_in = nn.Linear(dim + cond_dim, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth - 1))
        self.out = nn.Linear(hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "dim": self.dim,
            "hidden": self.hidden,
            "depth": self.depth,
            "embedding": self.embedding,
            "embedding_dim": self.embedding_dim,
            "cond_dim": self.cond_dim,
            "time_scale": self.features.scale,
        }

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network at x (n, *event) and t (n,) or (1,), with cond (n, cond_dim) if it takes one.

        Raises:
            ValueError: a shape does not fit, or `cond` is missing or unexpected.
        """
        inputs = self._with_condition(flat_events(x, self.dim), cond)
        h = F.silu(self.x_in(inputs) + self.time_in(self.features(check_times(t, x))))
        for layer in self.layers:
            h = F.silu(layer(h))
        return self.out(h).reshape(x.shape)

    def _with_condition(self, x: Tensor, cond: Tensor | None) -> Tensor:
        if self.cond_dim == 0:
            if cond is not None:
                raise ValueError("cond was given, but this MLP takes none (cond_dim is 0)")
            return x
        if cond is None:
            raise ValueError(f"cond is missing: this MLP needs one of shape (n, {self.cond_dim})")
        if cond.shape != (x.shape[0], self.cond_dim):
            raise ValueError(
                f"cond must have shape ({x.shape[0]}, {self.cond_dim}), got {tuple(cond.shape)}"
            )
        return torch.cat([x, cond.to(x.dtype)], dim=-1)
