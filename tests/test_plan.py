"""The table and what follows from it, against a dictionary that reads the rows one by one."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdekit as sk
from sdekit.processes import ALL as PROCESSES
from sdekit.sampling.engine import CompiledPlan, Engine
from sdekit.sampling.plan import Plan, Row
from sdekit.sampling.tape import Form, Tape

VP = sk.VP()
GAUSS1 = sk.GaussianMixture(None, [0.7], stds=[0.5])
KINDS = ("data", "noise", "v", "score", "velocity")


class Bent(sk.Denoiser):
    """A nonlinear model of any kind of prediction; counts its calls."""

    def __init__(self, process: sk.Process, prediction: str) -> None:
        self.process, self.prediction = process, prediction
        self.calls = 0

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        self.calls += 1
        return torch.sin(2 * x) + 0.3 * x + t


def interpret(
    plan: Plan, data: Callable[[Tensor, float], Tensor], x: Tensor, normal: Callable[[int], Tensor]
) -> Tensor:
    """The definition of a plan, nothing shared and nothing forgotten."""
    states, predictions = {}, {}
    for k, row in enumerate(plan.rows):
        if k:
            x = torch.zeros_like(x)
            for j, c in row.x.items():
                x = x + c * states[j]
            for j, c in row.p.items():
                x = x + c * predictions[j]
            for m, c in row.z.items():
                x = x + c * normal(m)
        states[k] = x
        if row.read is not None:
            predictions[k] = row.read[0] * x + row.read[1] * data(x, row.t)
    return x


def run(plan: Plan, denoiser: sk.Denoiser, x: Tensor, normal: Callable[[int], Tensor]) -> Tensor:
    """The compiled rows."""
    engine = Engine(denoiser, normal)  # type: ignore[arg-type]
    out = CompiledPlan(plan, denoiser.prediction)(engine, x.clone())
    assert engine.nfe == plan.nfe
    return out


def impulses(plan: Plan, mean: float, variance: float, x: Tensor) -> Tensor:
    """The output on Gaussian data as coefficients of (1, start, z_0, z_1, ...)."""
    unit = torch.eye(2 + len(plan.normals), dtype=torch.float64)

    def data(x: Tensor, t: float) -> Tensor:
        alpha, sigma = plan.process.alpha(t), plan.process.sigma(t)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return gain * x + (mean - gain * alpha * mean) * unit[0]

    return interpret(plan, data, x, lambda m: unit[2 + m])


# ---------------------------------------------------------------------------- plans made by hand

weight = st.floats(-1.5, 1.5).map(lambda c: round(c, 3)).filter(bool)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any affine table: multistep references, unevaluated states, several normals a row."""
    length = draw(st.integers(2, 9))
    rows = [Row(0.95, {}, {}, {}, draw(reads), 0)]
    drawn = 0
    for k in range(1, length):
        read_at = [j for j, row in enumerate(rows) if row.read is not None]
        x = draw(st.dictionaries(st.integers(0, k - 1), weight, max_size=3))
        p = draw(st.dictionaries(st.sampled_from(read_at), weight, max_size=3)) if read_at else {}
        fresh = draw(st.integers(0, 2))
        z = {drawn + i: draw(weight) for i in range(fresh)}
        drawn += fresh
        rows.append(Row(0.95 - 0.9 * k / length, x, p, z, draw(reads), k))
    return Plan(VP, tuple(rows), (None,) * drawn, "by hand")


reads = st.none() | st.just((0.0, 1.0)) | st.tuples(st.just(0.0) | weight, weight)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(plan=plans(), kind=st.sampled_from(KINDS), gradients=st.booleans())
def test_compiled_rows_are_the_rows(plan: Plan, kind: str, gradients: bool) -> None:
    denoiser = Bent(VP, kind)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    z = torch.randn(len(plan.normals) + 1, 5, 2, generator=generator, dtype=torch.float64)
    expected = interpret(plan, denoiser.data, x, lambda m: z[m])
    with torch.set_grad_enabled(gradients):
        out = run(plan, denoiser, x, lambda m: z[m])
    scale = 1 + magnitude(plan, denoiser, x, z)
    assert (out - expected).abs().max() < 1e-12 * scale


