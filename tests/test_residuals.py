import math
from dataclasses import dataclass

import pytest
import torch
from helpers import bad_input, normal
from torch import nn

from sdekit.data.mixtures import GaussianMixture
from sdekit.data.targets import ring, two_mode
from sdekit.denoisers import Denoiser, EDMPrecondition, NetworkDenoiser
from sdekit.elementary import cos, sin
from sdekit.networks import MLP
from sdekit.pde import ScoreResidual, curl_ratio, score_fpe_residual, tweedie_check
from sdekit.processes import ALL, EDM, VE, VP, Process, SubVP

PARTS = (0.02, 0.1, 0.3, 0.6, 0.9)


def mixture(d, components=3, seed=0):
    """A mixture with full covariances."""
    generator = torch.Generator().manual_seed(seed)
    kind = {"generator": generator, "dtype": torch.float64}
    roots = torch.randn(components, d, d, **kind)
    covariances = 0.15 / d * roots @ roots.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    means = torch.randn(components, d, **kind)
    return GaussianMixture([0.2, 0.3, 0.5], means, covariances=covariances)


def states(target, process, t, n=64):
    return process.perturb(target.sample(n, seed=1), t, normal(n, target.dim, seed=2))


@dataclass
class Field(Denoiser):
    """Any field s(x, t), t (n, 1, ...), handed out as a score."""

    function: object
    process: object = VP()
    prediction = "score"

    def predict(self, x, t, **conditions):
        return self.function(x, t.view(-1, *[1] * (x.ndim - 1)))


def network(d, hidden=16, seed=0, time_scale=1.0, **keywords):
    """A float64 network with weights of order one, so that it fulfils nothing."""
    torch.manual_seed(seed)
    net = MLP(d, hidden=hidden, depth=2, time_scale=time_scale).double()
    nn.init.normal_(net.out.weight, std=0.3)
    return NetworkDenoiser(net, VP(), **keywords)


# ---------------------------------------------------------------------------- exact scores


@pytest.mark.parametrize("d", [1, 2, 8])
@pytest.mark.parametrize("process", ALL, ids=repr)
def test_exact_scores_leave_nothing(process, d):
    target = mixture(d)
    denoiser = target.denoiser(process)
    for t in (process.t_min, *(part * process.horizon for part in PARTS)):
        found = score_fpe_residual(denoiser, states(target, process, t), t)
        assert found.residual.abs().max() <= 1e-11 * found.time_derivative.abs().max()
        assert found.relative <= 1e-11


def test_times_of_a_table_have_a_derivative_too():
    """At i / N the chain's position is rounded to i; a rounded number has derivative 0."""
    process = VP.from_betas(torch.linspace(1e-3, 0.1, 100))
    for t in (0.3, 0.305, 0.57):
        found = score_fpe_residual(two_mode().denoiser(process), normal(20, 1), t)
        assert found.time_derivative.abs().max() > 0.1
        assert found.relative <= 1e-12


@pytest.mark.parametrize("process", ALL, ids=repr)
def test_exact_score_is_that_of_the_diffused_mixture_at_every_time(process):
    """Also at t_min, where reading it off the data would leave few digits."""
    target = mixture(2)
    for t in (process.t_min, 0.3 * process.horizon, process.t_max):
        x = states(target, process, t)
        exact, denoiser = target.at(process, t).score(x), target.denoiser(process)
        for time in (t, torch.full((64,), t, dtype=torch.float64)):
            assert (denoiser.score(x, time) - exact).abs().max() <= 1e-13 * exact.abs().max()


def test_time_derivative_of_a_gaussian_score():
    """s = -(x - alpha m) / v with v = alpha^2 c + sigma^2, by the product rule."""
    process, t, m, c = VP(), 0.3, 0.7, 0.25
    x = normal(10, 1)
    found = score_fpe_residual(
        GaussianMixture(None, [m], stds=math.sqrt(c)).denoiser(process), x, t
    )
    beta, alpha = 0.1 + 19.9 * t, process.alpha(t)
    v, dv = 1 + alpha**2 * (c - 1), -beta * alpha**2 * (c - 1)
    exact = -beta / 2 * alpha * m / v + (x - alpha * m) * dv / v**2
    assert (found.time_derivative - exact).abs().max() <= 1e-13


# ---------------------------------------------------------------------------- fields that are no score

