"""Langevin corrections: their bias, what removes it, where they are stable, which predictors they take."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.noise import BlockNormals

F64 = torch.float64
VP = sk.VP()
GAUSS3 = sk.GaussianMixture(None, [[0.0] * 3], 0.5)
MULTISTEP = [ss.DPMSolverPP(), ss.ExponentialAB(), ss.UniPC()]
ONE_STEP = [ss.EulerMaruyama(), ss.DDIM(), ss.DPMSolver(), ss.DPMSolver(3), ss.SigmaRungeKutta()]


def variance_at(t: float, variance: float = 0.25) -> float:
    return VP.alpha(t) ** 2 * variance + VP.sigma(t) ** 2


def errors(sampler: ss.PlanSampler, steps: tuple[int, ...] = (64, 128, 256)) -> list[float]:
    """Relative errors of the variance on N(0.7, 0.25), uniform in log-SNR, from the exact law."""
    found = []
    for count in steps:
        plan = sampler.plan(VP, ss.LogSNR().times(VP, count, 1.0, 1e-2))
        law = plan.gaussian_law(0.7, 0.25, start="exact")
        found.append(law[1].item() / variance_at(1e-2) - 1)
    return found


def slope(values: list[float]) -> float:
    return math.log2(abs(values[0] / values[-1])) / (len(values) - 1)


class Untouchable(sk.Denoiser):
    process, prediction = VP, "data"

    def predict(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        raise AssertionError("the model was called")


# --------------------------------------------------------------------------- the bias and its cures


@pytest.mark.parametrize("predictor", ONE_STEP[:3], ids=repr)
def test_a_fixed_r_stays_at_its_bias(predictor: ss.PlanSampler) -> None:
    """r^2 / (1 - r^2) where data_std is the data's own, however many steps are taken."""
    (error,) = errors(ss.PredictorCorrector(predictor, data_std=0.5), (512,))
    assert error == pytest.approx(0.16**2 / (1 - 0.16**2), rel=0.01)


@pytest.mark.parametrize(
    ("predictor", "data_std"),
    [
        *((predictor, 0.5) for predictor in (*ONE_STEP, *MULTISTEP, ss.EDMHeun())),
        *((predictor, data_std) for predictor in ONE_STEP[:2] for data_std in (0.0, 1.0)),
    ],
    ids=repr,
)
def test_an_r_that_shrinks_with_the_steps_converges(
    predictor: ss.PlanSampler, data_std: float
) -> None:
    sampler = ss.PredictorCorrector(predictor, reference_steps=16, data_std=data_std)
    found = errors(sampler, (128, 256))
    assert slope(found) == pytest.approx(1, abs=0.15)
    assert abs(found[-1]) < 0.014


def test_the_reference_is_the_step_count_of_r() -> None:
    """r below it, r sqrt(M / N) above; the same for the step from norms."""
    for steps, r in ((10, 0.2), (40, 0.2), (90, 0.2 * 2 / 3)):
        times = ss.Power().times(VP, steps, 1.0, 1e-2)
        one, other = (
            ss.PredictorCorrector(r=0.2, reference_steps=40),
            ss.PredictorCorrector(r=r),
        )
        for a, b in zip(one.plan(VP, times).rows, other.plan(VP, times).rows, strict=True):
            assert (a.t, a.read, a.node) == (b.t, b.read, b.node)
            for mine, theirs in ((a.x, b.x), (a.p, b.p), (a.z, b.z)):
                assert mine == pytest.approx(theirs, rel=1e-12)
        runs = [
            sk.sample(GAUSS3.denoiser(VP), (4, 3), sampler=sampler, grid=times, seed=0, dtype=F64).x
            for sampler in (ss.NormCorrector(r=0.2, reference_steps=40), ss.NormCorrector(r=r))
        ]
        assert (runs[0] - runs[1]).abs().max() < 1e-12


@pytest.mark.parametrize("width", [1e-4, 1e-2, 0.1, 1.0, 10.0])
def test_the_default_step_is_stable_on_data_of_any_width(width: float) -> None:
    """It settles at u / (1 - q) with q = r^2 sigma^2 / u <= r^2 for the variance u of x_t."""
    for t in (0.9, 0.3, 1e-2):
        u = variance_at(t, width**2)
        q = (0.3 * VP.sigma(t)) ** 2 / u
        assert q <= 0.3**2
        plan = ss.PredictorCorrector(ss.DDIM(), r=0.3, corrections=400).plan(VP, [1.0, t])
        uncorrected = ss.DDIM().plan(VP, [1.0, t]).gaussian_law(0.0, width**2)[1].item()
        rate = (1 - 2 * q) ** 2
        settled = u / (1 - q)
        expected = settled + rate**400 * (uncorrected - settled)
        assert plan.gaussian_law(0.0, width**2)[1].item() == pytest.approx(expected, rel=1e-10)


def test_a_wide_step_diverges_on_thin_data() -> None:
    """With q = r^2 v / u > 1 every correction multiplies the error."""
    thin = 0.01**2
    laws = [
        ss.PredictorCorrector(ss.DDIM(), data_std=data_std)
        .plan(VP, ss.DDIM().grid.times(VP, 100, 1.0, 1e-3))
        .gaussian_law(0.0, thin)[1]
        .item()
        / variance_at(1e-3, thin)
        for data_std in (0.0, 0.01, 1.0)
    ]
    assert 0.5 < laws[0] < 1.1
    assert 0.5 < laws[1] < 1.1
    assert laws[2] > 1e6


# --------------------------------------------------------------------------------------- predictors


