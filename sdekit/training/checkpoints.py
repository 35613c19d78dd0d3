"""Checkpoints of a training run: one folder each, atomic, checked, resumed bit for bit.

step-00001000/model.safetensors      the averaged model, with all that `sample` needs to know of it
             /training.safetensors   weights, moments and losses, with which the run goes on
             /config.json            the settings and versions, for people: nothing reads it
"""

import json
import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit import storage
from sdekit.denoisers import NetworkModel, check_weights, describe, load_weights
from sdekit.errors import CheckpointError
from sdekit.training.average import Average
from sdekit.training.settings import config_hash, versions

_NAME = re.compile(r"step-(\d{8})")
MODEL, TRAINING, CONFIG = "model.safetensors", "training.safetensors", "config.json"


@dataclass
class TrainingState:
    """Everything a run needs to go on: what a checkpoint holds.

    All randomness of a run is a function of (seed, step), so the step is its state.
    """

    model: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    config: dict[str, Any]
    step: int = 0
    #: Batch loss and gradient norm of every step.
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    #: (step, loss of the average) of every evaluation.
    validation: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> int | None:
        """The step of the least validation loss so far."""
        finite = [pair for pair in self.validation if math.isfinite(pair[1])]
        return min(finite, key=lambda pair: pair[1])[0] if finite else None

    def exhausted(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row have not been better than the best before them."""
        if patience is None or self.best is None:
            return False
        return sum(step > self.best for step, _ in self.validation) >= patience

    def path(self, folder: Path, step: int | None = None) -> Path:
        """Where the checkpoint of a step goes, of this one if not given."""
        return folder / f"step-{self.step if step is None else step:08d}"

    def save(self, folder: Path, keep: int) -> Path:
        """Write step-NNNNNNNN, then drop all but the newest `keep` and the best."""
        path = self.path(folder)
        with storage.new_folder(path) as draft:
            header = self._header()
            weights = {f"model.{k}": v for k, v in self.average.module.state_dict().items()}
            storage.save_tensors(draft / MODEL, weights, header)
            storage.save_tensors(draft / TRAINING, self._tensors(), {**header, **self._numbers()})
            told = {"config_hash": config_hash(self.config), "versions": versions(), **header}
            storage.save_text(draft / CONFIG, json.dumps(told, indent=1) + "\n")
        # A damaged later one, after falling back, must not count as a checkpoint that is kept.
        best = None if self.best is None else self.path(folder, self.best)
        for old in [p for p in checkpoints(folder) if p.name <= path.name][:-keep]:
            if old != best:
                storage.remove_folder(old)
        return path

    def restore_newest(self, folder: Path) -> Path | None:
        """Continue from the newest checkpoint that is whole; None if there is no checkpoint.

        Raises:
            CheckpointError: none is whole, or it is of another network or of a run with other settings.
        """
        found = checkpoints(folder)
        for path in reversed(found):
            try:
                average, _ = storage.load_tensors(path / MODEL)
                training, header = storage.load_tensors(path / TRAINING)
            except (CheckpointError, FileNotFoundError) as error:
                warnings.warn(f"{error}; trying the one before", stacklevel=3)
                continue
            self._restore(path, average, training, header)
            return path
        if found:
            raise CheckpointError(f"no checkpoint in {folder} is whole: {[p.name for p in found]}")
        return None

    def _restore(
        self,
        path: Path,
        average: dict[str, Tensor],
        training: dict[str, Tensor],
        header: dict[str, Any],
    ) -> None:
        """Continue from what a checkpoint holds."""
        check_weights(self.model, _with_prefix(training, "model."), path)
        ours = json.loads(json.dumps(self._header()))  # tuples become lists in a file
        was, now = _settings(header), _settings(ours)
        changed = {k: (was.get(k), v) for k, v in now.items() if was.get(k) != v}
        if changed:
            told = ", ".join(f"{k} was {old!r}, now {new!r}" for k, (old, new) in changed.items())
            raise CheckpointError(f"{path} is of a run with other settings: {told}")
        if "norms" not in training:
            raise CheckpointError(f"{path} is of an earlier version, which drew other noise")
        load_weights(self.model, _with_prefix(training, "model."), path)
        load_weights(self.average.module, _with_prefix(average, "model."), path)
        self._restore_optimizer(_with_prefix(training, "optimizer."), header["optimizer"])
        self.step = int(header["step"])
        self.losses, self.norms = training["losses"].tolist(), training["norms"].tolist()
        self.validation = [(int(step), loss) for step, loss in header["validation"]]

    def check_describable(self) -> None:
        """Raise now what the first checkpoint would raise."""
        try:
            json.dumps(self._header())
        except TypeError as error:
            raise TypeError(
                f"the network's config and the fields of the process must be JSON: {error}"
            ) from None

    def _header(self) -> dict[str, Any]:
        """What `NetworkModel.load` asks for, and the settings."""
        header, average = {"step": self.step, "config": self.config}, self.average.module
        if isinstance(average, NetworkModel):
            header |= {"model": describe(average), "weights_prefix": "model.network."}
        return header

    def _tensors(self) -> dict[str, Tensor]:
        """Weights, losses, and the tensors of the optimiser."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["norms"] = torch.tensor(self.norms, dtype=torch.float64)
        slots = self.optimizer.state_dict()["state"]
        return tensors | {
            f"optimizer.{i}.{k}": v
            for i, slot in slots.items()
            for k, v in slot.items()
            if isinstance(v, Tensor)
        }

    def _numbers(self) -> dict[str, Any]:
        """The evaluations, and what optimisers keep that are no tensors."""
        slots = self.optimizer.state_dict()["state"]
        plain = {
            i: {k: v for k, v in slot.items() if not isinstance(v, Tensor)}
            for i, slot in slots.items()
        }
        return {"validation": self.validation, "optimizer": {i: v for i, v in plain.items() if v}}

    def _restore_optimizer(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Moments in the memory layout of their parameters: a fused step walks both as flat arrays."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Any]] = {int(i): slot for i, slot in plain.items()}
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
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir())


def _settings(header: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must have the same: its numbers, and the arguments of its model and network."""
    model = dict(header.get("model", {}))
    model.pop("process", None)  # the config tells processes apart
    network = model.pop("network", None) or {}
    return {**header["config"], **model, **{f"network.{k}": v for k, v in network.items()}}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
