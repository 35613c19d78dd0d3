"""The exact laws of samplers: against laws of Gaussian data, runs of many samples, and known orders."""

import math

import numpy as np
import pytest
import torch
from helpers import bad_input
from torch import nn

import sdekit as sk
from sdekit import samplers
from sdekit.pde import has_exact_law, sampler_density, solve_fokker_planck

TARGET, VP = sk.data.two_mode(), sk.VP()
EXACT = TARGET.denoiser(VP)
GAUSSIAN = sk.GaussianMixture(None, [0.7], stds=0.5)
EM = samplers.EulerMaruyama()
CHURN = samplers.EDMHeun(churn=10.0)
LAWFUL = [s for s in samplers.ALL if has_exact_law(s, EXACT)]
PLANS = [s for s in LAWFUL if isinstance(s, samplers.PlanSampler)]


def network(activation=nn.SiLU, seed=0):
    """A small network with random weights, in float64, as a denoiser."""
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 16), activation(), nn.Linear(16, 1)).double()

        def forward(self, x, t):
            return self.body(torch.cat([x, t[:, None]], 1))

    return sk.NetworkDenoiser(Net(), VP)


def test_which_laws_are_computed():
    """All plans but the stochastic ones with a memory, and no program that is random or coupled."""
    without = {type(s).__name__ for s in samplers.ALL} - {type(s).__name__ for s in LAWFUL}
    assert without == {"NormCorrector", "SASolver", "ERSDE", "FlowODE", "TorchSDE"}
    assert not has_exact_law(samplers.DPMSolverPP(tau=1.0), EXACT)
    assert has_exact_law(samplers.FlowODE("rk4"), EXACT)


@pytest.mark.parametrize("process", [VP, sk.SubVP(), sk.VE(), sk.EDM(), sk.Interpolant()], ids=repr)
@pytest.mark.parametrize("sampler", PLANS, ids=repr)
def test_gaussian_data(sampler, process):
    """Mean and variance are those of the plan's Gaussian law to 1e-10 (relative, where they are large)."""
    exact = GAUSSIAN.denoiser(process)
    times = sampler.grid.times(process, 12, process.t_max, 1e-2 * process.horizon)
    law = sampler_density(exact, sampler, grid=times)
    if isinstance(sampler, samplers.PredictorCorrector | samplers.AnnealedLangevin) and law.alarms:
        pytest.skip("its Langevin steps are too short for the width of the law, and it says so")
    assert not law.alarms
    mean, variance = sampler.plan(process, times).gaussian_law(0.7, 0.25)
    scale = max(1.0, variance.item())
    assert abs(law.mean - mean.item()) < 1e-10 * math.sqrt(scale)
    assert abs(law.variance - variance.item()) < 1e-10 * scale
    assert law.nfe == sampler.plan(process, times).nfe
    assert law.t == times[-1]


def test_euler_maruyama_at_twenty_steps():
    """Figures of an independent prototype of the chain (dense kernel matrix), to its printed digits."""
    law = sampler_density(EXACT, EM, 20, t_end=1e-3)
    truth = TARGET.at(VP, law.t)
    found = [law.kl(truth), law.tv(truth), law.w1(truth), law.w2(truth)]
    assert [float(f"{v:.2g}") for v in found] == [0.011, 0.048, 0.037, 0.054]
    assert law.error < 1e-9


def test_orders_of_euler_maruyama():
    """KL falls as the square of the step, W2 as the step."""
    laws = [sampler_density(EXACT, EM, steps) for steps in (150, 300)]
    kl = [law.kl(TARGET.at(VP, law.t)) for law in laws]
    w2 = [law.w2(TARGET.at(VP, law.t)) for law in laws]
    assert abs(math.log2(kl[0] / kl[1]) - 2) < 0.02
    assert abs(math.log2(w2[0] / w2[1]) - 1) < 0.02


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(samplers.SigmaRungeKutta("heun"), 2), (samplers.DPMSolverPP(), 2), (samplers.DDIM(), 1)],
    ids=repr,
)
def test_orders_of_flows(sampler, order):
    """W2 of a deterministic sampler falls with its order; start="exact" leaves nothing else."""
    errors = []
    for steps in (64, 128):
        law = sampler_density(EXACT, sampler, steps, t_end=1e-2, start="exact", points=512)
        errors.append(law.w2(TARGET.at(VP, law.t)))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.15, errors


