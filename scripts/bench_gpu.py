"""What only a machine with an NVIDIA GPU can be asked: how busy it is, and whether it decodes JPEG tiles faster."""

import io
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

SAMPLE_MS = 200
TILE_PX, TILES, REPEATS = 256, 512, 5


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
            told, _ = sampler.communicate()
            samples += [float(line) / 100 for line in told.splitlines() if line.strip().isdigit()]


def jpeg_speeds(square: NDArray[np.uint8], device: torch.device) -> dict[str, float]:
    """Tiles of 256 px a second that torchvision decodes from JPEG bytes, on the CPU's one thread and on the GPU."""
    from wsi_pipeline.models.torchvision_guard import torchvision

    side = square.shape[0] // TILE_PX
    tiles = [_jpeg(square, i % side, i // side % side) for i in range(TILES)]
    speeds: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for _ in range(REPEATS + 1):
        for name, found in speeds.items():
            start = time.perf_counter()
            if name == "cpu":
                for tile in tiles:
                    torchvision.io.decode_jpeg(tile)
            else:
                torchvision.io.decode_jpeg(tiles, device=device)
                torch.cuda.synchronize(device)
            found.append(TILES / (time.perf_counter() - start))
    return {name: statistics.median(found[1:]) for name, found in speeds.items()}  # the first warms up


def _jpeg(square: NDArray[np.uint8], column: int, row: int) -> torch.Tensor:
    x, y = column * TILE_PX, row * TILE_PX
    buffer = io.BytesIO()
    Image.fromarray(square[y : y + TILE_PX, x : x + TILE_PX]).save(buffer, "JPEG", quality=85)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
