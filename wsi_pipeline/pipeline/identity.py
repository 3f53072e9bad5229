"""What a result is: which of the slide, the options and the models decide a map, and which what is drawn of it.

A map is named by its recipe: the slide, its scale, the options below, the models and their context step, the plan, and
what is settled once, when the store is made: the precision that computes it, and whether whole blocks are run at once.
Whoever goes on with the store keeps to that. A report is named by its map and by all that is drawn and counted from
it. What is not listed here as deciding the report, or nothing, decides the map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsi_pipeline.base.files import names
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.base.text import printable
from wsi_pipeline.pipeline.config import InferConfig, TileConfig
from wsi_pipeline.pipeline.maps import ShownMap
from wsi_pipeline.results.provenance import (
    MAP_FORMAT,
    PATCHES_FORMAT,
    REPORT_FORMAT,
    as_stored,
    context_info,
    differences,
    key_of,
    model_info,
    plan_info,
    slide_info,
)
from wsi_pipeline.results.run_folder import SUMMARY, read_summary
from wsi_pipeline.results.store import SlideStore
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.grid import Plan

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.model import Model

# Options that decide what is drawn and counted, not the map.
DECIDES_REPORT = ("delineate", "fields", "max_unreadable")
# Options that decide neither, each with the reason.
DECIDES_NOTHING = {
    "exports": "the same map and report, as other files",
    "classify.batch_size": "moves a probability by less than 1e-5",
    "classify.reader_threads": "the same pixels, read by more or fewer",
    "classify.other_classes": "of two classes it keeps none; of more it stands in the map's recipe by itself",
    "classify.engine": "engines of one precision are checked against each other, within 1e-3",
}
# What the first run settles for all that go on with its store.
SETTLED = ("precision", "dense")
# What `precision: auto` may take: float32 always, these where the model's card allows it.
HALVES = ("bf16", "fp16")


@dataclass(frozen=True)
class Wanted:
    """The result that a run is to give, as far as that is known before the slide is looked at."""

    recipe: dict[str, Any]
    """All that decides it but the plan and what is settled."""

    asked: dict[str, str]
    """Of each thing that is settled, what the options say: 'auto', or one value."""

    allow_halves: tuple[bool, ...] = ()
    """By model: whether `precision: auto` may take a half."""

    path: str = ""
    """Where the slide lies, for messages."""

    def differences(self, store: SlideStore) -> list[str]:
        """In what the store is another result, value by value; its plan is compared once there is one to compare."""
        there = store.map_recipe or {}
        known = {name: value for name, value in there.items() if name not in ("plan", *SETTLED)}
        found = differences(known, as_stored(self.recipe))
        if other := self._other_slide(store, known):
            return [other]
        if found or not self.asked:
            return found
        return [*self._precision_differences(store), *self._dense_differences(store)]

    def settled(self, precisions: Sequence[str], dense: bool, plan: Plan) -> dict[str, Any]:
        """The recipe of a new store: the precision of each model, and whether whole blocks are run at once."""
        return self.recipe | {"precision": list(precisions), "dense": dense, "plan": plan_info(plan)}

    def _other_slide(self, store: SlideStore, known: dict[str, Any]) -> str:
        """That the store is of another slide of this name, with both paths; empty where it is not, or of no path."""
        folder, here = store.path.parent, self.recipe["slide"]["fingerprint"]
        is_same = (known.get("slide") or {}).get("fingerprint") == here
        if is_same or known.get("command") != self.recipe["command"] or SUMMARY not in names(folder):
            return ""
        there = str(read_summary(folder).get("slide") or "")
        if not there or there == self.path:
            return ""
        return (
            f"of another slide of this name: {there} there, {self.path} here; a CSV list gives slides names of their "
            "own"
        )

    def _precision_differences(self, store: SlideStore) -> list[str]:
        asked, found = self.asked["precision"], []
        there = (store.map_recipe or {}).get("precision", [])
        for model, settled, halves in zip(
            self.recipe.get("models", []), there, self.allow_halves, strict=False
        ):
            may_be = asked == "auto" and (settled == "fp32" or (settled in HALVES and halves))
            if not may_be and asked not in (settled, store.attributes["asked"]["precision"]):
                found.append(f"precision of {model['name']}: {settled} there, {asked} here")
        return found

    def _dense_differences(self, store: SlideStore) -> list[str]:
        asked = self.asked["dense"]
        settled = "require" if (store.map_recipe or {}).get("dense") else "off"
        if asked in ("auto", settled, store.attributes["asked"]["dense"]):
            return []
        on = {"require": "on", "off": "off"}
        return [f"dense: {on[settled]} there, {on[asked]} here"]


def wanted_map(
    slide: Slide,
    models: "Sequence[Model]",
    config: InferConfig,
    shown: ShownMap,
    inside: str | None = None,
) -> Wanted:
    """The map that `infer-slide` is to make; `config.grid` is settled, `models` are in the classifier's order.

    `inside` is the hash of the file of outlines within which alone it is wanted.
    """
    options = options_to_dict(config)
    if inside is None:
        del options["annotations"]
    grid, classify = options["grid"], options.pop("classify")
    grid["stride_px"] = grid["stride_px"] or grid["patch_px"]
    decides = {
        name: value for name, value in options.items() if name not in ("context", "exports", *DECIDES_REPORT)
    }
    other_classes = classify.pop("other_classes")
    recipe = {
        "command": "infer-slide",
        "format": MAP_FORMAT,
        "slide": slide_info(slide),
        "models": model_info(models),
        "context": context_info(shown.step),
        "options": decides,
    }
    if len(models) == 1 and len(models[0].card.classes) > 2:  # without, maps are named as they were before
        recipe["other_classes"] = other_classes
    if inside is not None:  # without, maps are named as they were before there was such a thing
        recipe["inside"] = inside
    # An option of how the network is put to patches that nobody listed decides the map.
    listed = {name.removeprefix("classify.") for name in DECIDES_NOTHING}
    if other := {name: value for name, value in classify.items() if name not in listed | set(SETTLED)}:
        decides["classify"] = other
    asked = {name: classify[name] for name in SETTLED}
    return Wanted(recipe, asked, tuple(model.card.bf16 for model in models), printable(str(slide.path)))


def map_report(map_key: str, slide: Slide, config: InferConfig, shown: ShownMap) -> dict[str, Any]:
    """All that decides what is drawn and counted from that map."""
    options = {name: value for name, value in options_to_dict(config).items() if name in DECIDES_REPORT}
    del options["delineate"]["threshold"]  # the one that counts follows: the config's, or the cards'
    recipe = {
        "format": REPORT_FORMAT,
        "map_key": map_key,
        "mpp_overridden": slide.mpp_overridden,
        "threshold": shown.threshold,
        "options": options,
    }
    if any(shown.registered):  # without, reports are named as they were before pages said such names
        recipe["registered"] = list(shown.registered)
    return recipe


def wanted_patches(slide: Slide, config: TileConfig, annotations: str | None) -> Wanted:
    """The patches that `tile-slides` is to plan and label; `annotations` is the hash of the outlines' file."""
    options = options_to_dict(config)
    grid = options["grid"]
    grid["stride_px"] = grid["stride_px"] or grid["patch_px"]
    if annotations is None:
        del options["annotations"]
    recipe = {
        "command": "tile-slides",
        "format": PATCHES_FORMAT,
        "slide": slide_info(slide),
        "annotations": annotations,
        "options": {
            name: value for name, value in options.items() if name not in ("export", *DECIDES_REPORT)
        },
    }
    return Wanted(recipe, {}, path=printable(str(slide.path)))


def patches_report(
    map_key: str, slide: Slide, config: TileConfig, export: dict[str, Any] | None
) -> dict[str, Any]:
    """All that decides what `tile-slides` leaves beside those patches; `export` is the recipe of those exported."""
    return {
        "format": REPORT_FORMAT,
        "map_key": map_key,
        "mpp_overridden": slide.mpp_overridden,
        "max_unreadable": config.max_unreadable,
        "export": export or False,
    }


def plan_differences(store: SlideStore, plan: Plan) -> list[str]:
    """In what the store was planned otherwise than `plan`, value by value: its recipe, then its arrays."""
    recipe = store.map_recipe or {}
    found = differences({"plan": recipe.get("plan")}, as_stored({"plan": plan_info(plan)}))
    return found or store.layout_differences(plan)


def map_key_of(store: SlideStore) -> str:
    """The key that names what the store holds."""
    return key_of(store.map_recipe or {})
