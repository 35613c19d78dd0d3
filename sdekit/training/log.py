"""What a run reports as it goes: a progress bar, log.csv, and TensorBoard's files."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from sdekit.storage import save_text

Row = dict[str, float | str]
COLUMNS: tuple[str, ...] = ("step", "loss", "gradient_norm", "rate", "validation")


@contextmanager
def reports(
    out: Path | None, *, first: int, steps: int, every: int, progress: bool, tensorboard: bool
) -> Iterator["Reports"]:
    """What to tell every step and every evaluation of a run that starts at step `first`."""
    with ExitStack() as stack:
        bar = stack.enter_context(_bar(first, steps)) if progress else None
        sinks: list[Callable[[Row], None]] = []
        if out is not None:
            sinks.append(stack.enter_context(_table(out / "log.csv", first)))
        if out is not None and tensorboard:
            sinks.append(stack.enter_context(_board(out / "tensorboard", first)))
        yield Reports(bar, sinks, every, steps)


class Reports:
    """Means of the loss between one row and the next, to wherever rows go."""

    def __init__(self, bar: Any, sinks: list[Callable[[Row], None]], every: int, last: int) -> None:
        self.bar, self.sinks, self.every, self.last = bar, sinks, every, last
        self._smooth: float | None = None

    def step(self, losses: list[float], norms: list[float], rate: float) -> None:
        """The last of these steps has been taken, at a learning rate."""
        steps, loss = len(losses), losses[-1]
        if self.bar is not None:
            last = loss if self._smooth is None else self._smooth
            self._smooth = 0.98 * last + 0.02 * loss
            if steps % 20 == 1:
                self.bar.set_postfix(loss=f"{self._smooth:.4f}", refresh=False)
            self.bar.update()
        if self.sinks and (steps % self.every == 0 or steps == self.last):
            since = steps % self.every or self.every
            loss, norm = (fmean(values[-since:]) for values in (losses, norms))
            self._write({"loss": loss, "gradient_norm": norm, "rate": rate}, steps)

    def evaluation(self, steps: int, loss: float) -> None:
        """The average's loss on held-out data after so many steps."""
        self._write({"validation": loss}, steps)

    def _write(self, values: Row, steps: int) -> None:
        for sink in self.sinks:
            sink({"step": steps, **values})


@contextmanager
def _bar(first: int, steps: int) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=steps, initial=first, desc="training", unit="step") as bar:
        yield bar


@contextmanager
def _table(path: Path, first: int) -> Iterator[Callable[[Row], None]]:
    """Rows of a CSV; those after step `first`, of work that was lost, are dropped."""
    kept: list[dict[str, str]] = []
    if path.exists():
        rows = csv.DictReader(io.StringIO(path.read_text()))
        kept = [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) <= first]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(kept)
    save_text(path, text.getvalue())
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)

        def write(row: Row) -> None:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
            file.flush()

        yield write


@contextmanager
def _board(folder: Path, first: int) -> Iterator[Callable[[Row], None]]:
    """Scalars for TensorBoard, which hides those of work that was lost."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            'tensorboard=True needs TensorBoard: pip install "sdekit[tensorboard]"'
        ) from None
    with SummaryWriter(str(folder), purge_step=first + 1) as board:

        def write(row: Row) -> None:
            for name, value in row.items():
                if name != "step":
                    board.add_scalar(name, value, int(row["step"]))

        yield write
