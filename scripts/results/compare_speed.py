"""How many patches a second networks classify, side by side in one process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from wsi_pipeline.models.cost import network_cost
from wsi_pipeline.models.model import Model, idc_probability

ROUNDS, LEAST_S = 5, 1.0
BATCH, GPU_BATCH = 128, 1024
# Networks above this take smaller batches: of large inputs, 128 would fill the memory and nothing would be faster.
HEAVY_MFLOP, HEAVY_BATCH = 2000.0, 16


@dataclass(frozen=True)
class Speed:
    """Patches a second, median of rounds; none where there is no GPU."""

    cpu: float
    gpu: float | None


def speeds(models: Mapping[str, Model], device: torch.device) -> dict[str, Speed]:
    """The speed of each model in float32, rounds interleaved, so that what else runs slows all alike."""
    on_cpu = _measured(models, torch.device("cpu"), BATCH)
    on_gpu = _measured(models, device, GPU_BATCH) if device.type == "cuda" else {}
    return {name: Speed(on_cpu[name], on_gpu.get(name)) for name in models}


def _measured(models: Mapping[str, Model], device: torch.device, batch: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(ROUNDS + 1):
        for name, model in models.items():
            speed = _once(model, device, batch)
            if round_:  # the first one warms up
                found[name].append(speed)
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}


@torch.inference_mode()
def _once(model: Model, device: torch.device, batch: int) -> float:
    network, px = model.network.to(device), model.card.patch_px
    heavy = network_cost(network, px).mflop > HEAVY_MFLOP
    size = HEAVY_BATCH if heavy else batch
    patches = torch.randint(256, (size, px, px, 3), dtype=torch.uint8, device=device)
    done, start = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - start < LEAST_S:
        idc_probability(network, model.card, patches).sum().item()  # waits for the device
        done += size
    return done / (time.perf_counter() - start)
