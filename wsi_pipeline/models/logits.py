"""Logits of labelled patches: the network as it stands, batch by batch."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.device_feed import Pixels, copies_to, feed
from wsi_pipeline.models.model import normalised

# Of a batch that is evaluated, at most: large patches go through in smaller batches.
_PIXELS_A_BATCH = 2**21


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    card: ModelCard,
    pixels: NDArray[np.uint8],
    device: torch.device,
    bf16: bool = False,
    batch_size: int | None = None,
) -> NDArray[np.float32]:
    """Logits, float32 [N, classes], of patches [N, S, S, 3]; the network is left in eval mode."""
    network.eval()
    batch_size = batch_size or max(min(512, _PIXELS_A_BATCH // pixels[0, :, :, 0].size), 1)

    def batches() -> Iterator[Pixels]:
        for start in range(0, len(pixels), batch_size):
            yield Pixels(torch.from_numpy(pixels[start : start + batch_size]))

    logits = []
    for batch in feed(batches(), copies_to(device)):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits.append(network(normalised(batch.patches, card.mean, card.std)).float())
    # Read once: a copy to the host for each batch would make the device wait for the next.
    return torch.cat(logits).cpu().numpy()
