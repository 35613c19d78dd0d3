"""A perceptron with an output network of its own for each step of a chain.

Sohl-Dickstein et al. (2015, arXiv:1503.03585) learn their swiss roll so: what all steps share is a trunk
that knows no time, and each step reads it in its own way.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.errors import check_integer
from sdekit.networks.embeddings import flat_events


class PerStepMLP(nn.Module):
    """A shared trunk of SiLU layers, and for each step a head of one hidden layer; the output starts at zero.

    The output has `readings` times the numbers of x, one reading after the other along the first axis of
    the event: two for `LearnedVariance` (the noise and its spread), one for `NetworkDenoiser`. The times are
    labels 0 .. steps - 1, `time="label"` of those. Weights are drawn by torch's global generator, as torch
    modules are.

    Args:
        dim: numbers in an event; an event may have any shape with that many.
        steps: of the chain, a head each.
        hidden: width of the trunk and of the hidden layer of a head.
        depth: layers of the trunk.
        readings: how many times the event the output holds.
    """

    #: A label of shape (1,) runs one head for the whole batch.
    broadcasts_time = True

    def __init__(
        self, dim: int, steps: int = 40, hidden: int = 64, depth: int = 2, readings: int = 2
    ) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim, 1)
        self.steps = check_integer("steps", steps, 1)
        self.hidden = check_integer("hidden", hidden, 1)
        self.depth = check_integer("depth", depth, 1)
        self.readings = check_integer("readings", readings, 1)
        ins = [dim] + [hidden] * (depth - 1)
        self.trunk = nn.ModuleList(nn.Linear(width, hidden) for width in ins)
        self.heads = _PerStepLinear(steps, hidden, hidden)
        self.out = _PerStepLinear(steps, hidden, readings * dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {
            "dim": self.dim,
            "steps": self.steps,
            "hidden": self.hidden,
            "depth": self.depth,
            "readings": self.readings,
        }

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The network at x (n, *event) and integer labels t (n,) or (1,).

        Raises:
            ValueError, TypeError: a shape does not fit, or t does not hold labels of the steps.
        """
        h = flat_events(x, self.dim)
        self._check_labels(t, len(x))
        for layer in self.trunk:
            h = F.silu(layer(h))
        if t.shape == (1,):
            out = self.out(F.silu(self.heads(h, t)), t)
        else:
            groups = _grouped(t)
            out = groups.apart(
                self.out(F.silu(self.heads(groups.together(h), groups.labels)), groups.labels)
            )
        rest = x.shape[2:] if x.ndim > 1 else ()
        return out.reshape(len(x), self.readings * (x.shape[1] if x.ndim > 1 else 1), *rest)

    def _check_labels(self, t: Tensor, n: int) -> None:
        if t.is_floating_point() or t.dtype == torch.bool:
            raise TypeError(f't must hold integer labels (time="label"), got {t.dtype}')
        if t.ndim != 1 or t.shape[0] not in (1, n):
            raise ValueError(
                f"t must have shape (n,) or (1,) for a batch of n = {n}, got {tuple(t.shape)}"
            )
        if t.numel() and not 0 <= int(t.min()) <= int(t.max()) < self.steps:
            raise ValueError(
                f"t must hold labels in 0 .. {self.steps - 1}, got {int(t.min())} .. {int(t.max())}"
            )


class _PerStepLinear(nn.Module):
    """A linear layer for each step."""

    def __init__(self, steps: int, ins: int, outs: int) -> None:
        super().__init__()
        reach = 1 / math.sqrt(ins)  # of torch's own linear layers
        self.weight = nn.Parameter(torch.empty(steps, ins, outs).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(steps, 1, outs).uniform_(-reach, reach))

    def forward(self, h: Tensor, labels: Tensor) -> Tensor:
        """Layer `labels[g]` on the rows h[g]: (g, m, ins) to (g, m, outs); one label takes (m, ins)."""
        if h.ndim == 2:
            return torch.addmm(self.bias[labels[0]], h, self.weight[labels[0]])
        return torch.baddbmm(self.bias[labels], h, self.weight[labels])


class _Groups(NamedTuple):
    """The samples of a batch ordered by label, so that a head is one matrix product for all its samples.

    Attributes:
        labels: those that occur, (g,).
        slots: the place of each sample among g groups of `size` places, (n,).
        size: of the largest group; the others are filled up.
    """

    labels: Tensor
    slots: Tensor
    size: int

    def together(self, h: Tensor) -> Tensor:
        """(n, width) to (g, size, width)."""
        places = h.new_zeros(len(self.labels) * self.size, h.shape[1])
        return places.index_copy(0, self.slots, h).view(len(self.labels), self.size, h.shape[1])

    def apart(self, h: Tensor) -> Tensor:
        """(g, size, width) back to (n, width)."""
        return h.reshape(-1, h.shape[2])[self.slots]


def _grouped(t: Tensor) -> _Groups:
    labels, group, counts = t.unique(return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    size = int(counts.max()) if len(counts) else 0
    slots = torch.empty_like(group)
    slots[order] = (
        torch.arange(len(t), device=t.device)
        + (torch.arange(len(counts), device=t.device) * size - starts)[group[order]]
    )
    return _Groups(labels, slots, size)