MATRIX = torch.tensor([[-1.0, 2.0, 0.0], [0.5, -0.3, 1.0], [0.2, 0.0, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM()], ids=repr)
def test_residual_of_a_linear_field(process):
    """s = A x does not move, so r = -(g^2 A^T A - f (A + A^T)) x."""
    x, t = normal(20, 3), 0.3 * process.horizon
    f, g2 = process.rates(t)
    found = score_fpe_residual(Field(lambda y, _: y @ MATRIX.T, process), x, t)
    exact = -x @ (g2 * MATRIX.T @ MATRIX - f * (MATRIX + MATRIX.T))
    assert (found.residual - exact).abs().max() <= 1e-12 * exact.abs().max()
    assert (found.squared_norm - exact.square().sum(1)).abs().max() <= 1e-11 * exact.square().max()
    assert not found.time_derivative.any()


def test_residual_of_a_nonlinear_field_at_many_times():
    """s = t sin x has r = sin x - (g^2 / 2) (t^2 sin 2x - t sin x) + f t (sin x + x cos x)."""
    x, t = normal(20, 1), torch.linspace(0.1, 0.9, 20, dtype=torch.float64)
    u = t[:, None]
    beta = 0.1 + 19.9 * u
    found = score_fpe_residual(Field(lambda y, v: v * y.sin()), x, t)
    exact = x.sin() - beta / 2 * (u**2 * (2 * x).sin() - u * x.sin())
    exact -= beta / 2 * u * (x.sin() + x * x.cos())
    assert (found.residual - exact).abs().max() <= 1e-12 * exact.abs().max()
    ratio = found.squared_norm.sum() / found.time_derivative.square().sum()
    assert found.relative == pytest.approx(math.sqrt(ratio), rel=1e-14)


def test_a_wrong_sign_of_the_drift_shows():
    class Flipped(VP):
        def _rates(self, t):
            f, g2 = super()._rates(t)
            return -f, g2

    target = mixture(2)
    x = states(target, VP(), 0.3)
    assert score_fpe_residual(target.denoiser(Flipped()), x, 0.3).relative > 1


def test_a_perturbed_score_shows():
    target, process = two_mode(), VP()
    exact, x = target.denoiser(process), states(two_mode(), VP(), 0.3)
    bent = Field(lambda y, t: exact.score(y, t.flatten()) + 0.01 * (3 * y).sin())
    assert score_fpe_residual(bent, x, 0.3).relative > 1e-2


def test_network_against_nested_derivatives_of_single_samples():
    model, t = network(2), 0.4
    x = normal(5, 2)
    f, g2 = model.process.rates(t)

    def score(y, time):
        return model.score(y[None], time.expand(1))[0]

    for point, residual in zip(x, score_fpe_residual(model, x, t).residual, strict=True):
        y = point.clone().requires_grad_()
        time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        s = score(y, time)
        rows = [torch.autograd.grad(s[i], y, create_graph=True)[0] for i in range(2)]
        bracket = g2 / 2 * (rows[0][0] + rows[1][1] + s @ s) - f * (y @ s)
        moved = torch.stack(
            [torch.autograd.grad(s[i], time, retain_graph=True)[0] for i in range(2)]
        )
        exact = moved - torch.autograd.grad(bracket, y)[0]
        assert (residual - exact).abs().max() <= 1e-11 * exact.abs().max()


@pytest.mark.parametrize("clock", ["unit", "log_snr", "sigma"])
@pytest.mark.parametrize("prediction", ["noise", "data", "score", "v", "velocity"])
def test_every_reading_and_clock_of_a_network_is_differentiated(clock, prediction):
    """d_t s against a central difference."""
    model = network(4, time_scale=0.05, time=clock, prediction=prediction)
    x, h = normal(6, 4), 1e-5
    found = score_fpe_residual(model, x, 0.4).time_derivative
    difference = (model.score(x, 0.4 + h) - model.score(x, 0.4 - h)) / (2 * h)
    assert (found - difference).abs().max() <= 1e-6 * difference.abs().max()


def test_preconditioned_networks_too():
    torch.manual_seed(0)
    model, x, h = EDMPrecondition(MLP(2, hidden=8, depth=1).double()), normal(6, 2), 1e-5
    found = score_fpe_residual(model, x, 1.5).time_derivative
    difference = (model.score(x, 1.5 + h) - model.score(x, 1.5 - h)) / (2 * h)
    assert (found - difference).abs().max() <= 1e-6 * difference.abs().max()


def test_gradients_reach_the_parameters():
    """As a penalty: a directional derivative of the mean square against a central difference."""
    model, x = network(2, hidden=8), normal(6, 2)
    weight = model.network.out.weight
    direction = normal(*weight.shape, seed=5)

    def penalty():
        return score_fpe_residual(model, x, 0.4).squared_norm.mean()

    slope = (torch.autograd.grad(penalty(), weight)[0] * direction).sum().item()
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight += step * direction
            values.append(penalty().item())
        assert not penalty().requires_grad
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-7)


# ---------------------------------------------------------------------------- probes


