"""Checkpoints of a training run: one safetensors file each, atomic, checked, resumed bit for bit."""

import contextlib
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sdekit import storage
from sdekit.denoisers import NetworkDenoiser, describe, load_weights
from sdekit.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass
class TrainingState:
    """Everything a run needs to go on: what a checkpoint holds.

    The randomness of data order, times and noise is a function of (seed, step), so the step is its state; the
    global generator, which dropout draws from, is saved.
    """

    model: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int
    losses: list[float]
    config: dict[str, Any]

    def save(self, folder: Path, keep: int) -> Path:
        """Write step-NNNNNNNN.safetensors, then drop all but the newest `keep`."""
        tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        for prefix, module in (("model.", self.model), ("ema.", self.average)):
            tensors |= {prefix + k: v for k, v in module.state_dict().items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in slots.items()}
        path = folder / f"step-{self.step:08d}.safetensors"
        storage.save_tensors(path, tensors, self._header())
        # A damaged later one, after falling back, must not count as a checkpoint that is kept.
        for old in [p for p in checkpoints(folder) if p.name <= path.name][:-keep]:
            old.unlink()
        return path

    def restore_newest(self, folder: Path) -> Path | None:
        """Continue from the newest checkpoint that is whole; None if there is no checkpoint.

        Raises:
            CheckpointError: none is whole, or it is of another network or of a run with other settings.
        """
        found = checkpoints(folder)
        for path in reversed(found):
            try:
                tensors, header = storage.load_tensors(path)
            except CheckpointError as error:
                warnings.warn(f"{error}; trying the one before", stacklevel=3)
                continue
            self._restore(path, tensors, header)
            return path
        if found:
            raise CheckpointError(f"no checkpoint in {folder} is whole: {[p.name for p in found]}")
        return None

    def _restore(self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Continue from what a checkpoint holds."""
        was, now = (_settings(h) for h in (header, self._header()))
        changed = {k: (was.get(k), v) for k, v in now.items() if was.get(k) != v}
        if changed:
            told = ", ".join(f"{k} was {old!r}, now {new!r}" for k, (old, new) in changed.items())
            raise CheckpointError(f"{path} is of a run with other settings: {told}")
        for prefix, module in (("model.", self.model), ("ema.", self.average)):
            load_weights(module, _with_prefix(tensors, prefix), path)
        self._restore_optimizer(_with_prefix(tensors, "optimizer."))
        torch.set_rng_state(tensors["rng"])
        self.step, self.losses = int(header["step"]), tensors["losses"].tolist()

    def check_describable(self) -> None:
        """Raise now what the first checkpoint would raise."""
        try:
            json.dumps(self._header())
        except TypeError as error:
            raise TypeError(
                f"the network's config and the fields of the process must be JSON: {error}"
            ) from None

    def _header(self) -> dict[str, Any]:
        """All but the tensors; with what `NetworkDenoiser.load` asks for."""
        header, average = {"step": self.step, "config": self.config}, self.average.module
        if isinstance(average, NetworkDenoiser):
            header |= {"model": describe(average), "weights_prefix": "ema.module.network."}
        return header

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Moments in the memory layout of their parameters: a fused step walks both as flat arrays."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            i, key = name.split(".", 1)
            like = parameters[int(i)]
            if tensor.shape == like.shape:
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            slots.setdefault(int(i), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*.safetensors") if _NAME.fullmatch(p.name))


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writes that were killed."""
    for path in folder.glob(".step-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _settings(header: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must have the same: its numbers, and how its network is told the time."""
    model = header.get("model", {})
    return {**header["config"], **{k: model[k] for k in ("time", "labels") if k in model}}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