def magnitude(plan: Plan, denoiser: sk.Denoiser, x: Tensor, z: Tensor) -> float:
    """Size of the numbers that add up to the result: what rounding is relative to."""
    positive = [
        Row(
            row.t,
            {j: abs(c) for j, c in row.x.items()},
            {j: abs(c) for j, c in row.p.items()},
            {m: abs(c) for m, c in row.z.items()},
            None if row.read is None else (abs(row.read[0]), abs(row.read[1])),
        )
        for row in plan.rows
    ]
    absolute = Plan(plan.process, tuple(positive), plan.normals, plan.name)

    def data(x: Tensor, t: float) -> Tensor:
        a, b = sk.denoisers.conversion(plan.process, denoiser.prediction, "data", t)
        return abs(a) * x.abs() + abs(b) * (1 + x.abs() + abs(t))

    return interpret(absolute, data, x.abs(), lambda m: z[m].abs()).max().item()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(plan=plans())
def test_the_law_of_any_plan_is_its_impulse_response(plan: Plan) -> None:
    for mean, variance in ((0.7, 0.25), (-1.0, 0.0), (0.0, 3.0)):
        law_mean, law_variance = plan.gaussian_law(mean, variance)
        start = torch.eye(2 + len(plan.normals), dtype=torch.float64)[1]  # N(0, 1)
        response = impulses(plan, mean, variance, start)
        scale = 1 + response.square().sum().item()
        assert abs(law_mean.item() - response[0].item()) < 1e-11 * scale
        assert abs(law_variance.item() - response[1:].square().sum().item()) < 1e-11 * scale


@settings(derandomize=True, deadline=None, max_examples=60)
@given(plan=plans(), kind=st.sampled_from(KINDS))
def test_working_the_model_in_costs_no_call_and_no_register(plan: Plan, kind: str) -> None:
    native = plan.native(kind)
    assert native.nfe == plan.nfe
    assert native.registers <= plan.registers
    assert [row.z for row in native.rows] == [row.z for row in plan.rows]
    assert [row.node for row in native.rows] == [row.node for row in plan.rows]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(plan=plans())
def test_slots_are_few(plan: Plan) -> None:
    denoiser = Bent(VP, "data")
    compiled = CompiledPlan(plan, denoiser.prediction)
    assert compiled._slots <= plan.native(denoiser.prediction).registers


# --------------------------------------------------------------------------------- plans of samplers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_models_own_output_gives_the_same_samples(process: sk.Process, kind: str) -> None:
    denoiser = Bent(process, kind)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 1, generator=generator, dtype=torch.float64) * process.prior.std
    z = torch.randn(40, 4, 1, generator=generator, dtype=torch.float64)
    times = [process.horizon * t for t in (0.9, 0.7, 0.45, 0.2)]
    for sampler in (sk.samplers.DDIM(), sk.samplers.Ancestral(), sk.samplers.EulerMaruyama()):
        plan = sampler.plan(process, times, final="data")
        expected = interpret(plan, denoiser.data, x, lambda m: z[m])
        out = run(plan, denoiser, x, lambda m: z[m])
        scale = 1 + magnitude(plan, denoiser, x, z)
        assert (out - expected).abs().max() < 1e-12 * scale


@pytest.mark.parametrize(
    ("sampler", "registers"),
    [
        (sk.samplers.DDIM(), 2),
        (sk.samplers.DDIM(eta=0.5), 2),
        (sk.samplers.Ancestral(), 2),
        (sk.samplers.EulerMaruyama(), 2),
        (sk.samplers.PredictorCorrector(), 2),
    ],
    ids=repr,
)
def test_one_step_samplers_hold_a_state_and_a_prediction(
    sampler: sk.samplers.PlanSampler, registers: int
) -> None:
    plan = sampler.plan(VP, [1.0, 0.6, 0.3, 0.1], final="data")
    assert plan.registers == registers
    for kind in KINDS:
        denoiser = Bent(VP, kind)
        assert plan.native(denoiser.prediction).registers == registers
        assert CompiledPlan(plan, denoiser.prediction)._slots == registers


