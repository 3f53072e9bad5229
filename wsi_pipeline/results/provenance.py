"""What decides a result: its recipe, the key that names it, and what makes two of them differ, in words."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.models.context import ContextStep
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.grid import Plan

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.card import ModelCard
    from wsi_pipeline.models.model import Model

# Raise a number whenever code changes what it names, so that results of before are not taken for today's: how pixels
# are read or scaled, how tissue is found, how the network is put to them, how patches are stitched or set in context.
MAP_FORMAT = 1
# What `tile-slides` keeps in its store: which patches, their tissue, their labels.
PATCHES_FORMAT = 1
# What is drawn and counted: regions, fields, pictures, the meaning of numbers in summary.json; for `tile-slides`, PNGs.
REPORT_FORMAT = 7

# Fields of a model's card that decide neither map nor report, each with the reason; a field that is not here decides.
CARD_DECIDES_NOTHING = {
    "training": "where the weights come from",
    "metrics": "what was measured of them",
    "licence": "words",
    "intended_use": "words",
    "limits": "words",
    "weights_sha256": "the weights' own hash is taken from the file",
    "bf16": "allows a precision; the precision that is taken is in the map's recipe",
    "context": "the step that is applied, if any, stands in the map's recipe by itself",
}
# Those that decide the report alone.
CARD_DECIDES_REPORT = ("threshold",)
# The same of the card of a context step.
CONTEXT_DECIDES_NOTHING = {
    "training": "where the weights come from",
    "metrics": "what was measured of them",
}
CONTEXT_DECIDES_REPORT = ("threshold",)

MOST_DIFFERENCES = 8
# Where two values are hashes, what their difference means.
_HASHES = {
    "slide.fingerprint": "slide: the file's content is another",
    "plan.digest": "plan: patches or blocks lie elsewhere",
    "context.weights": "context: the step's weights are others",
    "annotations": "annotations: the file of outlines is another",
    "inside": "inside: the file of outlines is another",
}


def key_of(recipe: Mapping[str, Any]) -> str:
    """A short hash of a recipe, the same whatever the order of its entries."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def as_stored(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as it is read back from JSON, for comparison: a tuple is a list there."""
    stored: dict[str, Any] = json.loads(json.dumps(recipe))
    return stored


def store_attributes(
    recipe: dict[str, Any], asked: dict[str, str], computed: dict[str, Any]
) -> dict[str, Any]:
    """What the store says of its making.

    asked: what the options said of each thing that is settled once, when the store is made. computed: on what, how far
    from float32, and on how the slide is stained; facts that the summary repeats and that decide nothing.
    """
    return {
        "version": VERSION,
        "map_key": key_of(recipe),
        "map_recipe": as_stored(recipe),
        "asked": asked,
        "computed": as_stored(computed),
    }


def slide_info(slide: Slide) -> dict[str, Any]:
    """What a recipe must know of a slide: which it is, and at which scale it is taken."""
    return {
        "name": slide.name,
        "fingerprint": slide.fingerprint(),
        "bytes": slide.path.stat().st_size,
        "size0": [slide.size0.width, slide.size0.height],
        "mpp": list(slide.mpp),
    }


def plan_info(plan: Plan) -> dict[str, Any]:
    """What a recipe must know of a plan: every block with its patches, and the chunks that they fill."""
    digest, blocks, grid, plane = hashlib.sha256(), 0, plan.grid, plan.grid.plane
    place = (plane.downsample_x, plane.downsample_y, plane.origin_x0, plane.origin_y0)
    digest.update(repr([*map(float, place), grid.patch_px, grid.stride_px]).encode())
    digest.update(plan.kept.tobytes() + plan.rejected.tobytes())
    for block in plan.blocks():
        boxes = [(box.x, box.y, box.width, box.height) for box in (block.cells, block.read_box)]
        digest.update(repr(boxes).encode() + block.patches.astype("<i4").tobytes())
        blocks += 1
    return {
        "map_cells": [grid.map_size.width, grid.map_size.height],
        "chunk_cells": plan.chunk_cells,
        "blocks": blocks,
        "patches": int(plan.scored.sum()),
        "kept": int(plan.kept.sum()),
        "digest": digest.hexdigest()[:16],
    }


