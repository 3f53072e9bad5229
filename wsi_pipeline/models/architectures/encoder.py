"""A pathology foundation model, or any other encoder that timm builds, with a linear layer on its features.

Its weights come from a file that the user has (`pretrained` of train-model), and go with the layer into the model's own
file. Nothing is ever fetched.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import nn

from wsi_pipeline.base.errors import ModelError

# Of timm's, those that say of what shape an encoder is; others read files, fetch weights or run what they are given.
_NUMBERS = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values", "reg_tokens"),
    *("no_embed_class", "dynamic_img_size", "qkv_bias", "class_token"),
)
_WORDS = {
    "global_pool": ("token", "avg", "max"),
    "act_layer": ("gelu", "silu"),
    "mlp_layer": ("Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked"),
}
# What of an encoder's tokens the linear layer hears.
POOLINGS = ("token", "mean", "token_and_mean")
_MOST, _MOST_OF = 16_384, {"depth": 256, "img_size": 4096}


class Encoder(nn.Module):
    """An encoder of timm's (Wightman 2019), and a linear layer that tells classes apart by what it gives.

    encoder: timm's name of the architecture. shape: its arguments, where they are not those of that name. trained:
    'head', the linear layer alone, the encoder stays as it is in the file; 'all', both. pooling: of a transformer, what
    the layer hears: 'token', the class token; 'mean', the mean of the patches' tokens, without the class's and the
    registers; 'token_and_mean', both, one after the other; each after the last norm. None: what timm's encoder of that
    name gives by itself. Raises ModelError where timm is not installed, ValueError for a name that it does not know, an
    argument that is not of `shape`, or a pooling that the encoder has no tokens for.
    """

    # Under which its weights lie among the network's; files of encoders have them without.
    prefix = "encoder."

    def __init__(
        self,
        encoder: str,
        classes: int = 2,
        shape: Mapping[str, Any] | None = None,
        trained: Literal["head", "all"] = "head",
        pooling: Literal["token", "mean", "token_and_mean"] | None = None,
    ):
        super().__init__()
        if trained not in ("head", "all"):
            raise ValueError(f"trained is '{trained}', neither head nor all")
        if pooling is not None and pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}, expected one of {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.encoder = _timm_encoder(encoder, dict(shape or {}), pooling)
        self.frozen = trained == "head"
        self.encoder.requires_grad_(not self.frozen)
        # Some widen what they pooled once more (MobileNet V3 and V4, VGG): to that width, where timm names one.
        width = getattr(self.encoder, "head_hidden_size", None) or self.encoder.num_features
        self.head = nn.Linear(int(width) * (2 if pooling == "token_and_mean" else 1), classes)

    def train(self, mode: bool = True) -> "Encoder":
        """A frozen encoder stays as in use: its statistics and what it drops do not change."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] of normalised patches [N, 3, H, W]."""
        if self.frozen:
            with torch.no_grad():
                features = self._features(x)
        else:
            features = self._features(x)
        logits: torch.Tensor = self.head(features)
        return logits

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        if self.pooling is None:
            pooled: torch.Tensor = self.encoder(x)
            return pooled  # [N, width]
        tokens: torch.Tensor = self.encoder.forward_features(x)  # [N, class, registers and patches, width]
        parts = []
        if self.pooling != "mean":
            parts.append(tokens[:, 0])
        if self.pooling != "token":
            parts.append(tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1))
        return torch.cat(parts, dim=1)


def _timm_encoder(name: str, shape: dict[str, Any], pooling: str | None = None) -> Any:
    try:
        with torch.device("cpu"):  # whatever it makes for itself, also while a network is built on none
            # timm imports torchvision, which may need help.
            from wsi_pipeline.models.architectures import torchvision_guard  # noqa: F401

            import timm  # isort: skip
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torchvision"):
            raise
        raise ModelError(
            "architecture 'encoder' is built by timm, which is not installed: pip install '.[encoder]'"
        ) from error
    # A name on a hub or of a folder, from which timm would read, is none of its models.
    if not isinstance(name, str) or not timm.is_model(name):
        near = ", ".join(get_close_matches(str(name), timm.list_models()))
        raise ValueError(
            f"timm {timm.__version__} knows no encoder '{name}'; expected one of timm.list_models()"
            + (f", as {near}" if near else "")
        )
    for argument, value in shape.items():
        if argument in _NUMBERS:
            most = _MOST_OF.get(argument, _MOST)
            if not isinstance(value, int | float) or not 0 <= value <= most:
                raise ValueError(f"shape.{argument} is {value!r}, expected a number of 0 to {most:,}")
        elif argument not in _WORDS:
            known = ", ".join([*_NUMBERS, *_WORDS])
            raise ValueError(
                f"shape.{argument} is no argument of an encoder's shape; expected one of {known}"
            )
        elif value not in _WORDS[argument]:
            raise ValueError(f"shape.{argument} is {value!r}, expected one of {', '.join(_WORDS[argument])}")
    if pooling is not None:
        if "global_pool" in shape:
            raise ValueError("pooling and shape.global_pool say the same twice; leave one out")
        shape["global_pool"] = ""
    if "mlp_layer" in shape:
        shape["mlp_layer"] = getattr(timm.layers, shape["mlp_layer"])
    try:
        encoder = timm.create_model(name, pretrained=False, num_classes=0, **shape)
    except Exception as error:  # timm's networks check little: whatever such a shape leads to
        raise ValueError(f"timm: {type(error).__name__}: {error}") from error
    if pooling is not None:
        if not hasattr(encoder, "num_prefix_tokens"):
            raise ValueError(f"pooling is '{pooling}', and {name} gives no tokens: leave pooling out")
        if pooling != "mean" and getattr(encoder, "cls_token", None) is None:
            raise ValueError(f"pooling is '{pooling}', and {name} has no class token; expected mean")
    return encoder
