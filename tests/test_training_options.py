# Bad input is passed on purpose.
# pyright: reportArgumentType=false
"""What `train` can do beyond its defaults."""

import csv
import json
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sdekit import VP, CheckpointError, Denoiser, GaussianMixture, NetworkDenoiser, train
from sdekit.data.images import Scaling
from sdekit.networks import MLP, UNet
from sdekit.storage import load_tensors
from sdekit.training import DenoisingLoss, Plateau, fit
from sdekit.training.batches import Batches
from sdekit.training.draws import Draws, seed_layers
from sdekit.training.times import resolve_times
from sdekit.world import World

TOY = GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
quiet = partial(train, progress=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def small(dim: int = 1, cond_dim: int = 0) -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(MLP(dim, hidden=16, depth=2, cond_dim=cond_dim), VP())


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ------------------------------------------------------------------------------ the batch in parts


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_a_batch_in_parts_is_the_batch(parts):
    """float64: only the order of sums differs."""
    models = [small().double(), small().double()]
    runs = [
        quiet(model, TOY, steps=20, batch=24, warmup=0, accumulate=k)
        for model, k in zip(models, (1, parts), strict=True)
    ]
    torch.testing.assert_close(runs[0].losses, runs[1].losses, rtol=1e-11, atol=0)
    for p, q in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-12)


def test_averages_count_optimiser_steps_not_parts():
    seen: list[int] = []

    class Counting(MLP):
        def forward(self, x, t, cond=None):
            seen.append(len(x))
            return super().forward(x, t, cond)

    model = NetworkDenoiser(Counting(1, hidden=4, depth=1), VP())
    steps: list[int] = []
    quiet(model, TOY, steps=3, batch=12, accumulate=4, callback=lambda s, _: steps.append(s.index))
    assert seen == [3] * 12
    assert steps == [0, 1, 2]


def test_layers_of_processes_are_seeded_apart():
    state = torch.get_rng_state()
    draws = []
    for step, rank in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seed_layers(3, step, World(rank, 2), torch.device("cpu"))
        draws.append(torch.rand(4))
    torch.set_rng_state(state)
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# ------------------------------------------------------------------------- optimisers and rates

OPTIMIZERS = [
    torch.optim.AdamW,
    torch.optim.Adam,
    torch.optim.RMSprop,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adagrad,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.Adadelta,
    torch.optim.SGD,
    partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    partial(torch.optim.AdamW, amsgrad=True, betas=(0.8, 0.99)),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: getattr(o, "__name__", "partial"))
def test_any_optimiser_moves_and_resumes(tmp_path, optimizer):
    run = partial(
        quiet, data=TOY, steps=12, batch=8, warmup=3, optimizer=optimizer, weight_decay=0.01
    )
    before = small()
    whole = run(small(), out=tmp_path / "whole")
    run(small(), out=tmp_path / "parts", callback=lambda step, _: step.index == 6)
    parts = run(small(), out=tmp_path / "parts", resume=True)
    assert torch.equal(whole.losses, parts.losses)
    assert same_weights(whole.model, parts.model)
    assert not same_weights(whole.model, before)


def test_an_optimiser_without_weight_decay_is_not_asked_for_it():
    run = partial(quiet, data=TOY, steps=3, batch=8, optimizer=torch.optim.Rprop)
    before, model = small(), small()
    run(model)
    assert not same_weights(model, before)
    with pytest.raises(ValueError, match=r"weight_decay must be 0 for Rprop, .* got 0.1"):
        run(small(), weight_decay=0.1)


def test_an_optimiser_that_asks_for_a_closure_is_refused():
    with pytest.raises(ValueError, match="optimizer must step from one gradient, got LBFGS"):
        quiet(small(), TOY, steps=3, optimizer=torch.optim.LBFGS)


def test_the_arguments_of_an_optimiser_are_part_of_the_run(tmp_path):
    run = partial(quiet, data=TOY, steps=4, batch=8, schedule="constant", out=tmp_path)
    run(small(), optimizer=partial(torch.optim.SGD, momentum=0.9))
    message = r"optimizer was 'SGD\(momentum=0.9\)', now 'SGD\(momentum=0.8\)'"
    with pytest.raises(CheckpointError, match=message):
        run(small(), optimizer=partial(torch.optim.SGD, momentum=0.8), resume=True)


