"""The architectures a model card can name, and how each is built."""

from typing import Any

from torch import nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.residual import ResidualCnn


def build_network(architecture: str, **options: Any) -> nn.Module:
    """A new network with random weights; it gives logits [N, classes] of normalised patches [N, 3, H, W].

    `options` go to the architecture: `classes`, and what else it knows. Raises ModelError for an unknown
    architecture or options that it cannot be built with.
    """
    if architecture not in _BUILDERS:
        raise ModelError(f"architecture '{architecture}' is unknown; expected one of: {', '.join(_BUILDERS)}")
    try:
        return _BUILDERS[architecture](**options)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"architecture '{architecture}' cannot be built with {options}: {error}; "
            "correct its architecture_options"
        ) from error


def _resnet18(classes: int = 2) -> nn.Module:
    # Imported here: torchvision takes a second that the default network has no need of.
    from wsi_pipeline.models.torchvision_guard import torchvision

    network: nn.Module = torchvision.models.resnet18(weights=None, num_classes=classes)
    return network


_BUILDERS = {"residual_cnn": ResidualCnn, "resnet18": _resnet18}
