"""Which device computes, and how many threads read for it."""

import os
import sys
from typing import TYPE_CHECKING

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.inference.engines.options import ClassifyOptions as ClassifyOptions

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    import torch


READERS_BESIDE_NETWORK = 2


def choose_device(name: str, worker: int = 0) -> "torch.device":
    """The device that 'auto', 'cpu', 'cuda' or 'cuda:1' names; auto takes a GPU where there is one.

    Of a machine with several GPUs, its workers, counted from 0, get them by turns, unless `name` says which.

    Raises UsageError when it names a GPU that is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cuda") and gpus > 1:
        return torch.device(f"cuda:{worker % gpus}")
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            f"{torch.__version__} can use; take --device auto or cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return device


def reader_threads(options: ClassifyOptions, device: "torch.device") -> int:
    """Threads that decode ahead of a network on that device."""
    if options.reader_threads is not None:
        return options.reader_threads
    return READERS_BESIDE_NETWORK if device.type == "cpu" else own_cores()


def own_cores() -> int:
    """Cores that this process may use: a container or `taskset` may grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
