import math

import numpy as np
import pytest
import torch
from helpers import bad_input
from hypothesis import given, settings
from hypothesis import strategies as st

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.targets import two_mode
from sdekit.errors import NumericsError
from sdekit.pde import SchrodingerBridge1D, solve_fokker_planck
from sdekit.pde.sinkhorn import sinkhorn
from sdekit.processes import VE, VP, Heat, Interpolant, OrnsteinUhlenbeck, SubVP

NORMAL = GaussianMixture(None, [0.0], stds=1.0)


def gaussian(mean, std):
    return GaussianMixture(None, [mean], stds=std)


def brownian(noise, horizon=1.0):
    """dX = noise dW."""
    return OrnsteinUhlenbeck(theta=0.0, D=noise, horizon=horizon)


def transition(process, s, t):
    scale, std = process.transition(s, t)
    return scale, std**2


class GaussianBridge:
    """The bridge from N(m0, s0^2) to N(m1, s1^2) in closed form.

    Off the diagonal the inverse covariance of the ends is that of the reference, -m / v, so that
    m C^2 + v C = m s0^2 s1^2; given the ends, X_t is the pinned reference.
    """

    def __init__(self, m0, s0, m1, s1, process):
        self.ends, self.process = (m0, s0, m1, s1), process
        self.m, self.v = transition(process, 0.0, process.horizon)
        root = math.sqrt(self.v**2 + 4 * (self.m * s0 * s1) ** 2)
        self.C = 2 * self.m * (s0 * s1) ** 2 / (root + self.v)

    def at(self, t):
        """Mean and variance of X_t, and its covariance with X_T."""
        m0, s0, m1, s1 = self.ends
        (scale0, v0), (scale1, v1) = (
            transition(self.process, *pair) for pair in ((0.0, t), (t, self.process.horizon))
        )
        a, b, rest = scale0 * v1 / self.v, scale1 * v0 / self.v, v0 * v1 / self.v
        variance = (a * s0) ** 2 + (b * s1) ** 2 + 2 * a * b * self.C + rest
        return a * m0 + b * m1, variance, a * self.C + b * s1**2

    def drift(self, x, t):
        mean, variance, covariance = self.at(t)
        f, g2 = self.process.rates(t)
        scale, v = transition(self.process, t, self.process.horizon)
        end = self.ends[2] + covariance / variance * (x - mean)
        return f * x + g2 * scale * (end - scale * x) / v


REFERENCES = [
    brownian(2.0),
    brownian(0.5, horizon=3.0),
    Heat(0.3),
    VP(0.1, 2.0),
    VP(),
    SubVP(0.1, 2.0),
    VE(0.01, 1.0),
    OrnsteinUhlenbeck(theta=0.7, D=0.6, horizon=1.5),
]


@pytest.mark.parametrize("reference", REFERENCES, ids=repr)
def test_gaussian_bridge_in_closed_form(reference):
    exact = GaussianBridge(0.7, 0.5, -0.3, 1.5, reference)
    bridge = SchrodingerBridge1D(gaussian(0.7, 0.5), gaussian(-0.3, 1.5), reference)
    assert abs(bridge.covariance - exact.C) <= 1e-12
    assert bridge.marginal_error <= 1e-12
    assert bridge.aliasing <= 1e-11
    for part in (0.01, 0.1, 0.5, 0.9, 0.99):
        t = part * reference.horizon
        mean, variance, _ = exact.at(t)
        law = bridge.marginal(t)
        truth = np.exp(-((law.nodes - mean) ** 2) / (2 * variance)) / math.sqrt(
            2 * math.pi * variance
        )
        assert np.abs(law.rho - truth).sum() * (law.nodes[1] - law.nodes[0]) <= 5e-12
        assert abs(law.mean - mean) <= 5e-12
        assert abs(law.variance - variance) <= 5e-12
        x = mean + math.sqrt(variance) * torch.linspace(-4, 4, 9, dtype=torch.float64)
        drift = exact.drift(x, t)
        assert (bridge.drift(x, t) - drift).abs().max() <= 1e-11 * drift.abs().max()


