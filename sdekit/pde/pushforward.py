"""The exact law of a sampler's output on the line: no samples, so no Monte-Carlo noise.

Between two noises every register of a plan is a deterministic function of the last noisy state u (of the
start, before the first): it is carried at nodes of u, with any number of stages and earlier steps. A row that
adds noise makes a new u, whose density is that of one step of a Markov chain (`kernel_step.py`). After the
last noise the state is a map x(u); its slope is carried as a dual number, and the density follows by change
of variables. So the route holds for every deterministic sampler that treats each sample by itself, and for
every stochastic plan that keeps nothing but its new state across a noise.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.autograd.forward_ad as fw
from torch import Tensor

from sdekit.data.mixtures import ExactDenoiser, GaussianMixture
from sdekit.denoisers import Denoiser, device_of, evaluating
from sdekit.errors import check_integer
from sdekit.pde.density import Density1D
from sdekit.pde.kernel_step import Grid1D, noisy_step
from sdekit.sampling import PlanSampler, Sampler
from sdekit.sampling.engine import Engine, Program, plan_of
from sdekit.sampling.front_door import check_parts, checked_times
from sdekit.sampling.grids import TimeGrid
from sdekit.sampling.plan import Plan, Register

#: Nodes of the first try: a noise smooths what follows, a flow between modes is steep.
NOISY, STEEP = 512, 4096
#: Nodes of the last, of a plan; another program is not run again, since its steps may change with the nodes.
MOST = 65536
#: Total variation between two laws, one on half the nodes of the other, that ends the doubling.
ENOUGH = 1e-6
#: The start is followed this many of its standard deviations out: beyond is less than 1e-15 of it.
_REACH = 8.2
#: A mass off by more is worth an alarm; so is a law that moves by more when the nodes are halved.
_MASS, _UNRESOLVED = 1e-8, 1e-5
_NARROW = "a kernel is narrower than the nodes"


def sampler_density(
    denoiser: Denoiser,
    sampler: Sampler,
    steps: int | None = None,
    *,
    grid: str | TimeGrid | Tensor | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    final: str = "none",
    start: str | GaussianMixture = "prior",
    points: int | None = None,
    cond: Tensor | None = None,
) -> Density1D:
    """The law of what `sample` draws on the line, computed without drawing.

    For every deterministic sampler but those with one step size for a whole batch, and for every stochastic
    plan that keeps only its new state across a noise (`has_exact_law` tells): Euler-Maruyama, ancestral,
    DDIM, churn, restarts and Langevin steps, but no stochastic multistep. The model, exact or a network, is
    called at the nodes.

    Args:
        denoiser: exact or trained, of states (n, 1).
        sampler: one of `sdekit.samplers`.
        steps: as for `sample`, like the next four.
        grid: times, their name or how to make them.
        t_start: the first time.
        t_end: the last time.
        final: "none", "mean" or "data".
        start: law at the first time: "prior", "exact" (that of the data there; exact denoisers only), or any
            1-D mixture.
        points: nodes. If not given they double from 512 (4,096 for a flow) until the law moves by less than
            1e-6 in total variation, up to 65,536; its own error is then smaller by far.
        cond: one condition, (1, ...), for all states.

    Returns:
        The law at the last time: hold it against `target.at(process, law.t)`. `law.error` is how far it
        moved when the nodes doubled; `law.alarms` is empty unless the numbers are in doubt.

    Raises:
        ValueError: a sampler whose law cannot be carried on a line; another argument out of its range. Both
            before the model is called.
        NumericsError: the model gave NaN or infinity.
    """
    check_parts(denoiser, sampler, final)
    if isinstance(denoiser, ExactDenoiser) and denoiser.mixture.dim != 1:
        raise ValueError(f"denoiser must be of states on the line, got d = {denoiser.mixture.dim}")
    times = checked_times(sampler, denoiser.process, steps, grid, t_start, t_end)
    law = _start_law(denoiser, start, times[0])
    program = sampler.program(denoiser, times, final)
    plan = _rows(sampler, program, denoiser)
    if reason := _obstacle(sampler, plan):
        raise ValueError(f"{sampler!r} {reason}: its law is not computed; `compare` draws samples")
    conditions = _conditions(cond, device_of(denoiser))
    push = _Push(denoiser, program, plan, law, times[-1], conditions)
    with evaluating(denoiser):
        if points is not None:
            return _judged(push, check_integer("points", points, 32))
        return _refined(push)


def has_exact_law(sampler: Sampler, denoiser: Denoiser) -> bool:
    """Whether `sampler_density` computes the law of this sampler; else only samples tell."""
    check_parts(denoiser, sampler, "none")
    times = checked_times(sampler, denoiser.process, None, None, None, None)
    program = sampler.program(denoiser, times, "none")
    return not _obstacle(sampler, _rows(sampler, program, denoiser))


def _refined(push: "_Push") -> Density1D:
    """The law on enough nodes: doubled until it stays where it is."""
    most = STEEP if push.plan is None else MOST
    points, coarse = NOISY if push.noisy else STEEP, None
    while True:
        law = _judged(push, points, coarse)
        # A fold has no density to watch, but sums over nodes, W1 and W2, that want enough of them.
        hopeless = _NARROW in law.alarms or (law.folded and points >= STEEP)
        if hopeless or law.error <= ENOUGH or points >= most:
            return law
        points, coarse = (STEEP if law.folded else 2 * points), law


def _judged(push: "_Push", points: int, coarse: Density1D | None = None) -> Density1D:
    """The law on so many nodes, held against the one on half as many, and what is wrong with it."""
    law = push(points)
    if not push.noisy:
        coarse = law.thinned()  # a map is the same at every other node
    elif coarse is None:
        coarse = push(points // 2)
    alarms = list(law.alarms)
    error = float("nan")
    if not (law.folded or coarse.folded):
        error = law.tv(coarse)
        if error > _UNRESOLVED:
            alarms.append(f"not resolved by {len(law.nodes)} points: give more")
    if abs(law.mass - 1) > _MASS:
        alarms.append(f"mass off by {law.mass - 1:.0e}")
    if law.folded:
        alarms.append("the map folds")
    return dataclasses.replace(law, error=error, alarms=tuple(alarms))


class _Push(NamedTuple):
    """A sampler, carried over densities on so many nodes."""

    denoiser: Denoiser
    program: Program
    plan: Plan | None
    start: GaussianMixture
    t: float
    conditions: dict[str, Tensor]

    @property
    def noisy(self) -> bool:
        """Whether any row adds noise."""
        return self.plan is not None and self.plan.stochastic

    def __call__(self, points: int) -> Density1D:
        """The law of the result."""
        conditions = {k: v.expand(points, *v.shape[1:]) for k, v in self.conditions.items()}
        engine = Engine(self.denoiser, _no_normals, conditions, check=True)
        density, resolved = _on_nodes(self.start, points), True
        with torch.no_grad(), fw.dual_level():
            if self.plan is None:
                x = self.program(engine, _varied(self._states(density)))
            else:
                density, x, resolved = self._by_rows(self.plan, engine, density)
            value, slope = fw.unpack_dual(x)
        assert slope is not None
        parts = _rising(density, value[:, 0].cpu().numpy(), slope[:, 0].cpu().numpy())
        alarms = () if resolved else (_NARROW,)
        return Density1D(*parts, t=self.t, nfe=engine.nfe, alarms=alarms)

    def _by_rows(self, plan: Plan, engine: Engine, density: Grid1D) -> tuple[Grid1D, Tensor, bool]:
        """The density of the last noisy state, what the rows make of it, and whether all was resolved."""
        last_noise = max((k for k, row in enumerate(plan.rows) if row.z), default=0)
        held: dict[Register, Tensor] = {}
        x, resolved = self._states(density), True
        for k, row in enumerate(plan.rows):
            if k:
                x = sum((c * held[r] for r, c in row.inputs()), torch.zeros_like(x))
            if row.z:
                sigma = math.sqrt(sum(c * c for c in row.z.values()))
                density, wide = noisy_step(density, x[:, 0].cpu().numpy(), sigma)
                resolved, held, x = resolved and wide, {}, self._states(density)
            if k == last_noise:
                x = _varied(x)
            held["x", k] = x
            if row.read is not None:
                a, b = row.read
                held["p", k] = a * x + b * engine.evaluate(row.t, x)
            held = {r: v for r, v in held.items() if plan.last_use.get(r, -1) > k}
        return density, x, resolved

    def _states(self, density: Grid1D) -> Tensor:
        """The nodes as a batch, where the model is; a copy, since a program may overwrite its start."""
        return torch.tensor(density.nodes, device=device_of(self.denoiser))[:, None]


def _varied(x: Tensor) -> Tensor:
    """The states as dual numbers, of slope 1."""
    return fw.make_dual(x, torch.ones_like(x))


def _rising(density: Grid1D, x: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, ...]:
    """Nodes, density, map and slope: turned round where the map falls, cut where it turns in the tails."""
    nodes, rho = density
    if (rho * slope).sum() < 0:
        nodes, rho, x, slope = -nodes[::-1], rho[::-1], x[::-1], -slope[::-1]
    kept = _monotone_middle(Grid1D(nodes, rho), x, slope)
    return tuple(np.ascontiguousarray(part[kept]) for part in (nodes, rho, x, slope))


def _monotone_middle(density: Grid1D, x: np.ndarray, slope: np.ndarray) -> slice:
    """The nodes about the median between which the map rises, if they have all but 1e-12 of the mass."""
    mass = density.spacing * density.rho
    turns = np.flatnonzero((slope <= 0) | (np.diff(x, append=np.inf) <= 0))
    median = int(np.searchsorted(mass.cumsum(), mass.sum() / 2))
    below, above = turns[turns <= median], turns[turns > median]
    first = below[-1] + 1 if len(below) else 0
    end = above[0] if len(above) else len(x)
    lost = mass[:first].sum() + mass[end:].sum()
    return slice(first, end) if lost <= 1e-12 and end - first >= 16 else slice(None)


def _rows(sampler: Sampler, program: Program, denoiser: Denoiser) -> Plan | None:
    """The plan to carry, on the model's own output; None where the program is run as it is."""
    plan = plan_of(program) if isinstance(sampler, PlanSampler) else None
    return None if plan is None else plan.native(denoiser.prediction)