def test_plateau_is_the_schedule_of_torch():
    """A run of losses that falls and stalls, by hand through torch's own scheduler."""
    losses: list[float] = []
    factor = Plateau(window=3, patience=1, factor=0.5).factors(60, losses)
    unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        unit, factor=0.5, patience=1, threshold=1e-3
    )
    seen = []
    for k in range(60):
        if k and k % 3 == 0:
            theirs.step(sum(losses[-3:]) / 3)
        seen.append(unit.param_groups[0]["lr"])
        assert factor(k) == seen[-1]
        losses.append(max(1.0 - 0.1 * k, 0.3) + 0.01 * (k % 3))
    assert seen[0] == 1.0
    assert seen[-1] < 0.1
    # A fresh one finds the same state in the losses.
    assert Plateau(window=3, patience=1, factor=0.5).factors(60, losses)(59) == seen[-1]


def test_plateau_lowers_the_rate_of_a_run(tmp_path):
    # At rates of 1e-12 the weights, and so the expected loss, stand still.
    quiet(
        small(), TOY, steps=60, batch=64, lr=1e-12, warmup=0, log_every=1, out=tmp_path,
        schedule=Plateau(window=5, patience=2, factor=0.1, threshold=0.5),
    )  # fmt: skip
    rows = table(tmp_path / "log.csv")
    rates = [float(row["rate"]) for row in rows]
    assert rates[0] == 1e-12
    # The first window is the best; the third after it without a better one lowers: step 20.
    assert rates[19] == 1e-12
    assert rates[20] == pytest.approx(1e-13)
    assert rates == sorted(rates, reverse=True)


# ----------------------------------------------------------------------------- lower precision


def test_bf16_multiplies_in_bfloat16_and_keeps_the_weights():
    seen = set()

    class Watched(MLP):
        def forward(self, x, t, cond=None):
            h = self.x_in(x)
            seen.add(h.dtype)
            return super().forward(x, t, cond)

    def run(precision):
        torch.manual_seed(0)
        model = NetworkDenoiser(Watched(1, hidden=16, depth=2), VP())
        return quiet(model, TOY, steps=40, batch=64, precision=precision)

    full, lower = run("float32"), run("bf16")
    assert seen == {torch.float32, torch.bfloat16}
    assert {p.dtype for p in lower.model.parameters()} == {torch.float32}
    assert not torch.equal(full.losses, lower.losses)
    # bfloat16 has 8 bits: products are off by 2^-9 of themselves, a loss of order one by about as much.
    torch.testing.assert_close(full.losses, lower.losses, rtol=0, atol=2**-5)


# ------------------------------------------------------------------------------- conditions


def test_conditions_are_dropped_at_their_rate():
    rows, labels = normal(2_000, 1), torch.arange(2_000) % 4
    draw = Batches(rows, batch=1_000, seed=3, like=rows, cond=labels, dropout=0.25, null=4)
    dropped = []
    for step in range(10):
        x0, cond = draw(step)
        kept = cond != 4
        place = (x0 == rows.T).nonzero()[:, 1]  # every row is its own
        assert torch.equal(cond[kept], labels[place][kept])
        dropped.append((~kept).float().mean().item())
    rate = sum(dropped) / 10
    # 4 standard errors of 10,000 draws
    assert abs(rate - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 10_000)
    assert torch.equal(draw(3)[1], draw(3)[1])
    assert labels.max() == 3  # the caller's are as they were


def test_vectors_are_dropped_for_a_vector():
    rows, cond = normal(100, 1), normal(100, 2, seed=1)
    null = torch.tensor([7.0, -7.0])
    draw = Batches(rows, batch=64, seed=0, like=rows, cond=cond, dropout=0.5, null=null)
    _, seen = draw(0)
    gone = (seen == null).all(1)
    assert 0 < gone.sum() < 64


# ------------------------------------------------------------------- validation, best, patience


class Known(nn.Module, Denoiser):
    """noise = w x with a weight that the test sets."""

    prediction = "noise"

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.process = VP()
        self.weight = nn.Parameter(torch.full((1,), weight, dtype=torch.float64))

    def predict(self, x, t, **conditions):
        return self.weight * x


