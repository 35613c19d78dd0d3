"""Gaussian mixtures: targets whose every diffused density, score and posterior is known in closed form.

If x_0 ~ sum w_k N(m_k, C_k), then x_t ~ sum w_k N(alpha m_k, alpha^2 C_k + sigma^2 I): again a mixture.
Nothing here uses automatic differentiation or loops over samples or components; log weights are squared
*differences* (never expanded squares, which cancel at tiny sigma) through logsumexp.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.denoisers import Denoiser
from sdekit.elementary import Number
from sdekit.errors import check_integer, check_number, generator_of
from sdekit.processes import Process, expand
from sdekit.quadrature import panels

Values = Tensor | float | Iterable[Any]

#: Bytes of the (samples, components) block worked on at once: it stays in the cache.
_BLOCK = 1 << 19
#: Up to this dimension the principal axes are walked one by one.
_THIN = 8


@dataclass(frozen=True)
class Posterior:
    """The mixture of x_0 given each x_t.

    Attributes:
        weights: responsibilities, (n, k).
        means: component means, (n, k, d).
        covariances: component covariances, shared by the samples, (k, d, d).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        """E[x_0 | x_t], (n, d)."""
        return torch.einsum("nk,nkd->nd", self.weights, self.means)

    @property
    def covariance(self) -> Tensor:
        """Cov[x_0 | x_t], (n, d, d)."""
        centred = self.means - self.mean[:, None]
        between = torch.einsum("nk,nki,nkj->nij", self.weights, centred, centred)
        return between + torch.einsum("nk,kij->nij", self.weights, self.covariances)


