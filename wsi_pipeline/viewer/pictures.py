"""What the model says of a picture that somebody drops, or of a place on a slide, beside what it said in validation."""

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.base.images import MOST_PIXELS, decode_image
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.slides.slide import Slide

if TYPE_CHECKING:  # torch takes seconds to import: it waits until somebody asks
    from wsi_pipeline.inference.classifier import Classifier
    from wsi_pipeline.models.card import ModelCard

MOST_BYTES = 20 * 2**20


class Predictor:
    """One model, loaded when it is first asked; one prediction at a time."""

    def __init__(self, model: str, device: str = "auto"):
        """`model` is a shipped model's name, or a file of weights."""
        self._name, self._device = model, device
        self._lock = threading.Lock()
        self._loaded: Classifier | None = None

    @property
    def classifier(self) -> "Classifier":
        """The model on its device. Raises ModelError, UsageError."""
        with self._lock:
            if self._loaded is None:
                from wsi_pipeline.inference.classifier import Classifier
                from wsi_pipeline.inference.classify import ClassifyOptions
                from wsi_pipeline.inference.device import choose_device
                from wsi_pipeline.models.model import load_model

                options = ClassifyOptions()
                self._loaded = Classifier([load_model(self._name)], choose_device(self._device), options)
            return self._loaded

    @property
    def reliability(self) -> list[dict[str, Any]]:
        """How the validation patients' scores spread, as the card has it; empty where it does not say."""
        return list(self.classifier.card.metrics.get("reliability") or [])

    def card(self) -> dict[str, Any]:
        """The model's card in full, and what people ask of it first."""
        model = self.classifier.models[0]
        card = model.card
        return {
            "name": card.name,
            "sha256": model.sha256,
            "card": options_to_dict(card),
            "trained_on": card.training.get("data") or "the card does not say",
            "measured": card.metrics,
            "not_for": card.limits or "the card does not say",
            "intended_use": card.intended_use,
            "licence": card.licence,
        }

    def of_picture(self, data: bytes, name: str, mpp: float | None) -> dict[str, Any]:
        """What the model says of the picture in these bytes. Raises DataError, ScaleError."""
        from wsi_pipeline.inference.images import score_picture

        rgb = decode_image(data, name, MOST_PIXELS)
        classifier = self.classifier
        with self._lock:
            score = score_picture(rgb, name, classifier, mpp)
        check = score.stain_check
        warnings = [check.warning] if check and check.warning else []
        if mpp is None:
            warnings.append(
                f"no scale was entered: taken as the model's, {classifier.card.mpp:g} um per pixel"
            )
        return {
            "probability": score.mean,
            "highest": score.highest,
            "patches": len(score.probabilities),
            "boxes_px": score.cut.boxes.round(1).tolist()[:1000],
            "values": [round(float(value), 4) for value in score.probabilities[:1000]],
            "scale_from": score.cut.scale_from,
            "standing": standing(score.mean, classifier.card),
            "stain": asdict(check) if check else None,
            "warnings": warnings,
            "threshold": classifier.card.threshold,
            "model": classifier.card.name,
        }

    def of_place(
        self, slide: Slide, x0: float, y0: float, stain: dict[str, Any] | None, heads: Sequence[Any]
    ) -> dict[str, Any]:
        """What the model says of the patch centred on a level-0 point, with what a run measured of the slide.

        `stain` is the summary's, `heads` what networks heard of the slide, as its store has it; without them the model
        hears nothing of the slide. Raises UsageError outside of the slide, SlideError.
        """
        from wsi_pipeline.models.slide_input import head_of_values

        classifier = self.classifier
        card, warnings = classifier.card, []
        side = card.patch_px
        downsample = card.mpp / slide.mpp[0], card.mpp / slide.mpp[1]
        if not (0 <= x0 < slide.size0.width and 0 <= y0 < slide.size0.height):
            raise UsageError("the place lies outside of the slide")
        plane = Plane(*downsample, x0 - side / 2 * downsample[0], y0 - side / 2 * downsample[1])
        patch = slide.reader(plane, finer=True)(Box(0, 0, side, side))
        if patch.unreadable is not None:
            warnings.append("a part of this place cannot be read")
        adapted = classifier
        if stain and len(heads) == len(classifier.members):
            densities = np.tile(np.asarray(stain["od_mean"], float), (int(stain["patches"]), 1))
            adapted = classifier.adapted(densities, None, [head_of_values(values) for values in heads])
            if any(member.left_as_is for member in adapted.members):
                warnings.append(
                    "the stain of this place is not normalised as the map's was; its value may differ"
                )
        else:
            warnings.append("the model hears nothing of this slide: the run was of another model")
        with self._lock:
            (value,) = adapted.scores(patch.rgb[None])
        return {
            "probability": float(value),
            "patch_um": side * card.mpp,
            "standing": standing(float(value), card),
            "warnings": warnings,
            "threshold": card.threshold,
            "model": card.name,
            "kind": "this patch alone",
        }


def standing(probability: float, card: "ModelCard") -> dict[str, Any] | None:
    """Where a probability stands among those of the validation patients' patches; None: the card does not say.

    Of the patches with about that probability the share that is IDC, the shares of all that scored lower and higher,
    and the same for each other score.
    """
    rows = card.metrics.get("reliability") or []
    total = max(1, sum(row["patches"] for row in rows))
    for row in rows:
        if row["from"] <= probability < row["to"] or (row["to"] >= 1 and probability >= row["from"]):
            return {
                "bin_low": row["from"],
                "bin_high": row["to"],
                "n": row["patches"],
                "idc_share": row["idc_share"],
                "lower_share": sum(r["patches"] for r in rows if r["from"] < row["from"]) / total,
                "higher_share": sum(r["patches"] for r in rows if r["from"] > row["from"]) / total,
                "scores": [{name: r[name] for name in ("from", "to", "patches", "idc_share")} for r in rows],
            }
    return None
