"""Other libraries' samplers as black boxes sampler(model, x), from t = 1 to t = 1e-3 of one VP process.

The model is called as model(x, t) and replies E[x_0 | x]; x lives in the coordinates of the process. Every
adapter only converts: coordinates (y = x / alpha, sigma / alpha), times and the kind of prediction.

- k-diffusion: on any descending sigmas; `torchvision`, which it imports at the top, does not load beside
  every build of torch, so `k_diffusion.sampling` is imported alone with a stand-in for its one helper.
- diffusers: discrete. Its 1,000 betas meet alpha-bar of the process at t = i / 1000, label i - 1; runs end
  exactly at label 0, t = 1e-3. The model is asked at the noise level in the scheduler's own tables rather
  than at the rounded label, which is in its favour. It computes in float32 whatever it is given. Schedulers
  that append sigma = 0 are stopped before; a last step of length zero is neither made nor charged.
  DPMSolverMultistep and UniPCMultistep also stand for the official DPM-Solver and UniPC code, which is not
  on the package index.
- azula: a schedule with the alpha and sigma of the process, on its linear times or others.
- smalldiffusion: its one sampler with its three documented settings; imported like k-diffusion.
"""

import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch
from problems import PROCESS, T_END, T_START
from torch import Tensor

import sdekit as sk
from sdekit.testing.extraction import BlackBox, Model

RHO_START, RHO_END = (PROCESS.node(t).rho for t in (T_START, T_END))
DIVISORS = tuple(n for n in range(1, 501) if 1000 % n == 0)


@dataclass(frozen=True)
class Peer:
    """One sampler of one library.

    Attributes:
        library: its name on the package index.
        name: the sampler and its settings.
        box: from a number of steps to a black box.
        random: whether it draws normals.
        digits: the largest deviation from a plan that is rounding: 1e-10, or 1e-3 in float32.
        steps: the numbers of steps it can take, if not any.
    """

    library: str
    name: str
    box: Callable[[int], BlackBox]
    random: bool = False
    digits: float = 1e-10
    steps: tuple[int, ...] | None = None


def time_of(sigma: Any) -> float:
    """The time with sigma / alpha = sigma (a number or a tensor of equal ones)."""
    rho = float(torch.as_tensor(sigma).reshape(-1)[0])
    log_snr = -2 * torch.tensor(rho, dtype=torch.float64).log().item()
    return PROCESS.time_at_log_snr(max(log_snr, PROCESS.log_snr(T_START)))


def in_sigma(run: Callable[[Model, Tensor, Tensor], Tensor], grid: str, steps: int) -> BlackBox:
    """A sampler run(model, y, sigmas) of y = x / alpha on one of our grids."""
    times = sk.samplers.GRIDS[grid].times(PROCESS, steps, T_START, T_END)
    nodes = [PROCESS.node(t) for t in times]

    def sampler(model: Model, x: Tensor) -> Tensor:
        def denoised(y: Tensor, sigma: Any, **_: Any) -> Tensor:
            t = time_of(sigma)
            return model(y * PROCESS.alpha(t), t)

        sigmas = torch.tensor([node.rho for node in nodes], dtype=x.dtype)
        return nodes[-1].alpha * run(denoised, x / nodes[0].alpha, sigmas)

    return sampler


def alone(package: str, module: str, **helpers: types.ModuleType) -> types.ModuleType:
    """A module of an installed package, imported without its package's own imports."""
    if f"{package}.{module}" in sys.modules:
        return sys.modules[f"{package}.{module}"]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no module named {package}")
    parent = types.ModuleType(package)
    parent.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = parent
    for name, helper in helpers.items():
        sys.modules[f"{package}.{name}"] = helper
        setattr(parent, name, helper)
    return importlib.import_module(f"{package}.{module}")


# ------------------------------------------------------------------------------------------ k-diffusion

GRIDS = ("karras", "log-snr", "uniform")  # karras, exponential and vp in k-diffusion


def k_sampling() -> types.ModuleType:
    """k_diffusion.sampling."""
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    return alone("k_diffusion", "sampling", utils=utils)


