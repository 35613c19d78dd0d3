"""The front door: seeds, chunks, shapes, costs, errors, and everything a run leaves alone."""

import math
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.noise import BlockNormals

F64 = torch.float64
VP = sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
PLANS = [s for s in ss.ALL if isinstance(s, ss.PlanSampler)]
NORMS = [ss.NormCorrector(norm=norm) for norm in ("sample", "batch")]
EVENTS = [(), (1,), (3,), (2, 3), (1, 4, 4)]


def target(event: tuple[int, ...]) -> sk.GaussianMixture:
    d = math.prod(event)
    means = torch.stack([torch.linspace(-1, 1, d, dtype=F64), torch.full((d,), 0.5, dtype=F64)])
    return sk.GaussianMixture([0.4, 0.6], means, 0.5)


class Counted(sk.Denoiser):
    """Counts the calls of a model, and keeps what it was called with."""

    def __init__(self, inner: sk.Denoiser) -> None:
        self.inner, self.process, self.prediction = inner, inner.process, inner.prediction
        self.times: list[float] = []
        self.conditions: list[dict[str, Any]] = []

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        self.times.append(float(torch.as_tensor(t).max()))  # each sample may have its own
        self.conditions.append(conditions)
        return self.inner.predict(x, t)


class Untouchable(sk.Denoiser):
    """Fails if it is called."""

    def __init__(self, process: sk.Process = VP, prediction: str = "data") -> None:
        self.process, self.prediction = process, prediction

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        raise AssertionError("the model was called")


class Made(sk.Denoiser):
    """A model from a function of (x, t)."""

    def __init__(self, function: Callable[[Tensor, float], Any], prediction: str = "data") -> None:
        self.process, self.prediction, self.function = VP, prediction, function

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return self.function(x, t)


# ------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_the_seed_decides(sampler: ss.Sampler) -> None:
    model = TOY.denoiser(VP)
    runs = [sk.sample(model, (20, 1), sampler=sampler, steps=4, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(runs[0].x, runs[1].x)
    assert not torch.equal(runs[0].x, runs[2].x)
    assert [run.seed for run in runs] == [5, 5, 6]


def test_a_run_without_a_seed_can_be_repeated() -> None:
    model, sampler = TOY.denoiser(VP), ss.Ancestral()
    first, second = (sk.sample(model, (4, 1), sampler=sampler, steps=3) for _ in range(2))
    assert first.seed != second.seed
    again = sk.sample(model, (4, 1), sampler=sampler, steps=3, seed=first.seed)
    assert torch.equal(first.x, again.x)


def test_a_generator_gives_the_seed_and_moves_on() -> None:
    model, generator = TOY.denoiser(VP), torch.Generator().manual_seed(3)
    first, second = (sk.sample(model, (4, 1), steps=3, generator=generator) for _ in range(2))
    assert first.seed != second.seed
    fresh = torch.Generator().manual_seed(3)
    assert torch.equal(sk.sample(model, (4, 1), steps=3, generator=fresh).x, first.x)
    assert torch.equal(sk.sample(model, (4, 1), steps=3, seed=first.seed).x, first.x)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, np.int64(7), torch.tensor(7)], ids=repr)
def test_integers_of_all_kinds_are_seeds(seed: Any) -> None:
    out = sk.sample(TOY.denoiser(VP), (2, 1), steps=2, seed=seed)
    assert out.seed == int(seed)
    assert type(out.seed) is int


# -------------------------------------------------------------------------------- chunks and batches


@pytest.mark.parametrize(
    "sampler", [*PLANS, NORMS[0], ss.TorchSDE(), ss.TorchSDE("srk"), ss.FlowODE("heun2")], ids=repr
)
@pytest.mark.filterwarnings("ignore:norm=.sample. has a step")
def test_a_sample_does_not_depend_on_its_chunk(sampler: ss.Sampler) -> None:
    model, n = TOY.denoiser(VP), 600
    whole = sk.sample(model, (n, 1), sampler=sampler, steps=34, seed=1, dtype=F64)
    for chunk in (1, 100, 256, 599, 5000):
        count = 3 if chunk == 1 else n
        part = sk.sample(
            model, (count, 1), sampler=sampler, steps=34, seed=1, dtype=F64, chunk=chunk
        )
        assert (part.x - whole.x[:count]).abs().max() < 1e-12
        assert part.nfe == whole.nfe


def test_the_first_samples_of_a_larger_run() -> None:
    model, sampler = TOY.denoiser(VP), ss.EulerMaruyama()
    large = sk.sample(model, (1000, 1), sampler=sampler, steps=40, seed=1, dtype=F64)
    for n in (1, 2, 255, 256, 257):
        small = sk.sample(model, (n, 1), sampler=sampler, steps=40, seed=1, dtype=F64)
        assert (small.x - large.x[:n]).abs().max() < 1e-12


