# Bad input is passed on purpose.
# pyright: reportArgumentType=false
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers import bad_input, normal
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import sdekit as sk
from sdekit import (
    EDM,
    VE,
    VP,
    EDMPrecondition,
    GaussianMixture,
    Heat,
    Interpolant,
    NetworkDenoiser,
    Process,
    SubVP,
    networks,
    processes,
)
from sdekit.denoisers import Denoiser, Prediction, Time, conversion, target_weights
from sdekit.elementary import Number
from sdekit.errors import CheckpointError
from sdekit.schedules import Cosine
from sdekit.storage import save_tensors
from sdekit.testing import strategies as sts

KINDS: tuple[str, ...] = get_args(Prediction)
READINGS = ("data", "noise", "score", "velocity")
DRAWN = sts.processes().flatmap(lambda p: st.tuples(st.just(p), sts.times(p)))


def exact_target(process: Process, kind: str, t: float, x0: Tensor, noise: Tensor) -> Tensor:
    """The target from its definition."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    slopes = process.slopes(t)
    return {
        "data": x0,
        "noise": noise,
        "score": -noise / sigma,
        "v": alpha * noise - sigma * x0,
        "velocity": slopes[0] * x0 + slopes[1] * noise,
    }[kind]


class Known(Denoiser):
    """Knows the clean points and the noise, and tells them as one kind of prediction."""

    def __init__(self, process: Process, prediction: str, x0: Tensor, eps: Tensor) -> None:
        self.process, self.prediction, self.x0, self.eps = process, prediction, x0, eps

    def predict(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        times = t.tolist() if isinstance(t, Tensor) and t.ndim else [float(t)] * len(x)
        rows = zip(times, self.x0, self.eps, strict=True)
        return torch.stack([exact_target(self.process, self.prediction, *row) for row in rows])


# ---- conversions -----------------------------------------------------------------------------------


@given(DRAWN)
def test_every_kind_gives_every_other(drawn: tuple[Process, float]) -> None:
    process, t = drawn
    assume(abs(process.log_snr(t)) <= 12)
    x0, noise = normal(2, 5)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = alpha * x0 + sigma * noise
    worst = max(alpha / sigma, sigma / alpha)
    for given_kind, wanted in itertools.product(KINDS, KINDS):
        a, b = conversion(process, given_kind, wanted, t)
        known = exact_target(process, given_kind, t, x0, noise)
        want = exact_target(process, wanted, t, x0, noise)
        size = sum(abs(w) for w in target_weights(process, wanted, t)) + 1
        assert torch.allclose(a * x + b * known, want, rtol=0, atol=1e-12 * worst * size)
        back_a, back_b = conversion(process, wanted, given_kind, t)
        again = back_a * x + back_b * (a * x + b * known)
        size = sum(abs(w) for w in target_weights(process, given_kind, t)) + 1
        assert torch.allclose(again, known, rtol=0, atol=1e-12 * worst * size)


@given(DRAWN, sts.event_shapes())
def test_four_readings_of_one_model(drawn: tuple[Process, float], event: tuple[int, ...]) -> None:
    process, t = drawn
    assume(abs(process.log_snr(t)) <= 12)
    x0, noise = normal(2, 3, *event)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = process.perturb(x0, t, noise)
    worst = 1e-12 * max(alpha / sigma, sigma / alpha)
    times = torch.full((3,), t, dtype=torch.float64)
    for kind in KINDS:
        model = Known(process, kind, x0, noise)
        data, eps = model.data(x, t), model.noise(x, t)
        assert torch.allclose(data, x0, rtol=0, atol=worst)
        assert torch.allclose(eps, noise, rtol=0, atol=worst)
        assert torch.allclose(
            alpha * data + sigma * eps, x, rtol=1e-13, atol=worst * min(alpha, sigma)
        )
        for name in READINGS:
            want = exact_target(process, name, t, x0, noise)
            size = sum(abs(w) for w in target_weights(process, name, t)) + 1
            reading = getattr(model, name)
            assert torch.allclose(reading(x, t), want, rtol=0, atol=worst * size)
            assert torch.allclose(reading(x, times), reading(x, t), rtol=1e-14, atol=worst * size)


@pytest.mark.parametrize("kind", KINDS)
def test_readings_follow_the_order_of_the_batch(toy2: GaussianMixture, kind: str) -> None:
    process, times = VP(), torch.linspace(0.1, 1, 6, dtype=torch.float64)
    x0, noise = normal(2, 6, 2)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    x = process.perturb(x0, times, noise)
    model = Known(process, kind, x0, noise)
    for name in READINGS:
        whole = getattr(model, name)(x, times)
        shuffled = Known(process, kind, x0[order], noise[order])
        assert torch.equal(getattr(shuffled, name)(x[order], times[order]), whole[order])
        part = Known(process, kind, x0[1:3], noise[1:3])
        assert torch.equal(getattr(part, name)(x[1:3], times[1:3]), whole[1:3])
        exact = toy2.denoiser(process)
        whole = getattr(exact, name)(x, times)
        assert torch.allclose(
            getattr(exact, name)(x[order], times[order]), whole[order], rtol=1e-14
        )


@pytest.mark.parametrize("process", processes.ALL, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_in_float32_out(process: Process, kind: str) -> None:
    t = 0.5 * process.t_max
    x0, noise = normal(2, 4, 3)
    x = process.perturb(x0, t, noise)
    wide, narrow = Known(process, kind, x0, noise), Known(process, kind, x0.float(), noise.float())
    worst = max(process.alpha(t) / process.sigma(t), process.sigma(t) / process.alpha(t))
    for name in READINGS:
        got = getattr(narrow, name)(x.float(), t)
        assert got.dtype == torch.float32
        size = sum(abs(w) for w in target_weights(process, name, t)) + 1
        want = getattr(wide, name)(x, t)
        assert torch.allclose(got.double(), want, rtol=0, atol=4e-6 * worst * size)
        clock = torch.full((4,), t, dtype=torch.float64)
        assert getattr(narrow, name)(x.float(), clock).dtype == torch.float32


def test_at_zero_signal_v_gives_the_data_and_noise_does_not() -> None:
    for process in (VP(schedule=Cosine()), Interpolant(), SubVP(schedule=Cosine())):
        x, x0 = normal(2, 3, 2)
        assert torch.equal(Known(process, "v", x0, x).data(x, 1.0), x0)
        assert conversion(process, "v", "data", 1.0) == (0.0, -1.0)
        assert torch.equal(Known(process, "data", x0, x).noise(x, 1.0), x)
        for kind in ("noise", "score"):
            with pytest.raises(ValueError, match=r"t = 1.0 \(alpha = 0, .*'data'; use a data or v"):
                Known(process, kind, x0, x).data(x, 1.0)
    flow = Known(Interpolant(), "velocity", x0, x)
    assert torch.allclose(flow.data(x, 1.0), x0, rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match=r"t = 1.0 \(alpha = 0"):
        Known(VP(schedule=Cosine()), "v", x0, x).velocity(x, 1.0)


@pytest.mark.parametrize("kind", ["data", "v"])
def test_at_zero_noise_the_score_is_not_determined(kind: str) -> None:
    with pytest.raises(ValueError, match=r"t = 0.0 \(alpha = 1, sigma = 0\).*'score'"):
        conversion(VP(), kind, "score", 0.0)
    with pytest.raises(ValueError, match=r"sigma = 0\).*'score' does not determine 'noise'"):
        conversion(VP(), "score", "noise", 0.0)
    with pytest.raises(ValueError, match=re.escape("[1e-05, 1]")):
        Known(VP(), kind, *normal(2, 3, 2)).score(normal(3, 2), 0.0)


# ---- networks --------------------------------------------------------------------------------------


class Net(nn.Module):
    """Remembers what it was called with; the output depends on the sample alone."""

    def __init__(self, dtype: torch.dtype = torch.float32, shared: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3], dtype=dtype))
        self.broadcasts_time = shared
        self.calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        self.calls.append((x, t, conditions))
        return torch.tanh(self.weight * x)


CLOCKS: dict[str, Any] = {
    "unit": lambda p, t: t / p.horizon,
    "label": lambda p, t: round(1000 * t / p.horizon) - 1,
    "log_snr": lambda p, t: p.log_snr(t),
    "sigma": lambda p, t: p.sigma(t) / p.alpha(t),
}


def test_every_time_convention_is_known() -> None:
    assert set(CLOCKS) == set(get_args(Time))


@pytest.mark.parametrize("process", processes.ALL, ids=repr)
@pytest.mark.parametrize("time", CLOCKS)
@pytest.mark.parametrize("kind", KINDS)
def test_network_is_called_with_its_time_and_read_as_its_kind(
    process: Process, time: str, kind: str
) -> None:
    x = normal(4, 3)
    net = Net()
    model = NetworkDenoiser(net, process, kind, time=time, labels=1000)
    shares = torch.tensor([0.2, 0.35, 0.5, 0.8], dtype=torch.float64)
    times = process.t_max * shares
    got = model.data(x, times, cond=x)
    seen, clock, conditions = net.calls.pop()
    assert seen.dtype == torch.float32
    assert conditions["cond"] is x
    want = torch.tensor([CLOCKS[time](process, t) for t in times.tolist()])
    assert clock.dtype == (torch.int64 if time == "label" else torch.float32)
    assert torch.allclose(clock.float(), want.float(), rtol=1e-6)
    assert got.dtype == torch.float64
    out = torch.tanh(0.3 * x.float()).double()
    for i, t in enumerate(times.tolist()):
        a, b = conversion(process, kind, "data", t)
        assert torch.allclose(got[i], a * x[i] + b * out[i], rtol=1e-6, atol=1e-6 * abs(b))
        assert torch.allclose(model.data(x, t)[i], got[i], rtol=1e-6, atol=1e-6 * abs(b))
        _, clock, _ = net.calls.pop()
        assert clock.shape == (4,)
        assert torch.allclose(clock.float(), want[i].float().expand(4), rtol=1e-6)
    assert torch.equal(model(x, 0.5 * process.t_max), model.predict(x, 0.5 * process.t_max))


def test_a_network_that_shares_its_time_gets_one() -> None:
    net, x = Net(shared=True), normal(4, 3).float()
    for model in (NetworkDenoiser(net, VP()), EDMPrecondition(net)):
        model.data(x, 0.5)
        assert net.calls.pop()[1].shape == (1,)
        model.data(x, torch.full((4,), 0.5))
        assert net.calls.pop()[1].shape == (4,)


def test_labels_come_from_the_table() -> None:
    process, net = VP.from_betas([0.1, 0.2, 0.3]), Net()
    model = NetworkDenoiser(net, process, time="label")
    assert model.labels == 3
    for i in range(3):
        model.noise(normal(2, 1), (i + 1) / 3)
        assert net.calls.pop()[1].tolist() == [i, i]
    for t in (0.01, torch.tensor([0.01, 0.1])):  # nearer to the data than to the first step
        model.noise(normal(2, 1), t)
        assert net.calls.pop()[1].tolist() == [0, 0]


@pytest.mark.parametrize("rho", [0.002, 0.5, 80.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_preconditioning_is_the_published_one(rho: float, sigma_data: float) -> None:
    net = Net(torch.float64)
    model, x = EDMPrecondition(net, sigma_data=sigma_data), rho * normal(4, 3)
    total = rho**2 + sigma_data**2
    c_skip, c_in = sigma_data**2 / total, 1 / math.sqrt(total)
    c_out = rho * sigma_data / math.sqrt(total)
    want = c_skip * x + c_out * torch.tanh(0.3 * c_in * x)
    assert torch.allclose(model.data(x, rho), want, rtol=1e-13)
    seen, clock, _ = net.calls.pop()
    assert torch.allclose(seen, c_in * x, rtol=1e-14)
    assert clock.tolist() == pytest.approx([math.log(rho) / 4] * 4, rel=1e-14)
    times = torch.full((4,), rho, dtype=torch.float64)
    assert torch.allclose(model(x, times), want, rtol=1e-13)


def test_preconditioning_of_unit_data_on_the_circle_is_minus_v() -> None:
    process, net, x = VP(), Net(torch.float64), normal(4, 3)

    class Negative(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return -net(x, t)

    for t in (1e-4, 0.3, 1.0):
        one = EDMPrecondition(net, process).data(x, t)
        two = NetworkDenoiser(Negative(), process, "v").data(x, t)
        assert torch.allclose(one, two, rtol=1e-13, atol=1e-14)


def test_preconditioning_scales_with_alpha() -> None:
    """At signal alpha it is the model of y = x / alpha at noise rho = sigma / alpha."""
    process, net, x = Interpolant(), Net(torch.float64), normal(4, 3)
    rho = 0.3 / 0.7
    want = EDMPrecondition(net, sigma_data=0.5).data(x / 0.7, rho)
    assert torch.allclose(EDMPrecondition(net, process, 0.5).data(x, 0.3), want, rtol=1e-13)


@pytest.mark.parametrize("time", CLOCKS)
def test_a_float64_network_gets_its_time_in_full(time: str) -> None:
    net, process, t = Net(torch.float64), VP(), 0.3
    NetworkDenoiser(net, process, time=time, labels=1000).noise(normal(2, 1), t)
    assert net.calls.pop()[1].tolist() == [CLOCKS[time](process, t)] * 2


def test_networks_of_another_dtype_are_called_in_their_own() -> None:
    x = normal(4, 3)
    for model in (NetworkDenoiser(Net(), EDM(), "data"), EDMPrecondition(Net())):
        for name in READINGS:
            assert getattr(model, name)(x, 1.0).dtype == torch.float64
    wide = NetworkDenoiser(Net(torch.float64), EDM(), "data")
    assert wide.data(x.float(), 1.0).dtype == torch.float32


# ---- files -----------------------------------------------------------------------------------------


def trained(process: Process, kind: str = "noise", **options: Any) -> NetworkDenoiser:
    """A small network with weights that are not at their start."""
    net = networks.MLP(dim=3, hidden=8, depth=2)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 3)
    return NetworkDenoiser(net, process, kind, **options)


@pytest.mark.parametrize("process", processes.ALL, ids=repr)
def test_a_saved_model_is_the_same_model(tmp_path: Path, process: Process) -> None:
    x, t = normal(4, 3).float(), 0.4 * process.t_max
    for kind, time in zip(KINDS, (*CLOCKS, "unit"), strict=True):
        model = trained(process, kind, time=time, labels=50)
        model.save(tmp_path / "m.safetensors")
        loaded = NetworkDenoiser.load(tmp_path / "m.safetensors")
        assert (loaded.process, loaded.prediction, loaded.time, loaded.labels) == (
            process,
            kind,
            time,
            50,
        )
        for name in READINGS:
            assert torch.equal(getattr(loaded, name)(x, t), getattr(model, name)(x, t))


def test_a_float64_model_stays_one(tmp_path: Path) -> None:
    model, x = trained(VP()).double(), normal(4, 3)
    model.save(tmp_path / "m")
    assert torch.equal(NetworkDenoiser.load(tmp_path / "m").noise(x, 0.5), model.noise(x, 0.5))


@dataclass(frozen=True)
class Own(Process):
    """A process that sdekit cannot know."""

    def _alpha(self, t: Number) -> Number:
        return 1.0 + 0 * t

    def _sigma(self, t: Number) -> Number:
        return 3 * t


def test_your_own_classes_are_given_as_instances(tmp_path: Path) -> None:
    model, path, x = NetworkDenoiser(Net(), Own(), "data"), tmp_path / "m", normal(4, 3)
    with torch.no_grad():
        next(model.network.parameters()).fill_(0.8)
    model.save(path)
    with pytest.raises(CheckpointError, match="give network="):
        NetworkDenoiser.load(path)
    with pytest.raises(CheckpointError, match=r"'Own'.*give process="):
        NetworkDenoiser.load(path, network=Net())
    loaded = NetworkDenoiser.load(path, network=Net(), process=Own())
    assert torch.equal(loaded.data(x, 0.5), model.data(x, 0.5))


def test_weights_of_another_architecture_list_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "m"
    trained(VP()).save(path)
    with pytest.raises(CheckpointError, match=r"missing \['weight'\], unexpected \['.*'out.bias'"):
        NetworkDenoiser.load(path, network=Net())
    with pytest.raises(CheckpointError, match=r"out.weight: file \(3, 8\), network \(3, 9\)"):
        NetworkDenoiser.load(path, network=networks.MLP(dim=3, hidden=9, depth=2))
    save_tensors(path, {"a": torch.zeros(1)}, {"something": 1})
    with pytest.raises(CheckpointError, match="holds no model"):
        NetworkDenoiser.load(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        NetworkDenoiser.load(tmp_path / "other")


# ---- bad input -------------------------------------------------------------------------------------


class Returns(nn.Module):
    """A network with a given output, which must not be called if `value` is an error."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor) -> Any:
        if isinstance(self.value, type):
            raise self.value
        return self.value


