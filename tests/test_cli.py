import csv
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import sdekit as sk
from sdekit import cli
from sdekit.data import TARGETS, two_mode
from sdekit.data.images import Labelled, Scaling
from sdekit.storage import load_tensors

COMMANDS = [c.callback.__name__ for c in cli.app.registered_commands if c.callback]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the command line; its exit code, stdout, and stderr without progress bars."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        err = "".join(line for line in err.splitlines(True) if not re.match(r"\r|\w+: +\d+%", line))
        return code, out, err

    return call


def _train(folder, data="two-mode", steps=20, *more):
    arguments = ["train", data, "--out", folder, "--steps", steps, "--batch", 64, *more]
    return [str(a) for a in arguments]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(_train(folder)) == 0
    return folder


def png(path):
    return path.read_bytes()[:8] == PNG


# ------------------------------------------------------------------------------------------ help


def test_the_list_of_commands_has_whole_sentences(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: sdekit [OPTIONS] COMMAND")
    listed = dict(re.findall(r"^  (\w+) +(\S.*)$", out.split("Commands:")[1], re.MULTILINE))
    assert list(listed) == COMMANDS
    for name, text in listed.items():
        assert text == inspect.getdoc(getattr(cli, name)).splitlines()[0]
        assert text.endswith(".")
        assert "..." not in text
    assert max(map(len, out.splitlines())) <= 80


def test_no_arguments_show_the_help(run, monkeypatch):
    assert run() == run("--help")
    monkeypatch.setattr(sys, "argv", ["sdekit"])
    assert cli.main() == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: sdekit {name} ")
    flat = " ".join(out.split())
    assert " ".join(inspect.getdoc(getattr(cli, name)).split()) in flat
    assert max(map(len, out.splitlines())) <= 80
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    assert command.params or name == "samplers"
    for parameter in command.params:
        assert parameter.help
        assert parameter.help.endswith(".")
        assert " ".join(parameter.help.split()).replace(" ", "") in flat.replace(" ", "")


def test_names_in_the_help_are_all_there_are(run):
    def listed(command, option):
        text = " ".join(run(command, "--help")[1].split()).replace("- ", "-")
        found = re.search(rf"{option} <str> ([^.;]*)", text)
        assert found
        return set(re.split(r", | or ", found[1]))

    assert listed("sample", "--grid") == set(sk.samplers.GRIDS)
    assert listed("train", "--process") == set(cli._processes())
    assert listed("compare", "--target") == set(TARGETS)


def test_samplers_are_listed_with_what_they_claim(run):
    lines = run("samplers")[1].splitlines()[1:]
    assert [line.split(maxsplit=3)[-1].split("  ")[-1] for line in lines] == [
        repr(s) for s in sk.samplers.ALL
    ]
    assert {line.split()[0] for line in lines if line[0] != " "} == set(sk.samplers.by_name())


# ------------------------------------------------------------------------------ train and sample


def test_two_mode_from_training_to_samples(run, tmp_path):
    code, out, _ = run(*_train(tmp_path / "run"))
    assert code == 0
    least, excess = map(float, re.findall(r"least loss ([\d.]+), excess over it (\S+)", out)[0])
    model = sk.NetworkDenoiser.load(tmp_path / "run/checkpoints/step-00000020")
    assert least == pytest.approx(sk.training.minimum_loss(two_mode(), model.process), abs=1e-5)
    expected = sk.training.excess_loss(model.eval(), two_mode())[0]
    assert excess == pytest.approx(expected, rel=0.01)
    assert "checkpoint " + str(tmp_path / "run/checkpoints/step-00000020") in out
    assert png(tmp_path / "run" / "loss.png")

    target = tmp_path / "new" / "x.npy"
    code, out, _ = run("sample", tmp_path / "run", "--out", target, "--n", 9, "--steps", 5)
    assert code == 0
    assert f"9 samples, 5 model calls each, seed 0: {target}" in out
    assert png(target.with_suffix(".png"))
    drawn = sk.sample(model.eval(), (9, 1), steps=5, seed=0).x
    np.testing.assert_array_equal(np.load(target), drawn.numpy())


def test_spiral(run, tmp_path):
    assert run(*_train(tmp_path, "spiral", 3))[0] == 0
    code, _, _ = run("sample", tmp_path, "--out", tmp_path / "x.npy", "--n", 7, "--steps", 3)
    assert code == 0
    assert np.load(tmp_path / "x.npy").shape == (7, 2)
    assert png(tmp_path / "x.png")


def test_digits(run, tmp_path):
    pytest.importorskip("sklearn")
    assert run(*_train(tmp_path, "digits", 2, "--prediction", "v"))[0] == 0
    call = ("sample", tmp_path, "--out", tmp_path / "x.npy", "--n", 5, "--steps", 2, "--final")
    code, out, _ = run(*call, "data")
    assert code == 0
    assert "3 model calls each" in out
    assert np.load(tmp_path / "x.npy").shape == (5, 1, 8, 8)
    assert png(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("event", "picture"),
    [((), False), ((1,), True), ((3, 2), False), ((1, 5, 5), True), ((3, 4, 4), True)],
    ids=str,
)
def test_a_file_of_your_own(run, tmp_path, event, picture):
    points = np.random.default_rng(0).normal(size=(40, *event))
    np.save(tmp_path / "data.npy", points)
    folder, out = tmp_path / "run", tmp_path / "x.npy"
    assert run(*_train(folder, tmp_path / "data.npy", 2))[0] == 0
    assert run("sample", folder, "--out", out, "--n", 3, "--steps", 2)[0] == 0
    assert np.load(out).shape == (3, *event)
    assert out.with_suffix(".png").exists() == picture
    # A checkpoint knows the shape by itself, wherever it is moved.
    moved = tmp_path / "moved.safetensors"
    (folder / "checkpoints/step-00000002/model.safetensors").rename(moved)
    assert run("sample", moved, "--out", out, "--n", 4, "--steps", 2)[0] == 0
    assert np.load(out).shape == (4, *event)


def test_a_model_saved_by_the_library_can_be_sampled(run, tmp_path):
    model = sk.NetworkDenoiser(sk.networks.MLP(dim=3), sk.VP())
    model.save(tmp_path / "m.safetensors")
    out = tmp_path / "x.npy"
    assert run("sample", tmp_path / "m.safetensors", "--out", out, "--n", 2)[0] == 0
    assert np.load(out).shape == (2, 3)


def test_classes_in_turn_without_the_one_that_stands_for_none(run, tmp_path):
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 2
    model = sk.NetworkDenoiser(sk.networks.UNet(1, (8,), num_classes=3), sk.VP())
    out = tmp_path / "run"
    result = sk.train(
        model, images, cond=labels, cond_dropout=0.1, cond_null=1, steps=2, batch=4, out=out,
        progress=False,
    )  # fmt: skip
    assert (
        run("sample", str(out), "--n", "5", "--steps", "3", "--out", str(tmp_path / "x.npy"))[0]
        == 0
    )
    cond = torch.tensor([0, 2, 0, 2, 0])
    want = sk.sample(
        result.model, (5, 1, 8, 8), sampler=sk.samplers.DDIM(), steps=3, cond=cond, seed=0
    )
    assert np.array_equal(np.load(tmp_path / "x.npy"), want.x.numpy())


@pytest.mark.parametrize("sampler", sk.samplers.by_name())
def test_every_sampler_by_name(run, trained, tmp_path, sampler):
    out = tmp_path / "x.npy"
    assert run("sample", trained, "--out", out, "--sampler", sampler, "--steps", 3)[0] == 0
    model = sk.NetworkDenoiser.load(next((trained / "checkpoints").iterdir())).eval()
    chosen = sk.samplers.by_name()[sampler]
    expected = sk.sample(model, (64, 1), sampler=chosen, steps=3, seed=0).x
    np.testing.assert_array_equal(np.load(out), expected.numpy())


def test_one_seed_one_file(run, trained, tmp_path):
    files = []
    for i, more in enumerate(([], ["--seed", 0], ["--seed", 1], ["--grid", "karras"])):
        files.append(tmp_path / f"{i}.npy")
        assert run("sample", trained, "--out", files[-1], "--steps", 4, *more)[0] == 0
    first, same, seed, grid = (f.read_bytes() for f in files)
    assert first == same
    assert len({first, seed, grid}) == 3


def test_one_seed_one_network(run, tmp_path):
    tensors = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        call = _train(tmp_path / name, "two-mode", 2, "--seed", seed, "--weighting", "min-snr")
        assert run(*call)[0] == 0
        path = tmp_path / name / "checkpoints/step-00000002/training.safetensors"
        tensors[name] = load_tensors(path)[0]
    assert all(torch.equal(v, tensors["b"][k]) for k, v in tensors["a"].items())
    assert not torch.equal(tensors["a"]["losses"], tensors["c"]["losses"])


def test_training_options_reach_the_run(run, tmp_path):
    """What the line says is what the checkpoint records; pictures come when they are due."""
    more = "--norm l1 --weighting edm --times log-normal --half-life 50 --accumulate 2 --batch 32"
    line = _train(tmp_path / "run", "two-mode", 6, *more.split(), "--precision", "bf16")
    code, out, _ = run(*line, "--pictures-every", 3)
    assert code == 0
    assert "least loss" in out
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006"
    config = load_tensors(checkpoint / "model.safetensors")[1]["config"]
    assert config["loss"].startswith("DenoisingLoss(weighting='edm', norm='l1'")
    assert config["times"].startswith("LogNormalTimes")
    assert [config[k] for k in ("half_life", "accumulate", "precision")] == [50, 2, "bf16"]
    names = sorted(p.name for p in (tmp_path / "run").glob("samples-*.png"))
    assert names == ["samples-00000003.png", "samples-00000006.png"]


@pytest.mark.parametrize("kind", ["fashion-mnist", "folder"])
def test_levels_are_scaled_in_training_and_back_in_pictures(run, tmp_path, monkeypatch, kind):
    from PIL import Image

    levels = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
    if kind == "folder":
        (tmp_path / "set").mkdir()
        for i, image in enumerate(levels):
            Image.fromarray(image).save(tmp_path / "set" / f"{i}.png")
        line = (str(tmp_path / "set"), 2, "--size", 8)
    else:
        written = Labelled(torch.from_numpy(levels)[:, None], torch.arange(12))
        monkeypatch.setattr("sdekit.data.images.fashion_mnist", lambda: written)
        line = (kind, 2)
    assert run(*_train(tmp_path / "run", *line))[0] == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    config = load_tensors(checkpoint / "model.safetensors")[1]["config"]
    assert Scaling(**config["scaling"]) == Scaling.symmetric()
    out = tmp_path / "x.npy"
    assert run("sample", checkpoint, "--out", out, "--n", 3, "--steps", 2)[0] == 0
    assert np.load(out).shape == (3, 3 if kind == "folder" else 1, 8, 8)
    assert out.with_suffix(".png").exists()


def test_resume_continues_a_run_that_was_stopped(run, tmp_path):
    torch.manual_seed(0)
    model = sk.NetworkDenoiser(sk.networks.MLP(dim=1), sk.VP())
    settings = {"steps": 20, "batch": 64, "seed": 0, "progress": False}
    settings["loss"] = sk.training.DenoisingLoss("min-snr")
    line = ("two-mode", 20, "--weighting", "min-snr")
    stop = {"callback": lambda step, average: step.index == 7}
    sk.train(model, two_mode(), out=tmp_path / "a", **settings, **stop)
    assert [p.name for p in (tmp_path / "a/checkpoints").iterdir()] == ["step-00000008"]
    assert run(*_train(tmp_path / "a", *line), "--resume")[0] == 0
    assert run(*_train(tmp_path / "b", *line))[0] == 0
    a, b = (
        load_tensors(tmp_path / d / "checkpoints/step-00000020/training.safetensors")[0]
        for d in "ab"
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    # Once more, with nothing left to do.
    assert run(*_train(tmp_path / "a", *line), "--resume")[0] == 0


def test_a_folder_is_not_trained_into_twice(run, trained):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    assert run(*_train(trained)) == (
        2,
        "",
        f"sdekit: error: {trained} already holds a run; give --resume or another --out\n",
    )
    code, _, err = run(*_train(trained, "spiral"), "--resume")
    assert code == 2
    assert "sdekit: error: " in err
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


# ----------------------------------------------------------------------------- compare and check


def test_compare_prints_its_table_and_writes_files(run, tmp_path):
    line = ("compare", "--samplers", "ddim, flow-ode", "--steps", "2,4", "--n", 100, "--seeds", 2)
    code, out, err = run(*line, "--out", tmp_path / "new")
    assert (code, err) == (0, "")
    head = ["sampler", "grid", "steps", "NFE", "W1", "W2", "seconds", "us/step"]
    assert out.splitlines()[0].split() == head
    for start in ("DDIM(eta=0.0)", "FlowODE(dopri5)", "100 exact samples"):
        assert re.search(rf"^{re.escape(start)} ", out, re.MULTILINE)
    assert "±" in out
    with (tmp_path / "new" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["sampler"].split("(")[0], r["steps"]) for r in rows] == [
        ("DDIM", "2"), ("DDIM", "4"), ("FlowODE", "4"),
    ]  # fmt: skip
    assert all(float(r["W1"]) > 0 for r in rows)
    assert png(tmp_path / "new" / "compare.png")
    assert str(tmp_path / "new" / "compare.csv") in out


def test_compare_by_exact_laws(run, tmp_path):
    line = ("compare", "--exact", "--samplers", "ddim,euler-maruyama", "--steps", "2,4")
    code, out, _ = run(*line, "--out", tmp_path)
    assert code == 0
    assert "KL" in out
    with (tmp_path / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["law"] for row in rows] == ["exact"] * 4
    table = sk.sampler_bias(two_mode().denoiser(sk.VP()), [sk.samplers.DDIM()], [2], two_mode())
    assert float(rows[0]["KL"]) == table.rows[0]["KL"]
    assert png(tmp_path / "compare.png")


def test_compare_takes_every_sampler_on_every_target(run):
    code, out, _ = run("compare", "--target", "ring", "--steps", "3", "--n", 50)
    assert code == 0
    names = [line.split("(")[0] for line in out.splitlines()[2:-1]]
    assert names == [type(s).__name__ for s in sk.samplers.ALL]
    assert "failed" not in out


def test_compare_goes_on_from_a_file(run, tmp_path):
    line = ("compare", "--samplers", "ddim", "--n", 100, "--resume", tmp_path / "r.jsonl")
    code, first, _ = run(*line, "--steps", "2,3")
    assert code == 0
    before = (tmp_path / "r.jsonl").read_bytes()
    assert before.count(b"\n") == 1 + 2
    assert run(*line, "--steps", "2,3")[:2] == (0, first)  # the times as well
    assert run(*line, "--steps", "2,3,4")[0] == 0
    after = (tmp_path / "r.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 1 + 3
    code, out, err = run(*line, "--target", "ring")
    assert (code, out) == (2, "")
    assert "r.jsonl was written with another truth" in err


@pytest.mark.slow
def test_compare_by_two_processes_has_the_numbers_of_one(run):
    line = ("compare", "--samplers", "ddim,euler-maruyama", "--steps", "2,3", "--n", 100)
    (code, one, _), (_, two, _) = run(*line), run(*line, "--workers", 2)
    assert code == 0
    # All but the times in the last two columns.
    cut = [[row.rsplit(None, 2)[0] for row in out.splitlines()[2:-1]] for out in (one, two)]
    assert cut[0] == cut[1]
    assert len(cut[0]) == 4


def test_compare_of_a_trained_network(run, trained, tmp_path):
    line = ("compare", "--samplers", "ddim", "--steps", "3", "--n", 200)
    code, out, _ = run(*line, "--checkpoint", trained, "--out", tmp_path)
    assert code == 0
    model = sk.NetworkDenoiser.load(next((trained / "checkpoints").iterdir())).eval()
    table = sk.compare(model, [sk.samplers.DDIM()], [3], two_mode(), n=200, floor_repeats=2)
    with (tmp_path / "compare.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["W1"]) == table.rows[0]["W1"]
    code, out, err = run(*line, "--checkpoint", trained, "--target", "spiral")
    assert (code, out) == (2, "")
    assert err.startswith("sdekit: error: target 'spiral' is of shape (2,), but ")
    assert err.endswith("shape (1,); name its target with --target\n")


def test_check_prints_errors_masses_and_minima(run, tmp_path):
    code, out, err = run("check", "--cells", 200, "--n", 2_000, "--out", tmp_path)
    assert (code, err) == (0, "")
    rows = re.findall(r"^(?:VP|heat equation) +([\d.]+) +(\S+) +(\S+) +(\S+)$", out, re.MULTILINE)
    assert [float(t) for t, *_ in rows] == [0.05, 0.1, 0.25, 0.5, 1.0] * 2
    for _, l1, mass, least in rows:
        assert 0 < float(l1) < 2e-4
        assert abs(float(mass)) < 1e-13
        assert float(least) > -1e-12
    assert "EulerMaruyama()" in out
    assert png(tmp_path / "fokker-planck.png")


def test_check_fails_where_a_sampler_is_off(run, monkeypatch):
    row = {"sampler": "DDIM(eta=0.0)", "mean": 0.7, "variance": 0.25}
    monkeypatch.setattr(
        "sdekit.checks.law_check", lambda *a, **k: [{**row, "z_mean": -9.0, "z_variance": 0.0}]
    )
    code, out, err = run("check", "--cells", 200)
    assert code == 2
    assert "-9.0" in out
    assert err == "sdekit: error: a sampler's samples are 9.0 standard errors off its exact law\n"


# ---------------------------------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def files(tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "integers.npy", np.arange(10))
    np.save(folder / "nan.npy", np.full((4, 2), np.nan))
    np.save(folder / "none.npy", np.zeros((0, 2)))
    np.save(folder / "number.npy", np.float64(3))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    (folder / "empty.npy").touch()
    np.savez(folder / "zip", a=np.zeros(3))
    (folder / "zip.npz").rename(folder / "zip.npy")
    np.save(folder / "whole.npy", np.zeros((100, 2)))
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:300])
    torch.save({"a": torch.zeros(2)}, folder / "pickled.pt")
    whole = next(trained.glob("checkpoints/*/model.safetensors")).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    (folder / "flipped.safetensors").write_bytes(flipped)
    (folder / "file").touch()
    (folder / "folder").mkdir()
    unet = sk.NetworkDenoiser(sk.networks.UNet(), sk.VP())
    unet.save(folder / "unet.safetensors")
    (folder / "run").symlink_to(trained)
    return folder


TRAIN = "train two-mode --out OUT"
WRONG = [
    ("nonsense", "No such command 'nonsense'"),
    ("train --out OUT", "Missing argument"),
    ("train two-mode", "Missing option '--out'"),
    ("train two-mod --out OUT", "did you mean 'two-mode'?"),
    (f"{TRAIN} --proces vp", "No such option: --proces"),
    (f"{TRAIN} --process vpp", "process must be one of 'vp', .*got 'vpp'"),
    (f"{TRAIN} --prediction nois", "prediction must be one of .*; got 'nois'"),
    (f"{TRAIN} --weighting heavy", "--weighting.*'heavy' is not one of 'simple'"),
    (f"{TRAIN} --steps 0", "--steps"),
    (f"{TRAIN} --steps ten", "--steps"),
    (f"{TRAIN} --batch 0", "--batch"),
    (f"{TRAIN} --lr 0", "lr must be a finite number in .*got 0.0"),
    (f"{TRAIN} --lr nan", "lr must be a finite number in .*got nan"),
    (f"{TRAIN} --seed -1", "--seed"),
    (f"{TRAIN} --device cuda:77", "device 'cuda:77' is not available"),
    (f"{TRAIN} --device gpu", "device 'gpu' is not available"),
    (f"{TRAIN} --device meta", "device 'meta' is not available"),
    ("train two-mode --out FILES/file", "FILES/file"),
    ("train FILES/missing.npy --out OUT", "FILES/missing.npy"),
    ("train FILES/integers.npy --out OUT", "must hold floating-point numbers, got int64"),
    ("train FILES/nan.npy --out OUT", "data has 8 NaN or infinite values"),
    ("train FILES/none.npy --out OUT", r"data must hold samples \(N, \*event\), got \(0, 2\)"),
    ("train FILES/number.npy --out OUT", r"data must hold samples \(N, \*event\), got \(\)"),
    ("train FILES/objects.npy --out OUT", "objects.npy is damaged or is not a .npy file"),
    ("train FILES/empty.npy --out OUT", "empty.npy is damaged or is not a .npy file"),
    ("train FILES/cut.npy --out OUT", "cut.npy is damaged or is not a .npy file"),
    ("train FILES/zip.npy --out OUT", "zip.npy is damaged or is not a .npy file"),
    ("sample", "Missing argument"),
    ("sample FILES/missing", "no file FILES/missing"),
    ("sample FILES/folder", "FILES/folder holds no checkpoints"),
    ("sample FILES/pickled.pt", "pickled.pt is damaged or is not .*Pickled checkpoints are not"),
    ("sample FILES/cut.safetensors", "cut.safetensors is damaged"),
    ("sample FILES/flipped.safetensors", "flipped.safetensors is damaged: tensor"),
    ("sample FILES/unet.safetensors", "does not record the shape of its samples"),
    ("sample FILES/run --sampler dimm", "sampler must be one of .*; got 'dimm'; did you mean"),
    ("sample FILES/run --grid unifrom", "grid must be one of .*did you mean 'uniform'"),
    ("sample FILES/run --final last", "--final.*'last' is not one of"),
    ("sample FILES/run --steps 0", "--steps"),
    ("sample FILES/run --n 0", "--n"),
    ("sample FILES/run --out OUT.png", r"out must end in \.npy"),
    ("sample FILES/run --device cuda:77", "device 'cuda:77' is not available"),
    ("sample FILES/run --sampler torch-sde --grid karras --out OUT.npy", "takes equal steps"),
    ("compare --target sprial", "target must be one of .*did you mean 'spiral'"),
    ("compare --samplers ddim,foo", "samplers must be one of .*got 'foo'"),
    ("compare --steps 5,x", "steps must be integers separated by commas, got '5,x'"),
    ("compare --steps 5,,6", "steps must be integers separated by commas"),
    ("compare --steps 5,0", r"steps\[1\] must be >= 1, got 0"),
    ("compare --n 1", "--n"),
    ("compare --exact --target ring", "--exact is for targets on the line"),
    ("compare --exact --workers 2", "--exact is for .* without --resume and --workers"),
    ("compare --workers 0", "--workers"),
    ("compare --checkpoint FILES/cut.safetensors", "cut.safetensors is damaged"),
    ("compare --checkpoint FILES/missing", "no file FILES/missing"),
    ("check --cells 7", "--cells"),
    ("check --cells 100", "at least 120 cells, got 100"),
    ("check --device gpu", "device 'gpu' is not available"),
    ("demo --out FILES/file --quick", "FILES/file"),
    ("demo --device gpu", "device 'gpu' is not available"),
    ("demo --seed x", "--seed"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line for line, _ in WRONG])
def test_an_error_is_one_line_and_exit_code_two(run, files, tmp_path, line, message):
    def place(text):
        return text.replace("FILES", str(files)).replace("OUT", str(tmp_path / "out"))

    code, out, err = run(*(place(part) for part in line.split()))
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"sdekit: error: [^\n]+\n", err)
    assert re.search(place(message), err)
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_where_there_is_none(run, trained):
    for line in (["sample", trained], ["compare"], ["check"], ["demo"]):
        code, out, err = run(*line, "--device", "cuda")
        assert (code, out) == (2, "")
        assert err.startswith("sdekit: error: device 'cuda' is not available: ")
        assert err.count("\n") == 1


