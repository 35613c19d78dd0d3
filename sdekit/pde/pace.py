"""What time steps are taken in: t, or B(t) of a tabulated chain, in which its rates are smooth."""

from dataclasses import dataclass

from sdekit.processes import Process
from sdekit.schedules import Tabulated


@dataclass(frozen=True)
class Pace:
    """A reading of time.

    In t the rates of a chain jump at i / N: steps across many small jumps are off by more than their estimate
    can see.

    Attributes:
        chain: the schedule whose B it shows; None for t itself.
    """

    chain: Tabulated | None = None

    @classmethod
    def of(cls, process: Process) -> "Pace":
        """That of a process."""
        schedule = getattr(process, "schedule", None)
        return cls(schedule if isinstance(schedule, Tabulated) else None)

    @property
    def name(self) -> str:
        """What it shows."""
        return "t" if self.chain is None else "B(t)"

    def reading(self, t: float) -> float:
        """What it shows at time t."""
        return t if self.chain is None else float(self.chain.B(t))

    def time(self, reading: float) -> tuple[float, float]:
        """t and its rate of change."""
        if self.chain is None:
            return reading, 1.0
        t = float(self.chain.inverse(reading))
        return t, 1 / float(self.chain.beta(t))