class GaussianMixture:
    """sum_k w_k N(m_k, C_k) in any dimension d, with isotropic, diagonal or full covariances.

    Args:
        weights: (k,) positive, normalised here; or None for equal weights. `logits=` instead gives their
            logarithms up to a constant.
        means: (k, d), or (k,) for d = 1.
        stds: a number, (k,) isotropic, or (k, d) diagonal standard deviations, >= 0 (0 is an atom: it has
            a density once diffused).
        covariances: (k, d, d) symmetric positive semi-definite, instead of `stds`.

    Points are (n, *event) with prod(event) = d, in any floating dtype; results have the points' dtype.
    """

    def __init__(
        self,
        weights: Values | None,
        means: Values,
        stds: Values | None = None,
        *,
        covariances: Values | None = None,
        logits: Values | None = None,
    ) -> None:
        self.means = _float64("means", means)
        self.means = self.means[:, None] if self.means.ndim == 1 else self.means
        if self.means.ndim != 2 or not self.means.numel():
            raise ValueError(f"means must be (k, d) or (k,), got shape {tuple(self.means.shape)}")
        self.log_weights = _log_weights(weights, logits, len(self.means))
        if (stds is None) == (covariances is None):
            raise ValueError("give exactly one of stds and covariances")
        #: Principal axes as columns (k, d, d), or None where they are the coordinate axes.
        self.axes: Tensor | None = None
        if covariances is not None:
            self.variances, self.axes = _principal(_float64("covariances", covariances), self.means)
        else:
            self.variances = _variances(_float64("stds", stds), self.means)

    @classmethod
    def _make(
        cls, log_weights: Tensor, means: Tensor, variances: Tensor, axes: Tensor | None
    ) -> "GaussianMixture":
        new = cls.__new__(cls)
        new.log_weights, new.means, new.variances, new.axes = log_weights, means, variances, axes
        return new

    def __repr__(self) -> str:
        return f"GaussianMixture({len(self.means)} components, d={self.dim})"

    # ---- descriptions ----------------------------------------------------------------------------
    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.means.shape[1]

    @property
    def weights(self) -> Tensor:
        """Normalised weights, (k,)."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        """Mean, (d,)."""
        return self.weights @ self.means

    @property
    def covariances(self) -> Tensor:
        """Component covariances, (k, d, d)."""
        diagonal = torch.diag_embed(self.variances.expand(-1, self.dim))
        return diagonal if self.axes is None else self.axes @ diagonal @ self.axes.mT

    @property
    def covariance(self) -> Tensor:
        """Covariance of the whole mixture, (d, d)."""
        centred = self.means - self.mean
        inner = self.covariances + centred[:, :, None] * centred[:, None, :]
        return torch.einsum("k,kij->ij", self.weights, inner)

    @property
    def narrowest(self) -> float:
        """Smallest standard deviation of any component in any direction."""
        return math.sqrt(self.variances.min().item())

    def standardised(self) -> "GaussianMixture":
        """The same shape moved and scaled to mean 0 and average variance 1."""
        scale = 1 / math.sqrt(self.covariance.diagonal().mean().item())
        means = (self.means - self.mean) * scale
        return self._make(self.log_weights, means, self.variances * scale**2, self.axes)

    # ---- drawing and densities -------------------------------------------------------------------
    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """`n` independent points, (n, d); from a fresh unseeded generator if neither is given."""
        n, generator = check_integer("n", n, 0), generator_of(seed, generator)
        k = torch.multinomial(self.weights, max(n, 1), replacement=True, generator=generator)[:n]
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        z = z * self.variances.sqrt()[k]
        if self.axes is not None:
            z = torch.einsum("nij,nj->ni", self.axes[k], z)
        return (self.means[k] + z).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x (n, *event), in nats: (n,)."""
        return self._over_blocks(x, _Diffused.log_prob)

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log density at x, in the shape of x."""
        return self._over_blocks(x, _Diffused.score).reshape(x.shape)

    def entropy(self) -> float:
        """Differential entropy in nats: closed form for one component, quadrature in 1-D.

        Raises:
            ValueError: several components in d > 1, where there is neither.
        """
        if len(self.means) == 1:
            logs = torch.log(2 * math.pi * math.e * self.variances.expand(-1, self.dim))
            return 0.5 * logs.sum().item()
        self._require_1d("entropy by quadrature")
        from scipy.integrate import quad

        def integrand(x: float) -> float:
            log_p = self.log_prob(torch.tensor([[x]], dtype=torch.float64)).item()
            return -log_p * math.exp(log_p)

        means, stds = self.means[:, 0], self.variances[:, 0].sqrt()
        cuts = torch.cat([means + c * stds for c in (-40, -8, -3, 0, 3, 8, 40)])
        cuts = cuts.sort().values.tolist()
        pieces = (
            quad(integrand, a, b, epsabs=1e-13, epsrel=1e-12)[0]
            for a, b in itertools.pairwise(cuts)
        )
        return math.fsum(pieces)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x) in 1-D, elementwise for x of any shape; relative accuracy in the left tail."""
        return self._tail(x, 1.0)

    def survival(self, x: Tensor) -> Tensor:
        """P(X > x) in 1-D, elementwise; relative accuracy in the right tail."""
        return self._tail(x, -1.0)

    def quantile(self, u: Tensor) -> Tensor:
        """The x with cdf(x) = u in 1-D, elementwise for u in [0, 1], by bisection."""
        self._require_1d("quantile")
        u = torch.as_tensor(u, dtype=torch.float64)
        if not bool(((u >= 0) & (u <= 1)).all()):
            raise ValueError(f"u must lie in [0, 1], got [{u.min().item()}, {u.max().item()}]")
        stds, means = self.variances[:, 0].sqrt(), self.means[:, 0]
        low = torch.full_like(u, (means - 40 * stds).min().item())
        high = torch.full_like(u, (means + 40 * stds).max().item())
        for _ in range(64):
            middle = (low + high) / 2
            below = self.cdf(middle) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        x = (low + high) / 2
        x = torch.where(u == 0, torch.full_like(x, -math.inf), x)
        return torch.where(u == 1, torch.full_like(x, math.inf), x)

    def quadrature(self) -> tuple[Tensor, Tensor]:
        """Points (m, 1) and weights (m,) with E f(X) = sum w f(x) in 1-D, for f as smooth as the density.

        Eight Gauss-Legendre nodes to a panel no wider than half of any component that has mass there, out to
        nine standard deviations: about 1e-12.
        """
        self._require_1d("quadrature")
        z = torch.arange(-9, 9.5, 0.5, dtype=torch.float64)
        cuts = (self.means + self.variances.sqrt() * z).flatten().sort().values
        x, weights = panels(cuts)
        return x[:, None], weights * self.log_prob(x[:, None]).exp()

    # ---- diffusion -------------------------------------------------------------------------------
    def at(self, process: Process, t: float) -> "GaussianMixture":
        """The law of x_t, t in [0, T]: means alpha m_k, covariances alpha^2 C_k + sigma^2 I."""
        alpha, sigma = _rates(process, t)
        variances = alpha * alpha * self.variances + sigma * sigma
        return self._make(self.log_weights, alpha * self.means, variances, self.axes)

    def posterior(self, process: Process, x_t: Tensor, t: float) -> Posterior:
        """The law of x_0 given each row of x_t (n, *event), sigma(t) > 0: a mixture per row."""
        alpha, sigma = _rates(process, t)
        if sigma == 0:
            raise ValueError(f"t must have sigma(t) > 0; at t = {t} x_t is x_0")
        flat = self._flat(x_t)
        law = _Diffused(self, alpha, sigma, flat)
        shift, axes = law.gain * law.centred(flat), law.axes
        if axes is not None:
            shift = torch.einsum("kij,nkj->nki", axes, shift)
        inner = torch.diag_embed(self.variances.to(flat).expand(-1, self.dim) * law.shrink[0])
        covariances = inner if axes is None else axes @ inner @ axes.mT
        return Posterior(law.log_terms(flat).softmax(1), law.prior_means + shift, covariances)

    def denoiser(self, process: Process) -> "ExactDenoiser":
        """E[x_0 | x_t] as a model: what a perfectly trained network would be."""
        return ExactDenoiser(self, process)

    # ---- private ---------------------------------------------------------------------------------
    def _flat(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        if x.ndim == 0 or x[:1].numel() != self.dim * len(x[:1]):
            raise ValueError(
                f"x must be (n, *event) with prod(event) = {self.dim}, got {tuple(x.shape)}"
            )
        return x.reshape(len(x), self.dim)

    def _over_blocks(
        self,
        x: Tensor,
        function: Callable[["_Diffused", Tensor], Tensor],
        alpha: Number = 1.0,
        sigma: Number = 0.0,
        law: "_Diffused | None" = None,
    ) -> Tensor:
        """`function` of the mixture at (alpha, sigma) and the points, a cache-sized block at a time."""
        flat = self._flat(x)
        width = len(self.means) * (1 if self.dim <= _THIN else self.dim)
        rows = max(1, _BLOCK // (width * flat.element_size()))
        if isinstance(alpha, Tensor) and alpha.ndim:
            times = zip(alpha.split(rows), torch.as_tensor(sigma).split(rows), strict=True)
            laws = (_Diffused(self, a, s, flat) for a, s in times)
        else:
            laws = itertools.repeat(law or _Diffused(self, alpha, sigma, flat))
        blocks = [function(law, block) for law, block in zip(laws, flat.split(rows), strict=False)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _tail(self, x: Tensor, sign: float) -> Tensor:
        self._require_1d("cdf")
        x = torch.as_tensor(x, dtype=torch.float64)
        away = x[..., None] - self.means[:, 0]
        # An atom has all its mass at its mean: P(X <= m) = 1, P(X > m) = 0.
        z = torch.where(away == 0, sign * math.inf, away / self.variances[:, 0].sqrt())
        z = torch.where((away == 0) & (self.variances[:, 0] > 0), 0.0, z)
        # torch.special.ndtr is 1 + erf and loses the tail
        return 0.5 * (self.weights * torch.special.erfc(-sign * z / math.sqrt(2))).sum(-1)

    def _require_1d(self, what: str) -> None:
        if self.dim != 1:
            raise ValueError(f"{what} needs a one-dimensional mixture, this one has d = {self.dim}")


class _Diffused:
    """The constants of a mixture at signal alpha and noise sigma, in the dtype and device of the points.

    alpha and sigma are floats, or (n,) with one value a point; b below is 1 or n accordingly.
    """

    def __init__(
        self, mixture: GaussianMixture, alpha: Number, sigma: Number, like: Tensor
    ) -> None:
        alpha, sigma = (
            torch.as_tensor(c, dtype=torch.float64).reshape(-1, 1, 1) for c in (alpha, sigma)
        )
        prior = mixture.variances.to(alpha.device)
        total = alpha**2 * prior + sigma**2  # (b, k, 1) isotropic or (b, k, d)
        if not bool((total > 0).all()):
            raise ValueError(
                "a component with a zero standard deviation has no density; diffuse it"
            )
        self.isotropic = prior.shape[1] == 1
        logs = total.log().sum(2) * (mixture.dim if self.isotropic else 1)
        constant = mixture.log_weights.to(logs) - 0.5 * (logs + mixture.dim * math.log(2 * math.pi))
        self.constant = constant.to(like)  # (b, k)
        self.precision = (1 / total).to(like)
        self.gain = (alpha * prior / total).to(like)
        self.shrink = (sigma**2 / total).to(like)
        self.prior_means = mixture.means.to(like)  # (k, d)
        self.prior = mixture.variances.to(like)  # (k, 1) or (k, d)
        self.means = (alpha * mixture.means.to(alpha)).to(like)  # (b, k, d)
        self.axes = None if mixture.axes is None else mixture.axes.to(like)
        #: Full covariances whose matrices are not worth making: many coordinates, or one a point.
        self.large = self.axes is not None and (mixture.dim > _THIN or len(total) > 1)

    def centred(self, flat: Tensor) -> Tensor:
        """x - alpha m_k in the principal axes of component k: (n, k, d)."""
        y = flat[:, None, :] - self.means
        return y if self.axes is None else torch.einsum("nkj,kji->nki", y, self.axes)

    def log_terms(self, flat: Tensor) -> Tensor:
        """log w_k N(x; alpha m_k, alpha^2 C_k + sigma^2 I), (n, k): squared *differences*."""
        if self.large or flat.shape[1] > _THIN:
            y = self.centred(flat)
            return self.constant - 0.5 * (y * y * self.precision).sum(2)
        # One principal axis at a time: nothing of shape (n, k, d) is made.
        total, d = self.constant, flat.shape[1]
        away = [flat[:, j : j + 1] - self.means[..., j] for j in range(d)]
        for i in range(d):
            scale = self.precision[..., 0 if self.isotropic else i].sqrt()
            if self.axes is None:
                z = away[i] * scale
            else:
                z = away[0] * (self.axes[:, 0, i] * scale)
                for j in range(1, d):
                    z = torch.addcmul(z, away[j], self.axes[:, j, i] * scale)
            total = torch.addcmul(total, z, z, value=-0.5)
        return total

    def log_prob(self, flat: Tensor) -> Tensor:
        """Log density, (n,)."""
        return torch.logsumexp(self.log_terms(flat), 1)

    def score(self, flat: Tensor) -> Tensor:
        """-sum_k r_k (alpha^2 C_k + sigma^2 I)^-1 (x - alpha m_k), (n, d)."""
        r = self.log_terms(flat).softmax(1)
        if self.large:
            return -self._rotated(r, self.centred(flat) * self.precision)
        # The exponents need differences; their weighted mean does not.
        there, here = self._operators(self.precision)
        return _mean_of(r, there(self.means)) - here(r, flat)

    def data(self, flat: Tensor) -> Tensor:
        """E[x_0 | x] = sum_k r_k (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x - alpha m_k))."""
        r = self.log_terms(flat).softmax(1)
        if self.large:
            return r @ self.prior_means + self._rotated(r, self.centred(flat) * self.gain)
        pulled = self._operators(self.shrink)[0](self.prior_means[None])
        return _mean_of(r, pulled) + self._operators(self.gain)[1](r, flat)

    def variance(self, flat: Tensor) -> Tensor:
        """Var[x_0 | x] of each coordinate, (n, d): within the components and between their means."""
        r, inner = self.log_terms(flat).softmax(1), self.prior * self.shrink
        shift = self.gain * self.centred(flat)
        if self.axes is not None:
            inner = torch.einsum("kij,bkj->bki", self.axes.square(), inner)
            shift = torch.einsum("kij,nkj->nki", self.axes, shift)
        means = self.prior_means + shift
        mean = torch.einsum("nk,nkd->nd", r, means)
        between = torch.einsum("nk,nkd->nd", r, (means - mean[:, None]).square())
        return between + _mean_of(r, inner)

    def _operators(
        self, values: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
        """y_k -> A_k y_k, and (r, x) -> (sum_k r_k A_k) x, for A_k = Q_k diag(v_k) Q_k^T."""
        if self.axes is None:
            return lambda y: values * y, lambda r, x: _mean_of(r, values) * x
        matrices, d = (self.axes * values[..., None, :]) @ self.axes.mT, self.axes.shape[1]

        def mixed(r: Tensor, x: Tensor) -> Tensor:
            return (_mean_of(r, matrices.flatten(2)).unflatten(1, (d, d)) @ x[..., None])[..., 0]

        return lambda y: (matrices @ y[..., None])[..., 0], mixed

    def _rotated(self, r: Tensor, y: Tensor) -> Tensor:
        """sum_k r_k Q_k y_k, (n, d)."""
        return torch.einsum("nkj,kij->ni", r[:, :, None] * y, self.axes)


def _mean_of(r: Tensor, values: Tensor) -> Tensor:
    """sum_k r_k v_k for (n, k) and (b, k, d)."""
    return r @ values[0] if len(values) == 1 else torch.einsum("nk,nkd->nd", r, values)


class ExactDenoiser(Denoiser):
    """E[x_0 | x_t] of a mixture, in closed form; a `Denoiser` like any other.

    t may be a float (sampling) or (n,) (training); states (n, *event) in any floating dtype.
    """

    prediction = "data"

    def __init__(self, mixture: GaussianMixture, process: Process) -> None:
        self.mixture, self.process = mixture, process
        self._laws: dict[tuple[Any, ...], _Diffused] = {}

    def __repr__(self) -> str:
        return f"ExactDenoiser({self.mixture!r}, {self.process!r})"

    def predict(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """E[x_0 | x_t = x], in the shape of x."""
        return self._of_law(_Diffused.data, x, t, conditions)

    def score(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """grad log p_t(x) in closed form: read off the data it would lose digits as sigma^-2."""
        self.process.check_readable(t)
        expand(t, x)
        return self._of_law(_Diffused.score, x, t, conditions)

    def variance(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """Var[x_0 | x_t = x] of each coordinate in closed form, in the shape of x; t where sigma(t) > 0."""
        expand(t, x)
        return self._of_law(_Diffused.variance, x, t, conditions)

    def reverse(self, x: Tensor, t: Number, s: Number, **conditions: Any) -> tuple[Tensor, Tensor]:
        """The exact mean and variance of each coordinate of x_s given x_t = x, s <= t; in the shape of x.

        No step that is normal and independent by coordinate is nearer to the law of x_s given x_t
        (Bao et al. 2022).
        """
        keep, pull, std = (expand(c, x) for c in self.process.bridge(t, s))
        mean = keep * x + pull * self.predict(x, t, **conditions)
        return mean, std**2 + pull**2 * self.variance(x, t, **conditions)

    def _of_law(
        self,
        function: Callable[[_Diffused, Tensor], Tensor],
        x: Tensor,
        t: Number,
        conditions: dict[str, Any],
    ) -> Tensor:
        """`function` of the law of x_t at x, in the shape of x."""
        if conditions:
            raise ValueError(f"an exact denoiser takes no conditions, got {sorted(conditions)}")
        if isinstance(t, Tensor) and t.ndim:
            clock = t.double()
            rates = self.process.alpha(clock), self.process.sigma(clock)
            return self.mixture._over_blocks(x, function, *rates).reshape(x.shape)
        law = self._law(float(t), x)
        return self.mixture._over_blocks(x, function, law=law).reshape(x.shape)

    def _law(self, t: float, like: Tensor) -> _Diffused:
        """The constants at t; a sampler asks for the same few times once a chunk, so they are kept."""
        key = (t, like.dtype, like.device)
        law = self._laws.get(key)
        if law is None:  # another thread may clear what is kept at any time: hold on to this one
            if len(self._laws) >= 1024:
                self._laws.clear()
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            law = self._laws[key] = _Diffused(self.mixture, alpha, sigma, like)
        return law


def _rates(process: Process, t: Any) -> tuple[float, float]:
    """alpha and sigma at one time, as floats."""
    single = isinstance(t, Tensor) and t.ndim == 0 and t.is_floating_point()
    clock = check_number("t", t.item() if single else t)
    return float(process.alpha(clock)), float(process.sigma(clock))


def _float64(name: str, values: Any) -> Tensor:
    if not isinstance(values, (Tensor, float, int)) and not hasattr(values, "__array__"):
        values = list(values)
    tensor = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {tensor.tolist()}")
    return tensor


def _log_weights(weights: Any, logits: Any, k: int) -> Tensor:
    if weights is not None and logits is not None:
        raise ValueError("give weights or logits, not both")
    if logits is not None:
        values = _float64("logits", logits)
    elif weights is not None:
        values = _float64("weights", weights)
        if bool((values <= 0).any()):
            raise ValueError(f"weights must be positive, got {values.tolist()}")
        values = values.log()
    else:
        values = torch.zeros(k, dtype=torch.float64)
    if values.shape != (k,):
        raise ValueError(f"weights must have shape ({k},), one a mean; got {tuple(values.shape)}")
    return values - values.logsumexp(0)


def _variances(stds: Tensor, means: Tensor) -> Tensor:
    """(k, 1) isotropic or (k, d) diagonal."""
    k, d = means.shape
    if stds.ndim == 0:
        stds = stds.expand(k)
    stds = stds[:, None] if stds.ndim == 1 else stds
    if stds.shape not in ((k, 1), (k, d)):
        raise ValueError(
            f"stds must be a number, ({k},) or ({k}, {d}); got shape {tuple(stds.shape)}"
        )
    if bool((stds < 0).any()):
        raise ValueError(f"stds must be >= 0, got {stds.tolist()}")
    return stds.square().clone()


def _principal(covariances: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (k, d) and axes (k, d, d) of symmetric positive semi-definite matrices."""
    k, d = means.shape
    if covariances.shape != (k, d, d):
        raise ValueError(
            f"covariances must have shape ({k}, {d}, {d}), got {tuple(covariances.shape)}"
        )
    skew, size = (covariances - covariances.mT).abs(), covariances.abs().amax((1, 2), keepdim=True)
    if bool((skew > 1e-9 * size).any()):
        raise ValueError("covariances must be symmetric")
    variances, axes = torch.linalg.eigh(covariances)
    if bool((variances < -1e-12 * variances.abs().amax(1, keepdim=True)).any()):
        raise ValueError(
            f"covariances must be positive semi-definite, got eigenvalue {variances.min().item():g}"
        )
    return variances.clamp(min=0), axes
