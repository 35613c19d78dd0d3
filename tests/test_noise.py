"""Normals that belong to a sample: the law, and independence of batch, chunk and window."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from sdekit.sampling.noise import BLOCK, SLAB, BlockNormals

CPU = torch.device("cpu")
EVENTS = [(), (1,), (2,), (3,), (5,), (9,), (16,), (17,), (33,), (2, 3), (1, 4, 4)]


def normals(
    seed: int, first: int, last: int, event: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> BlockNormals:
    return BlockNormals(seed, first, last, event, dtype, CPU)


def drawn(source: BlockNormals, numbers: range) -> Tensor:
    return torch.stack([source(m).clone() for m in numbers])


# ---------------------------------------------------------------------------- whose numbers they are


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_a_window_is_a_window_of_the_whole_run(event: tuple[int, ...], dtype: torch.dtype) -> None:
    whole = normals(3, 0, 700, event, dtype)
    rows, start = drawn(whole, range(SLAB + 2)), whole.start()
    assert rows.shape == (SLAB + 2, 700, *event)
    assert rows.dtype == start.dtype == dtype
    windows = [(0, 1), (0, 255), (0, 256), (0, 257), (5, 9), (250, 262), (255, 512), (511, 700)]
    for first, last in windows:
        part = normals(3, first, last, event, dtype)
        assert torch.equal(drawn(part, range(SLAB + 2)), rows[:, first:last])
        assert torch.equal(part.start(), start[first:last])


def test_numbers_do_not_depend_on_the_order_of_asking() -> None:
    source = normals(0, 0, 10, (2,))
    rows = drawn(source, range(3 * SLAB))
    for m in (70, 3, 95, 0, 40, 41):
        assert torch.equal(source(m), rows[m])


def test_a_row_stays_until_another_slab_is_asked_for() -> None:
    source = normals(0, 0, 10, (2,))
    first = source(0)
    kept = first.clone()
    source(SLAB - 1)
    source.start()
    assert torch.equal(first, kept)


def test_seeds_differ() -> None:
    draws = [drawn(normals(seed, 0, 4, (1,)), range(4)).flatten() for seed in range(200)]
    draws += [drawn(normals(2**62 + s, 0, 4, (1,)), range(4)).flatten() for s in range(50)]
    assert torch.stack(draws).unique(dim=0).shape[0] == 250


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**62 + 5])
def test_blocks_and_slabs_of_a_run_have_streams_of_their_own(seed: int) -> None:
    source = normals(seed, 0, 1, (1,))
    slabs = [*range(60), (1 << 12) - 1]
    keys = {source._key(b, s) for b, s in itertools.product(range(2000), slabs)}
    assert len(keys) == 2000 * len(slabs)
    assert max(keys) < 1 << 32


def test_the_start_shares_no_number_with_the_rows() -> None:
    source = normals(0, 0, 300, (1,))
    everything = torch.cat([source.start()[None], drawn(source, range(4 * SLAB))])
    assert everything.unique().numel() == everything.numel()


def test_more_normals_than_streams_is_refused() -> None:
    source = normals(0, 0, 1, (1,))
    with pytest.raises(ValueError, match="at most 131040 normals"):
        source(131_040)


# ------------------------------------------------------------------------------------------- the law


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(), (1,), (3,), (16,), (17,)], ids=str)
def test_moments(event: tuple[int, ...], dtype: torch.dtype) -> None:
    """Mean, variance, third and fourth moment within 4 standard errors."""
    source = normals(11, 0, max(300, 3000 // math.prod(event)), event, dtype)
    x = torch.cat([source.start()[None], drawn(source, range(64))]).double().flatten()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = (x**power).mean().item() - moment
        assert abs(error) < 4 * math.sqrt(variance / x.numel())


def test_normals_are_independent_of_one_another() -> None:
    """Correlations of rows, coordinates, neighbouring samples and seeds within 4 standard errors."""
    n = 20_000
    source = normals(5, 0, n, (2,))
    rows = [source.start(), *drawn(source, range(SLAB - 2, SLAB + 3)), normals(6, 0, n, (2,))(0)]
    columns = torch.cat(rows, 1)  # (n, 2 * 7)
    correlation = columns.T @ columns / n
    off = correlation - torch.diag(correlation.diagonal())
    # 91 pairs: the largest of them stays below 4 se with probability 0.994
    assert off.abs().max() < 4 / math.sqrt(n)
    for lag in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1):
        a, b = columns[lag:], columns[:-lag]
        assert ((a * b).mean(0).abs() < 4 / math.sqrt(len(a))).all()


@pytest.mark.parametrize("event", [(1,), (2,), (33,)], ids=str)
@pytest.mark.parametrize(("total", "slab"), [(1, 1), (32, 32), (33, 17), (100, 25), (1000, 32)])
def test_a_known_total_makes_slabs_of_equal_size(
    total: int, slab: int, event: tuple[int, ...]
) -> None:
    """Windows are windows still, and no more than a slab's rounding is drawn in vain."""
    whole = BlockNormals(3, 0, 300, event, torch.float32, CPU, total)
    assert whole.slab == slab
    assert -(-total // slab) * slab - total < max(1, total // 16)
    last = drawn(whole, range(total))[-min(total, 40) :]
    for first, end in ((0, 1), (255, 257), (5, 300)):
        part = BlockNormals(3, first, end, event, torch.float32, CPU, total)
        assert torch.equal(drawn(part, range(total))[-min(total, 40) :], last[:, first:end])
