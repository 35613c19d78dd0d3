"""Nets that compute exact answers, declared, fed, scaled and left wrongly: each fault is named, and no other.

Every network here but one is an exact denoiser behind the interface of a network: what is wrong is known.
"""

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit import Diagnosis, GaussianMixture, NetworkDenoiser, diagnose
from sdekit.data import two_mode
from sdekit.diagnosis.probe import make_probe
from sdekit.diagnosis.readings import read
from sdekit.diagnosis.scale import implied, prior_mismatch
from sdekit.diagnosis_picture import diagnosis_picture
from sdekit.plotting import save
from sdekit.training.losses import reading
from tests.helpers import BadRow, bad_input

TOY = two_mode()
SAMPLES = TOY.sample(5_000, seed=1)
#: Draws that are enough where the law is known, and where it is not.
FEW, MANY = 288, 4_608
KINDS = ("data", "noise", "score", "v", "velocity")
PROCESSES = (sk.VP(), sk.SubVP(), sk.EDM(), sk.Interpolant())
CHAIN = sk.VP.from_betas(torch.linspace(1e-4, 0.2, 100, dtype=torch.float64))
#: How a network that was made for a convention finds the time in it.
CLOCKS = {
    "unit": lambda process, clock: clock * process.horizon,
    "reversed unit": lambda process, clock: (1 - clock) * process.horizon,
    "log_snr": lambda process, clock: _at(process, clock),
    "sigma": lambda process, clock: _at(process, -2 * clock.clamp(min=1e-9).log()),
    "label of 1000": lambda process, clock: (clock + 1) / 1000 * process.horizon,
    "label of 100 plus one": lambda process, clock: clock / 100 * process.horizon,
    "label of 100 minus one": lambda process, clock: (clock + 2) / 100 * process.horizon,
    "reversed label of 100": lambda process, clock: (100 - clock) / 100 * process.horizon,
}


def _at(process, log_snr):
    low, high = (float(process.log_snr(t)) for t in (process.t_max, process.t_min))
    return process.time_at_log_snr(log_snr.clamp(low, high))


class Exact(nn.Module):
    """The exact answer of a kind, from a clock of one's own; `before` and `after` tamper with it."""

    def __init__(self, process, kind="noise", clock="unit", *, target=TOY, before=None, after=None):
        super().__init__()
        self.exact, self.kind, self.clock = target.denoiser(process), kind, CLOCKS[clock]
        self.before, self.after = before or nn.Identity(), after

    def forward(self, x, t):
        process = self.exact.process
        s = self.clock(process, t.double()).clamp(process.t_min, process.t_max)
        out = reading(self.exact, self.kind, self.before(x), s)
        return out if self.after is None else self.after(out, t[:, None])


def model(
    process=PROCESSES[0], kind="noise", *, declared=None, time="unit", labels=None, **tampered
):
    network = Exact(process, kind, **tampered)
    return NetworkDenoiser(network, process, declared or kind, time=time, labels=labels)


def checks(found):
    return [f.check for f in found.findings]


# ---- healthy models ----------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_model_has_nothing_wrong(process, kind):
    found = diagnose(model(process, kind), SAMPLES)
    assert found.findings == ()
    assert found.healthy
    assert found.verdict.startswith("Nothing wrong found.")


@pytest.mark.parametrize("process", [*PROCESSES, sk.VE(), sk.OrnsteinUhlenbeck(), CHAIN], ids=repr)
def test_exact_denoisers_have_nothing_wrong(process):
    assert diagnose(TOY.denoiser(process), TOY, n=FEW).findings == ()
    for seed in (1, 2, 3):
        few = TOY.sample(1_000, seed=seed)
        assert diagnose(TOY.denoiser(process), few, n=FEW, seed=seed).findings == ()


def test_a_healthy_chain_has_nothing_wrong():
    network = Exact(CHAIN, clock="label of 100 plus one", before=None)
    shifted = NetworkDenoiser(_Shift(network, 1), CHAIN, time="label")
    for data in (TOY, SAMPLES):
        assert diagnose(shifted, data).findings == ()


