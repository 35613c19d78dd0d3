"""What a newcomer gets wrong is refused by name, and what is refused is the argument that is wrong."""

import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import sdekit as sk
from sdekit import plotting
from sdekit.comparison.tables import grid_name

ss = sk.samplers
PROCESS = sk.VP()
TARGET = sk.data.two_mode()
MODEL = TARGET.denoiser(PROCESS)
PLAN = ss.DDIM().plan(PROCESS, [0.9, 0.5, 0.1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: ss.invert(ss.Leapfrog(), MODEL, [torch.zeros(1, 1)] * 2),  # type: ignore[arg-type]
        lambda: ss.sensitivity(ss.DDIM(), 0.25),  # type: ignore[arg-type]
        lambda: PLAN.diff(ss.DDIM()),  # type: ignore[arg-type]
    ],
)
def test_a_sampler_is_not_its_plan(call):
    with pytest.raises(
        TypeError, match=r"must be a Plan such as sampler.plan\(process, times\), got "
    ):
        call()


def test_a_process_is_an_instance():
    with pytest.raises(TypeError, match=r"process must be a Process such as .*, got 'vp'"):
        ss.DDIM().plan("vp", [0.9, 0.1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"process must be a Process such as .*, got 'vp'"):
        sk.testing.plan_from_sampler(lambda model, x: x, "vp")  # type: ignore[arg-type]


def test_what_is_read_out_is_a_function():
    with pytest.raises(
        TypeError, match=r"sampler must be callable as sampler\(model, x\), got DDIM"
    ):
        sk.testing.plan_from_sampler(ss.DDIM(), PROCESS)  # type: ignore[arg-type]


def test_a_path_is_a_multiple_on_a_grid_that_can_be_refined():
    with pytest.raises(ValueError, match="path_steps must be a multiple of steps = 50, got 128"):
        sk.sample(MODEL, (2, 1), sampler=ss.EulerMaruyama(), steps=50, path_steps=128)
    with pytest.raises(ValueError, match="path_steps needs a grid that can be refined"):
        sk.sample(MODEL, (2, 1), sampler=ss.EulerMaruyama(), grid=[1.0, 0.5, 0.1], path_steps=4)


def test_a_formula_that_is_not_affine_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Squares(ss.PlanSampler):
        stochastic = False

        def write(self, tape, process, nodes, x):
            for s, t in pairwise(nodes):
                x = tape.node(x * tape.data(x, s), t)  # type: ignore[operator]
            return x

    with pytest.raises(TypeError, match="a plan is affine"):
        Squares().plan(PROCESS, [0.9, 0.5])


def test_an_order_is_measured_of_a_sampler_and_not_of_its_plan():
    with pytest.raises(TypeError, match=r"sampler must be a Sampler such as .*, got Plan$"):
        sk.measure_order(PLAN)  # type: ignore[arg-type]


@pytest.mark.parametrize("metrics", ["W1", [print], {"W1": 1}])
def test_metrics_are_functions_by_name(metrics):
    for call in (
        lambda: sk.compare(MODEL, [ss.DDIM()], [5], TARGET, n=10, metrics=metrics),
        lambda: sk.error_budget(MODEL, TARGET, n=10, metrics=metrics),
    ):
        with pytest.raises(TypeError, match=r"metrics(\['W1'\])? must be "):
            call()


def test_a_file_of_another_n_is_not_said_to_be_of_another_metric(tmp_path: Path):
    def run(**options):
        options = {"n": 20, "t_end": 1e-3} | options
        sk.compare(MODEL, [ss.DDIM()], [2], TARGET, resume=tmp_path / "runs", **options)

    run()
    for options, what in (
        ({"n": 21}, "n"),
        ({"t_end": 0.01}, "t_end"),
        ({"n": 21, "t_end": 0.01}, "n, another t_end"),
    ):
        with pytest.raises(sk.CheckpointError, match=f"with another {what};"):
            run(**options)


def test_a_picture_names_its_metrics():
    table = sk.compare(MODEL, [ss.DDIM()], [2, 4], TARGET, n=20)
    with pytest.raises(ValueError, match="metric must be one of 'W1', 'W2'; got 'W7'"):
        plotting.error_against_nfe({"exact": table}, "W7")
    with pytest.raises(TypeError, match="tables must be tables by name, got Table"):
        plotting.error_against_nfe(table, "W1")  # type: ignore[arg-type]


def test_tabulated_times_are_a_digest_where_they_are_read():
    one, other = (repr(ss.Tabulated((1.0, t, 1 / math.pi))) for t in (0.5, 0.6))
    assert len(grid_name(one)) < 25
    assert grid_name(one) != grid_name(other)


def test_a_formula_must_return_its_last_state():
    class Forgetful(sk.samplers.DDIM):
        def write(self, tape, process, nodes, x):
            super().write(tape, process, nodes, x)

    with pytest.raises(
        TypeError, match=r"Forgetful\.write must return the last state, a Form, got None"
    ):
        Forgetful().plan(sk.VP(), [1.0, 0.5, 0.1])
