"""Networks run over a whole block at once, as if over every patch in it: their fully-convolutional form.

Sermanet et al., "OverFeat", ICLR 2014. What two patches share is computed once. The result is the network's own only
where a pixel's share in it does not depend on where the patch ends: padding does depend on that, and so does a gate
that looks at the mean over the patch. The form is given for such networks too: whoever uses it compares (dense.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.models.architectures.inputs import OneOutput, PreparedInput
from wsi_pipeline.models.architectures.plain_cnn import PlainCnn
from wsi_pipeline.models.architectures.residual import ResidualCnn
from wsi_pipeline.models.architectures.slide_condition import SlideConditioned


@dataclass(frozen=True)
class DenseForm:
    """One network's form for whole blocks."""

    # Logits [1, classes, rows, columns] of a normalised block [1, 3, H, W]: of the patches whose upper left corners
    # lie on every `step_px`-th pixel, as far as they fit. A network that hears of its slide takes its last layer too.
    logits: Callable[..., torch.Tensor]
    step_px: int


def dense_form(network: nn.Module, patch_px: int) -> DenseForm:
    """The form of a network of patches of `patch_px` pixels a side.

    Raises ModelError, which says why, where the architecture has none.
    """
    if isinstance(network, OneOutput):
        inner = dense_form(network.network, patch_px)

        def two_logits(x: torch.Tensor) -> torch.Tensor:
            z = inner.logits(x)  # [1, 1, rows, columns]
            return torch.cat([torch.zeros_like(z), z], dim=1)

        return DenseForm(two_logits, inner.step_px)
    if isinstance(network, PreparedInput):
        if network.clahe or network.input_px not in (None, patch_px):
            raise ModelError("it evens the contrast of each patch, or resizes it, by itself")
        return dense_form(network.network, patch_px)
    if isinstance(network, SlideConditioned):
        return dense_form(network.core, patch_px)
    if isinstance(network, ResidualCnn):
        return _of_residual(network, patch_px)
    if isinstance(network, PlainCnn):
        return _of_plain(network)
    raise ModelError(f"{type(network).__name__} has no form that runs over blocks")


def _of_residual(network: ResidualCnn, patch_px: int) -> DenseForm:
    """The mean over a patch's last map becomes a running mean, the last layer a 1x1 convolution."""
    weight = next(network.parameters())
    with torch.no_grad():
        side = network.stages(network.stem(weight.new_zeros(1, 3, patch_px, patch_px))).shape[-1]
    head = network.head

    def logits(
        x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        features = network.stages(network.stem(x))  # [1, widths[-1], H / step, W / step]
        means = F.avg_pool2d(features, side, stride=1)
        weight, bias = (head.weight, head.bias) if weight is None else (weight, bias)
        return F.conv2d(means, weight[:, :, None, None], bias)

    return DenseForm(logits, network.step_px)


def _of_plain(network: PlainCnn) -> DenseForm:
    """The first dense layer becomes a convolution as wide as a patch's last map, the others 1x1 convolutions."""
    dense, activation, head = network.dense[1], network.dense[2], network.head
    assert isinstance(dense, nn.Linear)
    channels = [layer.out_channels for layer in network.features if isinstance(layer, nn.Conv2d)]
    side = round((dense.in_features / channels[-1]) ** 0.5)

    def logits(x: torch.Tensor) -> torch.Tensor:
        # The weights of now: a network may have gone to another device since, and its old weights with it.
        kernel = dense.weight.view(dense.out_features, channels[-1], side, side)
        hidden = activation(F.conv2d(network.features(x), kernel, dense.bias))
        return F.conv2d(hidden, head.weight[:, :, None, None], head.bias)

    return DenseForm(logits, 2 ** len(channels))
