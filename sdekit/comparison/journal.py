"""A file that gets every run as it is done, so that an interrupted comparison can go on."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from sdekit.comparison.runs import Bench, Key
from sdekit.denoisers import device_of
from sdekit.errors import CheckpointError

#: Raised when the meaning of the lines changes.
VERSION = 1
#: What the record of a part depends on besides the part itself.
_FOLLOWS = {
    "truth": {"t_end", "process"},
    "denoiser": {"process"},
    "metrics": {"n", "t_end", "process", "truth"},
}


class Journal:
    """Finished runs as JSON lines.

    The first line says what determines their numbers; a file of something else is refused. Each later line
    is one run, appended in one write and synced. A last line cut short by a crash is dropped.

    Raises:
        CheckpointError: the file is of another kind, damaged, or was written with other arguments.

    Attributes:
        records: by key, the runs that are done. Those that failed are not among them: they are tried again.
    """

    def __init__(self, path: str | Path, bench: Bench) -> None:
        self.path, self.records = Path(path), dict[Key, dict[str, Any]]()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ours = {"sdekit comparison": VERSION, **identity(bench)}
        head, *lines = self._lines() or [None]
        if head is None:
            self._append(ours)
        else:
            self._check(head, ours)
        for line in lines:
            if not line["error"]:
                sampler, grid, steps, seed = line["run"]
                self.records[sampler, grid, steps, seed] = line

    def add(self, key: Key, record: dict[str, Any]) -> None:
        """Keep a finished run."""
        self._append({"run": key, **record})
        self.records[key] = record

    def _lines(self) -> list[Any]:
        """The whole lines of the file; a last one without an end is cut off."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise CheckpointError(
                f"resume: {self.path} is damaged or of another kind: {error}"
            ) from None
        if lines and not (isinstance(lines[0], dict) and "sdekit comparison" in lines[0]):
            raise CheckpointError(f"resume: {self.path} is not a file of a comparison")
        if not lines and content and not b'{"sdekit comparison"'.startswith(content[:20]):
            raise CheckpointError(f"resume: {self.path} is not a file of a comparison")
        if not all(
            isinstance(r, dict) and {"run", "error", "values"} <= r.keys() for r in lines[1:]
        ):
            raise CheckpointError(f"resume: {self.path} is damaged: it has lines that are no runs")
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return lines

    def _check(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        differing = [name for name, value in ours.items() if not _same(theirs.get(name), value)]
        # A law, a model or a metric is known by what it gives where the others say, so theirs come first.
        differing = [name for name in differing if not _FOLLOWS.get(name, set()) & set(differing)]
        if differing:
            raise CheckpointError(
                f"resume: {self.path} was written with another {', another '.join(differing)}; give the same "
                "arguments or another path"
            )

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def identity(bench: Bench) -> dict[str, Any]:
    """What determines the number of a run besides its key, in JSON.

    A model or a metric can be anything, so they are known by what they give at fixed points.
    """
    process, law = bench.denoiser.process, bench.law
    exact = law.sample(bench.n, seed=0)
    return {
        "n": bench.n,
        "t_end": bench.t_end,
        "truth": _digest(law),
        "process": [_node(process, u * process.horizon) for u in (0.0, 0.1, 0.35, 0.7, 1.0)],
        "denoiser": _predictions(bench),
        "metrics": {name: float(metric(exact, law)) for name, metric in bench.metrics.items()},
    }


def _digest(law: Any) -> str:
    parts = [law.log_weights, law.means, law.variances, law.axes]
    text = b"".join(p.contiguous().numpy().tobytes() for p in parts if p is not None)
    return hashlib.sha256(text).hexdigest()


def _node(process: Any, t: float) -> list[float]:
    node = process.node(t)
    return [node.alpha, node.sigma]


def _predictions(bench: Bench) -> list[list[float]]:
    """The model's output on four points at three times."""
    denoiser, generator = bench.denoiser, torch.Generator().manual_seed(0)
    x = torch.randn(4, bench.law.dim, generator=generator).to(device_of(denoiser))
    process = denoiser.process
    times = [max(u * process.t_max, process.t_min) for u in (0.02, 0.3, 1.0)]
    with torch.no_grad():
        return [denoiser.predict(x, t).double().flatten()[:32].tolist() for t in times]


def _same(a: Any, b: Any) -> bool:
    """Equal, floats to 1e-6: a model may round otherwise on another number of threads."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return a == b