def test_one_compilation_serves_both_precisions() -> None:
    denoiser = Bent(VP, "data")
    program = CompiledPlan(sk.samplers.DDIM().plan(VP, [1.0, 0.6, 0.3, 0.1]), denoiser.prediction)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    single, double, again = (
        program(Engine(denoiser, None), x.to(dtype, copy=True))  # type: ignore[arg-type]
        for dtype in (torch.float32, torch.float64, torch.float32)
    )
    assert single.dtype == again.dtype == torch.float32
    assert torch.equal(single, again)
    assert (single - double).abs().max() < 1e-5


def test_a_long_plan_is_quick_to_make() -> None:
    plan = sk.samplers.DDIM(eta=1.0).plan(VP, [1 - i / 1001 for i in range(1001)])
    assert plan.nfe == 1000
    assert plan.registers == 2
    mean, variance = plan.gaussian_law([0.0] * 64, [0.1] * 64)
    assert mean.shape == variance.shape == (64,)


# ------------------------------------------------------------------------------- facts of the table


def test_counts() -> None:
    plan = sk.samplers.Ancestral().plan(VP, [1.0, 0.5, 0.1])
    assert plan.process is VP
    assert plan.name == repr(sk.samplers.Ancestral())
    assert [row.node for row in plan.rows] == [0, 1, 2]
    assert [row.t for row in plan.rows] == [1.0, 0.5, 0.1]
    assert plan.nfe == 2
    assert plan.stochastic
    assert len(plan.normals) == 2
    assert not sk.samplers.DDIM().plan(VP, [1.0, 0.5, 0.1]).stochastic


def test_describe_prints_every_row() -> None:
    plan = sk.samplers.Ancestral().plan(VP, [1.0, 0.5, 0.1], final="data")
    lines = plan.describe().splitlines()
    assert lines[0] == ("Ancestral(variance='beta_tilde'): 4 rows, 3 model calls, 2 registers")
    assert len(lines) == 5
    assert re.fullmatch(r"t=1 +\[0\] x0 = start   P0 = 0 x0 \+ 1 E\[x0\|x0\]", lines[1])
    row = plan.rows[1]
    made = f"{row.x[0]:+.6g} x0 {row.p[0]:+.6g} p0 {row.z[0]:+.6g} z0"
    assert made in lines[2]
    assert "[2]" not in lines[3]  # the state before the estimate is no longer the node
    assert re.fullmatch(r"t=0.1 +\[2\] x3 = \+1 p2", lines[4])


def test_a_brownian_interval_belongs_to_every_normal() -> None:
    times = [1.0, 0.5, 0.1]
    euler = sk.samplers.EulerMaruyama().plan(VP, times)
    assert euler.normals == ((1.0, 0.5), (0.5, 0.1))
    for sampler in (sk.samplers.Ancestral(), sk.samplers.DDIM(eta=0.3)):
        snr = [math.exp(VP.log_snr(t)) for t in times]
        for (a, b), interval in zip(pairwise(snr), sampler.plan(VP, times).normals, strict=True):
            assert interval == pytest.approx((a, b), rel=1e-12)


# ---------------------------------------------------------------------------------------- the tape


def tape_with_start() -> tuple[Tape, Form, list[Any]]:
    tape, nodes = Tape(VP), [VP.node(t, i) for i, t in enumerate((0.9, 0.5, 0.1))]
    return tape, tape.start(nodes[0]), nodes


def test_a_normal_in_two_rows_is_refused() -> None:
    tape, x, (_, s, t) = tape_with_start()
    z = tape.normal()
    x = tape.node(x + 0.5 * z, s)
    with pytest.raises(ValueError, match=r"normals \[0\] enter a second row"):
        tape.node(x + 0.5 * z, t)


def test_a_state_with_noise_carries_it_without_a_second_draw() -> None:
    tape, x, (_, s, t) = tape_with_start()
    x = tape.node(x + 0.5 * tape.normal(), s)
    tape.node(2.0 * x - 0.5 * tape.normal(), t)
    plan = tape.plan("twice")
    assert [dict(row.z) for row in plan.rows] == [{}, {0: 0.5}, {1: -0.5}]


