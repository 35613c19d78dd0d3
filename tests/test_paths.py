"""Shared Brownian paths: coarse increments are sums of fine ones, and the law is unchanged."""

import math

import pytest
import torch

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.noise import BlockNormals
from sdekit.sampling.paths import PathNormals, shared_parts

F64, VP = torch.float64, sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
RANDOM = [s for s in ss.ALL if isinstance(s, ss.PlanSampler) and s.stochastic]
SHARING = [s for s in RANDOM if None not in s.plan(VP, [1.0, 0.5, 0.1]).normals]


def plan_of(sampler: ss.PlanSampler, steps: int, grid: ss.TimeGrid | None = None) -> ss.Plan:
    return sampler.plan(VP, (grid or sampler.grid).times(VP, steps, 1.0, 1e-2))


@pytest.mark.parametrize("sampler", SHARING, ids=repr)
def test_every_coarse_normal_is_one_of_unit_variance(sampler: ss.PlanSampler) -> None:
    parts = shared_parts(plan_of(sampler, 8), plan_of(sampler, 32))
    used = [number for part in parts for number, _ in part]
    assert sorted(used) == list(range(len(plan_of(sampler, 32).normals)))
    for part in parts:
        assert sum(weight**2 for _, weight in part) == pytest.approx(1, abs=1e-12)


def test_the_increments_add_up() -> None:
    """Euler-Maruyama's clock is t: W over a coarse step is the sum over its fine steps."""
    fine, coarse = plan_of(ss.EulerMaruyama(), 60), plan_of(ss.EulerMaruyama(), 12)
    source = BlockNormals(0, 0, 5, (2,), F64, torch.device("cpu"), 60)
    shared = PathNormals(source, shared_parts(coarse, fine))
    h = (1 - 1e-2) / 60
    for m in range(12):
        increment = sum(math.sqrt(h) * source(5 * m + i).clone() for i in range(5))
        assert (math.sqrt(5 * h) * shared(m) - increment).abs().max() < 1e-12
    assert torch.equal(shared.start(), source.start())


@pytest.mark.parametrize("sampler", SHARING, ids=repr)
def test_a_path_laid_out_on_the_same_grid_changes_nothing(sampler: ss.PlanSampler) -> None:
    runs = [
        sk.sample(TOY.denoiser(VP), (7, 1), sampler=sampler, steps=10, seed=3, path_steps=path).x
        for path in (None, 10)
    ]
    assert (runs[0] - runs[1]).abs().max() < 1e-6


@pytest.mark.parametrize("sampler", RANDOM, ids=repr)
def test_runs_on_one_path_keep_their_own_law(sampler: ss.PlanSampler) -> None:
    """Mean and variance of 20,000 samples on a path of eight times the steps, within 4 standard errors."""
    n, gauss = 20_000, sk.GaussianMixture(None, [0.7], 0.5)
    out = sk.sample(
        gauss.denoiser(VP), (n, 1), sampler=sampler, steps=6, path_steps=48, seed=1, dtype=F64
    )
    assert out.plan is not None
    mean, variance = (v.item() for v in out.plan.gaussian_law(0.7, 0.25))
    assert abs(out.x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(out.x.var().item() / variance - 1) < 4 * math.sqrt(2 / n)


def test_a_shared_path_does_not_depend_on_the_batch() -> None:
    def run(n: int, chunk: int | None = None) -> torch.Tensor:
        model = TOY.denoiser(VP)
        options = {"steps": 8, "path_steps": 64, "seed": 2, "dtype": F64, "chunk": chunk}
        return sk.sample(model, (n, 1), sampler=ss.EulerMaruyama(), **options).x  # type: ignore[arg-type]

    assert (run(300)[:7] - run(7)).abs().max() < 1e-12
    assert (run(300, 64) - run(300)).abs().max() < 1e-12


TAUS = [1e-5, 1e-3, 0.4, 1.0, 2.5, 10.0, 100.0]
BANDS = [(low, high) for low in (0.0, 0.05, 0.1, 0.3, 0.5) for high in (1.0, 2.0, 5.0, None)]


@pytest.mark.parametrize(
    "sampler",
    [
        *(ss.ExponentialAB(2, tau=tau) for tau in TAUS),
        *(ss.DPMSolverPP(tau=tau) for tau in TAUS),
        *(ss.SASolver(tau=tau) for tau in TAUS),
        *(ss.SASolver(low=low, high=high) for low, high in BANDS),
    ],
    ids=repr,
)
def test_any_amount_of_noise_shares_a_path(sampler: ss.PlanSampler) -> None:
    coarse, fine = plan_of(sampler, 10), plan_of(sampler, 40)
    parts = shared_parts(coarse, fine)
    assert sorted(number for part in parts for number, _ in part) == [*range(len(fine.normals))]
    for part in parts:
        assert sum(weight**2 for _, weight in part) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [
        ss.ExponentialAB(2, tau=0.4),
        ss.DPMSolverPP(tau=1.0),
        ss.SASolver(tau=0.4),
        ss.SASolver(tau=1.0, low=0.1, high=3.0),
        ss.SASolver(tau=1.5, low=0.3),
    ],
    ids=repr,
)
def test_on_point_data_the_path_decides_alone(sampler: ss.PlanSampler) -> None:
    """Where E[x_0 | x] is constant any number of steps is exact, path by path."""
    point = sk.GaussianMixture(None, [0.7], 1e-9)
    runs = [
        sk.sample(
            point.denoiser(VP), (9, 1), sampler=sampler, steps=n, path_steps=48, seed=4, dtype=F64
        ).x
        for n in (6, 24, 48)
    ]
    assert (runs[0] - runs[2]).abs().max() < 1e-10
    assert (runs[1] - runs[2]).abs().max() < 1e-10


def test_a_band_that_ends_on_a_node_to_rounding_shares_a_path() -> None:
    nodes = [VP.node(t).rho for t in ss.LogSNR().times(VP, 10, 1.0, 1e-2)]
    for off in (-1e-13, 0.0, 1e-13):
        sampler = ss.SASolver(low=nodes[7] * (1 + off), high=nodes[3] * (1 - off))
        parts = shared_parts(plan_of(sampler, 10), plan_of(sampler, 40))
        assert len(parts) >= 4
        for part in parts:
            assert sum(weight**2 for _, weight in part) == pytest.approx(1, abs=1e-6)


def test_grids_that_do_not_nest_are_refused() -> None:
    with pytest.raises(ValueError, match="finer grid must hold every time"):
        shared_parts(plan_of(ss.EulerMaruyama(), 4), plan_of(ss.EulerMaruyama(), 6))
    with pytest.raises(ValueError, match="path_steps is for plans"):
        sk.sample(TOY.denoiser(VP), (2, 1), sampler=ss.TorchSDE(), steps=4, path_steps=8)
    with pytest.raises(ValueError, match="path_steps needs a grid that can be refined"):
        sk.sample(
            TOY.denoiser(VP), (2, 1), sampler=ss.DDIM(1.0), grid=[1.0, 0.5, 0.1], path_steps=8
        )