@pytest.mark.parametrize("predictor", MULTISTEP, ids=repr)
def test_a_multistep_predictor_keeps_its_history(predictor: ss.PlanSampler) -> None:
    """Restarted at every node it would be DDIM; with its history it is far closer."""
    restarted = errors(ss.PredictorCorrector(ss.DDIM(), reference_steps=16), (64, 128))
    kept = errors(ss.PredictorCorrector(predictor, reference_steps=16), (64, 128))
    for a, b in zip(restarted, kept, strict=True):
        assert abs(b) < 0.25 * abs(a)


def test_corrections_follow_grid_nodes_only() -> None:
    """Not the state between nodes that a churned step starts from."""
    times = ss.Karras().times(VP, 6, 1.0, 1e-2)
    predictor = ss.EDMHeun(churn=2.0)
    alone = predictor.plan(VP, times)
    plan = ss.PredictorCorrector(predictor, corrections=2).plan(VP, times)
    assert len(plan.rows) == len(alone.rows) + 2 * 6
    assert plan.nfe == alone.nfe + 2 * 6
    assert [row.t for row in plan.rows if row.node is not None] == times


def test_the_grid_is_the_predictors() -> None:
    for kind in (ss.PredictorCorrector, ss.NormCorrector):
        assert kind().grid == ss.EulerMaruyama().grid
        assert kind(ss.DPMSolver()).grid == ss.DPMSolver().grid
        assert kind(ss.DPMSolver()).nfe_per_step == 3


@pytest.mark.parametrize("predictor", MULTISTEP, ids=repr)
def test_norms_refuse_a_predictor_with_a_history(predictor: ss.PlanSampler) -> None:
    with pytest.raises(ValueError, match=r"builds on steps before the last.*PredictorCorrector"):
        sk.sample(Untouchable(), (4, 3), sampler=ss.NormCorrector(predictor), steps=4)


def test_norms_refuse_a_predictor_that_comes_back_to_its_start() -> None:
    """A restart from the first time is not a step of any interval; one from within the grid is."""
    x, edm = torch.ones(2, 3, dtype=F64), sk.EDM()
    sampler = ss.NormCorrector(ss.Restart(0.1, 1e4))
    with pytest.raises(ValueError, match=r"predictor Restart.* comes back to its first time"):
        sk.sample(Untouchable(), (2, 3), sampler=sampler, steps=5, x_init=x)
    times = ss.LogSNR().times(edm, 8, 80.0, 0.01)
    within = ss.NormCorrector(ss.Restart(0.1, 1.0))
    out = sk.sample(GAUSS3.denoiser(edm), (2, 3), sampler=within, grid=times, seed=0)
    assert out.nfe == ss.Restart(0.1, 1.0).plan(edm, times).nfe + 8


@pytest.mark.parametrize("process", [sk.VE(start_at_sigma_min=True), sk.EDM()], ids=repr)
def test_the_last_denoising_from_norms_is_the_models(process: sk.Process) -> None:
    """The data of the state that is left without it, also at t = 0 where sigma(0) > 0."""
    model, times = GAUSS3.denoiser(process), [process.t_max, 0.3 * process.t_max, process.t_min]
    if process.sigma(0.0) > 0:
        times[-1] = 0.0
    runs = [
        sk.sample(
            model, (5, 3), sampler=ss.NormCorrector(), grid=times, final=final, seed=0, dtype=F64
        ).x
        for final in ("none", "data")
    ]
    alpha, sigma = process.alpha(times[-1]), process.sigma(times[-1])
    gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    assert (runs[1] - gain * runs[0]).abs().max() < 1e-10


@pytest.mark.parametrize("predictor", [*ONE_STEP, ss.Ancestral(), ss.EDMHeun(churn=0.6)], ids=repr)
@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_the_loop_with_norms_is_the_algorithm(predictor: ss.PlanSampler, norm: str) -> None:
    """Against the algorithm by hand, with two corrections and the run's own normals in order."""
    model, grid = GAUSS3.denoiser(VP), [0.9, 0.6, 0.3, 0.1]
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    sampler = ss.NormCorrector(predictor, corrections=2, norm=norm)
    out = sk.sample(model, (5, 3), sampler=sampler, grid=grid, x_init=start, seed=7)

    # the churn is shared by the steps of the whole run
    piece = ss.EDMHeun(churn=0.2) if isinstance(predictor, ss.EDMHeun) else predictor
    x, normals, drawn = start, BlockNormals(7, 0, 5, (3,), F64, torch.device("cpu")), 0
    for s, t in pairwise(grid):
        plan = piece.plan(VP, [s, t])
        x = by_hand(plan, model, x, [normals(drawn + m) for m in range(len(plan.normals))])
        drawn += len(plan.normals)
        for _ in range(2):
            z, score = normals(drawn), model.score(x, t)
            drawn += 1
            lengths = [v.norm(dim=1, keepdim=True) for v in (z, score)]
            if norm == "batch":
                lengths = [v.mean() for v in lengths]
            e = 2 * VP.transition(t, s)[0] ** 2 * (0.16 * lengths[0] / lengths[1]) ** 2
            x = x + e * score + (2 * e).sqrt() * z
    assert (out.x - x).abs().max() < 1e-12
    assert out.nfe == sum(piece.plan(VP, pair).nfe + 2 for pair in pairwise(grid))


def by_hand(plan: ss.Plan, model: sk.Denoiser, start: Tensor, normals: list[Tensor]) -> Tensor:
    """A plan's rows, read off one by one."""
    states, readings = [start], {}
    for k, row in enumerate(plan.rows):
        if k:
            x = sum((c * states[j] for j, c in row.x.items()), torch.zeros_like(start))
            x = x + sum(c * readings[j] for j, c in row.p.items())
            states.append(x + sum(c * normals[m] for m, c in row.z.items()))
        if row.read is not None:
            readings[k] = row.read[0] * states[k] + row.read[1] * model.data(states[k], row.t)
    return states[-1]
