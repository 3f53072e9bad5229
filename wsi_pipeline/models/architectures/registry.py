"""The architectures a model card can name, and how each is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wsi_pipeline.base.errors import ConfigError, ModelError
from wsi_pipeline.base.options import options_from_dict
from wsi_pipeline.models.architectures.cancernet import CancerNet
from wsi_pipeline.models.architectures.clahe import ClaheOptions
from wsi_pipeline.models.architectures.encoder import Encoder
from wsi_pipeline.models.architectures.inputs import OneOutput, PreparedInput
from wsi_pipeline.models.architectures.plain_cnn import PlainCnn
from wsi_pipeline.models.architectures.residual import ResidualCnn
from wsi_pipeline.models.architectures.slide_condition import SlideConditioned


def build_network(
    architecture: str,
    *,
    classes: int = 2,
    input_px: int | None = None,
    clahe: Mapping[str, Any] | None = None,
    one_output: bool = False,
    slide_condition: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A new network with random weights; it gives logits [N, classes] of normalised patches [N, 3, H, W].

    Any architecture may be built with `input_px` (patches are resized to it first), `clahe` (their contrast
    is evened first; values of ClaheOptions) and `one_output` (one sigmoid instead of two logits);
    'residual_cnn' with `slide_condition` (its last layer hears of the slide; `hidden`, how wide the perceptron is).
    `options` go to the architecture. Raises ModelError for an unknown architecture or options that it cannot be built
    with.
    """
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"architecture '{architecture}' is unknown; expected one of: {', '.join(_ARCHITECTURES)}"
        )
    entry = _ARCHITECTURES[architecture]
    try:
        if one_output and classes != 2:
            raise ValueError(f"one_output tells 2 classes apart, not {classes}")
        if entry.fixed_side:
            if not input_px:
                raise ValueError("expected input_px, the side it is built for")
            options["input_px"] = input_px
        network = entry.build(classes=1 if one_output else classes, **options)
        if slide_condition is not None:
            if not isinstance(network, ResidualCnn) or one_output or input_px or clahe is not None:
                raise ValueError("slide_condition goes with residual_cnn alone, as it is")
            network = SlideConditioned(network, **slide_condition)
        if one_output:
            network = OneOutput(network)
        if input_px or clahe is not None:
            contrast = None if clahe is None else options_from_dict(ClaheOptions, clahe, "clahe")
            network = PreparedInput(network, input_px, contrast)
    except (TypeError, ValueError, ConfigError) as error:
        raise ModelError(
            f"architecture '{architecture}' cannot be built with {options}: {error}; "
            "correct its architecture_options"
        ) from error
    return network


def core_of(network: nn.Module) -> nn.Module:
    """The architecture itself, without what `build_network` put around it."""
    while isinstance(network, OneOutput | PreparedInput | SlideConditioned):
        network = network.core if isinstance(network, SlideConditioned) else network.network
    return network


def head_of(architecture: str) -> str:
    """The name of the architecture's last layer, the one that knows the classes."""
    return _ARCHITECTURES[architecture].head


@dataclass(frozen=True)
class _Architecture:
    build: Callable[..., nn.Module]
    head: str
    # Whether it is built for one size of input.
    fixed_side: bool = False


def _of_torchvision(name: str) -> Callable[..., nn.Module]:
    def build(classes: int = 2, **options: Any) -> nn.Module:
        # Imported here: torchvision takes a second, and the default network runs where it is not installed.
        try:
            with torch.device("cpu"):  # whatever it makes for itself, also while a network is built on none
                from wsi_pipeline.models.architectures.torchvision_guard import torchvision
        except ModuleNotFoundError as error:
            if error.name != "torchvision":
                raise
            raise ModelError(
                f"architecture '{name}' is torchvision's, which is not installed: pip install '.[lineup]'"
            ) from error
        network: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=classes, **options)
        return network

    return build


def _resnet(name: str) -> Callable[..., nn.Module]:
    plain = _of_torchvision(name)

    def build(classes: int = 2, activation: str = "relu", **options: Any) -> nn.Module:
        if activation not in ("relu", "elu"):
            raise ValueError(f"activation '{activation}' is neither relu nor elu")
        network = plain(classes, **options)
        if activation == "elu":
            _replace_relu(network)
        return network

    return build


def _replace_relu(network: nn.Module) -> None:
    """ELU in the place of every ReLU. Clevert, Unterthiner and Hochreiter, ICLR 2016."""
    for name, child in network.named_children():
        if isinstance(child, nn.ReLU):
            setattr(network, name, nn.ELU(inplace=child.inplace))
        else:
            _replace_relu(child)


_ARCHITECTURES = {
    "residual_cnn": _Architecture(ResidualCnn, "head"),
    "cancernet": _Architecture(CancerNet, "head", fixed_side=True),
    "plain_cnn": _Architecture(PlainCnn, "head", fixed_side=True),
    "resnet18": _Architecture(_resnet("resnet18"), "fc"),
    "resnet50": _Architecture(_resnet("resnet50"), "fc"),
    "densenet121": _Architecture(_of_torchvision("densenet121"), "classifier"),
    "vgg16": _Architecture(_of_torchvision("vgg16"), "classifier.6"),
    "encoder": _Architecture(Encoder, "head"),
}