@pytest.mark.parametrize("sampler", [ss.Ancestral(), ss.EulerMaruyama()], ids=repr)
def test_single_and_double_precision_walk_the_same_path(sampler: ss.Sampler) -> None:
    """With the same noise to rounding; the worst seen is 1e-5."""
    event, model = (2,), target((2,)).denoiser(VP)
    start = BlockNormals(0, 0, 50, event, torch.float32, torch.device("cpu"))
    runs = [
        _with_noise(model, sampler, start.start().to(dtype), start)
        for dtype in (torch.float32, F64)
    ]
    assert runs[0].dtype == torch.float32
    assert (runs[0] - runs[1]).abs().max() < 5e-5


def _with_noise(model: sk.Denoiser, sampler: Any, x: Tensor, normals: BlockNormals) -> Tensor:
    """The program on given normals in the dtype of x."""
    from sdekit.sampling.engine import Engine

    times = sampler.grid.times(VP, 200, 1.0, 1e-3)
    engine = Engine(model, lambda m: normals(m).to(x.dtype))  # type: ignore[arg-type]
    with torch.no_grad():
        return sampler.program(model, times, "none")(engine, x.clone())


def test_large_events_run_in_smaller_chunks() -> None:
    """Thirty-two normals a sample are drawn at once: kept near a hundred megabytes."""
    from sdekit.sampling.front_door import CHUNK, fitting

    assert fitting(()) == fitting((2,)) == fitting((8, 8)) == CHUNK == 16_384
    assert fitting((3, 32, 32)) == 256
    for event in ((28, 28), (3, 64, 64), (20_000,)):
        assert fitting(event) % 256 == 0
    sizes = []
    model = Made(lambda x, t: sizes.append(len(x)) or 0 * x)
    sk.sample(model, (300, 3, 32, 32), steps=1, seed=0)
    assert sizes == [256, 44]


# --------------------------------------------------------------------------------- shapes and dtypes


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_event_shapes(sampler: ss.Sampler, event: tuple[int, ...]) -> None:
    model = target(event).denoiser(VP)
    out = sk.sample(model, (3, *event), sampler=sampler, steps=3, seed=0, dtype=F64)
    assert out.x.shape == (3, *event)
    flat = sk.sample(
        model, (3, math.prod(event)), sampler=sampler, steps=3, seed=0, dtype=F64, final="none"
    )
    assert (out.x.reshape(3, -1) - flat.x).abs().max() < 1e-13


@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_no_samples_cost_nothing(sampler: ss.Sampler) -> None:
    for event in EVENTS:
        out = sk.sample(Untouchable(), (0, *event), sampler=sampler, steps=4, seed=0)
        assert out.x.shape == (0, *event)
        assert out.nfe == 0
        kept = sk.sample(Untouchable(), (0, *event), sampler=sampler, steps=4, trajectory=True)
        assert kept.trajectory is not None
        assert kept.trajectory.shape == (5, 0, *event)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_the_dtype_stays(sampler: ss.Sampler, dtype: torch.dtype) -> None:
    seen = []
    exact = TOY.denoiser(VP)
    model = Made(lambda x, t: seen.append(x.dtype) or exact.predict(x, t))
    assert sk.sample(model, (3, 1), sampler=sampler, steps=2, dtype=dtype).x.dtype == dtype
    start = torch.zeros(3, 1, dtype=dtype)
    out = sk.sample(model, (3, 1), sampler=sampler, steps=2, x_init=start, trajectory=True)
    assert out.x.dtype == dtype
    assert out.trajectory is not None
    assert out.trajectory.dtype == dtype
    assert set(seen) == {dtype}


def test_the_default_dtype_is_torchs() -> None:
    assert sk.sample(TOY.denoiser(VP), (2, 1), steps=2).x.dtype == torch.float32