def test_a_missing_package_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, _, err = run(*_train(tmp_path / "run", "digits"))
    assert code == 2
    assert re.fullmatch(r'sdekit: error: .*pip install "sdekit\[images\]"\n', err)


@pytest.mark.parametrize("wrapped", [False, True])
def test_interrupting_is_130_and_silent(run, monkeypatch, wrapped):
    def stop(*arguments):
        if wrapped:  # as older versions of the options library do
            raise RuntimeError from KeyboardInterrupt()
        raise KeyboardInterrupt

    monkeypatch.setattr("sdekit.checks.fokker_planck_check", stop)
    assert run("check") == (130, "", "")


def test_interrupted_training_keeps_a_checkpoint_to_sample_and_resume(run, tmp_path, monkeypatch):
    import signal

    from sdekit.training import trainer

    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(40, 1, 4, 4)))
    line, original = _train(tmp_path / "run", tmp_path / "data.npy", 6), trainer.fit

    def interrupted(*arguments, **keywords):
        for step in original(*arguments, **keywords):
            if step.index == 2:
                signal.raise_signal(signal.SIGINT)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit", interrupted)
        code, _, err = run(*line)
    assert code == 130
    last = tmp_path / "run" / "checkpoints" / "step-00000003"
    assert err == f"stopped; the last checkpoint is {last}\n"
    out = tmp_path / "x.npy"
    assert run("sample", tmp_path / "run", "--out", out, "--n", 2, "--steps", 2)[0] == 0
    assert np.load(out).shape == (2, 1, 4, 4)
    assert run(*line, "--resume")[0] == 0
    assert last.with_name("step-00000006").exists()


