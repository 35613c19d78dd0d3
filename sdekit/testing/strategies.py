"""Hypothesis strategies for schedules, processes, times, grids, mixtures and event shapes.

Each draws valid objects over a wide range of parameters, the awkward ones included: times within 1e-12 of
an end, chains of one step, a path that does not start at data, components four decades apart in weight
times width. They need the extra `testing`: `pip install "sdekit[testing]"`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from sdekit.data import GaussianMixture
from sdekit.processes import EDM, VE, VP, Heat, Interpolant, OrnsteinUhlenbeck, Process, SubVP
from sdekit.schedules import (
    Angle,
    Constant,
    Cosine,
    Linear,
    Quadratic,
    Schedule,
    Sigmoid,
    Tabulated,
)

try:
    from hypothesis import assume
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        'sdekit.testing.strategies needs hypothesis: pip install "sdekit[testing]"'
    ) from error

Kind = Literal["isotropic", "diagonal", "full"]
Domain = Literal["closed", "open", "readable"]


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    """Positive floats whose logarithm is spread evenly over [low, high]."""
    exponents = st.floats(math.log(low), math.log(high))
    return exponents.map(lambda e: min(max(math.exp(e), low), high))


def _rate_pairs() -> st.SearchStrategy[tuple[float, float]]:
    """(beta_min, beta_max), beta_min in [1e-3, 5], beta_max in [beta_min, 40]."""
    return log_uniform(1e-3, 5.0).flatmap(lambda b: st.tuples(st.just(b), st.floats(b, 40.0)))


def _sigmoids() -> st.SearchStrategy[Schedule]:
    return st.builds(
        lambda rates, start, width: Sigmoid(*rates, start=start, end=start + width),
        _rate_pairs(),
        st.floats(-18.0, 6.0),
        st.floats(0.5, 28.0),
    )


def _angles() -> st.SearchStrategy[Schedule]:
    return st.builds(
        lambda high, share: Angle(high, high * share),
        st.one_of(st.just(1.0), st.floats(0.3, 1.0)),
        st.one_of(st.just(0.0), st.floats(1e-3, 0.9)),
    )


def betas(max_steps: int = 40) -> st.SearchStrategy[list[float]]:
    """Betas of a discrete chain in [1e-6, 0.999], of any order; a strictly decreasing list is reversed."""

    def ordered(values: list[float]) -> list[float]:
        # A table that falls from near 1 is refused, since it is most likely alpha_bar.
        return values[::-1] if sorted(values, reverse=True) == values else values

    return st.lists(log_uniform(1e-6, 0.999), min_size=1, max_size=max_steps).map(ordered)


def schedules() -> st.SearchStrategy[Schedule]:
    """Every family of schedules with random valid parameters."""
    return st.one_of(
        _rate_pairs().map(lambda rates: Linear(*rates)),
        _rate_pairs().map(lambda rates: Quadratic(*rates)),
        st.floats(0.01, 40.0).map(Constant),
        _sigmoids(),
        st.one_of(st.just(0.0), st.floats(1e-4, 0.2)).map(Cosine),
        _angles(),
        betas().map(Tabulated),
    )


def _exploding() -> st.SearchStrategy[Process]:
    return st.builds(
        lambda low, growth, jump: VE(low, low * growth, start_at_sigma_min=jump),
        log_uniform(1e-3, 1.0),
        log_uniform(1.2, 1e4),
        st.booleans(),
    )


def _ornstein_uhlenbeck() -> st.SearchStrategy[Process]:
    return st.builds(
        OrnsteinUhlenbeck,
        theta=st.one_of(st.just(0.0), log_uniform(1e-3, 10.0)),
        D=log_uniform(0.1, 5.0),
        horizon=log_uniform(0.1, 10.0),
    )


_FAMILIES: dict[type[Process], Callable[[], st.SearchStrategy[Process]]] = {
    VP: lambda: schedules().map(lambda s: VP(schedule=s)),
    SubVP: lambda: schedules().map(lambda s: SubVP(schedule=s)),
    VE: _exploding,
    EDM: lambda: st.builds(EDM, log_uniform(1e-4, 0.1), log_uniform(1.0, 200.0)),
    Heat: lambda: log_uniform(0.1, 10.0).map(Heat),
    OrnsteinUhlenbeck: _ornstein_uhlenbeck,
    Interpolant: lambda: st.just(Interpolant()),
}


def processes(families: Sequence[type[Process]] | None = None) -> st.SearchStrategy[Process]:
    """Processes of the given families (all that sdekit has, if none) with random valid parameters.

    Raises:
        ValueError: a family that has no strategy here.
    """
    chosen = tuple(_FAMILIES) if families is None else tuple(families)
    for family in chosen:
        if family not in _FAMILIES:
            known = ", ".join(c.__name__ for c in _FAMILIES)
            raise ValueError(f"families must be among {known}; got {family!r}")
    return st.one_of([_FAMILIES[family]() for family in chosen])


def times(process: Process, domain: Domain = "readable") -> st.SearchStrategy[float]:
    """Times of a process: spread evenly, and crowded towards both ends.

    Args:
        process: whose clock it is.
        domain: "closed" for 0 and [1e-12 T, T], "open" for its inside from 1e-12 T to (1 - 1e-12) T,
            "readable" for [t_min, t_max], where models are read.
    """
    if domain not in ("closed", "open", "readable"):
        raise ValueError(f'domain must be "closed", "open" or "readable", got {domain!r}')
    end = process.horizon
    low, high = {
        "closed": (0.0, end),
        "open": (1e-12 * end, (1 - 1e-12) * end),
        "readable": (process.t_min, process.t_max),
    }[domain]
    near = log_uniform(1e-12, 1.0)
    drawn = [
        st.floats(0.0, 1.0).map(lambda u: low + (high - low) * u),
        near.map(lambda u: end * u),
        near.map(lambda u: end * (1 - u)),
    ]
    if domain != "open":
        drawn.append(st.sampled_from((low, high)))
    small = 1e-12 * end
    return st.one_of(drawn).map(lambda t: min(max(t if t >= small else 0.0, low), high))


@st.composite
def grids(
    draw: st.DrawFn,
    process: Process,
    min_steps: int = 1,
    max_steps: int = 12,
    domain: Domain = "readable",
    gap: float = 1e-9,
) -> list[float]:
    """Strictly decreasing lists of min_steps + 1 to max_steps + 1 times, no two closer than gap times T."""
    drawn = draw(st.lists(times(process, domain), min_size=min_steps + 1, max_size=max_steps + 1))
    kept: list[float] = []
    for t in sorted(drawn, reverse=True):
        if not kept or kept[-1] - t >= gap * process.horizon:
            kept.append(t)
    assume(len(kept) > min_steps)
    return kept


@st.composite
def mixtures(
    draw: st.DrawFn,
    dim: int | None = None,
    max_components: int = 5,
    kinds: Sequence[Kind] = ("isotropic", "diagonal", "full"),
) -> GaussianMixture:
    """Mixtures with weights in [0.05, 1] (before normalising), means in [-3, 3] and stds in [0.1, 2].

    Args:
        draw: given by Hypothesis.
        dim: dimension d; one of 1, 2, 3, 8 if not given.
        max_components: most components; at least one.
        kinds: shapes of the covariances to draw from; "full" ones are randomly rotated diagonal ones.
    """
    d = draw(st.sampled_from((1, 2, 3, 8))) if dim is None else dim
    k = draw(st.integers(1, max_components))
    kind = draw(st.sampled_from(tuple(kinds)))
    weights = torch.tensor(draw(_vectors(k, 0.05, 1.0)), dtype=torch.float64)
    means = torch.tensor(draw(_vectors(k * d, -3.0, 3.0)), dtype=torch.float64).reshape(k, d)
    count = k if kind == "isotropic" else k * d
    stds = torch.tensor(draw(_vectors(count, 0.1, 2.0)), dtype=torch.float64)
    if kind == "isotropic":
        return GaussianMixture(weights, means, stds)
    if kind == "diagonal":
        return GaussianMixture(weights, means, stds.reshape(k, d))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    axes = torch.linalg.qr(torch.randn(k, d, d, generator=generator, dtype=torch.float64)).Q
    covariances = axes @ torch.diag_embed(stds.reshape(k, d).square()) @ axes.mT
    return GaussianMixture(weights, means, covariances=covariances)


def _vectors(size: int, low: float, high: float) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(low, high), min_size=size, max_size=size)


def event_shapes(size: int | None = None) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of one sample: numbers, vectors, matrices, images; those with `size` entries if given."""
    if size is None:
        return st.sampled_from([(), (1,), (3,), (8,), (2, 3), (1, 4, 4)])
    shapes: list[tuple[int, ...]] = [(size,), (1, size), (size, 1), (1, 1, size)]
    shapes += [(k, size // k) for k in range(2, size) if size % k == 0]
    return st.sampled_from([(), *shapes] if size == 1 else shapes)
