"""The errors callers catch, and the argument checks that every front door shares."""

import math
import numbers
import operator
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor


class SdekitError(Exception):
    """Base of the errors that are not about an argument."""


class CheckpointError(SdekitError):
    """A checkpoint is missing a part, damaged, unsafe to read, or from another configuration."""


class NumericsError(SdekitError):
    """A computation produced NaN or infinity; the message says where."""


def check_integer(name: str, value: Any, minimum: int) -> int:
    """`value` as an int; numpy and torch integer scalars pass, bools and floats do not."""
    try:
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer >= {minimum}, got {value!r} ({type(value).__name__})"
        ) from None
    if number < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {number}")
    return number


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a finite float within the interval; open ends are excluded."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    number = float(value)
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (math.isfinite(number) and above and below):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be a finite number in {interval}, got {value!r}")
    return number


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value` if it is one of `allowed`; the message lists close matches."""
    if value in allowed:
        return value
    close = get_close_matches(str(value), allowed, n=3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}{hint}")


def check_flag(name: str, value: Any) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def check_finite(name: str, x: Tensor) -> Tensor:
    """`x` if it is a floating-point tensor without NaN or infinity."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}; scale it to float")
    if not x.is_meta:
        bad = ~torch.isfinite(x)
        if bad.any():
            first = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"{name} has {int(bad.sum())} NaN or infinite values, the first at {first}"
            )
    return x


def check_seed(seed: Any, generator: Any = None) -> int | None:
    """A seed in [0, 2**63), or None; a seed and a generator together are an error."""
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if seed is None:
        return None
    number = check_integer("seed", seed, 0)
    if number >= 2**63:
        raise ValueError(f"seed must be below 2**63, got {seed}")
    return number


def generator_of(seed: Any, generator: Any = None) -> torch.Generator:
    """The generator given, or one of the seed; a fresh unseeded one if neither is given."""
    number = check_seed(seed, generator)
    if generator is not None:
        return generator
    own = torch.Generator()
    _ = own.seed() if number is None else own.manual_seed(number)
    return own
