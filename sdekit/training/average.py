"""The averaged weights: an exponential moving average with a half-life in optimiser steps."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, half_life: float) -> AveragedModel:
    """A copy of the model to follow it; buffers are taken as they are.

    After step k an average moves by 1 - min(2^(-1 / half_life), (1 + k) / (10 + k)) of the way, all of it
    after step 0: young averages forget faster.
    """
    return AveragedModel(model, multi_avg_fn=_Warmed(half_life), use_buffers=False)


class _Warmed:
    """The rule of `averaged`, in one fused pass; a class, so that it can be copied and sent."""

    def __init__(self, half_life: float) -> None:
        self.decay = 2 ** (-1 / half_life) if half_life else 0.0

    def __call__(self, averages: Any, current: Any, updates: Tensor | int) -> None:
        k = int(updates)
        decay = min(self.decay, (1 + k) / (10 + k))
        torch._foreach_lerp_(list(averages), list(current), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