def test_validation_is_the_loss_of_the_average():
    """E |noise - w x|^2 = 1 - 2 w E sigma + w^2 for unit data, averaged over times; 4 standard errors."""
    w = 0.4
    t = torch.linspace(VP().t_min, VP().t_max, 100_001, dtype=torch.float64)
    expected = 1 - 2 * w * float(torch.as_tensor(VP().sigma(t)).mean()) + w * w
    data = normal(20_000, 1).double()
    data = (data - data.mean()) / data.std()
    result = quiet(
        Known(w), data, steps=2, batch=1_000, lr=1e-30, validation=data, evaluate_every=1
    )
    (first, a), (second, b) = result.validation
    assert (first, second) == (1, 2)
    assert a == b  # the same rows, times and noise
    assert abs(a - expected) < 4 * math.sqrt(2) * 0.5 / math.sqrt(20_000)


def script(values):
    """A callback that makes the weight, and so the validation loss, what the test wants."""

    def callback(step, average):
        average.weight.data.fill_(values[min(step.index, len(values) - 1)])

    return callback


def test_best_is_kept_and_patience_ends_the_run(tmp_path):
    # The average is set after each step and evaluated after the next: best at step 4.
    values = [3.0, 2.0, 0.6, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 9.0]
    model = Known()
    run = partial(
        quiet, data=normal(200, 1).double(), steps=10, batch=50, lr=1e-30, half_life=1e9,
        warmup=0, validation=normal(200, 1, seed=1).double(), evaluate_every=1, patience=3,
        keep=1, checkpoint_every=1, out=tmp_path, callback=script(values),
    )  # fmt: skip
    result = run(model)
    losses = [loss for _, loss in result.validation]
    best = losses.index(min(losses)) + 1
    assert result.best == tmp_path / "checkpoints" / f"step-{best:08d}"
    assert len(result.losses) == best + 3 < 10
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{best:08d}", f"step-{best + 3:08d}"]
    again = run(Known(), resume=True)
    assert len(again.losses) == best + 3
    assert again.validation == result.validation
    assert again.best == result.best


def test_an_evaluation_that_is_not_finite_is_never_the_best(tmp_path):
    values = [3.0, math.nan, 0.6, 4.0]
    result = quiet(
        Known(), normal(200, 1).double(), steps=4, batch=50, lr=1e-30, half_life=1e9, warmup=0,
        validation=normal(200, 1, seed=1).double(), evaluate_every=1, out=tmp_path,
        callback=script(values),
    )  # fmt: skip
    losses = [loss for _, loss in result.validation]
    assert any(math.isnan(loss) for loss in losses)
    best = min(loss for loss in losses if not math.isnan(loss))
    assert result.best is not None
    assert result.best.name == f"step-{losses.index(best) + 1:08d}"


def test_validation_takes_conditions_scaling_and_endless_data(tmp_path):
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(40) % 3
    network = UNet(widths=(4, 8), num_classes=4)
    result = quiet(
        NetworkDenoiser(network, VP()), images, cond=labels, cond_dropout=0.5, cond_null=3,
        scaling=Scaling.symmetric(), steps=2, batch=8, validation=(images[:20], labels[:20]),
        evaluate_every=2, out=tmp_path,
    )  # fmt: skip
    assert 0.5 < result.validation[-1][1] < 2
    endless = quiet(small(), TOY, steps=2, batch=8, validation=TOY, evaluate_every=1)
    assert len(endless.validation) == 2


# ---------------------------------------------------------------------------------- scaling


def test_levels_and_a_scaling_are_the_numbers_they_stand_for(tmp_path):
    levels = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    scaling = Scaling.symmetric()

    def run(data, **more):
        torch.manual_seed(0)
        model = NetworkDenoiser(UNet(widths=(4, 8)), VP())
        return quiet(model, data, steps=4, batch=8, **more)

    plain = run(scaling.forward(levels))
    scaled = run(levels, scaling=scaling, out=tmp_path)
    dataset = run(TensorDataset(levels, torch.arange(30)), scaling=scaling)
    assert torch.equal(plain.losses, scaled.losses)
    assert torch.equal(plain.losses, dataset.losses)
    header = load_tensors(tmp_path / "checkpoints" / "step-00000004" / "model.safetensors")[1]
    assert Scaling(**header["config"]["scaling"]) == scaling
    with pytest.raises(CheckpointError, match="scaling was"):
        run(scaling.forward(levels), out=tmp_path, resume=True)


# --------------------------------------------------------------------------------- reports


