"""The trace of a model's Jacobian: exact, or estimated from random probes that are drawn once.

A probe that changed from one model call to the next would leave no ordinary differential equation to solve
(and costs an adaptive solver twenty times the calls), so an estimator is made for a batch, with its probes,
and then asked for traces along the whole trajectory.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sdekit.errors import check_choice, check_integer
from sdekit.sampling.noise import BlockNormals, derived_seed

DIVERGENCES = ("exact", "hutchinson", "hutch++")
#: Numbers in a block of products; one pass over many more of them leaves the cache and takes longer.
_BLOCK = 1 << 16


class Jacobian:
    """J = d out / d x of each sample, through its products z^T J by reverse mode.

    Args:
        out: a model's output, recorded by autograd, (n, *event).
        x: its input, a leaf that requires a gradient.
    """

    def __init__(self, out: Tensor, x: Tensor) -> None:
        self.out, self.x = out, x

    @property
    def size(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self.x), self.x[0].numel()

    @property
    def block(self) -> int:
        """Products to ask for at once."""
        n, d = self.size
        return max(1, _BLOCK // (n * d))

    def products(self, z: Tensor) -> Tensor:
        """z^T J for each of m vectors a sample, (m, n, d), in one reverse pass a block of them."""
        return torch.cat([self._products(part) for part in z.split(self.block)])

    def _products(self, z: Tensor) -> Tensor:
        z = z.to(self.out).reshape(-1, *self.out.shape)
        single = len(z) == 1
        gradient = None
        if self.out.requires_grad:
            (gradient,) = torch.autograd.grad(
                self.out,
                self.x,
                z[0] if single else z,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=not single,
            )
        if gradient is None:
            raise ValueError(
                "the model's output does not depend differentiably on x: it was detached (or made under "
                "torch.no_grad, or with numpy), or x is not used"
            )
        return gradient.reshape(len(z), *self.size)


class Trace(Protocol):
    """Estimates of the trace of a Jacobian, one column a probe."""

    @property
    def columns(self) -> int:
        """How many estimates a sample there are; 0 for the exact trace, which has one column."""
        ...

    def __call__(self, jacobian: Jacobian, shift: float) -> Tensor:
        """tr J, (n, columns or 1); shift I + J is up to a factor the Jacobian of E[x_0 | x_t]."""
        ...


@dataclass(frozen=True)
class Exact:
    """tr J from d products, a block of them in one pass."""

    columns = 0

    def __call__(self, jacobian: Jacobian, shift: float) -> Tensor:
        """The trace, (n, 1)."""
        (n, d), block = jacobian.size, jacobian.block
        total = jacobian.x.new_zeros(n)
        for first in range(0, d, block):
            rows = torch.arange(first, min(first + block, d), device=total.device)
            basis = torch.nn.functional.one_hot(rows, d)[:, None].expand(-1, n, -1)
            total = total + jacobian.products(basis).diagonal(first, 0, 2).sum(1)
        return total[:, None]


@dataclass(frozen=True, eq=False)
class Hutchinson:
    """z^T J z for Rademacher probes z (K, n, d).  Hutchinson 1989.

    Unbiased; the variance of one probe is sum_{i < j} (J_ij + J_ji)^2, so it is exact for diagonal J. Normal
    probes would add 2 sum_i J_ii^2.
    """

    probes: Tensor

    @property
    def columns(self) -> int:
        """K."""
        return len(self.probes)

    def __call__(self, jacobian: Jacobian, shift: float) -> Tensor:
        """One estimate a probe, (n, K)."""
        return (self.probes * jacobian.products(self.probes)).sum(2).T


@dataclass(frozen=True, eq=False)
class HutchPlusPlus:
    """tr Q^T J Q, exactly, and an estimate of the rest.  Meyer, Musco, Musco & Woodruff 2021, algorithm 1.

    Q is a basis of the range of (shift I + J) on the sketch: with the shift that makes it the Jacobian of
    E[x_0 | x_t], which is near a projection on the data's directions of large variance. Where that has lower
    rank than the sketch some columns of Q are arbitrary, but there it is zero and they change nothing.
    Both the sketch and the probes of the rest are fixed; given Q, which depends on the sketch alone,
    the estimate is unbiased.

    The probes of the rest are normal, projected on the complement of Q and scaled to the length
    sqrt(d - k) that they have on average, which makes the estimate exact for multiples of the identity
    (Epperly, Tropp & Webber 2024 do the same).

    Attributes:
        sketch: (k, n, d), k < d.
        probes: of the rest, (K, n, d).
    """

    sketch: Tensor
    probes: Tensor

    @property
    def columns(self) -> int:
        """K."""
        return len(self.probes)

    def __call__(self, jacobian: Jacobian, shift: float) -> Tensor:
        """One estimate a probe of the rest, (n, K)."""
        k, _, d = self.sketch.shape
        image = shift * self.sketch + jacobian.products(self.sketch)
        basis = torch.linalg.qr(image.permute(1, 2, 0)).Q.permute(2, 0, 1)
        inside = torch.einsum("knd,mnd->kmn", basis, self.probes)
        rest = self.probes - torch.einsum("kmn,knd->mnd", inside, basis)
        vectors = torch.cat([basis, rest])
        squares = (vectors * jacobian.products(vectors)).sum(2)
        caught, missed = squares[:k].sum(0), squares[k:] / rest.square().sum(2)
        return (caught + (d - k) * missed).T


def check_divergence(divergence: str, probes: int | None) -> int:
    """The number of probes for a divergence; 0 for the exact one."""
    check_choice("divergence", divergence, DIVERGENCES)
    if divergence == "exact":
        if probes is not None:
            raise ValueError(f'probes is for "hutchinson" and "hutch++", got {probes} with "exact"')
        return 0
    least = 1 if divergence == "hutchinson" else 3
    return least if probes is None else check_integer("probes", probes, least)


def make_trace(divergence: str, probes: int, seed: int, first: int, x: Tensor) -> Trace:
    """The estimator for samples `first` on, of which x (n, *event) is the first batch.

    A sample's probes are a function of the seed and its number. The seed is derived, so that points that
    were sampled with it do not meet their own noise again as probes, which would bias the estimate.
    """
    d = x[0].numel()
    if divergence == "exact" or (divergence == "hutch++" and probes // 3 >= d):
        return Exact()
    own = derived_seed(seed, "probes")
    # Of the products of hutch++ a third each are with the sketch, with the basis and with the rest.
    sketch = 0 if divergence == "hutchinson" else probes // 3
    drawn = probes - sketch
    normals = BlockNormals(own, first, first + len(x), (d,), torch.float64, x.device, total=drawn)
    z = torch.stack([normals(m).clone() for m in range(drawn)])
    if not sketch:
        return Hutchinson(torch.ones_like(z).copysign(z))
    return HutchPlusPlus(z[:sketch], z[sketch:])