def test_a_flow_is_the_map_that_sample_runs():
    z = torch.linspace(-3, 3, 41, dtype=torch.float64)
    for sampler in (samplers.DPMSolverPP(), samplers.UniPC(), samplers.FlowODE("rk4")):
        law = sampler_density(EXACT, sampler, 10)
        x = sk.sample(EXACT, (41, 1), sampler=sampler, steps=10, x_init=z[:, None]).x[:, 0]
        ranks = sk.GaussianMixture(None, [0.0], stds=1.0).cdf(z)
        torch.testing.assert_close(law.quantile(ranks), x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("sampler", [EM, samplers.Ancestral(), CHURN, samplers.Restart()], ids=repr)
def test_samples_agree(sampler):
    """Moments and the distribution at nine points, each within 4.5 standard errors of a million draws."""
    n = 1_000_000
    law = sampler_density(EXACT, sampler, 8)
    x = sk.sample(EXACT, (n, 1), sampler=sampler, steps=8, seed=3, dtype=torch.float64).x[:, 0]
    points = torch.linspace(-2.2, 1.8, 9, dtype=torch.float64)
    share = (x[:, None] <= points).double().mean(0)
    expected = law.cdf(points)
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()
    assert abs(x.mean().item() - law.mean) < 4.5 * math.sqrt(law.variance / n)
    fourth = float((law.rho * law._h) @ (law.x - law.mean) ** 4)
    spread = math.sqrt((fourth - law.variance**2) / n)
    assert abs(x.var().item() - law.variance) < 4.5 * spread
    assert not law.alarms


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
@pytest.mark.parametrize(
    "sampler", [EM, samplers.Ancestral("beta"), samplers.DPMSolverPP()], ids=repr
)
def test_networks_have_laws(sampler, activation):
    """A random network: 200,000 samples within 4.5 standard errors, kinks of ReLU and all."""
    model, n = network(activation), 200_000
    law = sampler_density(model, sampler, 10)
    x = sk.sample(model, (n, 1), sampler=sampler, steps=10, seed=1, dtype=torch.float64).x[:, 0]
    points = torch.tensor([law.mean + c * math.sqrt(law.variance) for c in (-2, -1, 0, 1, 2)])
    expected = law.cdf(points)
    share = (x[:, None] <= points).double().mean(0)
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()


def test_float32_networks_pass():
    model = sk.NetworkDenoiser(sk.networks.MLP(dim=1), VP)
    law = sampler_density(model, EM, 5, points=512)
    assert abs(law.mass - 1) < 1e-8


def test_prior_mismatch_is_kept_by_the_flow_and_contracted_by_the_sde():
    """A flow is a bijection, so KL(prior || p_T) stays; noise forgets it."""
    target = sk.GaussianMixture([0.3, 0.7], [-2.0, 2.0], stds=1.0)
    exact, options = target.denoiser(VP), {"points": 512, "t_end": 1e-2}
    start = sampler_density(exact, samplers.DDIM(), grid=[1.0, 1 - 1e-9], points=1024)
    before = start.kl(target.at(VP, start.t))
    flow = sampler_density(exact, samplers.DPMSolver(order=3), 100, **options)
    assert before > 1e-6
    assert abs(flow.kl(target.at(VP, 1e-2)) / before - 1) < 1e-4
    prior, p_T = (sampler_density(exact, EM, 200, start=s, **options) for s in ("prior", "exact"))
    assert prior.tv(p_T) < 0.05 * start.tv(target.at(VP, 1.0))


def test_euler_maruyama_goes_to_the_reverse_fokker_planck_solution():
    """Three chains extrapolated to steps of no length (errors h and h^2 gone) against the equation."""
    steps, t_end = (100, 200, 400), 0.05
    edges = np.linspace(-7, 7, 801)
    start = sk.GaussianMixture(None, [0.0], stds=1.0)
    solution = solve_fokker_planck(sk.ReverseSDE(EXACT), start, edges, [t_end], tol=1e-10)
    chains = [sampler_density(EXACT, EM, n, t_end=t_end, points=512) for n in steps]
    below = [law.cdf(torch.from_numpy(edges)).numpy() for law in chains]
    limit = below[0] / 3 - 2 * below[1] + 8 / 3 * below[2]
    cells = np.diff(limit)
    error = np.abs(cells - solution.density[0] * np.diff(edges)).sum()
    alone = np.abs(np.diff(below[2]) - solution.density[0] * np.diff(edges)).sum()
    assert alone > 5e-3
    assert error < 1e-5


def test_final_steps_and_ends():
    """E[x_0 | x] at the end narrows the law; a grid down to 0 ends with it too."""
    law = sampler_density(EXACT, EM, 20, final="data")
    assert law.nfe == 21
    x = sk.sample(
        EXACT, (100_000, 1), sampler=EM, steps=20, final="data", seed=0, dtype=torch.float64
    ).x
    assert abs(x.mean().item() - law.mean) < 4.5 * math.sqrt(law.variance / 1e5)
    assert sampler_density(EXACT, samplers.DDIM(), 10, t_end=0).t == 0.0
    assert sampler_density(EXACT, samplers.Ancestral(), 10, final="mean").variance < law.variance


def test_start_in_the_middle_from_the_exact_law_or_any_other():
    times = [0.5, 0.4, 0.3]
    exact = sampler_density(EXACT, samplers.DDIM(), grid=times, start="exact")
    same = sampler_density(EXACT, samplers.DDIM(), grid=times, start=TARGET.at(VP, 0.5))
    assert abs(exact.mean - same.mean) < 1e-14
    assert exact.variance == same.variance


def test_conditions_reach_the_network():
    class Net(nn.Module):
        def forward(self, x, t, cond):
            return 0.1 * x + cond

    model = sk.NetworkDenoiser(Net().double(), VP, prediction="data")
    laws = [
        sampler_density(model, samplers.DDIM(), 5, cond=torch.tensor([[c]]), points=64)
        for c in (0.0, 1.0)
    ]
    assert laws[1].mean - laws[0].mean > 0.5


def test_too_few_points_raise_an_alarm():
    narrow = sk.GaussianMixture([0.5, 0.5], [-1.0, 1.0], stds=0.01)
    law = sampler_density(narrow.denoiser(VP), EM, 20, points=64)
    assert any("not resolved" in alarm for alarm in law.alarms)
    assert law.error > 1e-5


def test_a_fold_is_an_alarm():
    """Steps of high order that are far too long cross over between narrow modes."""
    narrow = sk.GaussianMixture([0.5, 0.5], [-1.0, 1.0], stds=0.05)
    law = sampler_density(narrow.denoiser(VP), samplers.ExponentialAB(order=4), 4, points=2048)
    assert law.folded
    assert "the map folds" in law.alarms
    assert law.w2(narrow.at(VP, law.t)) > 0


def test_a_folded_law_has_as_many_nodes_as_a_flow():
    """Its W2 against 200,000 samples, whose own W2 from the law is below 3e-3."""
    data, process = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], stds=[0.0, 0.4]), sk.SubVP()
    law = sampler_density(data.denoiser(process), CHURN, 7)
    assert law.folded
    assert len(law.nodes) == 4096
    x = sk.sample(
        data.denoiser(process), (200_000, 1), sampler=CHURN, steps=7, seed=7, dtype=torch.float64
    ).x
    truth = data.at(process, law.t)
    assert abs(law.w2(truth) - sk.metrics.wasserstein_1d(x, truth, p=2)) < 3e-3


