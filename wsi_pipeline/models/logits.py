"""Logits of labelled patches: the network as it stands, batch by batch."""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.models.architectures.slide_condition import MOST_PATCHES, SlideConditioned, SlideHead
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
    features: bool = False,
) -> NDArray[np.float32]:
    """Logits, float32 [N, classes], of patches [N, S, S, 3]; the network is left in eval mode.

    With `features`, of a network that hears of its slide: what its last layer is given, [N, C].
    """
    network.eval()
    batch_size = batch_size or max(min(512, _PIXELS_A_BATCH // pixels[0, :, :, 0].size), 1)

    def batches() -> Iterator[Pixels]:
        for start in range(0, len(pixels), batch_size):
            yield Pixels(torch.from_numpy(pixels[start : start + batch_size]))

    give = network.features if features else network
    found = []
    for batch in feed(batches(), copies_to(device)):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found.append(give(normalised(batch.patches, card.mean, card.std)).float())  # type: ignore[operator]
    # Read once: a copy to the host for each batch would make the device wait for the next.
    return torch.cat(found).cpu().numpy()


def evaluate_by_slide(
    network: nn.Module,
    card: ModelCard,
    pixels: NDArray[np.uint8],
    slides: NDArray[np.str_],
    device: torch.device,
) -> NDArray[np.float32]:
    """As `evaluate`, of patches of these slides or patients [N]: a network that hears of its slide hears of each."""
    if not isinstance(network, SlideConditioned):
        return evaluate(network, card, pixels, device)
    features = evaluate(network, card, pixels, device, features=True)
    return logits_by_slide(features, slides, slide_heads(network, features, slides))


def slide_heads(
    network: SlideConditioned, features: NDArray[np.float32], slides: NDArray[np.str_]
) -> dict[str, SlideHead]:
    """The last layer of each slide, by features [N, C] of its patches: MOST_PATCHES at most, drawn by its name."""
    heads = {}
    for slide in np.unique(slides).tolist():
        rows = sampled_rows(slide, np.flatnonzero(slides == slide))
        heads[slide] = network.head_of(features[rows]) or network.own_head()
    return heads


def sampled_rows(slide: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of a slide's rows that its condition is taken from, in their order; the same for the same name."""
    if len(rows) <= MOST_PATCHES:
        return rows
    random = np.random.default_rng(zlib.crc32(slide.encode()))
    return np.sort(random.choice(rows, MOST_PATCHES, replace=False))


def logits_by_slide(
    features: NDArray[np.float32], slides: NDArray[np.str_], heads: Mapping[str, SlideHead]
) -> NDArray[np.float32]:
    """Logits, float32 [N, classes], of features [N, C], each by its slide's last layer."""
    first = next(iter(heads.values()))
    logits = np.empty((len(features), len(first.bias)), np.float32)
    for slide, head in heads.items():
        rows = np.flatnonzero(slides == slide)
        logits[rows] = features[rows] @ head.weight.T + head.bias
    return logits
