"""One run of a comparison: drawn, timed and measured, here or in another process."""

import functools
import hashlib
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sdekit import metrics as distances
from sdekit.data.mixtures import GaussianMixture
from sdekit.denoisers import Denoiser, device_of
from sdekit.elementary import Number
from sdekit.learned_variance import StepModel
from sdekit.sampling import Sampler, TimeGrid, sample

#: A distance of samples (n, d) from a law.
Metric = Callable[[Tensor, GaussianMixture], float]
#: What names a run in a file: sampler, grid, steps, seed.
Key = tuple[str, str, int, int]


def default_metrics(truth: GaussianMixture) -> dict[str, Metric]:
    """Exact W1 and W2 in 1-D; sliced W2 against as many exact samples in higher dimension."""
    if truth.dim == 1:
        return {f"W{p}": functools.partial(distances.wasserstein_1d, p=p) for p in (1, 2)}
    return {"sliced W2": _sliced}


def _sliced(x: Tensor, law: GaussianMixture) -> float:
    # The reference draw is the same for every row, so that rows differ by their samples alone.
    return distances.sliced_wasserstein(x.double(), law.sample(len(x), seed=2**31), p=2)


def grid_id(grid: TimeGrid | tuple[float, ...]) -> str:
    """What names a grid in a table: its repr, or a digest of explicit times."""
    if isinstance(grid, TimeGrid):
        return repr(grid)
    return "times:" + hashlib.sha256(np.array(grid, dtype="<f8").tobytes()).hexdigest()[:8]


@dataclass(frozen=True)
class Run:
    """A sampler on a grid with a seed."""

    sampler: Sampler
    grid: TimeGrid | tuple[float, ...]
    steps: int
    seed: int

    @property
    def key(self) -> Key:
        """What names it in a file."""
        return repr(self.sampler), grid_id(self.grid), self.steps, self.seed


@dataclass(frozen=True)
class Bench:
    """What the runs of a table share: the model, the law where they stop, what is measured on how many.

    They start from the prior, or from the law `start`.
    """

    denoiser: Denoiser
    law: GaussianMixture
    metrics: Mapping[str, Metric]
    n: int
    t_end: float
    start: GaussianMixture | None = None

    def measure(self, run: Run) -> dict[str, Any]:
        """Values, cost and error of a run; what the sampler or a metric raises is recorded."""
        timed, own_times = _timed(self.denoiser), isinstance(run.grid, tuple)
        record: dict[str, Any] = {"error": "", "values": {}, "nfe": 0}
        began = time.perf_counter()
        try:
            out = sample(
                timed,
                (self.n, self.law.dim),
                sampler=run.sampler,
                steps=run.steps,
                grid=run.grid,
                t_end=None if own_times else self.t_end,
                x_init=self._starts(run.seed),
                seed=run.seed,
                device=device_of(self.denoiser),
            )
            record["seconds"] = time.perf_counter() - began
            for name, metric in self.metrics.items():
                record["values"][name] = float(metric(out.x, self.law))
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
            record.setdefault("seconds", time.perf_counter() - began)
        record["model seconds"], record["nfe"] = timed.seconds, -(-timed.samples // self.n)
        return record

    def _starts(self, seed: int) -> Tensor | None:
        """States drawn from `start`, from a stream of their own."""
        if self.start is None:
            return None
        return self.start.sample(self.n, seed=2**32 + seed, dtype=torch.get_default_dtype())


class TimedDenoiser(Denoiser):
    """A denoiser that adds up the time of its calls and the samples it was called on.

    On a device that works asynchronously the time is that of starting the work.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.process, self.prediction = denoiser.process, denoiser.prediction
        self.seconds, self.samples = 0.0, 0
        self._denoiser = denoiser

    def predict(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """The denoiser's prediction."""
        with self._clock(x):
            return self._denoiser.predict(x, t, **conditions)

    def __getattr__(self, name: str) -> Any:
        """What else there is to know of the denoiser, such as the mixture of an exact one."""
        return getattr(self._denoiser, name)

    @contextmanager
    def _clock(self, x: Tensor) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began
        self.samples += len(x)


class TimedStepModel(TimedDenoiser):
    """One that also gives the law of a step."""

    def reverse(self, x: Tensor, t: Number, s: Number, **conditions: Any) -> tuple[Tensor, Tensor]:
        """The denoiser's mean and variance of a step."""
        with self._clock(x):
            return cast(StepModel, self._denoiser).reverse(x, t, s, **conditions)


def _timed(denoiser: Denoiser) -> TimedDenoiser:
    return (TimedStepModel if isinstance(denoiser, StepModel) else TimedDenoiser)(denoiser)


def measured(
    bench: Bench, runs: Sequence[Run], executor: Executor | None
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Each run with its record, as they are done: here in turn, or by an executor in any order."""
    if executor is None:
        yield from ((run, bench.measure(run)) for run in runs)
        return
    work = bench.measure
    if not isinstance(executor, ThreadPoolExecutor):
        work = functools.partial(_measure_packed, _packed(bench, runs, executor))
    futures = {executor.submit(work, run): run for run in runs}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


def check_executor(executor: Any) -> None:
    """Refuse what is no executor, and process pools that would hang."""
    if not isinstance(executor, Executor):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {executor!r}")
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "executor must not fork: a copy of a process whose threads have computed can hang. Use "
            'ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))'
        )


def _packed(bench: Bench, runs: Sequence[Run], executor: Executor) -> bytes:
    """The bench as bytes: pickled once, and by value (torch would move weights to shared memory)."""
    try:
        pickle.dumps(runs)
        return pickle.dumps(bench)
    except Exception as error:
        raise TypeError(
            f"denoiser, samplers, truth and metrics must pickle for {type(executor).__name__}: a metric, "
            f"for example, must be a function of a module and not a lambda ({error})"
        ) from error


def _measure_packed(packed: bytes, run: Run) -> dict[str, Any]:
    return _unpacked(packed).measure(run)


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Bench:
    return pickle.loads(packed)