def test_the_model_is_left_as_it_was():
    model = network()
    model.train()
    state = torch.random.get_rng_state()
    sampler_density(model, EM, 3, points=64)
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_nan_is_named():
    class Broken(nn.Module):
        def forward(self, x, t):
            return x / 0 * 0

    with pytest.raises(sk.NumericsError, match="call 1, t = 1"):
        sampler_density(sk.NetworkDenoiser(Broken(), VP), EM, 5, points=64)


ATOM = sk.GaussianMixture(None, [0.0], stds=0.0)

test_bad_input = bad_input(
    [
        ("memory", lambda: sampler_density(EXACT, samplers.DPMSolverPP(tau=1.0), 10), ValueError,
         ["DPMSolverPP", "more than its state across a noise"]),
        ("random program", lambda: sampler_density(EXACT, samplers.TorchSDE(), 10), ValueError,
         ["TorchSDE", "random and no plan"]),
        ("coupled", lambda: sampler_density(EXACT, samplers.FlowODE(), 10), ValueError,
         ["FlowODE", "whole batch"]),
        ("denoiser", lambda: sampler_density(TARGET, EM, 10), TypeError, ["denoiser"]),
        ("sampler", lambda: sampler_density(EXACT, "ddim", 10), TypeError, ["sampler", "ddim"]),
        ("in the plane", lambda: sampler_density(sk.data.ring().denoiser(VP), EM, 10), ValueError,
         ["denoiser", "on the line", "d = 2"]),
        ("steps", lambda: sampler_density(EXACT, EM, 0), ValueError, ["steps", "0"]),
        ("start", lambda: sampler_density(EXACT, EM, 10, start="p_T"), ValueError, ["start", "p_T"]),
        ("no data", lambda: sampler_density(network(), EM, 10, start="exact"), ValueError,
         ["start", "not known"]),
        ("plane", lambda: sampler_density(EXACT, EM, 10, start=sk.data.ring()), ValueError,
         ["start", "d = 2"]),
        ("atoms", lambda: sampler_density(EXACT, EM, 10, start=ATOM),
         ValueError, ["start", "density"]),
        ("middle", lambda: sampler_density(EXACT, EM, 10, t_start=0.5), ValueError, ["start", "0.5"]),
        ("points", lambda: sampler_density(EXACT, EM, 10, points=8), ValueError, ["points", "32", "8"]),
        ("cond", lambda: sampler_density(EXACT, EM, 10, cond=torch.zeros(2)), ValueError, ["cond", "(2,)"]),
    ]
)  # fmt: skip