def test_coupling_has_the_marginals_and_is_the_reference_tilted_by_products():
    reference, p1 = brownian(0.5), GaussianMixture([0.3, 0.7], [-1.0, 0.8], stds=[0.3, 0.5])
    bridge = SchrodingerBridge1D(two_mode(), p1, reference)
    h0, h1 = (float(x[1] - x[0]) for x in (bridge.x0, bridge.x1))
    joint = bridge.coupling()
    assert (joint.sum(1) * h1 - two_mode().log_prob(bridge.x0).exp()).abs().sum() * h0 <= 2e-12
    assert (joint.sum(0) * h0 - p1.log_prob(bridge.x1).exp()).abs().sum() * h1 <= 2e-12
    log_kernel = -((bridge.x1 - bridge.x0[:, None]) ** 2) / 0.5 - 0.5 * math.log(2 * math.pi * 0.25)
    log_phi0, log_phi1 = bridge.log_potentials
    tilted = torch.exp(log_phi0[:, None] + log_kernel + log_phi1)
    assert (tilted - joint).abs().max() <= 1e-12 * joint.max()


@given(
    st.floats(-1, 1),
    st.floats(0.3, 2),
    st.floats(-1, 1),
    st.floats(0.3, 2),
    st.sampled_from([brownian(0.6), Heat(0.5), VP(0.1, 3.0), SubVP(0.5, 2.0)]),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_covariance_of_the_ends_of_any_gaussian_bridge(m0, s0, m1, s1, reference):
    bridge = SchrodingerBridge1D(gaussian(m0, s0), gaussian(m1, s1), reference, points=200)
    exact = GaussianBridge(m0, s0, m1, s1, reference).C
    assert abs(bridge.covariance - exact) <= 1e-10 * s0 * s1


@pytest.mark.parametrize("noise", [1.0, 0.5, 0.2])
def test_a_sweep_shrinks_the_error_by_the_squared_correlation(noise):
    """By its fourth power between centred laws, whose errors are even: the second mode is the slowest."""
    r = GaussianBridge(0.0, 0.5, 0.0, 1.5, brownian(noise)).C / (0.5 * 1.5)
    moved = SchrodingerBridge1D(gaussian(0.7, 0.5), gaussian(-0.3, 1.5), brownian(noise))
    centred = SchrodingerBridge1D(gaussian(0.0, 0.5), gaussian(0.0, 1.5), brownian(noise))
    assert moved.rate == pytest.approx(r**2, rel=1e-4)
    assert centred.rate == pytest.approx(r**4, rel=1e-3)


def test_the_rate_of_mixtures_is_the_second_singular_value_of_the_coupling():
    bridge = SchrodingerBridge1D(two_mode(), gaussian(0.2, 1.0), brownian(0.7))
    joint = bridge.coupling()
    rows, columns = joint.sum(1, keepdim=True).sqrt(), joint.sum(0).sqrt()
    values = torch.linalg.svdvals(joint / (rows * columns))
    assert values[0] == pytest.approx(1.0, abs=1e-12)
    assert bridge.rate == pytest.approx(values[1].item() ** 2, rel=1e-4)


def test_the_product_of_the_ends_where_the_reference_forgets():
    """The interpolant has alpha(T) = 0: nothing of X_0 is left."""
    bridge = SchrodingerBridge1D(two_mode(), gaussian(0.2, 1.0), Interpolant())
    product = (
        two_mode().log_prob(bridge.x0).exp()[:, None] * gaussian(0.2, 1.0).log_prob(bridge.x1).exp()
    )
    assert (bridge.coupling() - product).abs().max() <= 1e-14
    assert bridge.sweeps <= 2


def test_small_noise_tends_to_the_optimal_transport_map():
    """E |X_T - T(X_0)| for the monotone map T falls as fast as the noise."""
    p0, p1 = two_mode(), GaussianMixture([0.4, 0.6], [-0.7, 0.9], stds=[0.5, 0.7])
    noises, away = (0.8, 0.4, 0.2, 0.1), []
    for noise in noises:
        bridge = SchrodingerBridge1D(p0, p1, brownian(noise), points=600, tol=1e-9)
        joint, x, y = bridge.coupling(), bridge.x0, bridge.x1
        target = p1.quantile(p0.cdf(x).clamp(1e-16, 1 - 1e-16))
        h = (x[1] - x[0]) * (y[1] - y[0])
        away.append(float((joint * (y - target[:, None]).abs()).sum() * h))
    slopes = np.diff(np.log(away)) / np.diff(np.log(noises))
    assert (np.diff(slopes) > 0).all()  # towards 1 from below: much noise forgets the map
    assert 0.9 <= slopes[-1] <= 1.02


def test_gaussian_distance_from_the_map_in_closed_form():
    """X_T - T(X_0) is Gaussian with variance 2 s1 (s0 s1 - C) / s0; |.| has a kink, so second order in h."""
    s0, s1, noise = 0.5, 1.5, 0.2
    C = GaussianBridge(0.0, s0, 0.0, s1, brownian(noise)).C
    exact = math.sqrt(2 / math.pi * 2 * s1 * (s0 * s1 - C) / s0)
    bridge = SchrodingerBridge1D(gaussian(0.0, s0), gaussian(0.0, s1), brownian(noise), points=800)
    x, y = bridge.x0, bridge.x1
    distance = (bridge.coupling() * (y - s1 / s0 * x[:, None]).abs()).sum()
    found = float(distance * (x[1] - x[0]) * (y[1] - y[0]))
    assert found == pytest.approx(exact, rel=2e-3)


def test_marginals_and_drift_fulfil_the_fokker_planck_equation():
    """d_t p = -(b p)_x + (g^2 / 2) p_xx: in x by Fourier series, in t by differences of order 4."""
    reference, t, k = VP(0.1, 2.0), 0.4, 1e-3
    bridge = SchrodingerBridge1D(two_mode(), NORMAL, reference)
    law = bridge.marginal(t)
    x, p = torch.from_numpy(law.nodes), torch.from_numpy(law.rho)
    wave = 2j * math.pi * torch.fft.fftfreq(len(x), float(x[1] - x[0]), dtype=torch.float64)
    flux = bridge.drift(x, t) * p
    diffusion = reference.rates(t)[1] / 2
    in_space = torch.fft.ifft(
        torch.fft.fft(p) * diffusion * wave**2 - torch.fft.fft(flux) * wave
    ).real
    before2, before, after, after2 = (bridge.marginal(t + j * k).pdf(x) for j in (-2, -1, 1, 2))
    in_time = (before2 - 8 * before + 8 * after - after2) / (12 * k)
    assert (in_time - in_space).abs().max() <= 1e-8 * in_time.abs().max()


def test_its_sde_carries_p0_to_p1():
    """Euler-Maruyama with the bridge's drift: mean and variance of p1 in 4 standard errors and O(dt)."""
    p1 = GaussianMixture([0.5, 0.5], [-1.2, 1.2], stds=0.4)
    bridge = SchrodingerBridge1D(two_mode(), p1, brownian(0.8), points=200)
    n, steps = 4_000, 100
    x = two_mode().sample(n, seed=1)[:, 0]
    generator = torch.Generator().manual_seed(2)
    for i in range(steps):
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        x = x + bridge.drift(x, i / steps) / steps + 0.8 * math.sqrt(1 / steps) * z
    mean, square = x.mean().item(), x.square().mean().item()
    assert abs(mean) <= 4 * x.std().item() / math.sqrt(n) + 1 / steps
    assert abs(square - 1.6) <= 4 * x.square().std().item() / math.sqrt(n) + 4 / steps


def test_the_reference_itself_is_the_bridge_to_its_own_law():
    """From p0 to the law the reference carries it to, nothing is to be done: the drift is f x."""
    reference = VP(0.1, 2.0)
    bridge = SchrodingerBridge1D(two_mode(), two_mode().at(reference, 1.0), reference)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    assert (bridge.drift(x, 0.3) - reference.drift(x, 0.3)).abs().max() <= 1e-11
    edges = np.linspace(-8, 8, 801)
    solution = solve_fokker_planck(reference, two_mode(), edges, [0.3])
    cdf = bridge.marginal(0.3).cdf(torch.from_numpy(edges)).numpy()
    assert np.abs(np.diff(cdf) - solution.density[0] * np.diff(edges)).sum() <= 5e-7


def test_sampled_ends_and_paths_follow_the_exact_law():
    """Means, covariances and the distribution at three times, in 4 standard errors."""
    p1 = GaussianMixture([0.5, 0.5], [-1.2, 1.2], stds=0.4)
    bridge = SchrodingerBridge1D(two_mode(), p1, brownian(0.5), points=200)
    n, times = 20_000, [0.0, 0.3, 0.8, 1.0]
    paths = bridge.sample(n, times=times, seed=3)
    assert paths.shape == (n, 4)
    product = (paths[:, 0] - paths[:, 0].mean()) * (paths[:, 3] - paths[:, 3].mean())
    assert abs(product.mean() - bridge.covariance) <= 4 * product.std() / math.sqrt(n)
    for i, t in enumerate(times):
        # Kolmogorov's distance of n points is below 2.23 / sqrt(n) with probability 1 - 1e-4 (4 se).
        u = bridge.marginal(t).cdf(paths[:, i]).sort().values
        ranks = torch.arange(1, n + 1, dtype=torch.float64) / n
        assert (u - ranks).abs().max() <= 2.23 / math.sqrt(n)
    ends = bridge.sample(50, seed=3)
    assert torch.equal(ends, bridge.sample(50, seed=3))
    assert ends.shape == (50, 2)


def test_the_law_of_the_end_is_not_smeared_by_the_points():
    """A hat around each point would add h^2 / 6 to the variance of X_T given X_0: here 12 % of it."""
    s, noise, points = 1.0, 0.12, 165
    bridge = SchrodingerBridge1D(
        gaussian(0.0, s), gaussian(0.0, s), brownian(noise), points=points, tol=1e-9
    )
    h = float(bridge.x1[1] - bridge.x1[0])
    C = GaussianBridge(0.0, s, 0.0, s, brownian(noise)).C
    variance = s**2 - C**2 / s**2
    n = 40_000
    x, y = bridge.sample(n, seed=4).T
    found = (y - C / s**2 * x).square()
    assert abs(found.mean() - variance) <= 4 * found.std() / math.sqrt(n)
    assert h**2 / 6 > 0.1 * variance > 4 * found.std() / math.sqrt(n)


def test_potentials_survive_kernels_that_underflow():
    """Costs of thousands of nats: the factors of a plain iteration would be 0 / 0."""
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)
    log_kernel = -((x[:, None] - 3 * x) ** 2) / 5e-3
    assert (log_kernel.exp().sum(0) == 0).any()
    masses = torch.full((60,), -math.log(60.0), dtype=torch.float64)
    found = sinkhorn(log_kernel, masses, masses, 1e-10, 20_000)
    coupling = torch.exp(found.f[:, None] + log_kernel + found.g)
    assert (coupling.sum(0) - 1 / 60).abs().sum() <= 2e-10
    assert (coupling.sum(1) - 1 / 60).abs().sum() <= 1e-11
    assert len(found.errors) < 20_000