def test_probes_are_unbiased_and_a_square_is_not():
    """8,000 copies of a sample with probes of their own, in 4 standard errors.

    The square of the mean of the two estimates keeps half of their variance.
    """
    model, x = network(6), normal(1, 6)
    with torch.no_grad():
        exact = score_fpe_residual(model, x, 0.4, trace="exact")
        found = score_fpe_residual(model, x.expand(8000, 6), 0.4, trace="probes")
    for name in ("residual", "squared_norm"):
        values = getattr(found, name)
        se = values.std(0) / math.sqrt(8000)
        assert ((values.mean(0) - getattr(exact, name)[0]).abs() <= 4 * se).all()
    squares = found.residual.square().sum(1)
    assert squares.mean() - exact.squared_norm[0] > 4 * squares.std() / math.sqrt(8000)


def test_probes_are_exact_on_the_line_and_repeat():
    model, x = network(1), normal(9, 1)
    exact, probed = (
        score_fpe_residual(model, x, 0.4, trace=trace) for trace in ("exact", "probes")
    )
    assert (exact.residual - probed.residual).abs().max() <= 1e-12 * exact.residual.abs().max()
    wide = normal(3, 65)
    first, again, other = (
        score_fpe_residual(network(65), wide, 0.4, seed=s).residual for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_auto_is_exact_up_to_64_coordinates():
    model, x = network(64, hidden=8), normal(2, 64)
    auto, exact = (score_fpe_residual(model, x, 0.4, trace=trace) for trace in ("auto", "exact"))
    assert torch.equal(auto.residual, exact.residual)


def test_blocks_do_not_show():
    """20 samples of 8 x 8 coordinates are worked on in two blocks."""
    model, x = network(64, hidden=8), normal(20, 8, 8)
    whole = score_fpe_residual(model, x, 0.4)
    alone = score_fpe_residual(model, x[17:18], 0.4)
    assert whole.residual.shape == (20, 8, 8)
    assert (
        whole.residual[17] - alone.residual[0]
    ).abs().max() <= 1e-12 * alone.residual.abs().max()


def test_shapes_and_dtypes():
    target = mixture(4)
    denoiser, x = target.denoiser(VP()), states(mixture(4), VP(), 0.3)
    flat, shaped = (score_fpe_residual(denoiser, y, 0.3) for y in (x, x.view(-1, 2, 2)))
    assert torch.equal(shaped.time_derivative.flatten(1), flat.time_derivative)
    assert shaped.squared_norm.shape == (64,)
    line = score_fpe_residual(two_mode().denoiser(VP()), normal(5), torch.tensor(0.3))
    assert line.residual.shape == (5,)
    assert score_fpe_residual(denoiser, x.float(), 0.3).residual.dtype == torch.float32
    assert repr(ScoreResidual(x, x.square().sum(1), x)) == "ScoreResidual(64 samples, relative=1)"


# ---------------------------------------------------------------------------- curl


def test_curl_of_linear_fields():
    x = normal(7, 3)
    turning = MATRIX - MATRIX.T
    for matrix, ratio in (
        (MATRIX, turning.square().sum() / (4 * MATRIX.square().sum())),
        (MATRIX + MATRIX.T, 0.0),
        (turning, 1.0),
    ):
        field = Field(lambda y, _, a=matrix: y @ a.T)
        assert curl_ratio(field, x, 0.4) == pytest.approx(float(ratio), abs=1e-14)


def test_curl_of_probes_is_that_of_the_matrix_on_average():
    """4,000 samples of two probes; numerator and denominator in 4 standard errors of a ratio near 0.3."""
    x = normal(4000, 3)
    exact = curl_ratio(Field(lambda y, _: y @ MATRIX.T), x, 0.4)
    found = [
        curl_ratio(Field(lambda y, _: y @ MATRIX.T), x, 0.4, trace="probes", seed=i)
        for i in range(8)
    ]
    mean = torch.tensor(found).double()
    assert abs(mean.mean() - exact) <= 4 * mean.std() / math.sqrt(8)
    assert mean.std() > 0


def test_exact_scores_have_no_curl_and_networks_do():
    target = ring()
    x = states(target, VP(), 0.3)
    assert curl_ratio(target.denoiser(VP()), x, 0.3) <= 1e-28
    assert 1e-4 < curl_ratio(network(2), x, 0.3) < 1
    assert math.isnan(curl_ratio(Field(lambda y, _: 0 * y), x, 0.3))


# ---------------------------------------------------------------------------- Tweedie


@pytest.mark.parametrize("process", ALL, ids=repr)
def test_covariance_of_an_exact_mixture_is_its_posteriors(process):
    target = mixture(3)
    for t in (process.t_min, *(part * process.horizon for part in PARTS)):
        x = states(target, process, t)
        found = tweedie_check(target.denoiser(process), x, t)
        exact = target.posterior(process, x, t).covariance
        assert (found.covariance - exact).abs().max() <= 1e-12 * exact.abs().max()
        assert found.asymmetry.max() <= 1e-12
        assert found.negative == 0
        assert (found.smallest > 0).all()


def test_covariance_of_a_linear_field_in_closed_form():
    """s = A x stands for (sigma / alpha)^2 (I + sigma^2 A)."""
    process, t, x = VP(), 0.4, normal(5, 3)
    alpha, sigma = process.alpha(t), process.sigma(t)
    found = tweedie_check(Field(lambda y, _: y @ MATRIX.T), x, t)
    eye = torch.eye(3, dtype=torch.float64)
    exact = (sigma / alpha) ** 2 * (eye + sigma**2 * MATRIX)
    assert (found.covariance - exact).abs().max() <= 1e-12
    skew = (exact - exact.T).norm() / (2 * exact.norm())
    assert (found.asymmetry - skew).abs().max() <= 1e-13
    eigenvalues = torch.linalg.eigvalsh((exact + exact.T) / 2)
    assert (found.eigenvalues - eigenvalues).abs().max() <= 1e-12
    assert found.negative == float(eigenvalues[0] < 0)


def test_a_score_that_contracts_too_much_has_a_negative_covariance():
    x, process, t = normal(6, 2), VP(), 0.4
    slope = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)[:, None] / process.sigma(t) ** 2
    found = tweedie_check(Field(lambda y, _: -slope * y if len(y) == 6 else y), x, t)
    assert found.negative == pytest.approx(4 / 6)
    assert repr(found).startswith("TweedieCheck(6 samples, smallest eigenvalue -")


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_processes_of_two_curves_alone_are_differentiated(prediction):
    """The rates come from automatic differentiation, and a velocity is read through them: d_t of d_t."""

    class Curves(Process):
        def _alpha(self, t):
            return cos(t)

        def _sigma(self, t):
            return sin(t)

    model, x, h = network(2, time_scale=0.05, prediction=prediction), normal(6, 2), 1e-5
    model.process = Curves()
    found = score_fpe_residual(model, x, 0.4).time_derivative
    difference = (model.score(x, 0.4 + h) - model.score(x, 0.4 - h)) / (2 * h)
    assert (found - difference).abs().max() <= 1e-6 * difference.abs().max()
    exact = score_fpe_residual(mixture(2).denoiser(Curves()), x, 0.4)
    assert exact.relative <= 1e-12