def test_reading_an_unnamed_form_with_noise_names_it() -> None:
    tape, x, (_, s, t) = tape_with_start()
    noisy = x + tape.normal()
    data = tape.data(noisy, s)
    with pytest.raises(ValueError, match="second row"):
        tape.node(noisy + data, t)


def test_a_normal_twice_in_one_row_is_one_draw() -> None:
    tape, x, (_, s, _) = tape_with_start()
    z = tape.normal()
    tape.node(x + 0.5 * z + 0.25 * z, s)
    assert dict(tape.plan("sum").rows[1].z) == {0: 0.75}


def test_two_readings_of_one_evaluation_are_one_call() -> None:
    tape, x, (r, s, _) = tape_with_start()
    data, noise, score = tape.data(x, r), tape.noise(x, r), tape.score(x, r)
    tape.node(0.3 * x + 0.2 * data + 0.1 * noise - 0.05 * score, s)
    plan = tape.plan("three readings")
    assert plan.nfe == 1
    denoiser = Bent(VP, "noise")
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    expected = 0.3 * start + 0.2 * denoiser.data(start, r.t) + 0.1 * denoiser.noise(start, r.t)
    expected = expected - 0.05 * denoiser.score(start, r.t)
    denoiser.calls = 0
    out = run(plan, denoiser, start, lambda m: start)
    assert denoiser.calls == 1
    assert (out - expected).abs().max() < 1e-12


def test_reading_at_another_time_is_another_call() -> None:
    tape, x, (r, s, t) = tape_with_start()
    tape.node(tape.data(x, r) + tape.data(x, s), t)
    plan = tape.plan("two times")
    assert plan.nfe == 2
    start = torch.tensor([[0.4]], dtype=torch.float64)
    denoiser = Bent(VP, "data")
    expected = denoiser.data(start, r.t) + denoiser.data(start, s.t)
    assert (run(plan, denoiser, start, lambda m: start) - expected).abs().max() < 1e-14


def test_a_node_reached_twice_is_the_later_state() -> None:
    tape, x, (_, s, _) = tape_with_start()
    x = tape.node(0.5 * x, s)
    tape.node(0.5 * x, s)
    assert [row.node for row in tape.plan("twice").rows] == [0, None, 1]


def test_forms_are_linear() -> None:
    tape, x, (r, _, _) = tape_with_start()
    p, z = tape.data(x, r), tape.normal()
    form = 2 * (x - p / 4) * 3 - (-z) + p
    assert form.terms == {("x", 0): 6.0, ("p", 0): -0.5, ("z", 0): 1.0}
    assert x.state == 0
    assert (2 * x).state is None
    assert p.state is None
    assert form.state is None


def test_zero_weights_leave_no_trace() -> None:
    tape, x, (r, s, _) = tape_with_start()
    p = tape.data(x, r)
    tape.node(x + 0.0 * p + p - p, s)
    assert dict(tape.plan("zeros").rows[1].p) == {}


def test_the_mean_of_the_last_step_has_no_noise() -> None:
    times = [1.0, 0.5, 0.1]
    full, mean = (
        sk.samplers.Ancestral().plan(VP, times, final=final) for final in ("none", "mean")
    )
    assert full.rows[:-1] == mean.rows[:-1]
    assert mean.rows[-1].z == {}
    assert mean.rows[-1].x == full.rows[-1].x
    assert mean.rows[-1].p == full.rows[-1].p


# ----------------------------------------------------------------------------- the law on Gaussians


def test_the_law_in_many_dimensions_is_the_law_in_each() -> None:
    plan = sk.samplers.PredictorCorrector().plan(VP, [1.0, 0.6, 0.2, 0.01])
    means, variances = [0.7, -2.0, 0.0, 5.0], [0.25, 1.0, 0.0, 9.0]
    for start in ("prior", "exact"):
        together = plan.gaussian_law(means, variances, start=start)
        for i, (mean, variance) in enumerate(zip(means, variances, strict=True)):
            alone = plan.gaussian_law(mean, variance, start=start)
            assert [a.shape for a in alone] == [(1,), (1,)]
            for a, b in zip(alone, together, strict=True):
                assert a.dtype == torch.float64
                assert abs(a.item() - b[i].item()) < 1e-14