class _Shift(nn.Module):
    """A network told its time with a number added."""

    def __init__(self, network, by):
        super().__init__()
        self.network, self.by = network, by

    def forward(self, x, t):
        return self.network(x, t + self.by)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    fresh = NetworkDenoiser(sk.networks.MLP(1, 64, 2), sk.VP(), "v")
    return sk.train(fresh, TOY, steps=300, batch=128, lr=3e-3, progress=False).model


def test_a_trained_network_has_nothing_wrong(trained):
    for data in (TOY, SAMPLES):
        assert diagnose(trained, data).findings == ()


def test_a_trained_network_declared_wrongly_is_named(trained):
    for data in (TOY, SAMPLES):
        found = diagnose(NetworkDenoiser(trained.network, sk.VP(), "noise"), data)
        assert checks(found)[0] == "prediction"
        assert "predicts 'v'" in found.findings[0].text


# ---- declared wrongly --------------------------------------------------------------------------


WRONG = [(kind, declared) for kind in KINDS for declared in KINDS if kind != declared]


@pytest.mark.parametrize(
    ("process", "kind", "declared"),
    [(PROCESSES[0], *pair) for pair in WRONG]
    + [(p, *pair) for p in PROCESSES[1:] for pair in WRONG[::5]],
)
def test_the_kind_that_the_network_predicts_is_named(process, kind, declared):
    alike = (
        {"noise", "velocity"} if isinstance(process, sk.EDM) else set()
    )  # there dx/dt is the noise
    found = diagnose(model(process, kind, declared=declared), TOY, n=FEW)
    if {declared, kind} <= alike:
        assert found.healthy
        return
    assert checks(found) == ["prediction"]
    named = found.findings[0].text.split("'")[1]
    assert named == kind or {named, kind} <= alike


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("declared", ["data", "score"])
@pytest.mark.parametrize("kind", ["noise", "v"])
def test_the_kind_is_named_from_samples_alone(process, declared, kind):
    found = diagnose(model(process, kind, declared=declared), SAMPLES)
    assert checks(found) == ["prediction"]
    assert f"predicts {kind!r}" in found.findings[0].text


@pytest.mark.parametrize(
    ("process", "time"),
    [
        (sk.VP(), "unit"),
        (sk.VP(), "sigma"),
        (sk.Interpolant(), "unit"),
    ],
)
@pytest.mark.parametrize("made_for", ["unit", "reversed unit", "log_snr", "sigma", "label of 1000"])
def test_the_time_that_the_network_expects_is_named(process, time, made_for):
    found = diagnose(model(process, time=time, clock=made_for), TOY, n=FEW)
    if time == made_for:
        assert found.healthy
        return
    assert checks(found) == ["time"]
    words = {
        "unit": "t / T",
        "reversed unit": "1 - t / T",
        "log_snr": "the log-SNR",
        "sigma": "sigma",
    }
    assert f"expects {words.get(made_for, 'the label of 1000')}" in found.findings[0].text


@pytest.mark.parametrize("made_for", ["reversed unit", "log_snr", "sigma", "label of 1000"])
def test_the_time_is_named_from_samples_alone(made_for):
    found = diagnose(model(clock=made_for), SAMPLES)
    assert checks(found) == ["time"]


@pytest.mark.parametrize("made_for", ["label of 100 plus one", "label of 100 minus one",
                                      "reversed label of 100", "label of 1000", "unit"])  # fmt: skip
def test_what_is_wrong_with_a_label_is_named(made_for):
    """Off by one costs 1e-4 of excess at N = 100, which exact laws show and the loss of samples does not."""
    found = diagnose(model(CHAIN, clock=made_for, time="label"), TOY)
    assert checks(found) == ["time"]
    assert f"expects the {made_for}" in found.findings[0].text or made_for == "unit"