def model_names(models: "Sequence[Model]") -> list[dict[str, str]]:
    """Name and SHA-256 of each model."""
    return [{"name": model.card.name, "sha256": model.sha256} for model in models]


def model_info(models: "Sequence[Model]") -> list[dict[str, Any]]:
    """What a recipe must know of each model: its weights, and all of its card that decides a map."""
    return [
        named | {"card": card_info(model.card)}
        for named, model in zip(model_names(models), models, strict=True)
    ]


def card_info(card: "ModelCard") -> dict[str, Any]:
    """The fields of a card that decide a map."""
    left_out = {"name", *CARD_DECIDES_NOTHING, *CARD_DECIDES_REPORT}
    values = options_to_dict(card)
    if card.stain_method == "gain":  # maps are named as they were before there were other methods
        left_out.add("stain_method")
        del values["stain"]["reference"]
    return {field.name: values[field.name] for field in fields(card) if field.name not in left_out}


def context_info(step: ContextStep | None) -> dict[str, Any] | None:
    """What a recipe must know of the context step that is applied."""
    if step is None:
        return None
    left_out = {*CONTEXT_DECIDES_NOTHING, *CONTEXT_DECIDES_REPORT}
    values = options_to_dict(step.card)
    digest = hashlib.sha256()
    for name, array in sorted(step.weights.items()):
        digest.update(f"{name} {array.shape}".encode() + array.astype("<f4").tobytes())
    decides = {field.name: values[field.name] for field in fields(step.card) if field.name not in left_out}
    return decides | {"weights": digest.hexdigest()[:16]}


def file_sha256(path: Path) -> str:
    """Of the whole file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between the recipe of a result and today's, value by value: 'grid.stride_px: 25 there, 50 here'.

    Both as `as_stored` gives them. Of two commands, only that they are two.
    """
    if there.get("command") != here.get("command"):
        return [_both("command", there.get("command"), here.get("command"))]
    found = []
    for name in {**here, **there}:
        a, b = there.get(name), here.get(name)
        if a == b:
            continue
        if name == "models":
            found += _model_differences(a or [], b or [])
        elif name == "context" and (a is None or b is None):
            found.append(_both("context step", _on(a), _on(b)))
        else:
            found += _value_differences("" if name == "options" else name, a, b)
    return list(dict.fromkeys(found))  # outlines stand by their hash and among the options


def listed(found: Sequence[str]) -> str:
    """Differences on one line; of many, how many more there are."""
    more = len(found) - MOST_DIFFERENCES
    return "; ".join([*found[:MOST_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])])


def _value_differences(name: str, a: Any, b: Any) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for part in {**b, **a}:
            if a.get(part) != b.get(part):
                found += _value_differences(f"{name}.{part}".removeprefix("."), a.get(part), b.get(part))
        by_value = [difference for difference in found if difference not in _HASHES.values()]
        return by_value or found
    if name in _HASHES and a is not None and b is not None:
        return [_HASHES[name]]
    if name in _HASHES:
        return [_both(name, _on(a), _on(b))]
    return [_both(name, a, b)]


def _model_differences(there: Sequence[dict[str, Any]], here: Sequence[dict[str, Any]]) -> list[str]:
    names = [[f"{m['name']} (weights {m['sha256'][:12]})" for m in models] for models in (there, here)]
    if names[0] != names[1]:
        return [_both("model", *names)]
    return [
        difference
        for a, b in zip(there, here, strict=True)
        for difference in _value_differences(f"{a['name']}'s card", a["card"], b["card"])
    ]


def _on(value: Any) -> str:
    return "none" if value is None else "one"


def _both(name: str, there: Any, here: Any) -> str:
    return f"{name}: {_text(there)} there, {_text(here)} here"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return (" and " if isinstance(value[0] if value else "", str) else " x ").join(map(_text, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)
