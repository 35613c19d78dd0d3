"""The README tells the truth: its code runs, its tables and pictures are what the package has."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sdekit import samplers
from sdekit.networks import UNet

README = (Path(__file__).parent.parent / "README.md").read_text()


def run_page(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str | None = None,
    without: tuple[str, ...] = (),
) -> tuple[str, dict[str, Any]]:
    """The text of a page of docs/, and what its blocks define; those with a word of `without` are left."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / f"{page}.md").read_text()
    names: dict[str, Any] = {"__name__": module or page}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if not any(word in block for word in without):
            exec(compile(block, f"{page}.md", "exec"), names)
    return text, names


def test_code_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "100 model calls, variance off by" in printed
    assert "exact samples score" in printed
    assert "KL 3.63153e-04 nats, W2 9.87432e-03" in printed


def test_the_blocks_on_extending_run(tmp_path, monkeypatch):
    _, names = run_page("extending", tmp_path, monkeypatch)
    assert len(names["table"].rows) == 4
    assert not any(row["error"] for row in names["table"].rows)


def test_the_blocks_on_plans_run(tmp_path, monkeypatch, capsys):
    _, names = run_page("plans", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "10 model calls, 5 states in memory" in printed
    assert "10 checks hold" in printed
    assert "11 sweeps" in printed
    assert names["out"].plan.name == repr(names["found"].sampler)


def test_the_blocks_on_densities_run(tmp_path, monkeypatch, capsys):
    _, names = run_page("densities", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "KL 0.000363153  TV 0.0083788  W1 0.00619805  W2 0.00987432" in printed
    assert "20,000 samples a seed" in printed
    assert (
        names["found"].value + names["found"].prior_mismatch - names["exact"]
    ).abs().max() < 1e-5
    assert abs(names["half"].mass - 1) < 1e-9


def test_the_blocks_on_data_run(tmp_path, monkeypatch, capsys):
    _, names = run_page("data", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "torch.Size([30, 1, 16, 16]) ('digit 0', 'digit 1')" in printed
    assert len(names["few"]) == 20
    assert Path("toys.png").stat().st_size > 10_000
    assert names["result"].losses.isfinite().all()
    gap = names["moons"].log_prob(names["out"].x) - names["real"]
    # Four standard errors of the mean, for samples and data alike.
    assert abs(gap.mean()) < 4 * gap.std() * (2 / 2_000) ** 0.5


def test_the_blocks_on_metrics_run(tmp_path, monkeypatch, capsys):
    text, names = run_page("metrics", tmp_path, monkeypatch)
    assert "FD-LeNet" in capsys.readouterr().out
    assert names["fit"].accuracy > 0.9
    assert 0.7 < names["floor"].mean / names["bias"] < 1.3
    rows, floors = {row["set"]: row for row in names["table"].rows}, names["table"].floors
    for column in ("FD", "KID", "energy"):
        assert rows["one Gaussian"][column] > max(floors[column].values)
        assert rows["training + noise 0.02"][column] < min(floors[column].values)
    assert rows["training + noise 0.02"]["z"] > 20
    # The table on the page has these sets, and the columns that are printed.
    assert all(f"| {name} |" in text for name in rows)
    assert "| set | n | FD-LeNet | KID | energy | precision | recall |" in text


def test_the_blocks_on_networks_run(tmp_path, monkeypatch, capsys):
    text, names = run_page("networks", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "torch.Size([2, 1, 28, 28]) 0.0" in printed
    assert ("sdekit[diffusers]" in printed) == (find_spec("diffusers") is None)
    for attention in (True, False):
        net = UNet(3, (32, 64, 96, 128), depth=2, attention=attention)
        assert f"{sum(p.numel() for p in net.parameters()):,}" in text
    rows = re.findall(r"^\| (\(.*?\)) \| (\d) \| (\S+) M \|", text, re.MULTILINE)
    assert len(rows) == 10
    for widths, patch, millions in rows:
        net = UNet(widths=ast.literal_eval(widths), patch=int(patch))
        assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}" == millions
    assert names["model"].network.features.scale == 0.05


def test_the_blocks_on_training_run(tmp_path, monkeypatch, capsys):
    text, names = run_page("training", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "least 6.58625; the simple loss 0.243988" in printed
    assert "least mean divergence 0.139614" in printed
    assert len(names["result"].validation) == 2
    assert "Nothing wrong found." in printed
    assert "The network predicts 'v', but is declared as 'noise'" in printed
    assert Path("diagnosis.png").stat().st_size > 10_000
    for check in {row["check"] for row in names["found"].rows}:
        assert f"{check}" in text


@pytest.mark.slow
def test_the_blocks_on_comparing_run(tmp_path, monkeypatch):
    without = () if find_spec("distributed") else ("dask",)
    # Functions that processes share are looked up by the name of their module.
    text, names = run_page("comparing", tmp_path, monkeypatch, "__main__", without)
    values = [row["W1"] for row in names["more"].rows]
    for table in ("parallel", "clustered"):
        assert table not in names or [row["W1"] for row in names[table].rows] == values
    assert "parallel" in names
    columns = re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))
    assert {*columns, "W2", "W2 se", "W2 floor"} == names["table"].rows[0].keys()
    assert len(names["budget"].rows) == 6


@pytest.mark.parametrize("sampler", samplers.ALL, ids=repr)
def test_every_sampler_has_its_true_row(sampler):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{sampler!r}`"))
    order, random, calls = (cell.strip() for cell in row.split("|")[2:5])
    assert order == str(sampler.order)
    assert random == ("yes" if sampler.stochastic else "no")
    assert calls == str(sampler.nfe_per_step or "the solver decides")


def test_pictures_and_links_exist():
    root = Path(__file__).parent.parent
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    for target in targets:
        assert (root / target).is_file(), target


def test_nothing_left_to_fill_in():
    assert "@" not in README
