"""What only a machine with an NVIDIA GPU can be asked: how busy it is."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SAMPLE_MS = 200


@contextmanager
def busy_share(device: torch.device) -> Iterator[list[float]]:
    """While the block runs, samples of the GPU's busy share, 0 to 1; none without a GPU. Filled when it ends."""
    samples: list[float] = []
    if device.type != "cuda":
        yield samples
        return
    command = ["nvidia-smi", f"--id={device.index or 0}", f"--loop-ms={SAMPLE_MS}"]
    command += ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield samples
        finally:
            sampler.terminate()
            printed, _ = sampler.communicate()
            samples += [float(line) / 100 for line in printed.splitlines() if line.strip().isdigit()]
