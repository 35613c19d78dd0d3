"""How the learning rate goes: a factor of its peak as a function of the step and of the losses before it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from sdekit.errors import check_choice, check_integer, check_number


class Schedule(Protocol):
    """What a schedule is asked."""

    def factors(self, steps: int, losses: list[float]) -> Callable[[int], float]:
        """The factor of step k, for a run of `steps` whose losses are appended to `losses` as it goes."""
        ...


@dataclass(frozen=True)
class Constant:
    """The peak throughout."""

    def factors(self, steps: int, losses: list[float]) -> Callable[[int], float]:
        """One."""
        return lambda k: 1.0


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the peak to zero after the last step (Loshchilov & Hutter 2017, eq. 5)."""

    def factors(self, steps: int, losses: list[float]) -> Callable[[int], float]:
        """(1 + cos(pi k / steps)) / 2."""
        return lambda k: 0.5 * (1 + math.cos(math.pi * k / steps))


@dataclass(frozen=True)
class Plateau:
    """Lowered by `factor` when the mean loss of a window has not fallen for `patience` windows.

    torch's `ReduceLROnPlateau` on the means of the run's own losses: a resumed run finds its state in them.

    Args:
        window: steps a mean is over, such as an epoch.
        patience: windows without a better mean that are let pass.
        factor: what the rate is multiplied by, in (0, 1).
        threshold: what part of the best mean a better one must be below it.
    """

    window: int = 500
    patience: int = 5
    factor: float = 0.5
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        check_integer("window", self.window, 1)
        check_integer("patience", self.patience, 0)
        check_number("factor", self.factor, 0, 1, open_low=True, open_high=True)
        check_number("threshold", self.threshold, 0, 1, open_high=True)

    def factors(self, steps: int, losses: list[float]) -> Callable[[int], float]:
        """The product of the lowerings that the losses before step k have brought about."""
        unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        lowered = torch.optim.lr_scheduler.ReduceLROnPlateau(
            unit, factor=self.factor, patience=self.patience, threshold=self.threshold
        )
        read = 0

        def factor(k: int) -> float:
            nonlocal read
            while read + self.window <= k:
                window = losses[read : read + self.window]
                lowered.step(math.fsum(window) / self.window)
                read += self.window
            return unit.param_groups[0]["lr"]

        return factor


SCHEDULES = {"constant": Constant(), "cosine": Cosine(), "plateau": Plateau()}


def resolve_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of a name, or the one given."""
    if isinstance(schedule, str):
        return SCHEDULES[check_choice("schedule", schedule, tuple(SCHEDULES))]
    if isinstance(schedule, type) or not hasattr(schedule, "factors"):
        given = schedule.__name__ if isinstance(schedule, type) else type(schedule).__name__
        raise TypeError(
            f"schedule must be a name or an instance with .factors(steps, losses), got {given}"
        )
    return schedule
