"""Checkpoints of a training run: one safetensors file each, atomic, checked, resumed bit for bit."""

import contextlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
    average: nn.Module
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
        header = {"step": self.step, "config": self.config}
        average = self.average.module
        if isinstance(average, NetworkDenoiser):
            header |= {"model": describe(average), "weights_prefix": "ema.module.network."}
        path = folder / f"step-{self.step:08d}.safetensors"
        storage.save_tensors(path, tensors, header)
        for old in checkpoints(folder)[:-keep]:
            old.unlink()
        return path

    def restore(self, path: Path, allow: tuple[str, ...] = ()) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: damaged, of another network, or of a run with other settings.
        """
        tensors, header = storage.load_tensors(path)
        changed = {
            k: (header["config"].get(k), v)
            for k, v in self.config.items()
            if header["config"].get(k) != v and k not in allow
        }
        if changed:
            told = ", ".join(f"{k} was {old!r}, now {new!r}" for k, (old, new) in changed.items())
            raise CheckpointError(f"{path} is of a run with other settings: {told}")
        for prefix, module in (("model.", self.model), ("ema.", self.average)):
            load_weights(module, _with_prefix(tensors, prefix), path)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(tensors, "optimizer.").items():
            i, key = name.split(".", 1)
            slots.setdefault(int(i), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        torch.set_rng_state(tensors["rng"])
        self.step, self.losses = int(header["step"]), tensors["losses"].tolist()

    def restore_newest(self, folder: Path, allow: tuple[str, ...] = ()) -> Path | None:
        """Continue from the newest checkpoint that is whole; None if there is no checkpoint."""
        found = checkpoints(folder)
        for path in reversed(found):
            try:
                storage.load_tensors(path)
            except CheckpointError as error:
                warnings.warn(f"{error}; trying the one before", stacklevel=3)
                continue
            self.restore(path, allow)
            return path
        if found:
            raise CheckpointError(f"no checkpoint in {folder} is whole: {[p.name for p in found]}")
        return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*.safetensors") if _NAME.fullmatch(p.name))


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writes that were killed."""
    for path in folder.glob(".step-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