class Path:
    """Normalised increments of one Brownian path in sigma, for k-diffusion in place of its Brownian tree.

    Its samplers ask for disjoint intervals, and for one that continues the interval asked for just before.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._start, self._length, self._sum = math.nan, 0.0, torch.zeros_like(like)

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """(W(sigma_next) - W(sigma)) / sqrt(|sigma_next - sigma|)."""
        start, length = float(sigma), abs(float(sigma_next - sigma))
        if not math.isclose(start, self._start, rel_tol=1e-9):
            self._start, self._length, self._sum = start, 0.0, torch.zeros_like(self._like)
        added = math.sqrt(length - self._length)
        self._sum, self._length = self._sum + added * torch.randn_like(self._like), length
        return self._sum / math.sqrt(length)


def k_peer(ks: types.ModuleType, name: str, grid: str, **settings: Any) -> Peer:
    """One of its functions."""
    function = getattr(ks, f"sample_{name}")

    def run(model: Model, y: Tensor, sigmas: Tensor) -> Tensor:
        own = {"noise_sampler": Path(y)} if "sde" in name else {}
        return function(model, y, sigmas, disable=True, **own, **settings)

    label = ", ".join([name, *(f"{k}={v:g}" for k, v in settings.items()), grid])
    random = settings.get("eta", 1.0) > 0 and ("sde" in name or "ancestral" in name)
    return Peer("k-diffusion", label, partial(in_sigma, run, grid), random)


def k_diffusion() -> Iterator[Peer]:
    """Its samplers with fixed steps, and its adaptive one."""
    ks = k_sampling()
    for grid in GRIDS:
        for name in ("euler", "heun", "dpm_2", "lms", "dpmpp_2m"):
            yield k_peer(ks, name, grid)
        for name in ("dpmpp_3m_sde", "dpmpp_sde"):  # dpmpp_2m_sde is then dpmpp_2m
            yield k_peer(ks, name, grid, eta=0.0)
    for name in ("dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde"):
        yield k_peer(ks, name, "karras", eta=1.0)
    for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"):
        yield k_peer(ks, name, "karras")

    def adaptive(model: Model, y: Tensor, sigmas: Tensor) -> Tensor:
        return ks.sample_dpm_adaptive(model, y, float(sigmas[-1]), float(sigmas[0]), disable=True)

    yield Peer("k-diffusion", "dpm_adaptive", partial(in_sigma, adaptive, "karras"), steps=())


# -------------------------------------------------------------------------------------------- diffusers


def betas() -> list[float]:
    """Betas of the chain with alpha-bar = alpha^2 at t = 1/1000, ..., 1."""
    squares = [PROCESS.alpha(i / 1000) ** 2 for i in range(1001)]
    return [1 - late / early for early, late in pairwise(squares)]


def scheduled(make: Callable[[], Any], steps: int, *, prepared: bool = False) -> BlackBox:
    """A scheduler's loop, as a pipeline of diffusers writes it.

    With `prepared`, one scheduler serves every run: for timing.
    """
    kept = make() if prepared else None

    def sampler(model: Model, x: Tensor) -> Tensor:
        scheduler = kept or make()
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else rounded timesteps that coincide skip the first step
        levels = noise_levels(scheduler)
        in_y = scheduler.init_noise_sigma != 1.0
        x = x / PROCESS.alpha(time_of(levels[0])) if in_y else x
        for k, label in enumerate(scheduler.timesteps):
            last = k == len(levels) - 2
            if levels[k + 1] == 0 or (last and levels[k + 1] > (1 - 1e-6) * levels[k]):
                levels = levels[: k + 1]
                break
            t = time_of(levels[k])
            seen = scheduler.scale_model_input(x, label)
            reply = model(seen, t)
            if scheduler.config.prediction_type == "epsilon":
                reply = (seen - PROCESS.alpha(t) * reply) / PROCESS.sigma(t)
            x = scheduler.step(reply, label, x, return_dict=False)[0].to(x.dtype)
        return x * PROCESS.alpha(time_of(levels[-1])) if in_y else x

    return sampler


def noise_levels(scheduler: Any) -> list[float]:
    """sigma / alpha at every model call and at the end, from the scheduler's tables."""
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas.tolist()
    rho = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    return [*rho[scheduler.timesteps.long()].tolist(), rho[0].item()]


def diffusers() -> Iterator[Peer]:
    """Its schedulers for continuous data, to the settings its documentation recommends for few steps."""
    import diffusers as library

    library.utils.logging.set_verbosity_error()
    end = {"final_sigmas_type": "sigma_min"}
    grids: dict[str, dict[str, bool]] = {"": {}, "karras": {"use_karras_sigmas": True}}
    lu = grids | {"lu": {"use_lu_lambdas": True}}

    def peer(
        name: str, grid: str = "", random: bool = False, label: str = "", **settings: Any
    ) -> Peer:
        scheduler = getattr(library, f"{name}Scheduler")
        settings = {"trained_betas": betas(), "prediction_type": "sample"} | settings
        steps = DIVISORS if name in ("DDIM", "PNDM") else None
        box = partial(scheduled, partial(scheduler, **settings))
        full = ", ".join(part for part in (name, label, grid) if part)
        return Peer("diffusers", full, box, random, 1e-3, steps)

    whole = {"timestep_spacing": "trailing", "set_alpha_to_one": False}
    yield peer("DDIM", clip_sample=False, **whole)
    yield peer("PNDM", skip_prk_steps=True, **whole | {"prediction_type": "epsilon"})
    for grid, chosen in lu.items():
        for order in (1, 2, 3):
            for kind in ("dpmsolver++", "dpmsolver"):
                several = {"solver_order": order, "algorithm_type": kind}
                yield peer(
                    "DPMSolverMultistep", grid, label=f"{kind} {order}", **several, **end, **chosen
                )
    epsilon = {"prediction_type": "epsilon"}
    for grid, chosen in grids.items():
        for order in (1, 2, 3):
            yield peer(
                "UniPCMultistep", grid, label=f"{order}", solver_order=order, **end, **chosen
            )
        for order in (2, 3):
            yield peer("DEISMultistep", grid, label=f"{order}", solver_order=order, **chosen)
        yield peer("HeunDiscrete", grid, **epsilon, **chosen)
        yield peer("EulerDiscrete", grid, **end, **chosen, timestep_spacing="linspace")
        yield peer("LMSDiscrete", grid, **epsilon, **chosen)
    yield peer("EulerAncestralDiscrete", random=True, **epsilon, timestep_spacing="linspace")
    yield peer("SASolver", random=True)