def test_a_network_of_the_wrong_table_size_refuses_and_says_so():
    """An embedding of 100 labels has no label 100 .. 999, and no fractions."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Exact(CHAIN, clock="label of 100 plus one")
            self.register_buffer("labels", torch.arange(100))

        def forward(self, x, t):
            return self.net(x, self.labels[t] + 1)

    found = diagnose(NetworkDenoiser(Table(), CHAIN, time="label"), TOY)
    assert found.healthy
    refused = [r["case"] for r in found.rows if "refused" in r["case"] and r["check"] == "time"]
    assert {"unit, refused", "log_snr, refused", "label of 1000, refused"} <= set(refused)


def test_two_things_wrong_at_once_are_both_named():
    found = diagnose(model(kind="v", declared="data", clock="label of 1000"), TOY)
    assert checks(found) == ["prediction", "time"]
    assert "2 things are wrong" in found.verdict


def test_remedies_cure():
    wrong = model(kind="v", declared="score", clock="label of 1000")
    texts = " ".join(f.text for f in diagnose(wrong, SAMPLES).findings)
    assert "prediction='v'" in texts
    assert 'time="label", labels=1000' in texts
    cured = NetworkDenoiser(wrong.network, wrong.process, "v", time="label", labels=1000)
    assert diagnose(cured, SAMPLES).healthy


def test_the_losses_are_those_of_an_independent_computation():
    """Of a model of v read as noise: mean square of (x - sigma v) / alpha - x_0, in units of Var x_t."""
    process = sk.VP()
    found = diagnose(model(process, "v", declared="noise"), TOY)
    probe = make_probe(model(process, "v"), TOY, None, 4_608, 0)
    for j, t in enumerate(probe.times):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0, noise, _ = probe.rows(j)
        x = alpha * x0 + sigma * noise
        exact = TOY.denoiser(process)
        v = alpha * exact.noise(x, t) - sigma * exact.data(x, t)
        value = (((x - sigma * v) / alpha - x0).square().mean() * alpha**2).item()  # Var x_t is 1
        told = [r for r in found.rows if r["check"] == "prediction" and r["t"] == t]
        assert next(r["value"] for r in told if "noise" in r["case"]) == pytest.approx(
            value, rel=1e-9
        )
        least = (exact.data(x, t) - x0).square().mean().item() * alpha**2
        assert next(r["against"] for r in told) == pytest.approx(least, rel=1e-9)


def test_the_linear_bound_is_the_least_loss_of_a_gaussian():
    """Least mean square error of x_0 given x_t of N(m, C), against the trace formula of its posterior."""
    covariance = torch.tensor([[0.5, 0.3], [0.3, 1.2]], dtype=torch.float64)
    law = GaussianMixture(None, [[0.4, -0.2]], covariances=covariance[None])
    process = sk.SubVP()
    probe = make_probe(law.denoiser(process), law, None, 288, 0)
    for t in (0.1, 0.4, 0.9):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = torch.zeros(1, 2, dtype=torch.float64)
        left = law.posterior(process, x, t).covariance[0].trace().item() / 2
        power = alpha**2 * covariance.trace().item() / 2 + sigma**2
        assert probe.linear(t) == pytest.approx(alpha**2 * left / power, rel=1e-10)


# ---- trained badly -----------------------------------------------------------------------------


def test_a_network_that_was_never_trained_is_told():
    for kind in ("noise", "v"):
        found = diagnose(NetworkDenoiser(sk.networks.MLP(1, 16, 1), sk.VP(), kind), TOY, n=FEW)
        assert checks(found) == ["loss"]
        assert "untrained" in found.findings[0].text


def test_a_high_loss_is_told_with_its_noise_level():
    bad = model(after=lambda out, t: torch.where((t > 0.2) & (t < 0.5), 0.5 * out, out))
    for data in (TOY, SAMPLES):
        found = diagnose(bad, data)
        assert checks(found) == ["loss"]
        assert "The loss is too high: near t = 0." in found.findings[0].text


def test_the_loss_rows_are_those_of_excess_by_level():
    shifted = model(after=lambda out, t: out + 0.01)
    rows = [r for r in diagnose(shifted, TOY, n=900).rows if r["check"] == "loss"]
    table = sk.training.excess_by_level(shifted, TOY, levels=9, n=900).rows
    assert [r["value"] for r in rows] == [r["loss"] for r in table]
    assert all(r["value"] - r["against"] == pytest.approx(1e-4, rel=1e-6) for r in rows)


# ---- ends of the times -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "check", "word"),
    [
        (lambda out, t: out + torch.where(t < 6e-6, math.nan, 0.0), "outside", "NaN"),
        (lambda out, t: out + torch.where(t > 1, math.inf, 0.0), "outside", "NaN or infinity"),
        (lambda out, t: out + torch.where(t > 1, 100.0, 0.0), "outside", "blows up to 1"),
        (lambda out, t: torch.where(t > 1, -out, out), "outside", "jumps"),
        (lambda out, t: out + torch.where(t > 0.999, math.nan, 0.0), "finite", "at t = 1"),
    ],
    ids=["nan below", "infinite above", "blow-up above", "jump above", "nan at t_max"],
)  # fmt: skip
def test_trouble_at_the_ends_is_named(after, check, word):
    found = diagnose(model(after=after), TOY)
    assert check in checks(found)
    assert word in found.findings[0].text


# ---- modes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "word"),
    [(nn.Dropout(0.1), "dropout"), (nn.BatchNorm1d(1, affine=False, dtype=torch.float64), "batch norm")],
)  # fmt: skip
def test_train_mode_is_named_and_eval_mode_cures_it(layer, word):
    left = model(before=layer)
    found = diagnose(left, TOY)
    assert checks(found) == ["mode"]
    assert word in found.findings[0].text
    assert "Call model.eval()" in found.findings[0].text
    assert diagnose(left.eval(), TOY).healthy


def test_a_network_random_by_itself_is_named():
    found = diagnose(model(after=lambda out, t: out + 0.05 * torch.randn_like(out)), TOY)
    assert checks(found) == ["mode"]
    assert "Even in eval mode" in found.findings[0].text


def test_the_model_is_left_as_it_was():
    batch_norm, dropout = nn.BatchNorm1d(1, dtype=torch.float64), nn.Dropout(0.3).eval()
    left = model(before=nn.Sequential(batch_norm, dropout))
    left.train()
    dropout.eval()
    buffers = {k: v.clone() for k, v in left.state_dict().items()}
    attributes, state = set(vars(left)), torch.get_rng_state()
    diagnose(left, TOY)
    assert batch_norm.training
    assert left.training
    assert not dropout.training
    assert all(torch.equal(v, buffers[k]) for k, v in left.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert set(vars(left)) == attributes
    assert all(p.requires_grad and p.grad is None for p in left.parameters())
    assert torch.is_grad_enabled()


# ---- scale -------------------------------------------------------------------------------------


def moved(scale, shift):
    return GaussianMixture([0.3, 0.7], [scale * m + shift for m in (-1.4, 0.6)], 0.4 * scale)


@pytest.mark.parametrize("kind", ["noise", "data", "v"])
@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0, 10.0])
def test_data_of_another_scale_are_named(kind, scale):
    law = moved(scale, 0.0)
    for process, data in ((sk.VP(), law), (sk.EDM(), law.sample(5_000, seed=1))):
        found = diagnose(model(process, kind), data)
        assert checks(found)[0] == "scale", found.verdict
        assert "disagree on the scale" in found.findings[0].text


def test_data_of_another_mean_are_named():
    found = diagnose(model(), moved(1.0, 1.0))
    assert checks(found) == ["scale"]
    assert "disagree on the mean" in found.findings[0].text


def test_bytes_and_unit_intervals_are_named():
    levels = ((SAMPLES + 3) / 6 * 255).round().clamp(0, 255)
    found = diagnose(model(), levels.to(torch.uint8))
    assert set(checks(found)) == {"scale"}
    assert "like bytes" in found.verdict
    assert "Sampling starts from N(0, 1^2)" in found.verdict
    assert "The data lie in [0, 1]" in diagnose(model(), levels / 255).verdict


def test_sigma_data_of_another_scale_is_worth_a_note():
    class Wide(sk.EDMPrecondition):
        def predict(self, x, t, **conditions):
            return TOY.denoiser(self.process).predict(x, t)

    found = diagnose(Wide(nn.Linear(1, 1), sigma_data=5.0), TOY)
    assert checks(found) == ["scale"]
    assert "sigma_data is 5" in found.findings[0].text


def test_the_models_scale_is_that_of_its_law():
    """The slope of E[x_0 | x_t] on x_t gives the variance of any law; 4 standard errors are 6 % here."""
    for scale in (0.5, 1.0, 3.0):
        law = moved(scale, 0.5)
        probe = make_probe(model(target=law), law, None, 4_608, 0)
        mean, std = implied(probe, read(probe).declared)
        assert std == pytest.approx(scale, rel=0.06)
        assert float(mean) == pytest.approx(0.5, abs=0.06 * scale)


@pytest.mark.parametrize("scale", [0.2, 3.0, 30.0, 255.0])
def test_a_trained_network_shown_data_of_another_scale_is_told_so(blobs, scale):
    """What it makes of such data is arbitrary, so its own scale is read from noise alone."""
    data, good = blobs
    assert diagnose(good, data).healthy
    first = diagnose(good, scale * data).findings[0]
    assert first.text.startswith("Model and data disagree on the scale")


@pytest.fixture(scope="module")
def blobs():
    """Two blobs on the plane, and a small network of them."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (4_000, 1), generator=generator) * 2.0 - 1
    data = 0.2 * torch.randn(4_000, 2, generator=generator) + signs * torch.tensor([1.0, 0.5])
    data = data / data.std(0)
    torch.manual_seed(0)
    network = sk.NetworkDenoiser(sk.networks.MLP(2, 64, 2), sk.VP(), "v")
    result = sk.train(network, data, steps=300, batch=128, lr=3e-3, progress=False)
    return data, result.model


