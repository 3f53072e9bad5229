"""Weights to start from, out of a file that the user has: torchvision's or our own. Nothing is fetched."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from torch import nn

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.models.architectures.encoder import Encoder
from wsi_pipeline.models.architectures.registry import core_of, head_of
from wsi_pipeline.models.architectures.slide_condition import SlideConditioned
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.model import CONTEXT, SHIPPED, load_model
from wsi_pipeline.models.registered import is_registered_name, registered_weights

log = logging.getLogger(__name__)

# What a network hears of its slide lies under this name.
CONDITION = ("condition.", "known.")

# DenseNets of torchvision's older files say norm.1 where its networks have norm1.
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\..*)")


def pretrained_files(pretrained: str | Sequence[str] | None) -> list[Path]:
    """The files that the option names; the name of a shipped model is its file, NAME@VERSION that of the registry."""
    shipped = {path.stem: path for path in SHIPPED.glob("*.safetensors")}
    return [
        registered_weights(name) if is_registered_name(name) else shipped.get(name, Path(name))
        for name in pretrained_names(pretrained)
    ]


def pretrained_names(pretrained: str | Sequence[str] | None) -> list[str]:
    """What the option says, one by one: names and files, in the order of `pretrained_files`."""
    return [pretrained] if isinstance(pretrained, str) else list(pretrained or ())


def card_beside(weights: Path) -> ModelCard:
    """The card of the weights' file. Raises ModelError where there is none, or it is of other weights."""
    return load_model(weights).card


def start_from(name_or_path: str) -> dict[str, Any]:
    """The training options by which a training goes on from that model. Raises ModelError as `load_model`."""
    (weights,) = pretrained_files(name_or_path)
    card = load_model(weights).card
    return {
        # By its name and version, which the new model's card keeps.
        "pretrained": name_or_path if is_registered_name(name_or_path) else str(weights),
        "architecture": card.architecture,
        "architecture_options": card.architecture_options,
        "patch_px": card.patch_px,
        "mpp": card.mpp,
        "normalisation": "pretrained",
        "stain_normalisation": card.stain_normalisation,
        "stain_method": card.stain_method,
    }


def load_average(network: nn.Module, architecture: str, paths: Sequence[Path]) -> bool:
    """Put the mean of the files' weights into the network; whether all their last layers came along.

    Trainings that went on from one start often lie in one valley, whose middle generalises better than its sides
    (model soups; Wortsman et al., ICML 2022). Raises ModelError as `load_pretrained`.
    """
    with_heads, states = [], []
    for path in paths:
        with_heads.append(load_pretrained(network, architecture, path))
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    means = {
        name: torch.stack([state[name] for state in states]).mean(0) if first.is_floating_point() else first
        for name, first in states[0].items()
    }
    network.load_state_dict(means)
    return all(with_heads)


def load_pretrained(network: nn.Module, architecture: str, path: Path) -> bool:
    """Put the weights of a file into the network; whether its last layer came along.

    A last layer of another shape (of the 1000 classes of ImageNet, say) is left out and stays random; all
    else must fit. Raises ModelError where it does not, or the file cannot be read.
    """
    core = core_of(network)
    wanted = core.state_dict()
    found = {_named_as_now(name): tensor for name, tensor in _read(path).items()}
    found = _of_encoder(found, core)
    condition = {name: found.pop(name) for name in list(found) if name.startswith(CONDITION)}
    head = head_of(architecture) + "."
    heads = [name for name in wanted if name.startswith(head)]
    with_head = all(name in found and found[name].shape == wanted[name].shape for name in heads)
    if not with_head:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(head)}
    missing = [n for n in wanted if n not in found and (with_head or n not in heads)]
    # Files older than these counters lack them; nothing depends on their values.
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    unknown = [n for n in found if n not in wanted]
    other = [n for n in found if n in wanted and found[n].shape != wanted[n].shape]
    if missing or unknown or other:
        raise ModelError(
            f"{path}: these are not weights of the '{architecture}' in the config: "
            f"{_first('lacks', missing)}{_first('has unknown', unknown)}{_first('has of another shape', other)}"
            "take weights of that architecture, or correct architecture_options"
        )
    core.load_state_dict(found, strict=False)
    _load_condition(network, condition, path)
    return with_head


def _of_encoder(found: dict[str, torch.Tensor], core: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names that they have in an `Encoder`, where the file is of the encoder alone.

    What such a file has beyond (a classifier of its own) is left out, and named.
    """
    if not isinstance(core, Encoder) or any(name.startswith(core.prefix) for name in found):
        return found
    wanted = core.state_dict()
    named = {core.prefix + name: tensor for name, tensor in found.items()}
    if extra := [name for name in named if name not in wanted]:
        log.info("pretrained: left out, as the encoder has none: %s", ", ".join(sorted(extra)[:5]))
    return {name: tensor for name, tensor in named.items() if name in wanted}


def _load_condition(network: nn.Module, found: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put in what a network hears of its slide, where both the file and the network have it."""
    if not isinstance(network, SlideConditioned):
        if found:
            log.info("pretrained: %s: its slide_condition is left out, as the config names none", path)
        return
    own = network.condition.state_dict(prefix="condition.")
    if not found:
        log.info("pretrained: %s: has no slide_condition; it starts as none", path)
    elif all(name in found and found[name].shape == tensor.shape for name, tensor in own.items()):
        # The slides that it knows are left out: they are learned anew at the end, and none is far until then.
        network.load_state_dict({name: found[name] for name in own}, strict=False)
    else:
        raise ModelError(
            f"{path}: its slide_condition is of another width than the config's; set "
            "architecture_options.slide_condition to what its card says"
        )


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load(path.read_bytes())
            # A context step is of the scores of the weights as they were.
            return {name: values for name, values in state.items() if not name.startswith(CONTEXT)}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            f"pretrained: {path}: cannot be read ({error.strerror}); weights are never fetched: "
            "name a file that you have"
        ) from error
    except (RuntimeError, EOFError, UnpicklingError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"pretrained: {path}: expected a state dict of torch, or .safetensors") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(f"pretrained: {path}: expected a state dict: names and tensors, nothing else")
    return state


def _named_as_now(name: str) -> str:
    name = re.sub(_OLD_DENSENET, r"\1\2", name)
    # A model of ours, behind steps of preparation or beside what it hears of its slide.
    return re.sub(r"^(network\.|core\.)+", "", name)


def _first(verb: str, names: list[str]) -> str:
    return f"{verb} {len(names)} ({names[0]} first); " if names else ""
