"""The averaged weights: an exponential moving average with a half-life in optimiser steps."""

import copy

import torch
from torch import nn


class Average:
    """A copy of a model, in eval mode, that follows it, a fused pass a step; buffers are taken as they are.

    After step k it moves by 1 - min(2^(-1 / half_life), (1 + k) / (10 + k)) of the way, all of it after
    step 0: young averages forget faster. torch's `AveragedModel` can have the same rule, and walks through
    the modules at every step, which costs a tenth of a step of a small network.

    Args:
        model: what is followed, from now on.
        half_life: in steps; 0 is no average.
    """

    def __init__(self, model: nn.Module, half_life: float) -> None:
        self.module = copy.deepcopy(model).eval()
        self.decay = 2 ** (-1 / half_life) if half_life else 0.0
        self._own = [p.detach() for p in self.module.parameters()]
        self._followed = [p.detach() for p in model.parameters()]
        self._buffers = list(zip(self.module.buffers(), model.buffers(), strict=True))

    def follow(self, k: int) -> None:
        """Take in the weights after step k."""
        decay = min(self.decay, (1 + k) / (10 + k)) if k else 0.0
        torch._foreach_lerp_(self._own, self._followed, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for own, followed in self._buffers:
            own.copy_(followed)
