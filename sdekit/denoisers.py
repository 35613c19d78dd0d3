"""A denoiser: one model, read four ways.

Every training target of the field is a combination u x_0 + w eps of the clean point and the noise, with
weights that depend on t alone; together with x = alpha x_0 + sigma eps that is a 2 x 2 system, so any one of
them gives all the others as an affine function of (x, network output):

    kind       data   noise   score        v (Salimans & Ho 2022)   velocity (of the probability flow)
    (u, w)     (1,0)  (0,1)   (0,-1/sigma) (-sigma, alpha)          (d alpha/dt, d sigma/dt)

Samplers, likelihoods and checks take a `Denoiser` and cannot tell an exact one from a trained one.
"""

import dataclasses
import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from sdekit.elementary import Number, log, ratio, sqrt
from sdekit.errors import CheckpointError, check_choice, check_integer, check_number
from sdekit.processes import EDM, VP, Process, expand
from sdekit.schedules import Tabulated
from sdekit.storage import load_tensors, save_tensors

Prediction = Literal["data", "noise", "score", "v", "velocity"]
Time = Literal["unit", "label", "log_snr", "sigma"]


def target_weights(process: Process, kind: str, t: Number) -> tuple[Number, Number]:
    """(u, w) of the target u x_0 + w eps that a network of this kind predicts at time t."""
    match check_choice("prediction", kind, get_args(Prediction)):
        case "data":
            return 1.0, 0.0
        case "noise":
            return 0.0, 1.0
        case "score":
            return 0.0, ratio(-1.0, process.sigma(t))
        case "v":
            alpha, sigma = process.curves(t)
            return -sigma, alpha
        case _:
            return process.slopes(t)


def conversion(process: Process, given: str, wanted: str, t: Number) -> tuple[Number, Number]:
    """(a, b) with wanted = a x + b given at time t, exact zeros where they are.

    Raises:
        ValueError: t is an end at which `given` does not determine `wanted` (noise says nothing of the data
            where alpha = 0).
    """
    if given == wanted:
        return 0.0, 1.0
    alpha, sigma = process.curves(t)
    u, w = target_weights(process, given, t)
    u2, w2 = target_weights(process, wanted, t)
    determinant = u * sigma - w * alpha
    a, b = ratio(w2 * u - u2 * w, determinant), ratio(u2 * sigma - w2 * alpha, determinant)
    if not (isinstance(a, Tensor) or isinstance(b, Tensor) or math.isfinite(a + b)):
        raise ValueError(
            f"at t = {t} (alpha = {alpha:g}, sigma = {sigma:g}) a prediction of {given!r} does not "
            f"determine {wanted!r}; use a data or v prediction, or stay inside [t_min, t_max]"
        )
    return a, b


