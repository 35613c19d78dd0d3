"""The processes that share the work: one, or as many as `torchrun` starts."""

import atexit
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """How many processes there are and which one this is.

    Attributes:
        rank: 0 .. size - 1; 0 writes.
        size: how many take a part of every batch.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """The process group, joined first if `torchrun` started this process; else one process."""
        if not distributed.is_available():
            return cls()
        if not distributed.is_initialized() and all(name in os.environ for name in _LAUNCHED):
            cuda = torch.cuda.is_available()
            if cuda:  # else all processes of a machine would take its first
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            # A model on the CPU of a machine with GPUs is averaged too.
            distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
            atexit.register(_leave)
        if not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """This process's part of `n` rows: neighbours, as many for each as they divide."""
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes of a tensor, in place."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=device)) > 0)

    def every(self, value: Any) -> list[Any]:
        """The values of all processes, in order, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()


#: One process.
ALONE = World()


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
