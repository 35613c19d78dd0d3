"""What the engine costs: microseconds a step against a hand-written loop with precomputed weights.

Three runs of the same arithmetic on (n, 2) float32 states and a model of one operation: a loop by hand with
`torch.randn`, the compiled plan on an engine (block normals), and `sk.sample` from argument checks to result.
The three are interleaved on one thread; the median processor time over repeats is printed. Normals come in
slabs of 32, so 100 stochastic steps draw 128; `sk.sample` writes its plan anew in each call.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from sdekit.sampling.engine import CompiledPlan, Engine
from sdekit.sampling.noise import BlockNormals

STEPS, BATCHES, SECONDS = 100, (1, 64, 4096), 3.0
SAMPLERS = (sk.samplers.DDIM(), sk.samplers.EulerMaruyama())
CPU = torch.device("cpu")


class OneOperation(sk.Denoiser):
    """A model as cheap as a model can be."""

    process = sk.VP()

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        """0.3 x."""
        return x * 0.3


def by_hand(plan: sk.samplers.Plan, n: int) -> Callable[[], Tensor]:
    """x = a x + b model(x) + c z, in place."""
    weights = [(row.x[k], row.p[k], row.z.get(k, 0.0)) for k, row in enumerate(plan.rows[1:])]
    generator = torch.Generator()

    def run() -> Tensor:
        generator.manual_seed(0)
        x = torch.randn(n, 2, generator=generator)
        for a, b, c in weights:
            data = x * 0.3
            x.mul_(a).add_(data, alpha=b)
            if c:
                x.add_(torch.randn(n, 2, generator=generator), alpha=c)
        return x

    return run


def compiled(plan: sk.samplers.Plan, model: sk.Denoiser, n: int) -> Callable[[], Tensor]:
    """The rows on an engine, compiled beforehand."""
    program = CompiledPlan(plan, model.prediction)

    def run() -> Tensor:
        normals = BlockNormals(0, 0, n, (2,), torch.float32, CPU, len(plan.normals))
        return program(Engine(model, normals), normals.start())

    return run


def front_door(sampler: sk.samplers.Sampler, model: sk.Denoiser, n: int) -> Callable[[], Tensor]:
    """One call of `sk.sample`."""
    return lambda: sk.sample(model, (n, 2), sampler=sampler, steps=STEPS, seed=0).x


def medians(runs: list[Callable[[], Tensor]]) -> list[float]:
    """Microseconds a step of each, interleaved."""
    seconds: list[list[float]] = [[] for _ in runs]
    gc.disable()  # as timeit does: a collection would fall on whichever run comes next
    stop = time.perf_counter() + SECONDS
    while time.perf_counter() < stop or len(seconds[0]) < 5:
        for run, kept in zip(runs, seconds, strict=True):
            start = time.thread_time()
            run()
            kept.append(time.thread_time() - start)
    gc.enable()
    return [statistics.median(kept) / STEPS * 1e6 for kept in seconds]


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    model = OneOperation()
    print(f"{'sampler':16} {'n':>5} {'hand':>8} {'compiled':>9} {'sample':>8}   us a step; ratios")
    for sampler in SAMPLERS:
        plan = sampler.plan(model.process, sampler.grid.times(model.process, STEPS, 1.0, 1e-3))
        native = plan.native(model.prediction)
        for n in BATCHES:
            runs = [by_hand(native, n), compiled(plan, model, n), front_door(sampler, model, n)]
            hand, rows, front = medians(runs)
            print(
                f"{sampler!r:16} {n:5} {hand:8.2f} {rows:9.2f} {front:8.2f}   "
                f"{rows / hand:.2f} {front / hand:.2f}"
            )


if __name__ == "__main__":
    main()
