"""`sampler_bias`: exact laws against steps, and samples where there is no exact law."""

import math

import pytest
from helpers import bad_input

import sdekit as sk
from sdekit import plotting, samplers
from sdekit.comparison import BiasTable

VP, TARGET = sk.VP(), sk.data.two_mode()
EXACT = TARGET.denoiser(VP)
EM, MEMORY = samplers.EulerMaruyama(), samplers.DPMSolverPP(tau=1.0)


@pytest.fixture(scope="module")
def table():
    return sk.sampler_bias(
        EXACT, [EM, (samplers.DDIM(), "log-snr"), MEMORY], [8, 16], TARGET, n=20_000, points=512
    )


def test_rows_are_those_of_the_laws(table):
    assert [(row["steps"], row["law"]) for row in table.rows] == [
        (8, "exact"), (16, "exact"), (8, "exact"), (16, "exact"), (8, "samples"), (16, "samples"),
    ]  # fmt: skip
    law = sk.pde.sampler_density(EXACT, EM, 8, points=512)
    truth, row = TARGET.at(VP, law.t), table.rows[0]
    assert (row["KL"], row["TV"]) == (law.kl(truth), law.tv(truth))
    assert (row["W1"], row["W2"]) == (law.w1(truth), law.w2(truth))
    assert (row["nfe"], row["resolution"], row["alarms"]) == (8, law.error, "")
    assert table.rows[2]["grid"] == repr(samplers.GRIDS["log-snr"])
    assert math.isnan(row["W1 se"])


def test_samples_stand_in_with_an_error_bar(table):
    """W2 of samples of a deterministic sampler agrees with its exact law within the noise of samples."""
    row = table.rows[4]
    assert math.isnan(row["KL"])
    assert math.isnan(row["TV"])
    assert row["W2 se"] > 0
    assert "DPMSolverPP" in str(table)
    assert "20,000 samples a seed" in str(table)
    assert table.noise["W1"] < 0.02


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


def test_a_failing_row_says_why():
    class Broken(sk.Denoiser):
        process = VP

        def predict(self, x, t, **conditions):
            return x * math.nan if t < 0.5 else x

    table = sk.sampler_bias(Broken(), [EM], [4], TARGET, points=64)
    assert table.rows[0]["error"].startswith("NumericsError")
    assert "failed" in str(table)
    assert "NaN or infinity" in str(table)


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


test_bad_input = bad_input(
    [
        ("plane", lambda: sk.sampler_bias(sk.data.ring().denoiser(VP), [EM], [5], sk.data.ring()),
         ValueError, ["truth", "d = 2", "compare"]),
        ("truth", lambda: sk.sampler_bias(EXACT, [EM], [5], "two-mode"), TypeError, ["truth"]),
        ("start", lambda: sk.sampler_bias(EXACT, [EM], [5], TARGET, start="p_T"), ValueError, ["start"]),
        ("steps", lambda: sk.sampler_bias(EXACT, [EM], [0], TARGET), ValueError, ["steps[0]", "0"]),
        ("samplers", lambda: sk.sampler_bias(EXACT, ["ddim"], [5], TARGET), TypeError, ["samplers[0]"]),
        ("points", lambda: sk.sampler_bias(EXACT, [EM], [5], TARGET, points=3), ValueError, ["points"]),
        ("n", lambda: sk.sampler_bias(EXACT, [EM], [5], TARGET, n=1), ValueError, ["n"]),
        ("t_end", lambda: sk.sampler_bias(EXACT, [EM], [5], TARGET, t_end=2.0), ValueError, ["t_end"]),
    ]
)  # fmt: skip
