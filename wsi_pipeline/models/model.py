"""A model is weights and a card: the card says what the network is, what it sees and what its numbers mean.

Both lie side by side, NAME.safetensors and NAME.json, and the card holds the weights' checksum, so that two
files of different trainings are never taken for one model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from wsi_pipeline.base.errors import ConfigError, ModelError, ScaleError, UsageError
from wsi_pipeline.base.files import write_bytes
from wsi_pipeline.base.options import options_from_dict, options_to_dict
from wsi_pipeline.models.architectures.registry import build_network as build_network
from wsi_pipeline.models.card import ModelCard, Rgb
from wsi_pipeline.models.context import ContextStep
from wsi_pipeline.models.names import SHIPPED as SHIPPED
from wsi_pipeline.models.names import find_package, find_weights, not_to_be_read
from wsi_pipeline.models.packages import load_package
from wsi_pipeline.models.registered import is_registered_name

# The context step's arrays lie in the same file as the network's, under this prefix.
CONTEXT = "context."
# A card names its patients, and is of some kB.
MOST_CARD_BYTES = 8 * 2**20
# Values that a network makes for itself; a Swin of 1024 px holds some 5 million.
MOST_HELD = 2**26


@dataclass(frozen=True)
class Model:
    """A network ready to use (eval mode, channels_last, float32, on the CPU) and its card."""

    card: ModelCard
    network: nn.Module
    # Over the weights file and the card: any change of either is another model.
    sha256: str
    # The context step that travels with it, if its card names one.
    context: ContextStep | None = None
    # By what it was asked for: a shipped name, NAME@VERSION of the registry, or a file; it decides no map.
    given: str = ""

    @property
    def registered(self) -> str:
        """NAME@VERSION of the registry, where it was asked for by that; else empty."""
        return self.given if is_registered_name(self.given) else ""


def load_model(name_or_path: str | Path, trust: bool = False) -> Model:
    """The model of that name among the shipped ones, of a .safetensors file with its .json beside it, or of a package.

    A package (packages.py) is a folder as WSInfer's zoo has them, or the network's file in it, or either with #CLASS;
    NAME@VERSION one of the registry (registered.py). `trust`: you trust whoever made a package's file of torch.export,
    which can run any program when it is loaded; without, such a file is refused.

    Raises ModelError when a file is missing or damaged, or when card, weights and network do not fit.

    Example::

        model = wp.load_model("idc_default")
        print(model.card.patch_px, model.card.mpp, model.card.threshold)
    """
    if package := find_package(name_or_path):
        return Model(*load_package(package, trust))
    weights_path = find_weights(name_or_path)
    card_path = weights_path.with_suffix(".json")
    weights, card_text = _read(weights_path), _read(card_path, MOST_CARD_BYTES)
    card = _parse_card(card_text, card_path)
    found = hashlib.sha256(weights).hexdigest()
    if found != card.weights_sha256:
        raise ModelError(
            f"{weights_path}: found weights with SHA-256 {found[:12]}..., expected "
            f"{card.weights_sha256[:12]}... as their card says: damaged, or of another training; "
            "get both files again, together"
        )
    try:
        state = safetensors.torch.load(weights)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{weights_path}: expected a safetensors file: {error}; get it again") from error
    if broken := [name for name, values in state.items() if not values.isfinite().all()]:
        raise ModelError(
            f"{weights_path}: found values that are no numbers in {len(broken)} arrays ({broken[0]} first), expected "
            "weights; was the training's loss NaN? take those of an earlier epoch"
        )
    context = _split_context(card, state, weights_path)
    _refuse_other_weights(card, state, weights_path)
    network = build_network(card.architecture, classes=len(card.classes), **card.architecture_options)
    network.load_state_dict(state)
    network = network.float().to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    # A file is named so that it is found from another folder too.
    is_file = weights_path == Path(name_or_path)
    given = str(weights_path.absolute()) if is_file else str(name_or_path)
    return Model(card, network, hashlib.sha256(weights + card_text).hexdigest(), context, given)


def load_models(names_or_paths: Sequence[str | Path | Model], trust: bool = False) -> tuple[Model, ...]:
    """The models, in that order, each as `load_model` loads it, or loaded already: one, or an ensemble's members.

    Raises as `load_model`, UsageError when two have the same weights, ScaleError when two see patches of
    another size or scale.
    """
    models = tuple(
        given if isinstance(given, Model) else load_model(given, trust) for given in names_or_paths
    )
    labels = [given.card.name if isinstance(given, Model) else given for given in names_or_paths]
    first, card = labels[0], models[0].card
    seen: dict[str, str | Path] = {}
    for name, model in zip(labels, models, strict=True):
        if twin := seen.get(model.card.weights_sha256):
            raise UsageError(
                f"--model {name}: has the same weights as --model {twin}; expected different models: each counts "
                "once in the mean, so name it once"
            )
        seen[model.card.weights_sha256] = name
        if (model.card.patch_px, model.card.mpp) != (card.patch_px, card.mpp):
            raise ScaleError(
                f"--model {name}: sees patches of {model.card.patch_px} px at {model.card.mpp:g} um/px, --model "
                f"{first} of {card.patch_px} px at {card.mpp:g} um/px; expected models of one patch size and "
                "scale: map the slide with each by itself"
            )
    return models


def save_model(path: Path, network: nn.Module, card: ModelCard, context: ContextStep | None = None) -> None:
    """Write the weights to `path` (.safetensors) and the card beside it (.json), each whole or not at all.

    A context step goes into the same two files; without, the card names none.
    """
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: found the ending '{path.suffix}', expected '.safetensors'")
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if context:
        state |= {CONTEXT + name: torch.from_numpy(values) for name, values in context.weights.items()}
    weights = safetensors.torch.save(state)
    card = replace(card, context=context.card if context else None)
    card = replace(card, weights_sha256=hashlib.sha256(weights).hexdigest())
    write_bytes(path, weights)
    write_bytes(
        path.with_suffix(".json"),
        (json.dumps(options_to_dict(card), indent=2, ensure_ascii=False) + "\n").encode(),
    )


def idc_probability(network: nn.Module, card: ModelCard, patches: torch.Tensor, *slide: Any) -> torch.Tensor:
    """Calibrated probability of IDC in [0, 1], float32 [N], of uint8 patches [N, H, W, 3].

    Patches lie on the network's device, and so does what it takes beside them of the slide. Autocast is the caller's.
    """
    return calibrated(network_logits(network, card, patches, *slide), card)


def network_logits(network: nn.Module, card: ModelCard, patches: torch.Tensor, *slide: Any) -> torch.Tensor:
    """Logits, float32 [N, classes], as `idc_probability` takes patches."""
    logits: torch.Tensor = network(normalised(patches, card.mean, card.std), *slide)
    return logits.float()


def class_probabilities(logits: torch.Tensor, card: ModelCard) -> torch.Tensor:
    """Of each class of the card, in its order: calibration.class_probabilities of logits, float32 [N, classes]."""
    idc, mapped = card.classes.index("idc"), calibrated(logits, card)
    others = logits / card.temperature
    others[:, idc] = -torch.inf
    shares = others.softmax(dim=1) * (1 - mapped)[:, None]
    shares[:, idc] = mapped
    return shares


def calibrated(logits: torch.Tensor, card: ModelCard) -> torch.Tensor:
    """Calibrated probability of IDC in [0, 1], [N, ...], of a network's logits, float32 [N, classes, ...]."""
    logits = logits / card.temperature
    idc = card.classes.index("idc")
    others = torch.cat([logits[:, :idc], logits[:, idc + 1 :]], dim=1).logsumexp(dim=1)  # [N, ...]
    return torch.sigmoid(logits[:, idc] - others + card.log_odds_shift)