def test_log_has_a_row_every_so_often_and_is_the_same_after_a_resume(tmp_path):
    def run(out, **more):
        return quiet(
            small(), TOY, steps=40, batch=8, warmup=0, log_every=5, checkpoint_every=10,
            validation=TOY, evaluate_every=20, out=out, **more,
        )  # fmt: skip

    result = run(tmp_path / "whole")
    run(tmp_path / "parts", callback=lambda step, _: step.index == 12)
    with (tmp_path / "parts" / "log.csv").open("a") as file:
        file.write("15,9,9,9,\n20,")  # work after the checkpoint, and a row cut by a kill
    run(tmp_path / "parts", resume=True)
    text = (tmp_path / "whole" / "log.csv").read_text()
    rows = table(tmp_path / "whole" / "log.csv")
    assert [row["step"] for row in rows if row["loss"]] == [str(k) for k in range(5, 45, 5)]
    for row, losses in zip([r for r in rows if r["loss"]], result.losses.split(5), strict=True):
        assert float(row["loss"]) == pytest.approx(losses.mean().item(), rel=1e-5)
    validation = [(int(r["step"]), float(r["validation"])) for r in rows if r["validation"]]
    assert validation == [(k, pytest.approx(v, rel=1e-5)) for k, v in result.validation]
    assert (tmp_path / "parts" / "log.csv").read_text() == text


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quiet(small(), TOY, steps=20, batch=8, log_every=5, out=tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = table(tmp_path / "log.csv")
    for name in ("loss", "gradient_norm", "rate"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [5, 10, 15, 20]
        wanted = [float(row[name]) for row in rows]
        assert [s.value for s in scalars] == pytest.approx(wanted, rel=1e-5)


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[tensorboard\]"'):
        quiet(small(), TOY, steps=2, batch=8, out=tmp_path, tensorboard=True)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    def second(step, _):
        with pytest.raises(ValueError, match="in use by another process"):
            quiet(small(), TOY, steps=2, batch=8, out=tmp_path, resume=True)

    quiet(small(), TOY, steps=1, batch=8, out=tmp_path, callback=second)
    assert len(quiet(small(), TOY, steps=1, batch=8, out=tmp_path, resume=True).losses) == 1


def test_generators_of_devices_that_are_not_used_are_left_alone(monkeypatch):
    """On a machine with two GPUs a run on the CPU touches neither."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: pytest.fail("asked a GPU"))
    quiet(small(), TOY, steps=1, batch=4)


def test_an_optimiser_told_to_loop_is_not_fused():
    chosen = partial(torch.optim.AdamW, foreach=True)
    assert len(quiet(small(), TOY, steps=2, batch=4, optimizer=chosen).losses) == 2


def test_a_network_compiled_before_the_run_is_compiled_after_it(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    model = small()
    model.network._compiled_call_impl = model.network._call_impl
    quiet(model, TOY, steps=1, batch=4, compile=True)
    assert model.network._compiled_call_impl == model.network._call_impl


def test_devices_without_float64_are_given_none(monkeypatch):
    """As on MPS."""
    monkeypatch.setattr("sdekit.training.draws.widest", lambda device: torch.float32)
    t, importance, _ = Draws(VP(), None, resolve_times("importance"), 0)(0, ROWS)
    assert t.dtype == importance.dtype == torch.float32


def test_compiled_for_the_run_and_not_after(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self)))
    model = small()
    quiet(model, TOY, steps=1, batch=4, compile=True)
    assert compiled == [MLP]
    assert model.network._compiled_call_impl is None


# -------------------------------------------------------------------------------- bad input

ROWS, LABELS = normal(10, 1), torch.arange(10)
BAD = {
    "accumulate zero": ({"accumulate": 0}, ValueError, "accumulate must be >= 1"),
    "accumulate": (
        {"batch": 8, "accumulate": 3},
        ValueError,
        "batch must be a multiple of accumulate x processes, 3 x 1, got 8",
    ),
    "precision": (
        {"precision": "bf32"},
        ValueError,
        "precision must be one of 'float32', 'bf16'; got 'bf32'",
    ),
    "optimizer": (
        {"optimizer": "adam"},
        TypeError,
        "a functools.partial of one, got an instance of str",
    ),
    "optimizer's rate": (
        {"optimizer": partial(torch.optim.AdamW, lr=0.9)},
        ValueError,
        r"optimizer must leave \['lr'\] to train",
    ),
    "loss": ({"loss": "l2"}, TypeError, r'such as DenoisingLoss\("likelihood"\), got str'),
    "loss class": (
        {"loss": DenoisingLoss},
        TypeError,
        "an instance of a loss, .* got DenoisingLoss",
    ),
    "loss of torch": ({"loss": nn.MSELoss()}, TypeError, "an instance of a loss, .* got MSELoss"),
    "schedule": (
        {"schedule": 3},
        TypeError,
        "schedule must be a name or an instance with .factors",
    ),
    "schedule class": ({"schedule": Plateau}, TypeError, "an instance with .*, got Plateau"),
    "scaling": ({"scaling": "symmetric"}, TypeError, "scaling must be a Scaling, got str"),
    "levels": ({"data": torch.ones(4, 1).int()}, TypeError, "or give scaling="),
    "frozen": ({"model": small().requires_grad_(False)}, ValueError, "all of them are frozen"),
    "patience alone": ({"patience": 3}, ValueError, "patience needs validation="),
    "patience": ({"patience": 0, "validation": ROWS}, ValueError, "patience must be >= 1"),
    "evaluate_every": ({"evaluate_every": 0}, ValueError, "evaluate_every must be >= 1"),
    "validation": ({"validation": ROWS * math.nan}, ValueError, "validation has 10 NaN"),
    "validation empty": ({"validation": ROWS[:0]}, ValueError, "validation must hold samples"),
    "log_every": ({"log_every": 0}, ValueError, "log_every must be >= 1"),
    "compile": ({"compile": 1}, TypeError, "compile must be True or False"),
    "null alone": (
        {"cond": LABELS, "cond_null": 10},
        ValueError,
        "cond_null is what cond_dropout= puts in; give both or neither",
    ),
    "dropout alone": ({"cond_dropout": 0.1}, ValueError, "cond_dropout needs cond=, and cond_null"),
    "dropout one": (
        {"cond_dropout": 1.0, "cond": LABELS, "cond_null": 10},
        ValueError,
        r"cond_dropout must be a finite number in \[0, 1\)",
    ),
    "null shape": (
        {"cond_dropout": 0.1, "cond": normal(10, 2), "cond_null": torch.zeros(3)},
        ValueError,
        r"cond_null must have the shape of a row of cond, \(2,\), got \(3,\)",
    ),
    "null dtype": (
        {"cond_dropout": 0.1, "cond": LABELS, "cond_null": 0.5},
        ValueError,
        "cond_null must be a value of the dtype of cond, torch.int64, got 0.5",
    ),
    "callback": ({"callback": 3}, TypeError, "callback must be callable, got int"),
    "resume": ({"resume": "yes"}, TypeError, "resume must be True or False"),
    "tensorboard": ({"tensorboard": 1}, TypeError, "tensorboard must be True or False"),
    "tensorboard alone": ({"tensorboard": True, "out": None}, ValueError, "tensorboard needs out="),
    "scaling vectors": ({"scaling": Scaling.symmetric()}, ValueError, r"images must be \(n, c, h"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, name):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        quiet(**{"model": small(), "data": ROWS, "steps": 5, "out": tmp_path / "run", **changes})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments", [{"window": 0}, {"patience": -1}, {"factor": 1.0}, {"threshold": 1.0}]
)
def test_a_bad_plateau_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Plateau(**arguments)


def test_fit_refuses_parts_that_do_not_fit():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="accumulate must divide the 10 rows of a batch, got 3"):
        next(fit(model, [ROWS], optimizer, accumulate=3))


def test_importance_keeps_the_objective():
    """The mean likelihood loss of a fixed model is the same under both laws of times; 4 standard errors."""
    means = []
    for times in ("stratified", "importance"):
        model = Known(0.9)
        result = quiet(
            model, normal(4_000, 1).double(), steps=40, batch=4_000, lr=1e-30, warmup=0,
            loss=DenoisingLoss("likelihood"), times=times,
        )  # fmt: skip
        means.append((result.losses.mean(), result.losses.std() / math.sqrt(40)))
    (a, ea), (b, eb) = means
    assert abs(a - b) < 4 * math.hypot(ea, eb)
    assert eb < 0.3 * ea


# ----------------------------------------------------------------------------- what fit is given


def test_fit_takes_the_batches_of_a_data_loader():
    rows, labels = normal(20, 1), torch.arange(20) % 3
    seen = []

    class Watched(MLP):
        def forward(self, x, t, cond=None):
            seen.append((len(x), cond))
            return super().forward(x, t)

    model = NetworkDenoiser(Watched(1, hidden=4, depth=1), VP())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for data in (TensorDataset(rows), TensorDataset(rows, labels)):
        assert len(list(fit(model, DataLoader(data, batch_size=8), optimizer))) == 3
    assert [n for n, _ in seen] == [8, 8, 4, 8, 8, 4]
    assert [cond is None for _, cond in seen] == [True] * 3 + [False] * 3


FIT_MISTAKES = {
    "numpy batch": ({"batches": [np.zeros((4, 1))]}, TypeError, r"batches must .* got \(ndarray\)"),
    "levels": (
        {"batches": [torch.zeros(4, 1, dtype=torch.uint8)]},
        TypeError,
        "torch.uint8; scale",
    ),
    "three parts": (
        {"batches": [(ROWS, ROWS, ROWS)]},
        TypeError,
        r"got \(Tensor, Tensor, Tensor\)",
    ),
    "optimizer by name": ({"optimizer": "adam"}, TypeError, "optimizer must be .* got str"),
    "loss by name": ({"loss": "likelihood"}, TypeError, "loss must be an instance of a loss"),
    "network": ({"model": MLP(1)}, TypeError, "model must be a Denoiser .* got MLP"),
    "another's optimizer": (
        {"optimizer": torch.optim.SGD(small().parameters(), lr=0.1)},
        ValueError,
        "optimizer must be over parameters of the model, and has none of them",
    ),
}


@pytest.mark.parametrize("case", FIT_MISTAKES)
def test_mistakes_of_fit_are_named(case):
    model = small()
    given: dict = {
        "model": model,
        "batches": [ROWS],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    wrong, kind, message = FIT_MISTAKES[case]
    with pytest.raises(kind, match=message):
        next(fit(**(given | wrong)))


def test_data_that_look_scaled_twice_or_never_are_warned_of():
    images = torch.rand(50, 1, 4, 4)
    with pytest.warns(UserWarning, match="standard deviation of 0.00.* after scaling=; were they"):
        Batches(images, batch=4, seed=0, like=images, scaling=Scaling.symmetric())
    with pytest.warns(UserWarning, match="whole numbers from 0 to 2.*, as levels of grey"):
        Batches((255 * images).round(), batch=4, seed=0, like=images)


def test_a_null_that_the_network_refuses_is_refused_before_the_first_step(tmp_path):
    model = NetworkDenoiser(UNet(1, (8,), num_classes=3), VP())
    with pytest.raises(
        ValueError, match="cond_null must be a condition that the network takes, got 3"
    ):
        quiet(
            model, normal(20, 1, 8, 8), cond=torch.arange(20) % 3, cond_dropout=0.01, cond_null=3,
            steps=2, batch=4, out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_data_sets_and_conditions_may_be_arrays():
    class Arrays(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return np.array([i / 10, -i / 10])

    class Conditioned(MLP):
        def forward(self, x, t, cond=None):
            assert isinstance(cond, Tensor)
            return super().forward(x, t)

    model = NetworkDenoiser(Conditioned(2, hidden=4, depth=1), VP())
    quiet(model, Arrays(), cond=np.arange(20), steps=2, batch=4)


def test_the_log_ends_with_the_last_step_and_the_record_stays(tmp_path):
    result = quiet(small(), TOY, steps=7, batch=8, log_every=5, out=tmp_path)
    rows = table(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["5", "7"]
    assert float(rows[1]["loss"]) == pytest.approx(result.losses[5:].mean().item(), rel=1e-5)
    before = (tmp_path / "losses.json").read_text()
    assert json.loads(before)["losses"] == result.losses.tolist()
    quiet(small(), TOY, steps=7, batch=8, log_every=5, out=tmp_path, resume=True)
    assert (tmp_path / "losses.json").read_text() == before


def test_files_of_a_run_without_checkpoints_are_not_overwritten(tmp_path):
    (tmp_path / "log.csv").write_text("mine")
    with pytest.raises(ValueError, match="already holds a run; give resume=True or another out="):
        quiet(small(), TOY, steps=2, batch=8, out=tmp_path)
    assert (tmp_path / "log.csv").read_text() == "mine"