def test_a_bug_is_not_dressed_up_as_a_wrong_argument(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr("sdekit.checks.fokker_planck_check", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["check"])


# --------------------------------------------------------------------------------- as a program


@pytest.mark.parametrize("program", [["-m", "sdekit.cli"], None], ids=["module", "script"])
def test_as_a_program(program, tmp_path):
    script = Path(sys.executable).parent / "sdekit"
    if program is None and not script.exists():
        pytest.skip("the script is not installed")
    start = [sys.executable, *program] if program else [str(script)]
    arguments = ["compare", "--steps", "0"] if program else ["sample", "--help"]
    done = subprocess.run(
        [*start, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    if program:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "sdekit: error: steps[0] must be >= 1, got 0\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: sdekit sample ")


def test_the_corrector_takes_the_scale_of_the_data(run, tmp_path):
    assert run(*_train(tmp_path / "run"))[0] == 0
    drawn = []
    for scale in (0.4, 0.1):
        where = tmp_path / f"{scale}.npy"
        line = ("--sampler", "predictor-corrector", "--data-std", scale, "--n", 5, "--steps", 3)
        assert run("sample", tmp_path / "run", "--out", where, *line)[0] == 0
        drawn.append(np.load(where))
    assert not np.array_equal(*drawn)
    code, _, error = run("sample", tmp_path / "run", "--data-std", 1.0)
    assert code == 2
    assert "--data-std is for predictor-corrector, got --sampler ddim" in error