# ------------------------------------------------------------------------------------------------ azula


def azula_denoiser(model: Model, grid: sk.samplers.TimeGrid) -> Any:
    """Our model in an azula denoiser whose time u in [0, 1] is linear in the grid's clock."""
    from azula.denoise import Denoiser, DiracPosterior

    first, last = (grid.clock(PROCESS, t) for t in (T_END, T_START))

    def time(u: float) -> float:
        ends = {0.0: T_END, 1.0: T_START}
        return ends.get(u) or grid.time(PROCESS, first + (last - first) * u)

    class Adapted(Denoiser):
        @staticmethod
        def schedule(u: Tensor) -> tuple[Tensor, Tensor]:
            nodes = [PROCESS.node(time(v)) for v in u.reshape(-1).tolist()]
            pairs = torch.tensor([(node.alpha, node.sigma) for node in nodes], dtype=u.dtype)
            return pairs[:, 0].reshape(u.shape), pairs[:, 1].reshape(u.shape)

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return DiracPosterior(mean=model(x_t, time(float(t))))

    return Adapted()


def azula() -> Iterator[Peer]:
    """Its samplers; multistep ones to order 4."""
    from azula import sample as library

    def box(name: str, settings: dict[str, Any], grid: str, steps: int) -> BlackBox:
        def sampler(model: Model, x: Tensor) -> Tensor:
            denoiser = azula_denoiser(model, sk.samplers.GRIDS[grid])
            made = getattr(library, f"{name}Sampler")
            how = {"steps": steps, "silent": True, "dtype": torch.float64}
            return made(denoiser, **settings, **how)(x)

        return sampler

    def peer(name: str, grid: str, random: bool = False, **settings: Any) -> Peer:
        label = ", ".join([name, *(f"{k}={v:g}" for k, v in settings.items()), grid])
        return Peer("azula", label, partial(box, name, settings, grid), random)

    for grid in ("uniform", "log-snr", "karras"):
        for name in ("DDIM", "Euler", "Heun"):
            yield peer(name, grid)
        for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
            for order in (2, 3, 4):
                yield peer(name, grid, order=order)
    yield peer("DDPM", "uniform", random=True)
    yield peer("DDIM", "uniform", random=True, eta=1.0)
    yield peer("Ito", "uniform", random=True)
    yield peer("PC", "uniform", random=True)


# --------------------------------------------------------------------------------------- smalldiffusion


def smalldiffusion() -> Iterator[Peer]:
    """gam = 2 is its accelerated sampler, gam = 1 DDIM, mu = 0.5 DDPM."""
    library = alone("smalldiffusion", "diffusion")

    class Adapted:
        """Our model with what its `samples` asks of one."""

        def __init__(self, model: Model, like: Tensor) -> None:
            self._model, self._like = model, like

        def eval(self) -> None:
            """Nothing to switch."""

        def rand_input(self, n: int) -> Tensor:
            return torch.randn_like(self._like)

        def predict_eps_cfg(self, y: Tensor, sigma: Tensor, *_: Any) -> Tensor:
            return (y - self._model(y, sigma)) / sigma

    def run(settings: dict[str, float], model: Model, y: Tensor, sigmas: Tensor) -> Tensor:
        here = types.SimpleNamespace(device="cpu")
        *_, last = library.samples(Adapted(model, y), sigmas, xt=y, accelerator=here, **settings)
        return last

    for grid in ("log-snr", "karras"):
        for gam, mu in ((1.0, 0.0), (2.0, 0.0), (1.0, 0.5)):
            settings = {"gam": gam, "mu": mu}
            box = partial(in_sigma, partial(run, settings), grid)
            label = f"samples, gam={gam:g}, mu={mu:g}, {grid}"
            yield Peer("smalldiffusion", label, box, random=mu > 0)


LIBRARIES = {
    "k-diffusion": k_diffusion,
    "diffusers": diffusers,
    "azula": azula,
    "smalldiffusion": smalldiffusion,
}


def installed() -> tuple[list[Peer], dict[str, str]]:
    """Every peer of every library that imports, and per library its version or why it is left out."""
    peers, found = [], {}
    for name, family in LIBRARIES.items():
        try:
            peers += list(family())
            found[name] = version(name)
        except ImportError as error:
            found[name] = f"left out: {error}"
    return peers, found
