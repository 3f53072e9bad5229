"""What `--model` names, found without loading anything: a shipped model, a file, NAME@VERSION, or a package.

No torch here: a name that is none is refused before seconds of imports.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.models.registered import (
    find_entry,
    is_registered_name,
    registered_weights,
    registry_folder,
)

SHIPPED = Path(__file__).parent / "weights"
# Beside a package's network; between its folder and the class to map, where it is to be named: FOLDER#CLASS.
CONFIG, CLASS_MARK = "config.json", "#"
# What a package's network ends in: TorchScript, ONNX, torch.export.
NETWORK_ENDINGS = (".pt", ".onnx", ".pt2")

# How the card of a package's network calls its architecture.
PACKAGE_OF = "package of "


@dataclass(frozen=True)
class Package:
    """What --model names of other people's models."""

    folder: Path
    file: str = ""
    """Name of the network's file; empty: the one that is there."""

    mapped: str = ""
    """The class to map; empty: the one that says tumour."""


def refuse_package(name: str | Path, option: str) -> None:
    """Raises ModelError where `option` names a package: its network can be run, and neither trained nor saved anew."""
    if package := find_package(name):
        raise ModelError(
            f"{option} {name}: is a package of other people's ({package.folder / CONFIG}), whose network can be run "
            "and not trained; expected a model of train-model or a shipped one"
        )


def check_model_names(names: Iterable[str], registry: Path | None = None) -> None:
    """Raises ModelError where one of the names stands for no model, by what lies there alone.

    registry: its folder; None: the usual one.
    """
    for name in names:
        if package := find_package(name):
            needed = [package.folder / package.file]
        elif is_registered_name(name):
            find_entry(registry_folder(registry), name)
            continue
        else:
            weights = find_weights(name)
            needed = [weights, weights.with_suffix(".json")]
        for path in needed:
            if not path.exists():
                raise ModelError(not_to_be_read(path, "No such file or directory"))


def find_package(name: str | Path) -> Package | None:
    """The package that --model names, by its folder or a file in it, and the class after it; None: no package.

    Raises ModelError for a file that only a package has, without a config.json beside it.
    """
    place, _, mapped = str(name).partition(CLASS_MARK)
    path = Path(place)
    if path.name == CONFIG:
        path = path.parent
    if (path / CONFIG).is_file():
        return Package(path, mapped=mapped)
    if path.suffix not in NETWORK_ENDINGS:
        return None
    if not (path.parent / CONFIG).is_file():
        raise ModelError(
            f"{path}: has no {CONFIG} beside it, which says its scale, classes and normalisation (docs/using.md)"
        )
    return Package(path.parent, path.name, mapped)


def find_weights(name: str | Path) -> Path:
    """The weights file of what is no package, its card beside it. Raises ModelError for a name of nothing."""
    path = Path(name)
    if is_registered_name(name):
        return registered_weights(str(name))
    if path.suffix == ".safetensors":
        return path
    if path.parent == Path() and (shipped := SHIPPED / f"{path}.safetensors").exists():
        return shipped
    known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors"))) or "none"
    raise ModelError(
        f"model '{name}' is not known; expected a shipped name ({known}) "
        "or the path of a .safetensors file, or of a folder with a package's config.json, or NAME@VERSION of the "
        "registry (models list)"
    )


def not_to_be_read(path: Path, why: str | None) -> str:
    """The message where a file of a model cannot be read."""
    return f"{path}: cannot be read ({why}); a model is a .safetensors file with its .json card beside it"