def test_more_points_change_nothing():
    reference, p1 = brownian(0.3), GaussianMixture(None, [-1.0, 1.0], stds=0.15)
    coarse, fine = (SchrodingerBridge1D(two_mode(), p1, reference, points=n) for n in (400, 800))
    assert coarse.covariance == pytest.approx(fine.covariance, abs=1e-12)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert (coarse.drift(x, 0.5) - fine.drift(x, 0.5)).abs().max() <= 1e-9


def test_a_bridge_starts_from_any_law_with_quantiles():
    law = SchrodingerBridge1D(two_mode(), NORMAL, brownian(1.0)).marginal(0.5)
    bridge = SchrodingerBridge1D(law, NORMAL, brownian(1.0))
    assert bridge.marginal_error <= 1e-12


def test_shapes_dtypes_and_names():
    bridge = SchrodingerBridge1D(two_mode(), NORMAL, VP(0.1, 2.0), points=100)
    x = torch.zeros(3, 1)
    assert bridge.drift(x, 0.5).shape == (3, 1)
    assert bridge.drift(x, 0.5).dtype == torch.float32
    assert bridge.sample(0, seed=0).shape == (0, 2)
    assert repr(bridge).startswith("SchrodingerBridge1D(100 points, ")


def test_the_bar_counts_sweeps(capsys):
    bridge = SchrodingerBridge1D(two_mode(), NORMAL, brownian(1.0), points=100, progress=True)
    assert f"{bridge.sweeps}sweep" in capsys.readouterr().err


