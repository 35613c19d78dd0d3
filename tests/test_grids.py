"""Time grids: uniform in their clock, exact ends, strictly decreasing, and the table of bad input."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.processes import ALL as PROCESSES
from sdekit.sampling import Angle, Beta, Cosine, Karras, LogSNR, Power, Tabulated, TimeGrid
from sdekit.sampling.grids import GRIDS, check_times, resolve_grid
from sdekit.testing import strategies

VP = sk.VP()
ALL_GRIDS = [*GRIDS.values(), Power(1.5), Karras(3.0), Angle(0.3), Beta(2.5)]


def readable(process: sk.Process) -> tuple[float, float]:
    return process.t_max, max(1e-3 * process.horizon, process.t_min)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("grid", ALL_GRIDS, ids=repr)
def test_uniform_in_its_clock(grid: TimeGrid, process: sk.Process) -> None:
    start, end = readable(process)
    for steps in (1, 2, 3, 17, 64):
        times = grid.times(process, steps, start, end)
        assert len(times) == steps + 1
        assert times[0] == start
        assert times[-1] == end
        readings = torch.tensor([grid.clock(process, t) for t in times], dtype=torch.float64)
        span = (readings[-1] - readings[0]).abs()
        uniform = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        assert ((readings - readings[0]).abs() / span - uniform).abs().max() < 1e-9


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("grid", ALL_GRIDS, ids=repr)
def test_clock_and_time_are_inverse(grid: TimeGrid, process: sk.Process) -> None:
    start, end = readable(process)
    for u in (0.01, 0.3, 0.77):
        t = end + (start - end) * u
        assert grid.time(process, grid.clock(process, t)) == pytest.approx(t, rel=1e-9)


def test_the_formulas_of_the_papers() -> None:
    edm, n = sk.EDM(), 10
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    karras = [(high + i / n * (low - high)) ** 7 for i in range(n + 1)]
    assert GRIDS["karras"].times(edm, n, 80.0, 0.002) == pytest.approx(karras, rel=1e-12)
    quadratic = [(1 + i / n * (math.sqrt(1e-3) - 1)) ** 2 for i in range(n + 1)]
    assert GRIDS["quadratic"].times(VP, n, 1.0, 1e-3) == pytest.approx(quadratic, rel=1e-12)
    geometric = [80 * (0.002 / 80) ** (i / n) for i in range(n + 1)]
    assert GRIDS["log-snr"].times(edm, n, 80.0, 0.002) == pytest.approx(geometric, rel=1e-12)
    first, last = math.atan(80 / 0.5), math.atan(0.002 / 0.5)
    angle = [0.5 * math.tan(first + (last - first) * i / n) for i in range(n + 1)]
    assert Angle(0.5).times(edm, n, 80.0, 0.002) == pytest.approx(angle, rel=1e-12)


def test_the_angle_grid_on_unit_data_has_equal_angles_of_signal_and_noise() -> None:
    times = Angle().times(VP, 12, 1.0, 1e-3)
    angles = [math.atan2(VP.sigma(t), VP.alpha(t)) for t in times]
    steps = [a - b for a, b in pairwise(angles)]
    assert steps == pytest.approx([steps[0]] * 12, rel=1e-9)


@pytest.mark.parametrize("grid", [g for g in ALL_GRIDS if not isinstance(g, LogSNR)], ids=repr)
def test_grids_with_a_finite_clock_reach_zero(grid: TimeGrid) -> None:
    times = grid.times(VP, 9, 1.0, 0.0)
    assert times[-1] == 0
    assert all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("process", [sk.Interpolant(), sk.VP(schedule=sk.schedules.Cosine())])
def test_grids_with_a_finite_clock_start_where_the_signal_is_gone(process: sk.Process) -> None:
    for grid in (Power(), Power(2.0), Angle()):
        times = grid.times(process, 9, 1.0, 1e-3)
        assert times[0] == 1
        assert all(a > b for a, b in pairwise(times))


def test_a_custom_clock_is_a_grid() -> None:
    class Cubic(TimeGrid):
        def clock(self, process: sk.Process, t: float) -> float:
            return t**3

        def time(self, process: sk.Process, reading: float) -> float:
            return reading ** (1 / 3)

    times = Cubic().times(VP, 4, 1.0, 0.5)
    assert [t**3 for t in times] == pytest.approx([1, 0.78125, 0.5625, 0.34375, 0.125])


def test_names() -> None:
    for name, grid in GRIDS.items():
        assert resolve_grid(name) is grid
    assert resolve_grid(Power(3.5)) == Power(3.5)
    assert len({repr(g) for g in GRIDS.values()}) == len(GRIDS)


def test_checked_times_are_floats() -> None:
    for form in ([1, 0.5, 0], (1.0, 0.5, 0.0), torch.tensor([1.0, 0.5, 0.0])):
        times = check_times(form, VP)
        assert times == [1.0, 0.5, 0.0]
        assert all(type(t) is float for t in times)


# ---------------------------------------------------------------------- what every grid has, anywhere

POWERS = strategies.log_uniform(0.5, 10.0)
ANY_GRID: st.SearchStrategy[TimeGrid] = st.one_of(
    POWERS.map(Power),
    POWERS.map(Karras),
    POWERS.map(Beta),
    POWERS.map(Angle),
    st.sampled_from([LogSNR(), Cosine()]),
)


@given(data=st.data())
def test_grids_on_any_process(data: st.DataObject) -> None:
    """Strictly decreasing, exact at the ends, and uniform in a clock that its inverse inverts."""
    process, grid = data.draw(strategies.processes()), data.draw(ANY_GRID)
    start, end = data.draw(strategies.grids(process, 1, 1, gap=1e-2))
    steps = data.draw(st.integers(1, 12))
    times = grid.times(process, steps, start, end)
    assert (len(times), times[0], times[-1]) == (steps + 1, start, end)
    assert all(a > b for a, b in pairwise(times))
    first, last = (grid.clock(process, t) for t in (start, end))
    for i, t in enumerate(times):
        reading = grid.clock(process, t)
        assert reading == pytest.approx(first + (last - first) * i / steps, rel=1e-8, abs=1e-8)
        assert grid.time(process, reading) == pytest.approx(t, rel=1e-7, abs=1e-12)


@given(data=st.data())
def test_a_grid_is_a_value_that_json_holds(data: st.DataObject) -> None:
    process = data.draw(strategies.processes())
    tables = strategies.grids(process).map(lambda times: Tabulated(tuple(times)))
    grid = data.draw(st.one_of(ANY_GRID, tables))
    again = TimeGrid.from_json(grid.to_json())
    assert again == grid
    assert hash(again) == hash(grid)
    assert type(again) is type(grid)
    assert eval(repr(grid), vars(sk.samplers)) == grid


def test_half_cosine_spacing() -> None:
    times = Cosine().times(VP, 6, 1.0, 0.0)
    assert times == pytest.approx([1 - math.cos(math.pi / 2 * (1 - i / 6)) for i in range(7)])
    assert Cosine().clock(VP, 1e-12) == pytest.approx(math.sqrt(2e-12), rel=1e-12)


@pytest.mark.parametrize("process", [VP, sk.VP(schedule=sk.schedules.Cosine())], ids=repr)
def test_quantiles_of_beta(process: sk.VP) -> None:
    """Equal parts of the integral of beta, which is -2 log alpha."""
    times = Beta().times(process, 8, 0.9, 0.1)
    parts = [process.schedule.B(s) - process.schedule.B(t) for s, t in pairwise(times)]
    assert parts == pytest.approx([parts[0]] * 8, rel=1e-9)


def test_quantiles_of_beta_are_made_of_the_log_snr() -> None:
    times, edm = Beta(6.0).times(VP, 8, 1.0, 1e-2), sk.EDM(1e-3, 200.0)
    twins = [edm.time_at_log_snr(VP.log_snr(t)) for t in times]
    assert Beta(6.0).times(edm, 8, twins[0], twins[-1]) == pytest.approx(twins, rel=1e-9)


def test_a_table_is_itself_at_its_own_steps() -> None:
    nodes = (1.0, 0.7, 0.31, 0.05, 0.0)
    assert Tabulated(nodes).times(VP, 4, 1.0, 0.0) == list(nodes)
    assert Tabulated(list(nodes)) == Tabulated(torch.tensor(nodes, dtype=torch.float64))  # type: ignore[arg-type]
    out = sk.sample(
        sk.data.two_mode().denoiser(VP), (3, 1), grid=Tabulated(nodes[:-1]), steps=3, t_end=0.05
    )
    assert out.times == nodes[:-1]


def test_a_table_divides_its_intervals_in_log_snr() -> None:
    nodes = (1.0, 0.7, 0.31, 0.05)
    times = Tabulated(nodes).times(VP, 6, 1.0, 0.05)
    assert times[::2] == list(nodes)
    for a, middle, b in zip(times[:-2:2], times[1::2], times[2::2], strict=True):
        assert VP.log_snr(middle) == pytest.approx((VP.log_snr(a) + VP.log_snr(b)) / 2, rel=1e-12)
    # A table that is uniform in log-SNR is the log-SNR grid for any number of steps.
    fine = Tabulated(tuple(LogSNR().times(VP, 5, 1.0, 1e-2))).times(VP, 13, 1.0, 1e-2)
    assert fine == pytest.approx(LogSNR().times(VP, 13, 1.0, 1e-2), rel=1e-9)


BAD_TABLES: list[tuple[Any, type[Exception], str]] = [
    (lambda: Tabulated((1.0,)), ValueError, "nodes must be a sequence of at least two times"),
    (lambda: Tabulated(1.0), TypeError, "nodes must be a sequence of times, got float"),
    (lambda: Tabulated("uniform"), TypeError, "nodes must be a sequence of times, got str"),
    (
        lambda: Tabulated((0.1, 0.5)),
        ValueError,
        "decrease strictly, got nodes.0. = 0.1, nodes.1. = 0.5",
    ),
    (lambda: Tabulated((0.5, 0.5)), ValueError, "decrease strictly"),
    (lambda: Tabulated((0.5, math.nan)), ValueError, r"nodes\[1\]"),
    (lambda: Tabulated((0.5, True)), TypeError, r"nodes\[1\]"),
    (
        lambda: Tabulated((1.0, 0.5)).times(VP, 1, 1.0, 0.4),
        ValueError,
        r"within the table, \[0.5, 1\], got 0.4",
    ),
    (
        lambda: Tabulated((1.0, 0.5, 0.0)).times(VP, 3, 1.0, 0.0),
        ValueError,
        "steps must be those of the table",
    ),
    (lambda: Tabulated((2.0, 0.5)).times(VP, 1, 1.0, 0.5), ValueError, r"must lie in \[0, 1\]"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_TABLES)
def test_bad_tables(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not the JSON of a grid"),
        ("[1]", 'needs an object with the entry "grid"'),
        ('{"power": 2}', 'needs an object with the entry "grid"'),
        ('{"grid": "Karas", "power": 7}', "did you mean 'Karras'"),
        ('{"grid": ["Karras"]}', "grid must be one of"),
        ('{"grid": "Karras", "pow": 7}', "unexpected keyword argument 'pow'"),
        ('{"grid": "Karras", "power": -7}', "power must be a finite number"),
        ('{"grid": "Karras", "power": "7"}', "power must be a number"),
        ('{"grid": "Karras", "power": NaN}', "power"),
        ('{"grid": "Tabulated"}', "nodes"),
        ('{"grid": "Tabulated", "nodes": [1.0, 2.0]}', "decrease strictly"),
    ],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TimeGrid.from_json(text)
    assert "is not the JSON of a grid" in str(caught.value)


def test_a_grid_of_your_own_is_not_written() -> None:
    class Own(Power):
        pass

    with pytest.raises(TypeError, match="only grids of sdekit are written"):
        Own().to_json()


BAD_TIMES: list[tuple[Any, str]] = [
    ([1.0], "at least two"),
    ([], "at least two"),
    (0.5, "1-D"),
    (torch.ones(2, 2), "1-D"),
    ([0.1, 0.5, 1.0], "decrease strictly"),
    ([1.0, 0.5, 0.5, 0.1], r"times\[1\] = 0.5, times\[2\] = 0.5"),
    ([1.0, math.nan, 0.1], r"times\[1\] = nan"),
    ([1.5, 0.5], r"\[0, 1\], got times\[0\] = 1.5"),
    ([1.0, -0.5], r"times\[1\] = -0.5"),
    ([math.inf, 0.5], r"times\[0\] = inf"),
]


@pytest.mark.parametrize(("times", "message"), BAD_TIMES, ids=str)
def test_bad_times(times: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_times(times, VP)
    assert "times" in str(caught.value)


BAD_GRIDS: list[tuple[Any, type[Exception], str]] = [
    (lambda: Power().times(VP, 0, 1.0, 0.1), ValueError, "steps must be >= 1, got 0"),
    (lambda: Power().times(VP, -3, 1.0, 0.1), ValueError, "steps must be >= 1, got -3"),
    (lambda: Power().times(VP, 10.0, 1.0, 0.1), TypeError, "steps must be an integer"),
    (lambda: Power().times(VP, True, 1.0, 0.1), TypeError, "steps must be an integer"),
    (lambda: Power().times(VP, 5, 1.5, 0.1), ValueError, "t_start"),
    (lambda: Power().times(VP, 5, 0.0, 0.0), ValueError, "t_start"),
    (lambda: Power().times(VP, 5, math.nan, 0.0), ValueError, "t_start"),
    (lambda: Power().times(VP, 5, "1", 0.0), TypeError, "t_start"),
    (lambda: Power().times(VP, 5, 0.5, 0.5), ValueError, "t_end"),
    (lambda: Power().times(VP, 5, 0.5, 0.7), ValueError, "t_end"),
    (lambda: Power().times(VP, 5, 0.5, -0.1), ValueError, "t_end"),
    (lambda: resolve_grid("log_snr"), ValueError, "did you mean 'log-snr'"),
    (lambda: resolve_grid("nonsense"), ValueError, "grid must be one of"),
    (lambda: resolve_grid(3), TypeError, "grid must be a name"),
    (lambda: Power(0.0), ValueError, "power"),
    (lambda: Power(-1.0), ValueError, "power"),
    (lambda: Karras(0.0), ValueError, "power"),
    (lambda: Beta(0.0), ValueError, "power"),
    (lambda: Beta("6"), TypeError, "power"),
    (lambda: Karras(math.nan), ValueError, "power"),
    (lambda: Angle(0.0), ValueError, "data_std"),
    (lambda: Angle(-1.0), ValueError, "data_std"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_GRIDS, ids=[m for _, _, m in BAD_GRIDS])
def test_bad_grids(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_integers_of_other_libraries_are_step_counts() -> None:
    import numpy as np

    expected = Power().times(VP, 4, 1.0, 0.1)
    for steps in (np.int64(4), torch.tensor(4)):
        assert Power().times(VP, steps, 1.0, 0.1) == expected  # type: ignore[arg-type]


def test_an_infinite_end_takes_one_step():
    path = sk.Interpolant()
    for grid in (LogSNR(), Karras()):
        times = grid.times(path, 5, 1.0, 0.1)
        assert times[:2] == [1.0, path.t_max]
        assert times[1:] == grid.times(path, 4, path.t_max, 0.1)
    assert LogSNR().times(VP, 5, 1.0, 0.0) == [*LogSNR().times(VP, 4, 1.0, VP.t_min), 0.0]
    assert LogSNR().times(path, 3, 1.0, 0.0) == [1.0, path.t_max, path.t_min, 0.0]
    assert LogSNR().times(path, 2, 1.0, 0.0) == [1.0, path.t_max, 0.0]
    assert LogSNR().times(path, 1, 1.0, 0.0) == [1.0, 0.0]
