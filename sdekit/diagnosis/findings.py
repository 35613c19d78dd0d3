"""What a check hands back: rows of a table, and findings in plain words."""

import math
from dataclasses import dataclass
from typing import Any

#: From what makes every number of the model wrong to what is worth knowing.
WRONG, HARMFUL, NOTE = 3, 2, 1


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        gravity: 3, the model is read or fed wrongly; 2, its samples suffer; 1, worth knowing.
        check: which check found it: prediction, time, finite, mode, scale, loss, outside.
        text: what is wrong, how it was seen and what to do, in a sentence or two.
    """

    gravity: int
    check: str
    text: str


def row(
    check: str,
    case: str,
    value: float,
    against: float = math.nan,
    *,
    t: float = math.nan,
    log_snr: float = math.nan,
) -> dict[str, Any]:
    """A row of the table; `t` and `log_snr` are NaN where the value is of all levels, or of none."""
    return {
        "check": check,
        "case": case,
        "t": t,
        "log_snr": log_snr,
        "value": float(value),
        "against": float(against),
    }
