"""Times and noise of a step: functions of seed and step, whoever asks and in whatever order."""

import math
from functools import partial

import pytest
import torch

from sdekit import VP
from sdekit.training.draws import AHEAD, BLOCK, Draws, normals
from sdekit.training.times import ImportanceTimes, UniformTimes
from sdekit.world import World

ROWS = torch.zeros(48, 1, dtype=torch.float64)
LAWS = [UniformTimes(), UniformTimes(stratified=False), ImportanceTimes()]


def flat(drawn):
    return [drawn.times, drawn.importance, *drawn.noises]


def same(a, b):
    return a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("rows", [range(5), range(3, 300), range(256, 512), range(700, 701)])
@pytest.mark.parametrize("steps", [1, 3])
def test_normals_belong_to_rows(rows, steps):
    n, event = 700 + 1, torch.Size([2, 3])
    draw = partial(normals, 4, 9, n, event=event, dtype=torch.float32, steps=steps)
    whole = draw(range(n))
    assert torch.equal(draw(rows), whole[:, rows.start : rows.stop])
    assert whole.shape == (steps, n, 2, 3)
    assert n > 2 * BLOCK
    # 4 standard errors of the mean and of the variance of 4206 normals and more
    assert abs(whole.mean()) < 4 / math.sqrt(whole.numel())
    assert abs(whole.var() - 1) < 4 * math.sqrt(2 / whole.numel())
    assert len({x.item() for x in whole[..., 0, 0].flatten()}) == n * steps


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_any_order_gives_the_same(law):
    ahead = AHEAD // len(ROWS)
    steps = [0, 1, ahead - 1, ahead, ahead + 1, 3 * ahead + 5]
    in_order = Draws(VP(), None, law, 7, noises=2)
    wanted = [in_order(k, ROWS) for k in steps]
    other = Draws(VP(), None, law, 7, noises=2)
    for k, want in reversed(list(zip(steps, wanted, strict=True))):
        assert all(map(same, flat(other(k, ROWS)), flat(want)))
    assert len({drawn.times[0].item() for drawn in wanted}) == len(steps)
    assert len({noise[0].item() for drawn in wanted for noise in drawn.noises}) == 2 * len(steps)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_what_one_draws(size):
    whole = Draws(VP(), None, ImportanceTimes(), 7)(11, ROWS)
    parts = [
        Draws(VP(), None, ImportanceTimes(), 7, world=World(rank, size))(11, part)
        for rank, part in enumerate(ROWS.chunk(size))
    ]
    for every, *shares in zip(*map(flat, (whole, *parts)), strict=True):
        assert torch.equal(torch.cat(shares), every)


def test_times_of_each_step_are_stratified():
    draws = Draws(VP(), None, UniformTimes(), 7)
    for k in (0, 5):
        t = draws(k, ROWS).times.sort().values
        gaps = t.diff()
        assert gaps.max() - gaps.min() < 1e-12


def test_large_events_are_drawn_a_step_at_a_time(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "sdekit.training.draws.normals",
        lambda *a, steps, **k: (seen.append(steps), normals(*a, steps=steps, **k))[1],
    )
    draws = Draws(VP(), None, UniformTimes(), 7)
    images = torch.zeros(32, 1, 28, 28)
    for k in range(3):
        assert draws(k, images).noises[0].shape == images.shape
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("first", [0, 1, 7])
def test_batches_of_other_sizes_have_numbers_of_their_own(first):
    """Streams are of blocks of steps, whose length depends on the size: equal numbers must not come back."""
    draws = Draws(VP(), None, UniformTimes(stratified=False), 7)
    sizes = [256, 128, 256, 300, 44]
    drawn = [draws(first + k, torch.zeros(n, 1)) for k, n in enumerate(sizes)]
    assert [len(d.times) for d in drawn] == sizes
    for values in (torch.cat([d.noises[0] for d in drawn]), torch.cat([d.times for d in drawn])):
        assert len(values.unique()) > sum(sizes) - 5  # float32 normals may meet by chance


def test_numbers_are_of_the_dtype_of_the_batch():
    draws = Draws(VP(), None, UniformTimes(), 7)
    for dtype in (torch.float32, torch.float64, torch.float32):
        drawn = draws(0, ROWS.to(dtype))
        assert (drawn.times.dtype, drawn.noises[0].dtype) == (torch.float64, dtype)