class Detached(Denoiser):
    process, prediction = VP(), "noise"

    def predict(self, x, t, **conditions):
        return 2 * x.detach()


EXACT, X = two_mode().denoiser(VP()), normal(4, 1)
LABELS = NetworkDenoiser(MLP(1), VP(), time="label", labels=10)

test_bad_input = bad_input(
    [
        (
            "labels",
            lambda: score_fpe_residual(LABELS, X, 0.5),
            ValueError,
            ['time="label"', "derivative"],
        ),
        (
            "denoiser",
            lambda: score_fpe_residual(two_mode(), X, 0.5),
            TypeError,
            ["denoiser", "GaussianM"],
        ),
        (
            "trace",
            lambda: score_fpe_residual(EXACT, X, 0.5, trace="probe"),
            ValueError,
            ["trace", "probes"],
        ),
        ("seed", lambda: score_fpe_residual(EXACT, X, 0.5, seed=-1), ValueError, ["seed"]),
        ("time", lambda: score_fpe_residual(EXACT, X, 0.0), ValueError, ["t must", "1e-05"]),
        ("bool", lambda: score_fpe_residual(EXACT, X, True), TypeError, ["t must", "True"]),
        (
            "times",
            lambda: curl_ratio(EXACT, X, torch.full((3,), 0.5)),
            ValueError,
            ["t must", "(4,)", "(3,)"],
        ),
        ("x", lambda: curl_ratio(EXACT, [[1.0]], 0.5), TypeError, ["x must", "list"]),
        ("nan", lambda: tweedie_check(EXACT, X * math.nan, 0.5), ValueError, ["x has 4 NaN"]),
        (
            "scalar",
            lambda: tweedie_check(EXACT, torch.tensor(1.0), 0.5),
            ValueError,
            ["x must", "n >= 1"],
        ),
        (
            "detached",
            lambda: score_fpe_residual(Detached(), X, 0.5),
            ValueError,
            ["differentiably on x"],
        ),
        (
            "detached curl",
            lambda: curl_ratio(Detached(), X, 0.5),
            ValueError,
            ["differentiably on x"],
        ),
        (
            "detached covariance",
            lambda: tweedie_check(Detached(), X, 0.5),
            ValueError,
            ["differentiably"],
        ),
        ("empty", lambda: tweedie_check(EXACT, X[:0], 0.5), ValueError, ["x must", "(0, 1)"]),
    ]
)
