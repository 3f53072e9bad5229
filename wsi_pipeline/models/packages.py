"""Other people's models: packages as WSInfer's zoo has them, a folder with config.json and the network's file.

The package says scale, patch size, classes, resizing and normalisation. Its network is TorchScript
(torchscript_file.py), ONNX (onnx_file.py), or, where the user trusts it, a file of torch.export (exported_file.py).
"""

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn

from wsi_pipeline.base.errors import ConfigError, ModelError
from wsi_pipeline.base.options import Field, options, options_from_dict
from wsi_pipeline.base.text import counted
from wsi_pipeline.models.architectures.inputs import OneOutput
from wsi_pipeline.models.card import MOST_PATCH_PX, ModelCard, Rgb
from wsi_pipeline.models.exported_file import load_exported
from wsi_pipeline.models.names import CLASS_MARK, CONFIG, NETWORK_ENDINGS, PACKAGE_OF, Package
from wsi_pipeline.models.onnx_file import read_onnx
from wsi_pipeline.models.onnx_network import OnnxNetwork
from wsi_pipeline.models.torchscript_file import load_torchscript, short

# Classes that are mapped without being named, where a package has one of them.
TUMOUR = ("idc", "tumor", "tumour", "cancer", "carcinoma")
# A batch is taken in parts of so many pixels, as activations of large patches fill the memory.
_PIXELS_A_PART = 2**22


@options
class Step:
    """One step of a package's `transform`."""

    name: str
    arguments: dict[str, Any] | None = None


@options
class PackageConfig:
    """config.json of a package, as WSInfer's zoo specifies it (spec_version 1.0)."""

    spec_version: str
    architecture: str
    num_classes: Annotated[int, Field(gt=0, le=1000)]
    class_names: tuple[Annotated[str, Field(max_length=90)], ...]
    name: Annotated[str, Field(max_length=100)]
    patch_size_pixels: Annotated[int, Field(gt=0, le=MOST_PATCH_PX)]
    spacing_um_px: Annotated[float, Field(ge=0.01, le=100)]
    transform: tuple[Step, ...]

    def __post_init__(self) -> None:
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"found {counted(self.num_classes, 'class')} and the names {list(self.class_names)}"
            )
        if len(set(self.class_names)) < self.num_classes:
            raise ValueError(f"found a name twice among the classes {list(self.class_names)}")


@dataclass(frozen=True)
class Preparation:
    """What the package does with a patch before its network."""

    side: int | None
    """To which patches are resized; None: not."""

    mean: Rgb
    std: Rgb