X = torch.zeros(4, 2)
NET = NetworkDenoiser(Net(), VP())
#: Fails if its network is called: what is wrong must be said before.
UNCALLED = NetworkDenoiser(Returns(AssertionError), VP())
COSINE = NetworkDenoiser(Returns(AssertionError), VP(schedule=Cosine()))


def returning(value: Any, process: Process | None = None) -> NetworkDenoiser:
    return NetworkDenoiser(Returns(value), process or VP())


def on_vp(*args: Any, **options: Any) -> NetworkDenoiser:
    return NetworkDenoiser(Net(), VP(), *args, **options)


FLOW = EDMPrecondition(Net(), Interpolant())
ROW = Returns(X[:1])
LATE = [0.1, 0.2, 0.3, 2.0]
BAD: list[tuple[str, Any, type[Exception], list[str]]] = [
    ("t (n, 1)", lambda: UNCALLED.score(X, torch.full((4, 1), 0.5)), ValueError, ["t must", "(4, 1)"]),
    ("t too long", lambda: UNCALLED.score(X, torch.full((5,), 0.5)), ValueError, ["(4,)", "(5,)"]),
    ("t integer tensor", lambda: UNCALLED.noise(X, torch.tensor(1)), TypeError, ["int64", "divide"]),
    ("t bool", lambda: UNCALLED.noise(X, True), TypeError, ["t must", "True"]),
    ("t text", lambda: UNCALLED.noise(X, "1"), TypeError, ["t must", "'1'"]),
    ("t nan", lambda: UNCALLED.noise(X, math.nan), ValueError, ["t must", "nan"]),
    ("t = 0", lambda: UNCALLED.data(X, 0), ValueError, ["[1e-05, 1]", "got 0"]),
    ("t above T", lambda: UNCALLED.data(X, 1.1), ValueError, ["[1e-05, 1]", "1.1"]),
    ("some t above T", lambda: UNCALLED.data(X, torch.tensor(LATE)), ValueError, ["2]"]),
    ("beyond t_max", lambda: COSINE.noise(X, 0.99999), ValueError, ["t must", "0.99999"]),
    ("data at alpha 0", lambda: COSINE.data(X, 1.0), ValueError, ["t = 1.0", "alpha = 0", "'data'"]),
    ("no batch", lambda: UNCALLED.data(torch.tensor(1.0), 0.5), ValueError, ["x must", "()"]),
    ("not a tensor", lambda: UNCALLED.data([1.0], 0.5), ValueError, ["x must", "list"]),
    ("wide output", lambda: returning(torch.zeros(4, 4)).noise(X, 0.5), ValueError, ["(4, 2)", "(4, 4)"]),
    ("narrow output", lambda: returning(torch.zeros(4, 1)).data(X, 0.5), ValueError, ["(4, 2)", "(4, 1)"]),
    ("flat output", lambda: returning(torch.zeros(4)).score(X, 0.5), ValueError, ["(4, 2)", "(4,)"]),
    ("tuple output", lambda: returning((X, X)).noise(X, 0.5), TypeError, ["tuple", "[0]", ".sample"]),
    ("no output", lambda: returning(None).noise(X, 0.5), TypeError, ["NoneType"]),
    ("EDM output", lambda: EDMPrecondition(ROW).data(X, 0.5), ValueError, ["(4, 2)", "(1, 2)"]),
    ("prediction", lambda: on_vp("noize"), ValueError, ["prediction", "'noize'", "'noise'?"]),
    ("time", lambda: on_vp(time="labels"), ValueError, ["time", "'labels'", "'label'?"]),
    ("no labels", lambda: on_vp(time="label"), ValueError, ["labels=N", "betas"]),
    ("labels 0", lambda: on_vp(time="label", labels=0), ValueError, ["labels", "0"]),
    ("labels 2.0", lambda: on_vp(labels=2.0), TypeError, ["labels", "2.0"]),
    ("labels True", lambda: on_vp(labels=True), TypeError, ["labels", "True"]),
    ("network", lambda: NetworkDenoiser(torch.tanh, VP()), TypeError, ["network", "builtin"]),
    ("process", lambda: NetworkDenoiser(Net(), Cosine()), TypeError, ["process", "Cosine"]),
    ("EDM network", lambda: EDMPrecondition(torch.tanh), TypeError, ["network", "builtin"]),
    ("EDM process", lambda: EDMPrecondition(Net(), "edm"), TypeError, ["process", "str"]),
    ("sigma_data 0", lambda: EDMPrecondition(Net(), sigma_data=0), ValueError, ["sigma_data", "0"]),
    ("sigma_data nan", lambda: EDMPrecondition(Net(), None, math.nan), ValueError, ["sigma_data", "nan"]),
    ("EDM at alpha 0", lambda: FLOW.data(X, 1.0), ValueError, ["t = 1.0", "log"]),
    ("unknown kind", lambda: conversion(VP(), "data", "eps", 0.5), ValueError, ["prediction", "'eps'"]),
]  # fmt: skip


test_bad_input = bad_input(BAD)


def test_an_empty_batch_is_fine() -> None:
    for process in (VP(), VE(), Heat()):
        model = NetworkDenoiser(Net(), process)
        assert model.score(X[:0], 0.5).shape == (0, 2)
        assert model.score(X[:0], torch.empty(0)).shape == (0, 2)
    assert NET.noise(X, 1).shape == (4, 2)


def test_a_file_is_not_loaded_on_another_process(tmp_path):
    model = sk.NetworkDenoiser(sk.networks.MLP(dim=1), sk.VP(0.1, 20.0))
    model.save(tmp_path / "m.safetensors")
    same = sk.NetworkDenoiser.load(tmp_path / "m.safetensors", process=sk.VP(0.1, 20.0))
    assert same.process == model.process
    assert not same.training
    with pytest.raises(sk.CheckpointError, match="another VP than process="):
        sk.NetworkDenoiser.load(tmp_path / "m.safetensors", process=sk.VP(0.1, 5.0))
