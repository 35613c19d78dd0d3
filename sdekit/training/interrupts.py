"""Ctrl-C and SIGTERM let the step finish and its checkpoint be written."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def signals() -> Iterator[list[Callable[[Path | None], None]]]:
    """A list that holds, once a signal came, what to call with the last checkpoint in order to leave.

    A second signal interrupts at once. Outside the main thread signals cannot be handled, and none are.
    """
    stopped: list[Callable[[Path | None], None]] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handler(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt

        def leave(last: Path | None) -> None:
            print(f"stopped; the last checkpoint is {last}", file=sys.stderr)
            if number == signal.SIGTERM:
                raise SystemExit(143)
            raise KeyboardInterrupt

        stopped.append(leave)

    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, old in before.items():
            signal.signal(number, old)