def test_the_prior_mismatch_is_the_divergence_of_the_normals():
    process = sk.VP(0.1, 2.0)
    law = GaussianMixture(None, [0.7], 0.5)
    alpha, sigma = process.alpha(1.0), process.sigma(1.0)
    normal = torch.distributions.Normal
    end = normal(torch.tensor(0.7 * alpha), torch.tensor(alpha**2 * 0.25 + sigma**2).sqrt())
    exact = torch.distributions.kl_divergence(end, normal(0.0, 1.0)).item()
    found = prior_mismatch(make_probe(law.denoiser(process), law, None, 288, 0))
    assert found == pytest.approx(exact, rel=1e-5)


# ---- what comes back ---------------------------------------------------------------------------


def test_findings_are_sorted_and_rows_are_records(tmp_path):
    wrong = model(declared="data", before=nn.Dropout(0.1))
    found = diagnose(wrong, TOY)
    gravity = [f.gravity for f in found.findings]
    assert gravity == sorted(gravity, reverse=True)
    assert checks(found) == ["prediction", "mode"]
    found.to_csv(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        read_back = list(csv.DictReader(file))
    assert len(read_back) == len(found.rows)
    assert {r["check"] for r in read_back} == {
        "prediction",
        "time",
        "outside",
        "mode",
        "scale",
        "loss",
    }
    assert found.verdict in str(found)
    assert found.verdict in found.markdown()
    assert "noise (declared)" not in str(found)
    assert "data (declared)" in str(found)
    assert repr(found) == "Diagnosis(2 findings, 4608 draws)"


def test_the_same_seed_gives_the_same_diagnosis():
    first, second = (diagnose(TOY.denoiser(sk.VP()), SAMPLES, seed=3) for _ in range(2))
    assert str(first) == str(second)
    assert str(diagnose(TOY.denoiser(sk.VP()), SAMPLES, seed=4)) != str(first)


def test_images_and_conditions():
    """Events of any shape, with one condition a sample; the network is right given its condition."""

    class Given(nn.Module):
        def forward(self, x, t, cond):
            s = t.clamp(1e-5, 1).double()
            law = GaussianMixture(None, torch.zeros(1, 12), 1.0)
            centre = (cond.double() * 2 - 1).view(-1, 1, 1, 1)
            process = sk.Interpolant()
            alpha = process.alpha(s).view(-1, 1, 1, 1)
            flat = (x - alpha * centre).double().flatten(1)
            x0 = centre + law.denoiser(process).data(flat, s).view(x.shape)
            return (x0).to(x)

    cond = torch.arange(600) % 2
    x0 = torch.randn(600, 3, 2, 2, generator=torch.Generator().manual_seed(0)) + (
        cond * 2.0 - 1
    ).view(-1, 1, 1, 1)
    right = NetworkDenoiser(Given(), sk.Interpolant(), "data")
    assert diagnose(right, x0, cond=cond).healthy
    wrong = NetworkDenoiser(Given(), sk.Interpolant(), "noise")
    assert checks(diagnose(wrong, x0, cond=cond)) == ["prediction"]


def test_endless_data_are_as_good_as_samples():
    class Endless:
        def sample(self, n, *, generator):
            return TOY.sample(n, generator=generator)

    found = diagnose(model(kind="v", declared="data"), Endless())
    assert checks(found) == ["prediction"]
    assert not found.exact


def test_the_picture_shows_every_reading(tmp_path):
    found = diagnose(model(kind="v", declared="noise"), SAMPLES)
    figure = diagnosis_picture(found, title="a model of v, declared as noise")
    kinds, times, loss = figure.axes
    assert len(kinds.lines) == 6
    rows = [r for r in found.rows if r["check"] == "time"]
    assert [label.get_text() for label in times.get_yticklabels()] == [r["case"] for r in rows][
        ::-1
    ]
    assert len(loss.lines) == 2
    path = save(figure, tmp_path / "picture.png")
    assert Path(path).stat().st_size > 10_000
    with pytest.raises(TypeError, match="found must be a Diagnosis, got dict"):
        diagnosis_picture({})


def test_a_diagnosis_is_a_frozen_record():
    found = diagnose(TOY.denoiser(sk.VP()), TOY, n=144)
    assert isinstance(found, Diagnosis)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.n = 3


NAN = torch.full((9, 1), math.nan)
BAD: list[BadRow] = [
    ("no model", lambda: diagnose(nn.Linear(1, 1), TOY), TypeError, ["model", "Linear"]),
    ("no data", lambda: diagnose(model(), 3), TypeError, ["data", "int"]),
    ("NaN", lambda: diagnose(model(), NAN), ValueError, ["data", "9 NaN"]),
    ("one sample", lambda: diagnose(model(), NAN[:1]), ValueError, ["data", "two samples", "(1, 1)"]),
    ("complex", lambda: diagnose(model(), SAMPLES + 0j), TypeError, ["data", "complex128"]),
    ("few draws", lambda: diagnose(model(), TOY, n=100), ValueError, ["n", "144", "100"]),
    ("bool", lambda: diagnose(model(), TOY, n=True), TypeError, ["n", "True"]),
    ("seed", lambda: diagnose(model(), TOY, seed=-1), ValueError, ["seed", "-1"]),
    ("cond of a law", lambda: diagnose(model(), TOY, cond=NAN), ValueError, ["cond", "endless"]),
    ("cond too short", lambda: diagnose(model(), SAMPLES, cond=NAN), ValueError, ["cond", "5000", "(9, 1)"]),
]  # fmt: skip
test_bad_input_is_refused = bad_input(BAD)
