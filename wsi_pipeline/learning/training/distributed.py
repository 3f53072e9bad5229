"""Several processes that train one network together, started by torchrun; one process alone is the plain case.

Every batch is drawn alike in all of them and shared out; gradients are averaged over all, so that all take
the same step. What is random within a share follows from seed, epoch and rank. Every tensor that goes from
process to process lies on the process's device: NCCL knows no other.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wsi_pipeline.base.errors import ConfigError, TrainingError, UsageError
from wsi_pipeline.learning.datasets.sharing import ONE_READER, Readers


@dataclass(frozen=True)
class MachineProcesses:
    """The processes of one machine; see `Readers`."""

    rank: int
    count: int
    # torch's group of them; None: they are all there are.
    group: Any = None

    def all_say(self, value: Any) -> list[Any]:
        """What each of them says, by rank; returns when all have said it."""
        said: list[Any] = [None] * self.count
        dist.all_gather_object(said, value, group=self.group)  # puts its bytes on the device by itself
        return said


@dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this one is, its device, and the processes of its machine."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    readers: Readers = ONE_READER

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
        """The mean of a value, a tensor on the device, over the processes."""
        if self.count > 1:
            dist.all_reduce(value)
            value /= self.count
        return value

    def gather(self, part: NDArray[np.float32], total: int) -> NDArray[np.float32]:
        """All `total` rows, of which each process has those that `share` gives it."""
        if self.count == 1:
            return part
        padded = np.zeros((-(-total // self.count), *part.shape[1:]), part.dtype)  # shares differ by a row
        padded[: len(part)] = part
        parts = self._all_have(torch.from_numpy(padded).to(self.device)).cpu().numpy()
        whole = np.empty((total, *part.shape[1:]), part.dtype)
        for rank in range(self.count):
            rows = whole[rank :: self.count]
            rows[:] = parts[rank, : len(rows)]
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
        total = torch.stack([p.detach().double().sum() for p in network.parameters()]).sum()
        totals = self._all_have(total).tolist()  # read once
        if len(set(totals)) > 1:
            raise TrainingError(
                f"the {self.count} processes no longer have the same weights (sums {totals}); "
                "start again from the last whole epoch, on machines and versions of one kind"
            )

    def _all_have(self, value: torch.Tensor) -> torch.Tensor:
        """What all processes have, [processes, *shape], of tensors of one shape."""
        values = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(values, value)
        return torch.stack(values)


@contextmanager
def torchrun_group(device: torch.device) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """The processes that torchrun started and this one's device; one process where there was no torchrun.

    With a device of cuda, each process takes the GPU of its local rank. Raises UsageError where there is none.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ProcessGroup(device=device), device
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
        yield ProcessGroup(dist.get_rank(), count, device, _machine(count)), device
    finally:
        dist.destroy_process_group()


def _machine(count: int) -> Readers:
    """The processes of this machine among all `count`, which torchrun numbers machine by machine."""
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if here == 1:
        return ONE_READER
    if here == count:
        return MachineProcesses(local, here)
    if count % here:
        raise UsageError(
            f"torchrun started {here} of {count} processes on this machine; expected as many on every machine: "
            "give each the same --nproc-per-node"
        )
    group, _ = dist.new_subgroups(here)  # type: ignore[no-untyped-call]
    return MachineProcesses(local, here, group)
