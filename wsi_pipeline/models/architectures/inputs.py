"""What a network does with a patch before its first layer, the same in training and on slides."""

import torch
import torch.nn.functional as F
from torch import nn

from wsi_pipeline.models.architectures.clahe import ClaheOptions, clahe

# Of the photographs that torchvision's weights were trained on, R, G, B on the scale 0 to 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Outside of training, a batch is taken in parts of so many pixels: a batch of 2048 patches that suits a small
# network would need more memory than there is once each is enlarged to 512 x 512.
_PIXELS_A_PART = 2**22


class PreparedInput(nn.Module):
    """A network behind steps of preparation: local contrast (CLAHE), then enlarging.

    With `clahe`, patches come on the scale 0 to 1 (a card of mean 0 and deviation 1), and go on normalised as
    ImageNet is. With `input_px`, patches of another size are resized to it, bilinearly.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, input_px: int | None = None, clahe: ClaheOptions | None = None):
        super().__init__()
        if input_px is not None and input_px < 1:
            raise ValueError(f"input_px: found {input_px}, expected 1 or more")
        self.network = network
        self.input_px = input_px
        self.clahe = clahe
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] of patches [N, 3, H, W]."""
        if self.training:
            return self.network(self.prepared(x))  # type: ignore[no-any-return]
        pixels = self.input_px**2 if self.input_px else x.shape[2] * x.shape[3]
        parts = torch.split(x, max(_PIXELS_A_PART // pixels, 1))
        return torch.cat([self.network(self.prepared(part)) for part in parts])

    def prepared(self, x: torch.Tensor) -> torch.Tensor:
        """What the network behind sees, [N, 3, input_px, input_px]."""
        if self.clahe:
            x = (clahe(x, self.clahe) - self.mean) / self.std
        if self.input_px and x.shape[2:] != (self.input_px, self.input_px):
            x = F.interpolate(x, (self.input_px, self.input_px), mode="bilinear", antialias=True)
        return x


class OneOutput(nn.Module):
    """A network of one sigmoid output, as logits of two classes.

    Its logit z becomes (0, z): the softmax of these is the sigmoid of z, and their cross-entropy the binary
    cross-entropy of z. So cards, calibration and losses need no second case.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, 2], the second one's the class that the output speaks for."""
        z = self.network(x)  # [N, 1]
        return torch.cat([torch.zeros_like(z), z], dim=1)