class PackageNetwork(nn.Module):
    """The package's network behind its own preparation: logits of RGB on the scale 0 to 1.

    Resized values are rounded to whole numbers of 255, as the pictures are on which such networks were trained.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, preparation: Preparation):
        super().__init__()
        self.network, self.side = network, preparation.side
        self.register_buffer("mean", torch.tensor(preparation.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preparation.std).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] of patches [N, 3, H, W]."""
        side = self.side or x.shape[2]
        parts = torch.split(x, max(_PIXELS_A_PART // side**2, 1))
        return torch.cat([self.network(self._prepared(part)) for part in parts])

    def _prepared(self, x: torch.Tensor) -> torch.Tensor:
        if self.side and x.shape[2] != self.side:
            # Along x, then along y, each rounded half up: as Pillow does it.
            for shape in ((x.shape[2], self.side), (self.side, self.side)):
                resized = F.interpolate(x * 255, shape, mode="bilinear", antialias=True)
                x = torch.floor(resized + 0.5).clamp(0, 255) / 255
        return (x - self.mean) / self.std


def load_package(package: Package, trust: bool = False) -> tuple[ModelCard, nn.Module, str]:
    """Card, network and SHA-256 of the package; the class to map, or the one that says tumour, plays IDC.

    trust: that files may be loaded which can run any program then (exported_file.py). Raises ModelError where a file is
    missing or damaged, or is what its loader refuses, or prepares patches in a way that is not known here; and where it
    is not clear which file is the network, or which class is to be mapped.
    """
    folder = package.folder
    config_text = _read(folder / CONFIG)
    try:
        config = options_from_dict(
            PackageConfig, _without_notes(json.loads(config_text)), str(folder / CONFIG)
        )
    except (ValueError, RecursionError, ConfigError) as error:
        raise ModelError(
            f"{folder / CONFIG}: expected the config of a package of WSInfer's zoo (spec_version 1.0): {error}"
        ) from error
    path = folder / (package.file or _network_file(folder))
    preparation = _preparation(config, folder)
    side = preparation.side or config.patch_size_pixels
    loaded, weights_sha256 = FORMATS[path.suffix](path, side, trust)
    network: nn.Module = PackageNetwork(loaded, preparation)
    chosen = _mapped_class(config, package.mapped, folder)
    classes = tuple("idc" if i == chosen else _other(name) for i, name in enumerate(config.class_names))
    if config.num_classes == 1:
        network, classes = OneOutput(network), ("other", "idc")
    network = network.float().eval().requires_grad_(False)
    sha256 = hashlib.sha256(f"{weights_sha256} {chosen} ".encode() + config_text).hexdigest()
    card = _card(config, classes, config.class_names[chosen], weights_sha256)
    _check_output(network, card, folder)
    return card, network, sha256


def _network_file(folder: Path) -> str:
    """The name of the network's file where none is named."""
    found = [name for name in FILES if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    raise ModelError(
        f"{folder}: found {', '.join(found) or 'no network'}, expected one of {', '.join(FILES)}; "
        + (
            f"name one: --model {folder / found[0]}"
            if found
            else "get it again, or name its file: --model FILE"
        )
    )


def _load_torchscript(path: Path, side: int, trust: bool) -> tuple[nn.Module, str]:
    weights = _read(path)
    return load_torchscript(weights, path), hashlib.sha256(weights).hexdigest()


def _load_onnx(path: Path, side: int, trust: bool) -> tuple[nn.Module, str]:
    file = read_onnx(path)
    return OnnxNetwork(file, side, path), file.sha256


def _load_exported(path: Path, side: int, trust: bool) -> tuple[nn.Module, str]:
    content = _read(path)
    return load_exported(content, path, trust), hashlib.sha256(content).hexdigest()


# Of the network's file by its ending: the network of patches of so many pixels a side, and a SHA-256 of its weights.
# The last argument says whether a file is to be trusted that can run any program.
FORMATS: dict[str, Callable[[Path, int, bool], tuple[nn.Module, str]]] = dict(
    zip(NETWORK_ENDINGS, (_load_torchscript, _load_onnx, _load_exported), strict=True)
)
# What it is called where no file is named.
FILES = ("torchscript_model.pt", "model.onnx", "model.pt2")


def _card(config: PackageConfig, classes: tuple[str, ...], mapped: str, weights_sha256: str) -> ModelCard:
    return ModelCard(
        name=f"{config.name} ({mapped})",
        architecture=f"{PACKAGE_OF}{config.architecture}",
        architecture_options={},
        patch_px=config.patch_size_pixels,
        mpp=config.spacing_um_px,
        classes=classes,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        threshold=0.5,
        training={"package": config.name, "class_names": list(config.class_names), "mapped": mapped},
        weights_sha256=weights_sha256,
        limits=(
            f"A package of other people's ({config.name}): the map shows its class '{mapped}', also where pictures and "
            "pages say IDC. Its probabilities are as its network gives them, not calibrated; the threshold 0.5 was "
            "chosen on nothing."
        ),
    )


def _mapped_class(config: PackageConfig, mapped: str, folder: Path) -> int:
    """The number of the class to map."""
    names = [name.casefold().strip() for name in config.class_names]
    wanted = [mapped.casefold().strip()] if mapped else list(TUMOUR)
    found = [i for i, name in enumerate(names) if name in wanted]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(config.class_names)[:300]
    problem = f"has no class '{mapped}'" if mapped else "does not say which of its classes is to be mapped"
    named = shlex.quote(f"{folder}{CLASS_MARK}{config.class_names[-1]}")
    raise ModelError(f"{folder}: {problem}; found {listed}; name one: --model {named}")


def _other(name: str) -> str:
    return "idc of the package" if name == "idc" else name


def _preparation(config: PackageConfig, folder: Path) -> Preparation:
    """What the steps of `transform` come to. Raises ModelError for a step, or an order of steps, not known here."""
    names = [step.name for step in config.transform]
    if names not in (["Resize", "ToTensor", "Normalize"], ["ToTensor", "Normalize"]):
        raise ModelError(
            f"{folder / CONFIG}: found transform {', '.join(names)}; expected Resize (or not), ToTensor, Normalize"
        )
    given = {step.name: step.arguments or {} for step in config.transform}
    try:
        side = given["Resize"]["size"] if "Resize" in given else None
        side = side[0] if isinstance(side, list) and side[0] == side[-1] else side
        mean, std = (tuple(map(float, given["Normalize"][key])) for key in ("mean", "std"))
        known = {key: {"Resize": {"size"}, "Normalize": {"mean", "std"}}.get(key, set()) for key in given}
        unknown = [
            f"{key}.{name}" for key, arguments in given.items() for name in set(arguments) - known[key]
        ]
        if unknown:
            raise ValueError(f"unknown arguments {', '.join(unknown)}")
        is_usual = all(0 <= value <= 1 for value in mean) and all(1e-4 <= value <= 10 for value in std)
        if len(mean) != 3 or len(std) != 3 or not is_usual:
            raise ValueError(f"mean {mean}, std {std}, of RGB on the scale 0 to 1")
        if side is not None and (type(side) is not int or not 0 < side <= MOST_PATCH_PX):
            raise ValueError(f"size {side}, of 1 to {MOST_PATCH_PX} px")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ModelError(
            f"{folder / CONFIG}: its transform is not understood ({error!r}); expected Resize with one size, and "
            "Normalize with three values of mean and std"
        ) from error
    return Preparation(side, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _check_output(network: nn.Module, card: ModelCard, folder: Path) -> None:
    """Raises ModelError where two plain patches do not give a logit for each class."""
    patches = torch.tensor([0.7, 0.2]).view(2, 1, 1, 1).expand(2, 3, card.patch_px, card.patch_px)
    try:
        with torch.inference_mode():
            found = [network(patch) for patch in (patches[:1], patches[1:])]
            together = network(patches)
    except Exception as error:  # whatever the package's own code raises
        raise ModelError(f"{folder}: its network cannot be run on a patch: {short(error)}") from error
    shape = tuple(getattr(found[0], "shape", ()))
    if shape != (1, len(card.classes)):
        raise ModelError(
            f"{folder}: its network gave {shape} of one patch; expected (1, {len(card.classes)})"
        )
    logits = torch.cat(found)
    if not logits.isfinite().all():
        raise ModelError(
            f"{folder}: its network gave values that are no numbers of a plain patch, expected logits; are its weights "
            "damaged, or its mean and std?"
        )
    if (logits - together).abs().max() > 1e-3 * (1 + logits.abs().max()):
        raise ModelError(
            f"{folder}: its network says another thing of a patch beside others than of it alone; was it exported in "
            "training mode? Export it after network.eval()"
        )
    if logits.min() >= 0 and (logits.sum(dim=1) - 1).abs().max() < 1e-5:
        raise ModelError(
            f"{folder}: its network gives probabilities (they come to 1); expected logits, before the softmax: "
            "export it without"
        )


def _without_notes(values: Any) -> Any:
    """The config without what it may say beside the specification: keys that begin with '$'."""
    if not isinstance(values, dict):
        raise ValueError(f"found a {type(values).__name__}, expected an object")
    return {name: value for name, value in values.items() if not name.startswith("$")}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); a package is a folder with {CONFIG} and a network"
        ) from error
