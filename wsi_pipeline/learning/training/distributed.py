"""Several processes that train one network together, started by torchrun; one process alone is the plain case.

Every batch is drawn alike in all of them and shared out; gradients are averaged over all, so that all take
the same step. What is random within a share follows from seed, epoch and rank.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wsi_pipeline.base.errors import ConfigError, TrainingError, UsageError


@dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this one is."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def check_batch(self, size: int) -> None:
        """Raises ConfigError when a batch of that size cannot be shared out evenly."""
        if size % self.count:
            raise ConfigError(
                f"batch_size: found {size}, expected a multiple of the {self.count} processes that share it"
            )

    def share(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of a batch."""
        return indices[self.rank :: self.count]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network to train with: one that averages gradients over the processes, or itself."""
        if self.count == 1:
            return network
        return DistributedDataParallel(network)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a value over the processes."""
        if self.count > 1:
            dist.all_reduce(value)
            value /= self.count
        return value

    def gather(self, part: NDArray[np.float32]) -> NDArray[np.float32]:
        """All rows, of which each process has those that `share` gives it."""
        if self.count == 1:
            return part
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, part)
        whole = np.empty((sum(map(len, parts)), *part.shape[1:]), part.dtype)
        for rank, some in enumerate(parts):
            whole[rank :: self.count] = some
        return whole

    def settle(self, network: nn.Module, *others: nn.Module) -> None:
        """Give all processes the first one's buffers (statistics of norms: each saw its own share).

        Raises TrainingError when weights of `network` differ between processes: they should never.
        """
        if self.count == 1:
            return
        for module in (network, *others):
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
        total = sum(float(p.detach().double().sum()) for p in network.parameters())
        totals: list[Any] = [None] * self.count
        dist.all_gather_object(totals, total)
        if len(set(totals)) > 1:
            raise TrainingError(
                f"the {self.count} processes no longer have the same weights (sums {totals}); "
                "start again from the last whole epoch, on machines and versions of one kind"
            )


@contextmanager
def torchrun_group(device: torch.device) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """The processes that torchrun started and this one's device; one process where there was no torchrun.

    With a device of cuda, each process takes the GPU of its local rank. Raises UsageError where there is none.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ProcessGroup(), device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        # The same in all processes: the first one speaks for those that would find no GPU.
        if int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)) > torch.cuda.device_count():
            raise UsageError(
                f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here; "
                "correct --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), count), device
    finally:
        dist.destroy_process_group()