def test_a_network_in_single_precision_leaves_double_states() -> None:
    class Linear(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.dtype == t.dtype == torch.float32
            return super().forward(x)

    model = sk.NetworkDenoiser(Linear(2, 2), VP)
    out = sk.sample(model, (3, 2), steps=3, x_init=torch.zeros(3, 2, dtype=F64))
    assert out.x.dtype == F64


# -------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("final", ["none", "data"])
@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_every_call_is_counted(sampler: ss.Sampler, final: str) -> None:
    model = Counted(TOY.denoiser(VP))
    out = sk.sample(model, (4, 1), sampler=sampler, steps=5, seed=0, final=final)
    # In parallel in time, one call of the model is one of every step.
    at_once = 1
    if isinstance(sampler, ss.ParallelInTime):
        assert out.plan is not None
        at_once = out.plan.nfe
    assert out.nfe == len(model.times) * at_once
    if sampler.nfe_per_step is not None:
        extra = (final == "data") + isinstance(sampler, ss.TorchSDE)
        assert out.nfe == 5 * sampler.nfe_per_step + extra
    assert all(VP.t_min <= t <= VP.t_max for t in model.times)


def test_the_cost_is_per_sample() -> None:
    model = Counted(TOY.denoiser(VP))
    out = sk.sample(model, (10, 1), steps=5, seed=0, chunk=3)
    assert out.nfe == 5
    assert len(model.times) == 20


def test_the_plan_and_the_times_come_along() -> None:
    out = sk.sample(TOY.denoiser(VP), (2, 1), sampler=ss.Ancestral(), steps=4, final="data")
    assert out.plan == ss.Ancestral().plan(VP, out.times, final="data")
    assert len(out.times) == 5
    assert sk.sample(TOY.denoiser(VP), (2, 1), sampler=ss.FlowODE(), steps=4).plan is None


def test_the_defaults() -> None:
    out = sk.sample(TOY.denoiser(VP), (2, 1), seed=0)
    assert out.nfe == 50
    assert out.times[0] == 1
    assert out.times[-1] == 1e-3
    assert out.plan is not None
    assert out.plan.name == repr(ss.DDIM())
    assert out.trajectory is None
    same = sk.sample(TOY.denoiser(VP), (2, 1), seed=0, grid="angle", sampler=ss.DDIM(), steps=50)
    assert torch.equal(out.x, same.x)
    for process in (sk.EDM(), sk.OrnsteinUhlenbeck(), sk.Interpolant()):
        times = sk.sample(TOY.denoiser(process), (2, 1), steps=2).times
        assert times[0] == process.t_max
        assert times[-1] == 1e-3 * process.horizon


def test_the_prior_is_the_processes() -> None:
    for process in (sk.EDM(), VP, sk.Heat()):
        seen = []
        normals = BlockNormals(3, 0, 4, (1,), F64, torch.device("cpu"))
        sk.sample(
            TOY.denoiser(process),
            (4, 1),
            steps=1,
            seed=3,
            dtype=F64,
            callback=lambda i, t, x, seen=seen: seen.append(x),
        )
        assert torch.equal(seen[0], process.prior.std * normals.start())


def test_grids_of_every_kind() -> None:
    model, times = TOY.denoiser(VP), [1.0, 0.5, 0.1]
    given = [times, tuple(times), torch.tensor(times, dtype=F64), np.array(times)]
    for grid in given:
        assert sk.sample(model, (2, 1), grid=grid).times == (1.0, 0.5, 0.1)
    assert sk.sample(model, (2, 1), grid=times, steps=2).times == (1.0, 0.5, 0.1)
    assert sk.sample(model, (2, 1), grid=ss.Power(2.0), steps=2).times == pytest.approx(
        sk.sample(model, (2, 1), grid="quadratic", steps=2).times
    )
    table = ss.Tabulated((1.0, 0.5, 0.1, 1e-3))
    assert sk.sample(model, (2, 1), grid=table).times == table.nodes
    assert sk.sample(model, (2, 1), grid=table, steps=6).times[::2] == table.nodes
    own = ss.ComputedPlan(VP, table.nodes, (0, 1, 2, 3), ((), (0.1,), (0.2, 0.3)))
    assert sk.sample(model, (2, 1), sampler=own).times == table.nodes
    start = torch.zeros(2, 1)
    out = sk.sample(model, (2, 1), x_init=start, t_start=0.5, t_end=0.2, steps=3, grid="uniform")
    assert out.times == pytest.approx((0.5, 0.4, 0.3, 0.2))


# ------------------------------------------------------------------------- trajectories and callbacks


@pytest.mark.parametrize(
    ("sampler", "final"),
    [
        (sampler, final)
        for sampler in ss.ALL
        for final in ("none", "mean", "data")
        if not (isinstance(sampler, ss.TorchSDE) and final == "mean")
    ],
    ids=str,
)
def test_watching_changes_nothing(sampler: ss.Sampler, final: str) -> None:
    start = torch.linspace(-2, 2, 7, dtype=F64)[:, None]
    settings: dict[str, Any] = {
        "sampler": sampler,
        "steps": 6,
        "x_init": start,
        "seed": 0,
        "final": final,
        "chunk": 4,
    }
    model = TOY.denoiser(VP)
    plain = sk.sample(model, (7, 1), **settings)
    seen: list[tuple[int, float]] = []
    kept = sk.sample(
        model, (7, 1), trajectory=True, callback=lambda i, t, x: seen.append((i, t)), **settings
    )
    assert torch.equal(plain.x, kept.x)
    assert plain.nfe == kept.nfe
    assert kept.trajectory is not None
    assert kept.trajectory.shape == (7, 7, 1)
    assert torch.equal(kept.trajectory[0], start)
    assert torch.equal(kept.trajectory[-1], kept.x)
    assert seen == 2 * list(enumerate(kept.times))


def test_the_trajectory_ends_anywhere_as_a_shorter_run() -> None:
    """But for UniPC and SA-Solver, whose last state is predicted only, and restarts, cut at the end.

    Langevin draws more normals than a slab has, and slabs are laid out for the total.

    To rounding: where a reading is kept for later steps, its part in x is added to it and not to the rows.
    """
    model, times = TOY.denoiser(VP), [1.0, 0.7, 0.4, 0.2, 0.05]
    settings: dict[str, Any] = {"seed": 1, "dtype": F64}
    others = (ss.UniPC, ss.SASolver, ss.Restart, ss.AnnealedLangevin)
    for sampler in [s for s in PLANS if not isinstance(s, others)]:
        full = sk.sample(model, (5, 1), sampler=sampler, grid=times, trajectory=True, **settings)
        for k in range(2, 5):
            short = sk.sample(model, (5, 1), sampler=sampler, grid=times[:k], **settings)
            assert full.trajectory is not None
            assert (short.x - full.trajectory[k - 1]).abs().max() < 1e-13


@pytest.mark.parametrize(
    "sampler", [*(s for s in PLANS if s.nfe_per_step is not None), NORMS[1]], ids=repr
)
def test_a_callback_stops_the_run(sampler: ss.Sampler) -> None:
    model = Counted(TOY.denoiser(VP))
    full = sk.sample(model, (5, 1), sampler=sampler, steps=6, seed=0, trajectory=True)
    model.times.clear()
    out = sk.sample(
        model,
        (5, 1),
        sampler=sampler,
        steps=6,
        seed=0,
        trajectory=True,
        callback=lambda i, t, x: i == 2,
    )
    assert full.trajectory is not None
    assert out.trajectory is not None
    assert torch.equal(out.trajectory, full.trajectory[:3])
    assert torch.equal(out.x, full.trajectory[2])
    assert sampler.nfe_per_step is not None
    # These correct a node by the call that the next step would start with.
    ahead = isinstance(sampler, (ss.UniPC, ss.SASolver))
    assert out.nfe == len(model.times) == 2 * sampler.nfe_per_step + ahead


def test_chunks_may_stop_at_different_nodes() -> None:
    model, stops = TOY.denoiser(VP), iter([2, 4, 99])
    stop_at = [0]

    def callback(index: int, t: float, x: Tensor) -> bool:
        if index == 0:
            stop_at[0] = next(stops)
        return index == stop_at[0]

    settings: dict[str, Any] = {"steps": 6, "seed": 0, "trajectory": True}
    full = sk.sample(model, (5, 1), **settings).trajectory
    out = sk.sample(model, (5, 1), chunk=2, callback=callback, **settings)
    assert full is not None
    assert out.trajectory is not None
    assert out.trajectory.shape == (7, 5, 1)
    for k in range(7):
        expected = torch.cat([full[min(k, 2), :2], full[min(k, 4), 2:4], full[k, 4:]])
        assert torch.allclose(out.trajectory[k], expected, rtol=0, atol=1e-6)
    assert torch.equal(out.trajectory[-1], out.x)
    assert out.nfe == 6


def test_a_callbacks_state_is_its_own() -> None:
    model = TOY.denoiser(VP)
    plain = sk.sample(model, (3, 1), steps=4, seed=0)
    spoiled = sk.sample(model, (3, 1), steps=4, seed=0, callback=lambda i, t, x: x.zero_().any())
    assert torch.equal(plain.x, spoiled.x)


def test_a_bar_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    plain = sk.sample(TOY.denoiser(VP), (6, 1), steps=5, seed=0)
    out = sk.sample(TOY.denoiser(VP), (6, 1), steps=5, seed=0, chunk=3, progress=True)
    printed = capsys.readouterr()
    assert "10/10" in printed.err
    assert printed.out == ""
    assert (out.x - plain.x).abs().max() < 1e-6


# ------------------------------------------------------------------------------ start and conditions


@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_the_starting_states_are_not_written_to(sampler: ss.Sampler) -> None:
    start = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    before = start.clone()
    for final in ("none", "data"):
        out = sk.sample(
            TOY.denoiser(VP), (5, 1), sampler=sampler, steps=3, x_init=start, final=final
        )
        assert torch.equal(start, before)
        assert out.x.data_ptr() != start.data_ptr()


def test_a_start_below_the_top() -> None:
    target_at, n = TOY.at(VP, 0.4), 20_000
    start = target_at.sample(n, seed=0)
    out = sk.sample(
        TOY.denoiser(VP),
        (n, 1),
        sampler=ss.EulerMaruyama(),
        steps=300,
        t_start=0.4,
        x_init=start,
        seed=0,
    )
    law = TOY.at(VP, 1e-3)
    variance = law.covariance.item()
    # mean and variance within 4 standard errors; Euler's own variance error at 300 steps is 0.1 %
    fourth = (out.x - out.x.mean()).pow(4).mean().item()
    assert abs(out.x.mean().item() - law.mean.item()) < 4 * math.sqrt(variance / n)
    assert abs(out.x.var().item() - variance) < 4 * math.sqrt((fourth - variance**2) / n)


def test_conditions_are_split_with_the_chunks() -> None:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            self.seen.append(cond)
            return x - cond[:, None]

    network = Conditional()
    model = sk.NetworkDenoiser(network, VP, prediction="data")
    cond = torch.arange(7.0)
    out = sk.sample(model, (7, 1), steps=2, cond=cond, seed=0, chunk=3)
    assert [c.tolist() for c in network.seen] == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2 + [[6]] * 2
    for i in (0, 3, 6):
        start = BlockNormals(0, i, i + 1, (1,), torch.float32, torch.device("cpu")).start()
        alone = sk.sample(model, (1, 1), steps=2, cond=cond[i : i + 1], x_init=start)
        assert (alone.x - out.x[i]).abs().max() < 1e-6
    for sampler in (ss.FlowODE("heun2"), ss.TorchSDE(), NORMS[1]):
        network.seen.clear()
        sk.sample(model, (7, 1), steps=2, cond=cond, seed=0, chunk=4, sampler=sampler)
        assert {len(c) for c in network.seen} == {3, 4}


def test_without_conditions_no_keyword_is_passed() -> None:
    model = Counted(TOY.denoiser(VP))
    sk.sample(model, (2, 1), steps=2)
    assert model.conditions == [{}, {}]


# ------------------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_global_generators_do_not_move(sampler: ss.Sampler) -> None:
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    runs = []
    for _ in range(2):
        runs.append(sk.sample(TOY.denoiser(VP), (3, 1), sampler=sampler, steps=3, seed=0).x)
        sk.sample(TOY.denoiser(VP), (3, 1), sampler=sampler, steps=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    again = sk.sample(TOY.denoiser(VP), (3, 1), sampler=sampler, steps=3, seed=0).x
    assert torch.equal(again, runs[0])


class Droppy(nn.Module):
    """A network whose training mode shows; it fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.frozen = nn.BatchNorm1d(1).eval()
        self.fails = False

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert not any(m.training for m in self.modules())
        if self.fails:
            raise KeyError("no")
        return self.body(x)


def test_modes_are_as_they_were() -> None:
    network = Droppy()
    model = sk.NetworkDenoiser(network, VP)
    modes = [m.training for m in model.modules()]
    assert True in modes
    assert False in modes
    with pytest.warns(UserWarning, match="training mode") as caught:
        first = sk.sample(model, (4, 1), steps=3, seed=0)
    assert caught[0].filename == __file__
    assert [m.training for m in model.modules()] == modes
    network.fails = True
    with pytest.warns(UserWarning, match="training mode"), pytest.raises(KeyError):
        sk.sample(model, (4, 1), steps=3, seed=0)
    assert [m.training for m in model.modules()] == modes
    network.fails = False
    model.eval()
    assert torch.equal(sk.sample(model, (4, 1), steps=3, seed=0).x, first.x)  # and no warning


def test_a_network_without_dropout_is_not_warned_of() -> None:
    class Plain(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x)

    model = sk.NetworkDenoiser(Plain(1, 1), VP)
    assert model.training
    sk.sample(model, (2, 1), steps=2)
    assert model.training


@pytest.mark.parametrize("gradients", [True, False])
def test_grad_mode_is_as_it_was(gradients: bool) -> None:
    class Plain(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return super().forward(x)

    model = sk.NetworkDenoiser(Plain(1, 1), VP)
    start = torch.zeros(3, 1, requires_grad=True)
    with torch.set_grad_enabled(gradients):
        for sampler in ss.ALL:
            out = sk.sample(model, (3, 1), sampler=sampler, steps=2, x_init=start)
            assert torch.is_grad_enabled() == gradients
            assert not out.x.requires_grad


# -------------------------------------------------------------------------------- awkward models


@pytest.mark.parametrize("kind", ["data", "noise", "v"])
@pytest.mark.parametrize("sampler", [*PLANS, ss.FlowODE("heun2"), ss.TorchSDE()], ids=repr)
def test_a_model_may_return_its_own_input(sampler: ss.Sampler, kind: str) -> None:
    start = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    runs = [
        sk.sample(model, (5, 1), sampler=sampler, steps=6, x_init=start, seed=0, final="data").x
        for model in (Made(lambda x, t: x, kind), Made(lambda x, t: x.clone(), kind))
    ]
    assert torch.equal(*runs)
    views = [Made(lambda x, t: x.view(-1, 1), kind), Made(lambda x, t: x[:], kind)]
    for model in views:
        out = sk.sample(model, (5, 1), sampler=sampler, steps=6, x_init=start, seed=0, final="data")
        assert torch.equal(out.x, runs[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("sampler", [*PLANS, NORMS[1], ss.TorchSDE()], ids=repr)
def test_the_place_of_a_bad_model_output_is_named(sampler: ss.Sampler, value: float) -> None:
    def function(x: Tensor, t: float) -> Tensor:
        out = 0.5 * x
        if t < 0.5:
            out[:2] = value
        return out

    with pytest.raises(sk.NumericsError) as caught:
        sk.sample(Made(function), (8, 1), sampler=sampler, grid="uniform", steps=10, seed=0)
    message = str(caught.value)
    found = re.search(r"at call \d+, t = (0\.\d+), log_snr = .*, for 2 of 8 samples", message)
    assert found
    # uniform times 1, 0.9001, ...: the first below 0.5 is the sixth, 0.4006 after 0.5005
    stages = (ss.DPMSolver, ss.ExponentialRK, ss.SigmaRungeKutta, ss.LogSNRRungeKutta)
    if isinstance(sampler, stages):  # or a stage between the two
        assert 0.4006 <= float(found[1]) < 0.5
    else:
        assert found[1] == "0.4006"


def test_the_step_is_the_call_of_a_one_call_sampler() -> None:
    model = Made(lambda x, t: x * (math.nan if t < 0.5 else 0.5))
    with pytest.raises(sk.NumericsError, match=r"at call 7, .* for 5 of 5 samples"):
        sk.sample(model, (5, 1), grid="uniform", steps=10)


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_a_bad_output_is_named_for_events_of_any_shape(event: tuple[int, ...]) -> None:
    for value, message in (
        (math.nan, "for 3 of 3 samples"),
        (3e38, "3 of 3 samples .* overflowed"),
    ):
        model = Made(lambda x, t, value=value: torch.full_like(x, value), "noise")
        with pytest.raises(sk.NumericsError, match=message):
            sk.sample(model, (3, *event), steps=5)


def test_an_overflow_of_the_states_is_named() -> None:
    model = Made(lambda x, t: torch.full_like(x, -3e38), "noise")
    with pytest.raises(sk.NumericsError, match=r"4 of 4 samples .* the states overflowed"):
        sk.sample(model, (4, 1), steps=5)


def test_a_bad_chunk_is_found_with_its_own_noise() -> None:
    """The replay draws the numbers of the chunk that failed."""
    normals = BlockNormals(0, 0, 600, (1,), torch.float32, torch.device("cpu")).start()
    worst = normals[400:].max().item()
    model = Made(lambda x, t: torch.where(x == worst, math.nan, 0.5 * x))
    with pytest.raises(sk.NumericsError, match=r"call 1, t = 1, .* for 1 of 200"):
        sk.sample(model, (600, 1), sampler=ss.Ancestral(), steps=4, seed=0, chunk=400)


# ------------------------------------------------------------------------------------- bad arguments

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"shape": 5}, ValueError, r"shape must be \(n, \*event\), got 5"),
    ({"shape": ()}, ValueError, "shape"),
    ({"shape": np.int64(5)}, ValueError, "shape"),
    ({"shape": (-1, 1)}, ValueError, r"shape\[0\] must be >= 0, got -1"),
    ({"shape": (3, 0)}, ValueError, r"shape\[1\] must be >= 1, got 0"),
    ({"shape": (3.0, 1)}, TypeError, r"shape\[0\] must be an integer"),
    ({"shape": (True, 1)}, TypeError, r"shape\[0\] must be an integer"),
    ({"sampler": "ddim"}, TypeError, "sampler must be a Sampler .* got 'ddim'"),
    ({"sampler": ss.DDIM}, TypeError, "sampler must be a Sampler"),
    ({"steps": 0}, ValueError, "steps must be >= 1, got 0"),
    ({"steps": -2}, ValueError, "steps must be >= 1, got -2"),
    ({"steps": 10.0}, TypeError, "steps must be an integer"),
    ({"steps": np.float64(10)}, TypeError, "steps must be an integer"),
    ({"steps": True}, TypeError, "steps must be an integer"),
    ({"steps": "10"}, TypeError, "steps must be an integer"),
    ({"grid": "logsnr"}, ValueError, "grid must be one of .* did you mean 'log-snr'"),
    ({"grid": [0.1, 0.5, 1.0]}, ValueError, "grid must decrease strictly"),
    ({"grid": [1.0, 0.5, 0.5]}, ValueError, r"grid must decrease strictly.*grid\[2\] = 0.5"),
    ({"grid": [1.0, math.nan, 0.1]}, ValueError, r"grid must lie in .*grid\[1\] = nan"),
    ({"grid": [2.0, 0.5]}, ValueError, r"grid must lie in \[0, 1\]"),
    ({"grid": [1.0, -0.5]}, ValueError, "grid must lie in"),
    ({"grid": [1.0]}, ValueError, "grid must be a 1-D sequence of at least two times"),
    ({"grid": torch.ones(2, 2)}, ValueError, "grid must be a 1-D sequence"),
    ({"grid": 7}, ValueError, "grid must be a 1-D sequence"),
    ({"grid": [1.0, 1e-9]}, ValueError, "grid has a time at which no model is read: t must lie"),
    ({"grid": [1.0, 0.5, 0.1], "steps": 3}, ValueError, "steps = 3 does not fit a grid of 3 times"),
    ({"grid": [1.0, 0.1], "t_end": 0.1}, ValueError, "leave out t_start and t_end"),
    ({"grid": [1.0, 0.1], "t_start": 1.0}, ValueError, "leave out t_start and t_end"),
    ({"grid": [0.5, 0.1]}, ValueError, "t = 0.5, below t_max = 1, needs x_init"),
    ({"t_start": 0.5}, ValueError, "t = 0.5, below t_max = 1, needs x_init"),
    ({"t_start": 1.5}, ValueError, r"t_start must be a finite number in \(0, 1\]"),
    ({"t_start": math.nan}, ValueError, "t_start"),
    ({"t_start": True}, TypeError, "t_start must be a number, got True"),
    ({"t_end": 1.0}, ValueError, r"t_end must be a finite number in \[0, 1\)"),
    ({"t_start": 0.1, "t_end": 0.2, "x_init": torch.zeros(4, 1)}, ValueError, "t_end"),
    ({"t_end": -0.1}, ValueError, "t_end"),
    ({"t_end": 1e-9}, ValueError, r"no model is read: t must lie in \[1e-05, 1\]"),
    ({"t_end": "0"}, TypeError, "t_end must be a number"),
    ({"t_end": 0.0, "sampler": ss.FlowODE()}, ValueError, "t must lie in"),
    ({"t_end": 0.0, "sampler": ss.TorchSDE()}, ValueError, "t must lie in"),
    ({"final": "denoise"}, ValueError, "final must be one of 'none', 'mean', 'data'"),
    ({"final": None}, ValueError, "final must be one of"),
    ({"final": "denoise", "sampler": ss.FlowODE()}, ValueError, "final must be one of"),
    ({"final": "mean", "sampler": ss.TorchSDE()}, ValueError, "no noise-free last step"),
    ({"sampler": ss.TorchSDE(), "grid": "angle"}, ValueError, "TorchSDE takes equal steps"),
    ({"x_init": torch.zeros(3, 1)}, ValueError, r"x_init must have shape \(4, 1\), got \(3, 1\)"),
    ({"x_init": torch.zeros(4)}, ValueError, "x_init must have shape"),
    ({"x_init": [[0.0]] * 4}, TypeError, "x_init must be a torch.Tensor, got list"),
    ({"x_init": torch.zeros(4, 1, dtype=torch.uint8)}, TypeError, "x_init.*scale it to float"),
    ({"x_init": torch.full((4, 1), math.nan)}, ValueError, r"x_init has 4 NaN .* at \(0, 0\)"),
    ({"x_init": torch.tensor([[0], [1], [math.inf], [0]])}, ValueError, r"1 NaN .* at \(2, 0\)"),
    (
        {"x_init": torch.zeros(4, 1, dtype=torch.float16)},
        ValueError,
        "float32 or float64, got .*16",
    ),
    (
        {"cond": torch.zeros(3)},
        ValueError,
        r"cond must be a tensor of n = 4 rows, got shape \(3,\)",
    ),
    ({"cond": torch.tensor(1.0)}, ValueError, r"cond must .* got shape \(\)"),
    ({"cond": [1, 2, 3, 4]}, ValueError, "cond must be a tensor of n = 4 rows, got list"),
    ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
    ({"seed": 2**63}, ValueError, r"seed must be below 2\*\*63"),
    ({"seed": 1.0}, TypeError, "seed must be an integer"),
    ({"seed": True}, TypeError, "seed must be an integer"),
    ({"seed": 1, "generator": torch.Generator()}, ValueError, "seed or generator, not both"),
    ({"generator": 5}, TypeError, "generator must be a torch.Generator, got int"),
    ({"generator": torch}, TypeError, "generator must be a torch.Generator"),
    ({"chunk": 0}, ValueError, "chunk must be >= 1, got 0"),
    ({"chunk": 2.5}, TypeError, "chunk must be an integer"),
    ({"chunk": True}, TypeError, "chunk must be an integer"),
    ({"callback": 3}, TypeError, "callback must be callable"),
    ({"dtype": torch.float16}, ValueError, "float32 or float64, got torch.float16"),
    ({"dtype": torch.bfloat16}, ValueError, "float32 or float64"),
    ({"dtype": torch.int64}, ValueError, "float32 or float64"),
]


@pytest.mark.parametrize(
    ("bad", "error", "message"), BAD, ids=[f"{i} {m}" for i, (*_, m) in enumerate(BAD)]
)
def test_bad_arguments(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each is refused by name before the model is called."""
    arguments: dict[str, Any] = {"shape": (4, 1), **bad}
    with pytest.raises(error, match=message):
        sk.sample(Untouchable(), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_device_is_named() -> None:
    with pytest.raises(ValueError, match="device 'cuda': CUDA is not available"):
        sk.sample(Untouchable(), (4, 1), device="cuda")


@pytest.mark.parametrize("model", [nn.Linear(1, 1), TOY, None, nn.Linear.forward], ids=type)
def test_a_model_must_be_a_denoiser(model: Any) -> None:
    with pytest.raises(TypeError, match="denoiser must be a Denoiser such as"):
        sk.sample(model, (4, 1))


@pytest.mark.parametrize("kind", ["noise", "score"])
@pytest.mark.parametrize("sampler", [*PLANS, ss.FlowODE(), NORMS[1]], ids=repr)
def test_a_model_without_a_data_estimate_cannot_start_from_pure_noise(
    sampler: ss.Sampler, kind: str
) -> None:
    model = Untouchable(sk.Interpolant(), kind)
    with pytest.raises(ValueError, match="use a data or v prediction"):
        sk.sample(model, (4, 1), sampler=sampler, grid=[1.0, 0.5, 0.1])


@pytest.mark.parametrize("process", [sk.Interpolant(), sk.VP(schedule=sk.schedules.Cosine())])
def test_the_sde_solvers_do_not_start_where_it_is_singular(process: sk.Process) -> None:
    with pytest.raises(ValueError, match="singular at t = 1, where alpha = 0"):
        sk.sample(Untouchable(process), (4, 1), sampler=ss.TorchSDE(), t_start=1.0)


RETURNS: list[tuple[Callable[[Tensor, float], Any], type[Exception], str]] = [
    (lambda x, t: x.repeat(1, 2), ValueError, r"shape of x, \((4|12), 1\), got \((4|12), 2\)"),
    (lambda x, t: x[:, 0], ValueError, r"shape of x, \((4|12), 1\), got \((4|12),\)"),
    (lambda x, t: x[:1], ValueError, r"got \(1, 1\)"),
    (lambda x, t: (x, t), TypeError, "must return a tensor, got tuple"),
    (lambda x, t: {"sample": x}, TypeError, "must return a tensor, got dict"),
    (lambda x, t: None, TypeError, "must return a tensor, got NoneType"),
]


@pytest.mark.parametrize(("function", "error", "message"), RETURNS, ids=[m for *_, m in RETURNS])
@pytest.mark.parametrize("sampler", ss.ALL, ids=repr)
def test_what_a_model_must_return(
    sampler: ss.Sampler, function: Any, error: type[Exception], message: str
) -> None:
    calls = []
    model = Made(lambda x, t: calls.append(t) or function(x, t))
    with pytest.raises(error, match=message):
        sk.sample(model, (4, 1), sampler=sampler, steps=3)
    assert len(calls) == 1
