"""Networks in the form that tensor cores like: batch normalisation taken in, channels made up to multiples of eight."""

from copy import deepcopy

import torch
from torch import nn

from wsi_pipeline.inference.engines.torch_engine import folded
from wsi_pipeline.models.architectures.residual import ResidualCnn
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import Model, build_network

MULTIPLE = 8


def device_network(model: Model, dtype: torch.dtype) -> tuple[nn.Module, int]:
    """A copy of the model's network for a GPU, in `dtype` and channels_last, on the CPU, and its input's channels.

    Of a 16-bit network, channels are made up with zeros where that is simple; its input has eight then. What torch.fx
    cannot follow keeps its batch normalisation.
    """
    network, channels = model.network, 3
    if dtype != torch.float32 and isinstance(network, ResidualCnn):
        network, channels = widened(network, model.card), MULTIPLE
    try:
        network = folded(network)
    except Exception:  # torch.fx cannot follow every network
        network = deepcopy(network)
    if channels > 3:
        _take_channels(network, channels)
    network = network.to("cpu", dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False), channels


def widened(network: ResidualCnn, card: ModelCard) -> ResidualCnn:
    """The same network with every width made up to a multiple of eight by channels that stay zero."""
    options = dict(card.architecture_options)
    widths = [layer.out_channels for layer in _outputs(network)]
    options["widths"] = [-(-width // MULTIPLE) * MULTIPLE for width in widths]
    wide = build_network(card.architecture, classes=len(card.classes), **options)
    assert isinstance(wide, ResidualCnn)
    narrow = network.state_dict()
    with torch.no_grad():
        for name, value in wide.state_dict().items():
            value.fill_(1 if name.endswith("running_var") else 0)  # a channel of zeros stays one
            value[tuple(slice(length) for length in narrow[name].shape)] = narrow[name]
    return wide.eval()


def _outputs(network: ResidualCnn) -> list[nn.Conv2d]:
    """The convolution that decides each stage's width."""
    found = []
    for stage in network.stages:
        assert isinstance(stage, nn.Sequential)
        last = stage[-1].conv2
        assert isinstance(last, nn.Conv2d)
        found.append(last)
    return found


def _take_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution take so many channels, of which those after the third count for nothing."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    weight = first.weight.new_zeros(first.out_channels, channels, *first.kernel_size)
    weight[:, : first.in_channels] = first.weight
    first.weight, first.in_channels = nn.Parameter(weight, requires_grad=False), channels
