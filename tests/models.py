"""Plain networks for tests: what they make of a patch can be said by hand."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.context import ContextCard, ContextStep, RingOptions, channel_count, weight_shapes
from wsi_pipeline.models.model import Model


class Brightness(nn.Module):
    """Logits whose softmax gives a patch's mean brightness, 0 to 1, as its probability of IDC."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [N, 3, H, W] of 0..1 -> [N, 2]
        mean = images.mean(dim=(1, 2, 3)).clamp(1e-4, 1 - 1e-4)
        return torch.stack([torch.log(1 - mean), torch.log(mean)], dim=1)


def brightness_model(patch_px: int = 50, mpp: float = 4.0, threshold: float = 0.5) -> Model:
    card = ModelCard(
        name="brightness",
        architecture="none",
        architecture_options={},
        patch_px=patch_px,
        mpp=mpp,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        threshold=threshold,
    )
    return Model(card, Brightness().eval(), "0" * 64)


def dimmer_model(threshold: float = 0.3) -> Model:
    """Another one, which says half of a patch's brightness."""
    card = replace(brightness_model(threshold=threshold).card, name="dimmer", std=(2.0, 2.0, 2.0))
    return Model(card, Brightness().eval(), "1" * 64)


def random_step(threshold: float = 0.5, seed: int = 0) -> ContextStep:
    """A context step whose perceptrons say anything, so that a test sees whatever reaches them."""
    random = np.random.default_rng(seed)
    options = RingOptions(sigmas=(1.0, 3.0), spread_sigmas=(1.5,))
    shapes = weight_shapes(channel_count(options), hidden=4, members=2)
    weights = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["std"] = np.abs(weights["std"]) + 1
    card = ContextCard(options=options, temperature=1.3, log_odds_shift=0.2, threshold=threshold)
    return ContextStep(card, weights)
