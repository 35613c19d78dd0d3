"""What several test files share: the test of a table of bad input, grids, exact laws, draws."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import sdekit as sk

#: Name, call, error, and what its message must say.
BadRow = tuple[str, Callable[[], Any], type[Exception], Sequence[str]]


def bad_input(rows: Sequence[BadRow]) -> Callable[..., None]:
    """The test that each row's call is refused, in these words."""

    @pytest.mark.parametrize(
        ("call", "error", "words"), [row[1:] for row in rows], ids=[row[0] for row in rows]
    )
    def refused(call: Callable[[], Any], error: type[Exception], words: Sequence[str]) -> None:
        with pytest.raises(error) as caught:
            call()
        for word in words:
            assert word in str(caught.value), f"{word!r} is not in: {caught.value}"

    return refused


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Unit normals in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def variance_at(process: sk.Process, t: float, variance: float = 0.25) -> float:
    """Variance at t of data of this variance."""
    return process.alpha(t) ** 2 * variance + process.sigma(t) ** 2


def log_snr_times(process: sk.Process, steps: int, t_end: float = 1e-2) -> list[float]:
    """The log-SNR grid from t_max to t_end, in units of T."""
    return sk.samplers.LogSNR().times(process, steps, process.t_max, t_end * process.horizon)