def normalised(patches: torch.Tensor, mean: Rgb, std: Rgb) -> torch.Tensor:
    """What networks take: float32 [N, 3, H, W], channels_last, of patches [N, H, W, 3] of values 0 to 255."""
    scale, shift = _scale_and_shift(mean, std, patches.device)
    images = torch.addcmul(shift, patches.float(), scale).permute(0, 3, 1, 2)
    return images.contiguous(
        memory_format=torch.channels_last
    )  # nothing to do, if the patches lie pixel by pixel


def has_bf16(device: torch.device | None = None) -> bool:
    """Whether the device, or without one this CPU, computes bfloat16 natively: a GPU from Ampere on.

    Older GPUs (V100, T4) emulate it, which torch counts as support, and are slower with it than without.
    """
    if device and device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name yet
    return bool(probe and probe())


@lru_cache
def _scale_and_shift(mean: Rgb, std: Rgb, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Kept: a copy from the host for each batch would make the device wait.
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale, shift


def _refuse_other_weights(card: ModelCard, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise ModelError where the card's network is not that of the weights, before any memory is taken for it."""
    with torch.device("meta"):
        network = build_network(card.architecture, classes=len(card.classes), **card.architecture_options)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{path}: the weights do not fit the '{card.architecture}' that the card describes: "
            f"{problem}; correct the card's architecture_options or take its own weights"
        ) from error
    # What a network holds and no file does, masks of attention for example, grows with its input.
    held = sum(values.numel() for values in network.buffers() if values.is_meta)
    if held > MOST_HELD:
        raise ModelError(
            f"{path}: the '{card.architecture}' that the card describes holds {held:,} values beside its weights, "
            f"expected at most {MOST_HELD:,}; correct the card's architecture_options"
        )


def _split_context(card: ModelCard, state: dict[str, torch.Tensor], path: Path) -> ContextStep | None:
    """The context step among the arrays, which are taken out of `state`."""
    arrays = {
        name.removeprefix(CONTEXT): state.pop(name).numpy()
        for name in list(state)
        if name.startswith(CONTEXT)
    }
    if card.context is None:
        if arrays:
            raise ModelError(
                f"{path}: found a context step of which its card says nothing; take weights and card of one training"
            )
        return None
    try:
        return ContextStep(card.context, arrays)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _read(path: Path, most_bytes: int | None = None) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read() if most_bytes is None else file.read(most_bytes + 1)
        if most_bytes is not None and len(data) > most_bytes:
            raise ModelError(
                f"{path}: larger than {most_bytes:,} bytes, which no model card is; get it again"
            )
        return data
    except OSError as error:
        raise ModelError(not_to_be_read(path, error.strerror)) from error


def _parse_card(text: bytes, path: Path) -> ModelCard:
    try:
        values = json.loads(text)
        if not isinstance(values, Mapping):
            raise ValueError(f"found a {type(values).__name__}, expected an object")
        return options_from_dict(ModelCard, values, str(path))
    except ConfigError as error:
        raise ModelError(f"{error}; this is no model card, or one of another version") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected a model card in JSON: {error}; get it again") from error
