"""`sampler_bias`: exact laws in a table, samples where no law is to be had."""

import math

import pytest
import torch
from helpers import bad_input

import sdekit as sk
from sdekit import plotting, samplers
from sdekit.comparison import BiasTable, sampler_bias
from sdekit.pde import sampler_density

TARGET, VP = sk.data.two_mode(), sk.VP()
EXACT = TARGET.denoiser(VP)
EM, MEMORY = samplers.EulerMaruyama(), samplers.DPMSolverPP(tau=1.0)
QUICK = {"n": 2000, "seeds": (0, 1, 2)}


@pytest.fixture(scope="module")
def table():
    chosen = [samplers.EulerMaruyama(), (samplers.DDIM(), "uniform"), MEMORY]
    return sampler_bias(EXACT, chosen, [8, 16], TARGET, t_end=1e-2, points=512, **QUICK)


def test_rows_are_the_distances_of_the_laws(table):
    truth = TARGET.at(VP, 1e-2)
    for row, sampler, grid in zip(
        table.rows, [samplers.EulerMaruyama()] * 2 + [samplers.DDIM()] * 2, [None] * 2 + ["uniform"] * 2,
        strict=False,
    ):  # fmt: skip
        law = sampler_density(EXACT, sampler, row["steps"], grid=grid, t_end=1e-2, points=512)
        found = [row[name] for name in ("KL", "TV", "W1", "W2")]
        assert found == [law.kl(truth), law.tv(truth), law.w1(truth), law.w2(truth)]
        assert (row["law"], row["nfe"], row["resolution"]) == ("exact", law.nfe, law.error)
        assert all(math.isnan(row[f"{name} se"]) for name in ("KL", "W2"))
        assert (row["error"], row["alarms"]) == ("", "; ".join(law.alarms))


def test_a_sampler_without_a_law_is_drawn(table):
    """Its W2 is that of `compare` on the same seeds, to the last digit."""
    rows = [row for row in table.rows if row["law"] == "samples"]
    assert [row["sampler"] for row in rows] == [repr(MEMORY)] * 2
    drawn = sk.compare(EXACT, [MEMORY], [8, 16], TARGET, t_end=1e-2, floor_repeats=2, **QUICK)
    for row, other in zip(rows, drawn.rows, strict=True):
        assert math.isnan(row["KL"])
        assert math.isnan(row["TV"])
        assert (row["W2"], row["W2 se"]) == (other["W2"], other["W2 se"])
    assert set(table.noise) == {"W1", "W2"}
    assert "2,000 samples a seed" in str(table)


def test_the_table_reads(table):
    lines = str(table).splitlines()
    assert lines[0].split() == [
        "sampler",
        "grid",
        "steps",
        "NFE",
        "KL",
        "TV",
        "W1",
        "W2",
        "seconds",
    ]
    assert len({len(line) for line in lines[:8]}) == 1
    assert table.markdown().count("\n| ") == 1 + len(table.rows)
    assert table.label("KL") == "KL(sampler || exact law), nats"


def test_from_the_exact_law_a_flow_leaves_only_the_error_of_its_steps():
    """The prior of data of variance 3.4 under VP is off by more than the steps are."""
    wide = sk.GaussianMixture([0.3, 0.7], [-2.0, 2.0], stds=0.6)
    prior, exact = (
        sampler_bias(wide.denoiser(VP), [samplers.DPMSolver(order=3)], [60], wide, t_end=1e-2,
                     start=start, points=2048).rows[0]
        for start in ("prior", "exact")
    )  # fmt: skip
    assert exact["KL"] < 0.01 * prior["KL"]


def test_a_row_that_fails_says_why():
    class Broken(sk.Denoiser):
        process, prediction = VP, "noise"

        def predict(self, x, t, **conditions):
            return x * math.nan

    table = sampler_bias(Broken(), [samplers.DDIM()], [5], TARGET, points=64)
    assert "NumericsError" in table.rows[0]["error"]
    assert math.isnan(table.rows[0]["W2"])
    assert "failed" in str(table)


