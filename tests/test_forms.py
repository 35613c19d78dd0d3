"""Plans unrolled and compared."""

import pytest
import torch

import sdekit as sk
from sdekit import samplers as ss
from sdekit.sampling.tape import Form, Tape

F64, VP = torch.float64, sk.VP()
TOY = sk.GaussianMixture([0.3, 0.7], [-1.4, 0.6], 0.4)
PLANS = [s for s in ss.ALL if isinstance(s, ss.PlanSampler)]


def plan_of(sampler: ss.PlanSampler, steps: int = 8, end: float = 1e-2) -> ss.Plan:
    return sampler.plan(VP, ss.LogSNR().times(VP, steps, 1.0, end))


@pytest.mark.parametrize("sampler", PLANS, ids=repr)
def test_the_closed_form_is_the_run(sampler: ss.PlanSampler) -> None:
    """The last row of the matrix against a run whose model's replies are recorded."""
    plan, model, replies = plan_of(sampler), TOY.denoiser(VP), []

    class Recorded(sk.Denoiser):
        process = VP

        def predict(self, x, t, **conditions):
            replies.append(model.data(x, t))
            return replies[-1]

    out = sk.sample(
        Recorded(), (5, 1), sampler=sampler, grid=[r.t for r in _nodes(plan)], seed=0, dtype=F64
    )
    from sdekit.sampling.noise import BlockNormals

    normals = BlockNormals(0, 0, 5, (1,), F64, torch.device("cpu"), len(plan.normals))
    form = plan.closed_form()
    total = form.start[-1] * VP.prior.std * normals.start()
    for weight, reply in zip(form.data[-1], replies, strict=True):
        total = total + weight * reply
    for m, weight in enumerate(form.normals[-1]):
        total = total + weight * normals(m)
    assert (total - out.x).abs().max() < 1e-10


def _nodes(plan: ss.Plan) -> list[ss.Row]:
    nodes = {row.node: row for row in plan.rows if row.node is not None}
    return [nodes[i] for i in sorted(nodes)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ss.DDIM(1.0), ss.Ancestral()),
        (ss.DDIM(), ss.ExponentialAB(1)),
        (ss.DDIM(), ss.DPMSolverPP(1)),
        (ss.DPMSolverPP(3), ss.ExponentialAB(3)),
        (ss.DDIM(), ss.SigmaRungeKutta("euler")),
        (ss.EDMHeun(), ss.SigmaRungeKutta("heun")),
    ],
    ids=str,
)
def test_the_same_sampler_by_another_name(one: ss.PlanSampler, other: ss.PlanSampler) -> None:
    assert plan_of(one).diff(plan_of(other)) == []
    assert plan_of(other).diff(plan_of(one)) == []


def test_a_difference_is_shown_where_it_is_made() -> None:
    """One wrong weight in one row: the states after it follow from it and are not reported."""

    class Slip(ss.DDIM):
        def write(self, tape: Tape, process: sk.Process, nodes, x: Form) -> Form:
            x = super().write(tape, process, nodes[:4], x)
            s, t = nodes[3], nodes[4]
            data = tape.data(x, s)
            x = tape.node(t.sigma / s.sigma * (x - s.alpha * data) + 1.01 * t.alpha * data, t)
            return super().write(tape, process, nodes[4:], x)

    (found,) = plan_of(ss.DDIM()).diff(plan_of(Slip()))
    t = plan_of(ss.DDIM()).rows[4].t
    assert found.call == 4
    assert found.times == (t, t)
    assert found.weights == pytest.approx({"data 3": 0.01 * VP.alpha(t)}, rel=1e-10)
    assert str(found) == f"input of call 4, t = {t:.6g}: data 3 +{0.01 * VP.alpha(t):.3g}"


def test_times_are_compared_too() -> None:
    found = plan_of(ss.DDIM()).diff(plan_of(ss.DDIM(), end=2e-2))
    assert len(found) == 8
    assert "against" in str(found[0])


def test_plans_of_different_cost_have_no_rows_in_common() -> None:
    with pytest.raises(ValueError, match="makes 8 calls"):
        plan_of(ss.DDIM()).diff(plan_of(ss.DDIM(), 9))
    with pytest.raises(ValueError, match="makes 0 normals"):
        plan_of(ss.DDIM()).diff(plan_of(ss.DDIM(1.0)))
