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


def test_grids_that_do_not_nest_are_refused() -> None:
    with pytest.raises(ValueError, match="finer grid must hold every time"):
        shared_parts(plan_of(ss.EulerMaruyama(), 4), plan_of(ss.EulerMaruyama(), 6))
    with pytest.raises(ValueError, match="path_steps is for plans"):
        sk.sample(TOY.denoiser(VP), (2, 1), sampler=ss.TorchSDE(), steps=4, path_steps=8)
    with pytest.raises(ValueError, match="path_steps needs a grid that can be refined"):
        sk.sample(
            TOY.denoiser(VP), (2, 1), sampler=ss.DDIM(1.0), grid=[1.0, 0.5, 0.1], path_steps=8
        )
