"""Plain networks for tests: what they make of a patch can be said by hand."""

import torch
from torch import nn

from wsi_pipeline.model import Model, ModelCard


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
