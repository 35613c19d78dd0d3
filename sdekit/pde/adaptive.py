"""Steps in time as long as an estimate of their error allows."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sdekit.errors import NumericsError

#: (start, end, y) -> (y at the end, an estimate of its error).
Step = Callable[[float, float, np.ndarray], tuple[np.ndarray, np.ndarray]]


def integrate(
    step: Step,
    order: int,
    slope: np.ndarray,
    y: np.ndarray,
    start: float,
    times: Sequence[float],
    tol: float,
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield y and the number of accepted steps so far at each of the increasing `times`.

    The right-hand side must be smooth between `start` and the last of `times`: a step that straddles a jump
    is not noticed. A step is accepted when the L1 norm of its estimated error is at most `tol` times that of
    the first y.

    Args:
        step: one step; the error is that of a method of order `order`.
        order: see `step`.
        slope: y' at `start`, which guesses the first step.
        y: the first y.
        start: its time.
        times: where to report.
        tol: see above.

    Raises:
        NumericsError: the error of a step is not finite, or the step has shrunk to nothing.
    """
    exponent = 1 / (order + 1)
    scale, speed = float(np.abs(y).sum()), float(np.abs(slope).sum())
    t, accepted, span = start, 0, times[-1] - start
    # A slope that changes by its own size over the first step would cost about dt^(order + 1).
    dt = span if speed * span <= tol**exponent * scale else tol**exponent * scale / speed
    for end in times:
        while t < end:
            # The last step before an output stretches by a tenth rather than leave a sliver.
            stop = end if t + 1.1 * dt >= end else t + dt
            new, error = step(t, stop, y)
            size = float(np.abs(error).sum()) / scale
            if not (np.isfinite(size) and stop > t):
                raise NumericsError(f"the time step failed at t = {abs(t):g} (dt = {dt:g})")
            proposal = proposed(stop - t, size, tol, order)
            if size > tol:
                check_shrinks(t, proposal)
                dt = proposal
                continue
            # A step cut short by an output says nothing against the step before it.
            dt = max(dt, proposal) if stop == end else proposal
            t, y, accepted = stop, new, accepted + 1
        yield y, accepted


def proposed(dt: float, error: float, tol: float, order: int) -> float:
    """The length that the error of a step of length `dt` suggests: a fifth of it to five times."""
    factor = min(5.0, max(0.2, 0.9 * (tol / error) ** (1 / (order + 1)))) if error > 0 else 5.0
    return factor * dt


def check_shrinks(t: float, dt: float, clock: str = "t") -> None:
    """Refuse a step that its error would have shorter than 1e-13 of the time it starts from.

    Near a time where the terms are infinite the steps shrink towards it without end: they are accepted now
    and then, but get nowhere, and one of a few units in the last place rounds back to what it was.

    Raises:
        NumericsError: the step is that short; the message calls the time by the name of its `clock`.
    """
    if dt < 1e-13 * abs(t):
        raise NumericsError(
            f"the time step has shrunk to {dt:.1e} at {clock} = {abs(t):.15g}: is something infinite there?"
        )