class Denoiser(ABC):
    """E[x_0 | x_t] and its equivalents for one process. Write `predict` and say what it predicts.

    x is (n, *event); t is a float, a 0-d or an (n,) tensor in [t_min, t_max] of the process; keyword
    conditions pass through to the model. Results have the shape and dtype of x.
    """

    process: Process
    #: What `predict` returns.
    prediction: str = "data"

    @abstractmethod
    def predict(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """The model's own output at x and t, in the shape of x."""

    def data(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """Posterior mean E[x_0 | x_t = x] (Tweedie's formula)."""
        return self._read("data", x, t, conditions)

    def noise(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """E[eps | x_t = x] = -sigma score."""
        return self._read("noise", x, t, conditions)

    def score(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """grad log p_t(x)."""
        return self._read("score", x, t, conditions)

    def velocity(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """dx/dt of the probability flow, f x - g^2 score / 2 (Song et al. 2021, eq. 13)."""
        return self._read("velocity", x, t, conditions)

    def _read(self, kind: str, x: Tensor, t: Number, conditions: dict[str, Any]) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim == 0:
            raise ValueError(f"x must be a batch (n, *event), got {_shape(x)}")
        self.process.check_readable(t)
        expand(t, x)
        a, b = conversion(self.process, self.prediction, kind, t)
        out = checked_output(self.predict(x, t, **conditions), x)
        a, b = expand(a, x), expand(b, x)
        if isinstance(a, float) and a == 0.0:
            return out if isinstance(b, float) and b == 1.0 else b * out
        return a * x + b * out


def evaluating(denoiser: Denoiser) -> AbstractContextManager[None]:
    """Evaluation mode, and the mode it was in afterwards."""
    return _evaluating(denoiser) if isinstance(denoiser, nn.Module) else nullcontext()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [m for m in module.modules() if m.training]
    moded = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    if any(isinstance(m, moded) for m in training):
        warnings.warn("the model is in training mode; it is used in eval mode", stacklevel=4)
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def device_of(denoiser: Denoiser) -> torch.device:
    """Where the model is; an exact one is on the CPU."""
    parameters = denoiser.parameters() if isinstance(denoiser, nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device("cpu"))


def checked_output(out: Any, x: Tensor) -> Tensor:
    """A model's output if it is a tensor of the shape of x.

    Raises:
        TypeError: a tuple or an output object.
        ValueError: another shape, which arithmetic would broadcast silently.
    """
    if not isinstance(out, Tensor):
        raise TypeError(
            f"the model must return a tensor, got {type(out).__name__}; wrap it in a module that "
            "returns the prediction alone (for example `net(x, t)[0]` or `net(x, t).sample`)"
        )
    if out.shape != x.shape:
        raise ValueError(
            f"the model must return the shape of x, {tuple(x.shape)}, got {tuple(out.shape)}"
        )
    return out


class NetworkModel(nn.Module, Denoiser):
    """A denoiser around one network, which a file of weights and a description can hold."""

    network: nn.Module

    def __init__(self, network: nn.Module, process: Process) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        if not isinstance(process, Process):
            raise TypeError(f"process must be a Process, got {type(process).__name__}")
        self.network, self.process = network, process

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments but for network and process, ready for JSON."""

    def forward(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """The model's own output, as `predict`."""
        return self.predict(x, t, **conditions)

    def save(self, path: str | Path) -> None:
        """Write weights and description to one safetensors file, atomically."""
        save_tensors(path, self.network.state_dict(), {"model": describe(self)})

    @classmethod
    def load(
        cls, path: str | Path, *, network: nn.Module | None = None, process: Process | None = None
    ) -> Self:
        """The model in a file written by `save`, or by `train`, in eval mode; no code in the file is run.

        A checkpoint's folder is read as its averaged model, a run's as that of its newest checkpoint. A
        network or process of your own class cannot be rebuilt by name: give an instance.
        """
        path = model_file(Path(path))
        tensors, header = load_tensors(path)
        if "model" not in header:
            raise CheckpointError(f"{path} holds no model, only {sorted(header)}")
        model = rebuild(header["model"], network, process)
        prefix = header.get("weights_prefix", "")
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not isinstance(model, cls):
            raise CheckpointError(f"{path} holds a {type(model).__name__}, not a {cls.__name__}")
        dtypes = {w.dtype for w in weights.values() if w.is_floating_point()}
        if network is None and len(dtypes) == 1:
            model.network.to(dtypes.pop())
        load_weights(model.network, weights, path)
        return model.eval()


def model_file(path: Path) -> Path:
    """The file that a model is in: itself, or in the folder of a checkpoint or of a run."""
    if not path.is_dir():
        return path
    newest = [path, *sorted(path.glob("checkpoints/step-" + 8 * "[0-9]"))][-1]
    file = newest / "model.safetensors"
    if newest == path and not file.exists():
        raise FileNotFoundError(f"{path} holds no checkpoints/step-* and no {file.name}")
    return file


class NetworkDenoiser(NetworkModel):
    """Any network `net(x, t, **conditions)` as a denoiser.

    Args:
        network: called with x (n, *event) in the network's dtype and a time of shape (n,); a network with
            the attribute `broadcasts_time = True` gets (1,) where all samples share their time.
        process: the forward process it was trained for.
        prediction: what it outputs: "noise", "data", "score", "v" or "velocity".
        time: what it expects as time: "unit" (t / T in [0, 1]), "label" (the index round(t N) - 1 of a chain
            of N steps, 0 for all times before the first), "log_snr", or "sigma" (sigma / alpha).
        labels: N for `time="label"`; taken from the process where it comes from betas.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        prediction: str = "noise",
        *,
        time: str = "unit",
        labels: int | None = None,
    ) -> None:
        super().__init__(network, process)
        self.prediction = check_choice("prediction", prediction, get_args(Prediction))
        self.time = check_choice("time", time, get_args(Time))
        if time == "label" and labels is None:
            schedule = process.schedule if isinstance(process, VP) else None
            if not isinstance(schedule, Tabulated):
                raise ValueError('time="label" needs labels=N: this process has no table of betas')
            labels = len(schedule.betas)
        self.labels = None if labels is None else check_integer("labels", labels, 1)

    def predict(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """The network's output at x and t, in the shape and dtype of x."""
        return _call(self.network, x, self._network_time(t), conditions)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments but for network and process, ready for JSON."""
        return {"prediction": self.prediction, "time": self.time, "labels": self.labels}

    def _network_time(self, t: Number) -> Number:
        """What the network expects as its time; labels are integers."""
        match self.time:
            case "unit":
                value = t / self.process.horizon
            case "log_snr":
                value = self.process.log_snr(t)
            case "sigma":
                value = ratio(self.process.sigma(t), self.process.alpha(t))
            case _:
                position = (self.labels or 1) * t / self.process.horizon
                if isinstance(position, Tensor):
                    return position.round().clamp(min=1).to(torch.int64) - 1
                return max(round(position), 1) - 1
        return value


class EDMPrecondition(NetworkModel):
    """The preconditioned denoiser of Karras et al. 2022, eq. 7, around any network F(x, t).

    With y = x / alpha and rho = sigma / alpha: D = c_skip y + c_out F(c_in y, log(rho) / 4), so that inputs
    and training targets of F have unit variance at every noise level.

    Args:
        network: F, called with a batch and a time of shape (n,) (or (1,), as for `NetworkDenoiser`).
        process: forward process; `EDM()` if not given.
        sigma_data: standard deviation of the data, per coordinate.
    """

    prediction = "data"

    def __init__(
        self, network: nn.Module, process: Process | None = None, sigma_data: float = 1.0
    ) -> None:
        super().__init__(network, EDM() if process is None else process)
        self.sigma_data = check_number("sigma_data", sigma_data, 0, open_low=True)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments but for network and process, ready for JSON."""
        return {"sigma_data": self.sigma_data}

    def predict(self, x: Tensor, t: Number, **conditions: Any) -> Tensor:
        """D(y; rho), an estimate of E[x_0 | x_t = x]."""
        alpha, sigma = self.process.curves(t)
        if not isinstance(alpha, Tensor) and 0.0 in (alpha, sigma):
            raise ValueError(f"t must have a finite log(sigma / alpha), the time of F; got t = {t}")
        spread = sqrt(sigma * sigma + (alpha * self.sigma_data) ** 2)  # alpha sqrt(rho^2 + data^2)
        c_in, c_skip = 1 / spread, alpha * (self.sigma_data / spread) ** 2
        c_out = sigma * self.sigma_data / spread
        c_in, c_skip, c_out = (expand(c, x) for c in (c_in, c_skip, c_out))
        clock = log(sigma / alpha) / 4
        return c_skip * x + c_out * _call(self.network, c_in * x, clock, conditions)


def _call(network: nn.Module, x: Tensor, clock: Number, conditions: dict[str, Any]) -> Tensor:
    """The network's checked output in x's dtype."""
    return checked_output(call_network(network, x, clock, conditions), x).to(x.dtype)


def call_network(network: nn.Module, x: Tensor, clock: Number, conditions: dict[str, Any]) -> Any:
    """The network's output as it is; its own dtype inside; a shared time as (n,) or (1,)."""
    parameter = next(network.parameters(), x)
    if parameter.device != x.device:
        raise ValueError(
            f"x is on {x.device}, the network on {parameter.device}; move one of them with .to()"
        )
    integers = clock.dtype == torch.int64 if isinstance(clock, Tensor) else isinstance(clock, int)
    dtype = torch.int64 if integers else parameter.dtype
    clock = torch.as_tensor(clock, dtype=dtype, device=x.device)
    if not clock.ndim:
        clock = clock.expand(1 if getattr(network, "broadcasts_time", False) else len(x))
    return network(x.to(parameter.dtype), clock, **conditions)


# ------------------------------------------------------------------- models as files, by name


def describe(model: NetworkModel) -> dict[str, Any]:
    """Everything but the weights, as JSON: classes and arguments of model and network, process.

    A network without a `config` property (its constructor's keyword arguments), or a process that is not a
    dataclass, is left out; `load` then asks for an instance.
    """
    config = getattr(model.network, "config", None)
    process = model.process
    return {
        "type": type(model).__name__,
        "network": {"type": type(model.network).__name__, **config} if config else None,
        "process": _describe_dataclass(process) if dataclasses.is_dataclass(process) else None,
        **model.settings,
    }


def rebuild(
    description: dict[str, Any], network: nn.Module | None = None, process: Process | None = None
) -> NetworkModel:
    """The model that `describe` described, with fresh weights."""
    from sdekit import networks, processes, schedules

    built, forward = network, process
    if built is None:
        built = _rebuild(description["network"], {c.__name__: c for c in networks.ALL}, "network")
    if forward is None:
        known = {type(p).__name__: type(p) for p in (*processes.ALL, *schedules.ALL)}
        forward = _rebuild(description["process"], known, "process")
    recorded, given = description["process"], forward
    if recorded and dataclasses.is_dataclass(given):
        ours = json.loads(json.dumps(_describe_dataclass(given)))  # tuples become lists in a file
        if ours != json.loads(json.dumps(recorded)):
            raise CheckpointError(
                f"the file is of another {recorded['type']} than process={given!r}"
            )
    kinds = {kind.__name__: kind for kind in _kinds(NetworkModel)}
    settings = {k: v for k, v in description.items() if k not in ("type", "network", "process")}
    name = description.get("type", "NetworkDenoiser")
    if name not in kinds:
        raise CheckpointError(f"the file holds a {name!r}, a model which sdekit does not have")
    return kinds[name](built, forward, **settings)


def _kinds(base: type[NetworkModel]) -> Iterator[type[NetworkModel]]:
    """The classes under one."""
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def load_weights(network: nn.Module, weights: dict[str, Tensor], where: str | Path) -> None:
    """`load_state_dict`, strict, with a message that lists what does not fit."""
    check_weights(network, weights, where)
    network.load_state_dict(weights)


def check_weights(network: nn.Module, weights: dict[str, Tensor], where: str | Path) -> None:
    """Raise a `CheckpointError` that lists which weights of a file do not fit."""
    own = network.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{k}: file {tuple(weights[k].shape)}, network {tuple(own[k].shape)}"
        for k in sorted(own.keys() & weights.keys())
        if own[k].shape != weights[k].shape
    ]
    if missing or extra or shapes:
        raise CheckpointError(
            f"{where} does not fit the network: missing {missing}, unexpected {extra}, shapes {shapes}"
        )


def _describe_dataclass(obj: Any) -> dict[str, Any]:
    values = {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj)}
    nested = {k: _describe_dataclass(v) for k, v in values.items() if dataclasses.is_dataclass(v)}
    return {"type": type(obj).__name__, **values, **nested}


def _rebuild(description: dict[str, Any] | None, known: dict[str, type], what: str) -> Any:
    fields = dict(description or {})
    name = fields.pop("type", "of your own class")
    if name not in known:
        raise CheckpointError(
            f"the file names the {what} {name!r}, which sdekit does not have; give {what}="
        )
    arguments = {
        k: _rebuild(v, known, what) if isinstance(v, dict) and "type" in v else v
        for k, v in fields.items()
    }
    return known[name](**arguments)


def _shape(x: Any) -> str:
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