def _obstacle(sampler: Sampler, plan: Plan | None) -> str:
    """Why the law of a sampler cannot be carried on a line; empty if it can."""
    if plan is None:
        if sampler.stochastic:
            return "is random and no plan"
        return "takes one step size for a whole batch" if sampler.coupled else ""
    drawn = [m for row in plan.rows for m in row.z]
    if len(drawn) != len(set(drawn)):
        return "uses a normal twice"
    alive: set[Register] = set()
    for k, row in enumerate(plan.rows):
        alive = {r for r in alive if plan.last_use.get(r, -1) > k}
        if row.z and alive:
            return "carries more than its state across a noise"
        alive |= {("x", k), ("p", k)}
    return ""


def _start_law(denoiser: Denoiser, start: Any, t: float) -> GaussianMixture:
    """The law of the states at the first time."""
    process = denoiser.process
    if isinstance(start, GaussianMixture):
        law = start
    elif start == "prior":
        if t < process.t_max:
            raise ValueError(
                f'start must be "exact" or a mixture where the run starts at t = {t:g}, below t_max = '
                f"{process.t_max:g}: the prior is the law at the end only"
            )
        law = GaussianMixture(None, [0.0], stds=process.prior.std)
    elif start == "exact" and isinstance(denoiser, ExactDenoiser):
        law = denoiser.mixture.at(process, t)
    else:
        given = "a denoiser whose data are not known" if start == "exact" else repr(start)
        raise ValueError(f'start must be "prior", "exact" or a GaussianMixture, got {given}')
    if law.dim != 1:
        raise ValueError(f"start must be a law on the line, got d = {law.dim}")
    if law.narrowest == 0:
        raise ValueError("start must have a density: no component of standard deviation 0")
    return law


def _conditions(cond: Any, device: torch.device) -> dict[str, Tensor]:
    if cond is None:
        return {}
    if not isinstance(cond, Tensor) or cond.shape[:1] != (1,):
        given = f"shape {tuple(cond.shape)}" if isinstance(cond, Tensor) else type(cond).__name__
        raise ValueError(f"cond must be a tensor of one row, got {given}")
    return {"cond": cond.to(device)}


def _on_nodes(law: GaussianMixture, points: int) -> Grid1D:
    """A mixture at uniform nodes that reach as far as it does."""
    reach = _REACH * law.variances[:, 0].sqrt()
    low, high = float((law.means[:, 0] - reach).min()), float((law.means[:, 0] + reach).max())
    nodes = np.linspace(low, high, points)
    return Grid1D(nodes, law.log_prob(torch.from_numpy(nodes)).exp().numpy())


def _no_normals(m: int) -> Tensor:
    raise AssertionError(f"the density of normal {m} is carried, it is not drawn")
