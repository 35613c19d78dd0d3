"""Traces of Jacobians: exact ones, and the mean and variance of estimated ones."""

import math

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.likelihood import divergence as dv
from tests.helpers import normal

F64 = torch.float64


def linear(matrix: Tensor, n: int) -> dv.Jacobian:
    """The Jacobian of x -> A x at n points."""
    x = normal(n, len(matrix), seed=5).requires_grad_()
    return dv.Jacobian(x @ matrix.T, x)


def low_rank(d: int, rank: int, rest: float) -> Tensor:
    """Symmetric, with `rank` eigenvalues in [1, 2] and the others in [rest, 2 rest]."""
    axes = torch.linalg.qr(normal(d, d, seed=6)).Q
    values = torch.cat([torch.linspace(1, 2, rank), rest * torch.linspace(1, 2, d - rank)]).to(F64)
    return (axes * values) @ axes.T


@pytest.mark.parametrize("event", [(), (1,), (2, 3)])
def test_the_exact_trace_is_that_of_autograd(event: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    d = math.prod(event)
    net = nn.Sequential(nn.Linear(d, 20), nn.Tanh(), nn.Linear(20, d)).double()

    def model(x: Tensor) -> Tensor:
        return net(x.reshape(-1, d)).reshape(x.shape)

    x = normal(7, *event).requires_grad_()
    found = dv.Exact()(dv.Jacobian(model(x), x), 0.0)
    for i in range(7):
        full = torch.func.jacrev(model)(x[i : i + 1]).reshape(d, d)
        assert abs(found[i, 0] - full.trace()) < 1e-13


def test_the_exact_trace_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = normal(9, 9)
    for numbers in (1, 36, 180, 10_000):  # 1, 1, 4 and all of the 9 products at once, for 5 points
        monkeypatch.setattr(dv, "_BLOCK", numbers)
        found = dv.Exact()(linear(matrix, 5), 0.0)
        assert found.shape == (5, 1)
        assert (found - matrix.trace()).abs().max() < 1e-13


@pytest.mark.parametrize("divergence", ["hutchinson", "hutch++"])
def test_estimates_are_unbiased(divergence: str) -> None:
    """20,000 points, of one probe (or sketch) each: within 4 standard errors, also off symmetry."""
    n, matrix = 20_000, normal(6, 6, seed=1)
    jacobian = linear(matrix, n)
    found = dv.make_trace(divergence, 3, 7, 0, jacobian.x)(jacobian, 0.3).mean(1)
    assert abs(found.mean() - matrix.trace()) < 4 * found.std() / math.sqrt(n)


def test_the_variance_of_a_rademacher_probe() -> None:
    """sum_{i < j} (J_ij + J_ji)^2, within 4 standard errors of the mean of squares."""
    n, matrix = 50_000, normal(6, 6, seed=2)
    jacobian = linear(matrix, n)
    found = dv.make_trace("hutchinson", 1, 7, 0, jacobian.x)(jacobian, 0.0)[:, 0]
    squares = (found - matrix.trace()).square()
    expected = (matrix + matrix.T).triu(1).square().sum()
    assert abs(squares.mean() - expected) < 4 * squares.std() / math.sqrt(n)


def test_a_rademacher_probe_is_exact_for_a_diagonal() -> None:
    jacobian = linear(torch.diag(normal(8)), 50)
    found = dv.make_trace("hutchinson", 4, 0, 0, jacobian.x)(jacobian, 0.0)
    assert (found - dv.Exact()(jacobian, 0.0)).abs().max() < 1e-13


def test_hutch_plus_plus_is_exact_for_low_rank_and_a_multiple_of_the_identity() -> None:
    """Rank 3 and a sketch of 4; in the second case the shift undoes what was added."""
    matrix, eye = low_rank(20, 3, 0.0), torch.eye(20, dtype=F64)
    for shift in (0.0, -0.7):
        jacobian = linear(matrix - shift * eye, 30)
        found = dv.make_trace("hutch++", 12, 0, 0, jacobian.x)(jacobian, shift)
        assert found.shape == (30, 4)
        assert (found - matrix.trace() + shift * 20).abs().max() < 1e-12
    only = linear(0.7 * eye, 30)
    found = dv.make_trace("hutch++", 12, 0, 0, only.x)(only, 0.0)
    assert (found - 14).abs().max() < 1e-12


def test_hutch_plus_plus_varies_less_at_the_same_products() -> None:
    """On three large eigenvalues and 27 of at most 0.02: a fiftieth of the variance of Hutchinson's."""
    jacobian = linear(low_rank(30, 3, 0.01), 2000)
    variances = []
    for divergence in ("hutchinson", "hutch++"):
        trace = dv.make_trace(divergence, 15, 3, 0, jacobian.x)
        variances.append(trace(jacobian, 0.0).mean(1).var().item())
    assert variances[1] < variances[0] / 50


def test_hutch_plus_plus_with_products_for_all_directions_is_exact() -> None:
    jacobian = linear(normal(3, 3), 4)
    assert isinstance(dv.make_trace("hutch++", 9, 0, 0, jacobian.x), dv.Exact)
    assert isinstance(dv.make_trace("hutch++", 8, 0, 0, jacobian.x), dv.HutchPlusPlus)


@pytest.mark.parametrize("divergence", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("probes", [3, 70])
def test_probes_belong_to_samples(divergence: str, probes: int) -> None:
    """Of 300 samples, alone or from sample 260 on."""
    x = normal(300, 40)
    whole = dv.make_trace(divergence, probes, 5, 0, x)
    part = dv.make_trace(divergence, probes, 5, 260, x[260:290])
    assert isinstance(whole, dv.Hutchinson | dv.HutchPlusPlus)
    assert isinstance(part, type(whole))
    assert torch.equal(part.probes, whole.probes[:, 260:290])
    sketch = probes // 3 if divergence == "hutch++" else 0
    assert whole.columns == len(whole.probes) == probes - 2 * sketch
    assert len({tuple(row.tolist()) for row in whole.probes[:, 0]}) == whole.columns
    other = dv.make_trace(divergence, probes, 6, 0, x)
    assert isinstance(other, type(whole))
    assert not torch.equal(other.probes, whole.probes)


def test_probes_are_not_the_noise_of_samples_of_that_seed() -> None:
    """Ancestral noise would be correlated with the points it made, and bias the estimate."""
    target = sk.GaussianMixture(None, torch.zeros(1, 2, dtype=F64), 1e-3)
    out = sk.sample(
        target.denoiser(sk.VP()),
        (4000, 2),
        sampler=sk.samplers.EulerMaruyama(),
        steps=1,
        t_end=0.5,
        dtype=F64,
        seed=3,
    )
    probes = dv.make_trace("hutchinson", 1, 3, 0, out.x)
    assert isinstance(probes, dv.Hutchinson)
    correlation = torch.corrcoef(torch.stack([out.x.flatten(), probes.probes.flatten()]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(8000)
