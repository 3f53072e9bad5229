"""Networks in the form that tensor cores like: batch normalisation taken in, channels made up to multiples of eight."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import nn

from wsi_pipeline.inference.engines.torch_engine import folded
from wsi_pipeline.models.architectures.residual import ResidualCnn
from wsi_pipeline.models.architectures.slide_condition import WithHead, with_slide_inputs
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import Model, build_network

MULTIPLE = 8
# A linear layer of no more weights is computed in float32.
SMALL_WEIGHTS = 2**16


def device_networks(model: Model, dtype: torch.dtype) -> Iterator[tuple[nn.Module, int]]:
    """Copies of the model's network for a GPU, in `dtype` and channels_last, on the CPU, and their inputs' channels.

    The fastest first. Of a 16-bit network, channels are made up with zeros where that is simple; its input has eight
    then, and of one that hears of its slide its last layer may take more features. Small linear layers, gates and
    heads, stay in float32: of 16-bit ones, some GPUs' libraries add up a patch's terms in an order that hangs on its
    place in the batch. What torch.fx cannot follow keeps its batch normalisation.
    """
    network = with_slide_inputs(model.network)
    if dtype == torch.float32:
        yield _made(network, dtype, 3, False), 3
        return
    wide: nn.Module | None = None
    if isinstance(network, WithHead) and isinstance(network.core, ResidualCnn):
        wide = WithHead(widened(network.core, model.card))
    elif isinstance(network, ResidualCnn):
        wide = widened(network, model.card)
    for float_linear in (True, False):
        if wide:
            yield _made(wide, dtype, MULTIPLE, float_linear), MULTIPLE
        yield _made(network, dtype, 3, float_linear), 3


def _made(network: nn.Module, dtype: torch.dtype, channels: int, float_linear: bool) -> nn.Module:
    try:
        network = folded(network)
    except Exception:  # torch.fx cannot follow every network
        network = deepcopy(network)
    if channels > 3:
        _take_channels(network, channels)
    network = network.to("cpu")
    kept = _small_linears(network) if float_linear else {}
    network = network.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, layer in kept.items():
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer)
    return network.eval().requires_grad_(False)


class FloatLinear(nn.Module):
    """A linear layer in float32 within a network of 16 bits."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = deepcopy(layer).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer gives, in the type of `x`."""
        return self.layer(x.float()).to(x.dtype)  # type: ignore[no-any-return]


def _small_linears(network: nn.Module) -> dict[str, FloatLinear]:
    """Linear layers that cost next to nothing, by their names, as they are now."""
    return {
        name: FloatLinear(layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.numel() <= SMALL_WEIGHTS
    }


def widened(network: ResidualCnn, card: ModelCard) -> ResidualCnn:
    """The same network with every width made up to a multiple of eight by channels that stay zero."""
    options = {name: value for name, value in card.architecture_options.items() if name != "slide_condition"}
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
