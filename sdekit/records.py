"""Records with names: read as text, Markdown, CSV or a data frame."""

import csv
import importlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Records(ABC):
    """A list of records, `rows`, with the same keys each."""

    rows: list[dict[str, Any]]

    @abstractmethod
    def _cells(self) -> list[list[str]]:
        """Head and rows as text."""

    def _notes(self) -> list[str]:
        """What is said below the table, a line each."""
        return []

    def to_csv(self, path: str | Path) -> None:
        """Write the rows, one line each."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def to_pandas(self) -> Any:
        """The rows as a data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            name = f"{type(self).__name__}.to_pandas"
            message = f'{name} needs pandas: pip install "sdekit[tables]"'
            raise ImportError(message) from error
        return pandas.DataFrame(self.rows)

    def markdown(self) -> str:
        """The rows as a Markdown table, with notes below."""
        head, *body = self._cells()
        lines = [head, ["---"] * len(head), *body]
        table = [f"| {' | '.join(line)} |" for line in lines]
        return "\n".join([*table, *(f"\n{note}" for note in self._notes())])

    def __str__(self) -> str:
        """The rows in aligned columns."""
        table = self._cells()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in table
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *self._notes()])


def number(value: float, form: str) -> str:
    """The value in this form; empty where there is none."""
    return format(value, form) if math.isfinite(value) else ""