def test_a_truth_of_atoms_has_distances_but_no_density():
    """One atom: DDIM down to 0 ends at E[x_0 | x], the atom; above 0 there is a density."""
    atom = sk.GaussianMixture(None, [0.5], stds=0.0)
    row = sampler_bias(atom.denoiser(VP), [samplers.DDIM()], [10], atom, t_end=0.0, points=64).rows[
        0
    ]
    assert row["error"] == ""
    assert math.isnan(row["KL"])
    assert row["W2"] < 1e-12
    row = sampler_bias(atom.denoiser(VP), [samplers.DDIM()], [10], atom, t_end=0.1).rows[0]
    assert 0 <= row["KL"] < 1e-4


def test_start_from_the_exact_law_reaches_both_kinds():
    """From p_T at few steps of a big prior mismatch the biases fall, for laws and for samples."""
    far = sk.GaussianMixture([0.5, 0.5], [2.0, 4.0], stds=0.5)
    short = sk.VP(beta_min=0.1, beta_max=5.0)
    found = {}
    for start in ("prior", "exact"):
        rows = sk.sampler_bias(
            far.denoiser(short), [EM, MEMORY], [64], far, start=start, n=20_000, points=512
        ).rows
        found[start] = [row["W1"] for row in rows]
    assert found["exact"][0] < 0.5 * found["prior"][0]
    assert found["exact"][1] < 0.5 * found["prior"][1]


def test_alarms_are_notes():
    narrow = sk.GaussianMixture([0.5, 0.5], [-1.0, 1.0], stds=0.01)
    table = sk.sampler_bias(narrow.denoiser(VP), [EM], [20], narrow, points=64)
    assert "not resolved by 64 points" in str(table)


def test_files_and_pictures(table, tmp_path):
    table.to_csv(tmp_path / "bias.csv")
    assert (tmp_path / "bias.csv").read_text().count("\n") == 7
    assert table.markdown().startswith("| sampler | grid | steps | NFE | KL | TV | W1 | W2 |")
    for metric in ("KL", "W2"):
        figure = plotting.error_against_nfe({"two modes": table}, metric)
        assert figure.axes[0].get_ylabel() == table.label(metric)
        assert plotting.save(figure, tmp_path / f"{metric}.png").stat().st_size > 10_000


def test_orders_in_the_table():
    """KL falls with twice the order, W2 with the order: what the fan of slopes is drawn by."""
    rows = sk.sampler_bias(EXACT, [EM], [128, 256], TARGET, points=512).rows
    for metric in ("KL", "W2"):
        power = BiasTable([], {}, 0, (), {}).power(metric)
        slope = math.log2(rows[0][metric] / rows[1][metric])
        assert abs(slope - power * EM.order) < 0.05


def call(**change):
    arguments = {"denoiser": EXACT, "samplers": [samplers.DDIM()], "steps": [4], "truth": TARGET}
    return lambda: sampler_bias(**(arguments | change))


test_bad_input = bad_input(
    [
        ("denoiser", call(denoiser=TARGET), TypeError, ["denoiser", "GaussianMixture"]),
        ("truth", call(truth=torch.zeros(3)), TypeError, ["truth", "Tensor"]),
        ("plane", call(truth=sk.data.ring()), ValueError, ["truth", "d = 2", "compare"]),
        ("start", call(start="data"), ValueError, ["start", "exact"]),
        ("points", call(points=16), ValueError, ["points", "32"]),
        ("n", call(n=1), ValueError, ["n must"]),
        ("t_end", call(t_end=1.0), ValueError, ["t_end"]),
        ("samplers", call(samplers=["ddim"]), TypeError, ["samplers[0]", "ddim"]),
        ("steps", call(steps=[0]), ValueError, ["steps[0]"]),
        ("seeds", call(seeds=[-1]), ValueError, ["seed"]),
    ]
)