def test_a_shared_variance_broadcasts() -> None:
    plan = sk.samplers.DDIM().plan(VP, [1.0, 0.5, 0.1])
    mean, variance = plan.gaussian_law(torch.tensor([1.0, 2.0]), 0.5)
    assert mean.shape == variance.shape == (2,)
    assert variance[0] == variance[1]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_where_the_law_starts(process: sk.Process) -> None:
    t, u = 0.8 * process.horizon, 0.4 * process.horizon
    tape = Tape(process)
    tape.node(1.0 * tape.start(process.node(t, 0)), process.node(u, 1))
    plan = tape.plan("nothing")
    prior = plan.gaussian_law(0.7, 0.25)
    assert (prior[0].item(), prior[1].item()) == pytest.approx((0, process.prior.std**2))
    mean, variance = plan.gaussian_law(0.7, 0.25, start="exact")
    law = GAUSS1.at(process, t)
    assert mean.item() == pytest.approx(law.mean.item(), abs=1e-15)
    assert variance.item() == pytest.approx(law.covariance.item(), rel=1e-14)


def test_bad_arguments_of_the_law() -> None:
    plan = sk.samplers.DDIM().plan(VP, [1.0, 0.5])
    with pytest.raises(ValueError, match=r"variances must be >= 0, got \[-1"):
        plan.gaussian_law(0.0, -1.0)
    with pytest.raises(ValueError, match="start must be one of"):
        plan.gaussian_law(0.0, 1.0, start="somewhere")


# ---------------------------------------------------------------------------- what a plan must refuse


@pytest.mark.parametrize("times", [[0.1, 0.5], [0.5], [1.0, 0.5, 0.5], [1.0, math.nan]], ids=str)
def test_a_plan_needs_decreasing_times(times: list[float]) -> None:
    with pytest.raises(ValueError, match="times"):
        sk.samplers.DDIM().plan(VP, times)


def test_a_plan_needs_a_known_final() -> None:
    with pytest.raises(ValueError, match="final must be one of 'none', 'mean', 'data'"):
        sk.samplers.DDIM().plan(VP, [1.0, 0.5], final="denoise")


@pytest.mark.parametrize("kind", ["noise", "score"])
def test_a_model_that_knows_nothing_of_the_data_cannot_start_from_pure_noise(kind: str) -> None:
    plan = sk.samplers.DDIM().plan(sk.Interpolant(), [1.0, 0.5, 0.1])
    with pytest.raises(ValueError, match=r"alpha = 0.*use a data or v prediction"):
        plan.native(kind)


def test_compiled_plans_are_kept_for_what_cannot_change():
    times = [1.0, 0.5, 0.1]
    model = sk.data.two_mode().denoiser(VP)
    one, two = (sk.samplers.DDIM().program(model, times, "none") for _ in range(2))
    assert one is two
    assert sk.samplers.DDIM(0.5).program(model, times, "none") is not one
    assert sk.samplers.DDIM().program(model, times, "data") is not one
    assert sk.samplers.DDIM().program(model, [1.0, 0.4, 0.1], "none") is not one
    other = sk.data.two_mode().denoiser(sk.VP(0.1, 5.0))
    assert sk.samplers.DDIM().program(other, times, "none") is not one

    class Mutable(sk.Process):
        rate = 1.0

        def _alpha(self, t):
            return 1.0 + 0 * t

        def _sigma(self, t):
            return self.rate * t

    process = Mutable()
    model = sk.data.two_mode().denoiser(process)
    first = sk.samplers.DDIM().program(model, times, "none")
    process.rate = 2.0
    assert sk.samplers.DDIM().program(model, times, "none") is not first

    @dataclass(frozen=True)
    class Unhashable(Mutable):
        betas: list[float]

    model = sk.data.two_mode().denoiser(Unhashable([1.0]))
    assert sk.samplers.DDIM().program(model, times, "none").plan.nfe == 2