def of(**changes):
    arguments = {"p0": NORMAL, "p1": NORMAL, "reference": brownian(1.0), "points": 64} | changes
    return lambda: SchrodingerBridge1D(**arguments)


def bridge():
    return SchrodingerBridge1D(NORMAL, NORMAL, brownian(1.0), points=64)


test_bad_input = bad_input(
    [
        (
            "drift of an array",
            lambda: of()().drift(np.zeros(3), 0.5),
            TypeError,
            ["x must be a torch.Tensor", "ndarray"],
        ),
        ("law", of(p0=3.0), TypeError, ["p0", "log_prob and quantile", "float"]),
        ("plane", of(p1=GaussianMixture(None, [[0.0, 0.0]], stds=1.0)), TypeError, ["p1", "d = 2"]),
        ("atom", of(p1=gaussian(0.0, 0.0)), ValueError, ["p1", "standard deviation 0"]),
        ("process", of(reference=VP), TypeError, ["reference", "ABCMeta"]),
        ("points", of(points=8), ValueError, ["points", "16"]),
        ("points bool", of(points=True), TypeError, ["points"]),
        ("tol", of(tol=0.0), ValueError, ["tol"]),
        ("sweeps", of(max_sweeps=0), ValueError, ["max_sweeps"]),
        ("progress", of(progress=1), TypeError, ["progress"]),
        (
            "narrow law",
            of(p0=GaussianMixture(None, [-9.0, 9.0], stds=0.1)),
            ValueError,
            ["at least", "p0"],
        ),
        (
            "narrow noise",
            of(reference=brownian(0.1)),
            ValueError,
            ["at least 198", "OrnsteinUhl", "64"],
        ),
        ("too few sweeps", of(max_sweeps=3), NumericsError, ["max_sweeps=3", "tol=1e-12", "each"]),
        ("time", lambda: bridge().marginal(2.0), ValueError, ["t must", "[0, 1]"]),
        (
            "time close to an end",
            lambda: bridge().marginal(1e-12),
            ValueError,
            ["t must be an end", "1e-12"],
        ),
        (
            "end of the drift",
            lambda: bridge().drift(torch.zeros(1), 1.0),
            ValueError,
            ["t must", "[0, 1)"],
        ),
        ("drift of floats", lambda: bridge().drift(0.0, 0.5), TypeError, ["x must"]),
        (
            "times",
            lambda: bridge().sample(3, times=[0.5, 0.5]),
            ValueError,
            ["times must increase"],
        ),
        (
            "time outside",
            lambda: bridge().sample(3, times=[0.5, 1.5]),
            ValueError,
            ["times", "1.5"],
        ),
        ("n", lambda: bridge().sample(-1), ValueError, ["n must"]),
    ]
)


def test_the_number_of_points_in_the_message_is_enough():
    with pytest.raises(ValueError, match="at least") as caught:
        of(reference=brownian(0.2), p0=gaussian(0.0, 2.0))()
    points = int(str(caught.value).split("at least ")[1].split()[0])
    found = of(reference=brownian(0.2), p0=gaussian(0.0, 2.0), points=points, tol=1e-6)()
    assert abs(found.covariance - GaussianBridge(0, 2.0, 0, 1.0, brownian(0.2)).C) <= 1e-5


def test_a_bridge_that_squeezes_mass_between_the_points_is_refused():
    """The noise spans the points, but where the map is steep one end fixes the other too closely."""
    p1 = GaussianMixture(None, [-1.0, 1.0], stds=0.05)
    with pytest.raises(ValueError, match=r"points must resolve the bridge: 80 .* try points=160"):
        SchrodingerBridge1D(gaussian(0.0, 0.3), p1, brownian(0.06), points=80, tol=1e-6)
