"""What scanners, encoders and laboratories cost a model: the same patches, changed as they change them.

Each change is made to the patches as they were scanned, before the stain is normalised and the model hears of the
slide, as it would be in a real slide. Turning, scaling and shifting by less than a whole patch need pixels from beside
it, which a patch has not: they are mirrored at its edges, so that these rows say more than a real slide would show.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.datasets.scanner_effects import Look, as_jpeg, looking
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.patches import evaluate_patches

if TYPE_CHECKING:
    import torch

    from wsi_pipeline.models.model import Model

Pixels = NDArray[np.uint8]
# Patches of one patient, and what chance there is: the same for all of the patient's patches.
Change = Callable[[Pixels, np.random.Generator], Pixels]
# More patches than this are sampled, as each row takes a whole evaluation.
MOST_PATCHES = 3000


@dataclass(frozen=True)
class RobustnessRow:
    """What one change costs."""

    name: str
    """What was changed, for people."""

    auroc: float
    """AUROC of the changed patches."""

    auroc_change: float
    """That less the AUROC of the patches as they are."""

    f1: float
    """F1 at the card's threshold."""

    balanced_accuracy: float
    """At the card's threshold."""

    flipped: float
    """Share of the patches that are on the other side of the threshold than before."""


def measure_robustness(
    model: "Model",
    side: LabelledPatches,
    device: "torch.device",
    most: int = MOST_PATCHES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[RobustnessRow]:
    """A row a change of `CHANGES`, the first of the patches as they are, of `most` patches drawn by `seed`.

    Of each patient the same share is drawn, one patch at least. `progress` is told of patches done, and of all.
    """
    side = sampled(side, most, seed)
    rows: list[RobustnessRow] = []
    before: NDArray[np.bool_] | None = None
    for done, (name, change) in enumerate(CHANGES):
        if progress:
            progress(done * len(side), len(CHANGES) * len(side))
        pixels = _changed(side, change, seed)
        probability = evaluate_patches(model, replace(side, pixels=pixels), device).probability
        called = probability >= model.card.threshold
        before = called if before is None else before
        decisions = metrics.decide(probability, side.labels, model.card.threshold)
        auroc = metrics.auroc(probability, side.labels)
        rows.append(
            RobustnessRow(
                name,
                auroc,
                auroc - rows[0].auroc if rows else 0.0,
                decisions.f1,
                decisions.balanced_accuracy,
                float((called != before).mean()),
            )
        )
    return rows


def robustness_metrics(rows: Sequence[RobustnessRow], patches: int, seed: int = 0) -> dict[str, Any]:
    """As plain values, for metrics.json; of so many patches."""
    return {"patches": patches, "seed": seed, "rows": [asdict(row) for row in rows]}


def sampled(side: LabelledPatches, most: int, seed: int) -> LabelledPatches:
    """At most about `most` of the patches: of each patient the same share, drawn by the seed, one at least."""
    if len(side) <= most:
        return side
    random, share = np.random.default_rng(seed), most / len(side)
    chosen = []
    for patient in np.unique(side.patients):
        rows = np.flatnonzero(side.patients == patient)
        chosen.append(random.choice(rows, max(1, round(share * len(rows))), replace=False))
    return side.taken(np.sort(np.concatenate(chosen)))


def _changed(side: LabelledPatches, change: Change, seed: int) -> Pixels:
    pixels = np.empty_like(side.pixels)
    for number, patient in enumerate(np.unique(side.patients)):
        rows = np.flatnonzero(side.patients == patient)
        pixels[rows] = change(side.pixels[rows], np.random.default_rng([seed, number]))
    return pixels


def _look(**values: Any) -> Change:
    return lambda pixels, random: looking(pixels, Look(**values), random)


def _stored(quality: int, halved_chroma: bool = True, finer: int = 1) -> Change:
    return lambda pixels, random: as_jpeg(pixels, quality, halved_chroma, finer, (3, 5))


def _by_table(table: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Change:
    values = (255 * table(np.arange(256) / 255)).round().clip(0, 255).astype(np.uint8)
    return lambda pixels, random: values[pixels]


def _hue(by: float) -> Change:
    """Hue turned by a share of the circle."""

    def change(pixels: Pixels, random: np.random.Generator) -> Pixels:
        from skimage.color import hsv2rgb, rgb2hsv  # half a second to import

        hsv = rgb2hsv(pixels)
        hsv[..., 0] = (hsv[..., 0] + by) % 1
        turned: Pixels = (255 * hsv2rgb(hsv)).round().astype(np.uint8)
        return turned

    return change


def _stain(spread: float) -> Change:
    """Each stain of a patient as strong as chance has it: its amount times e ** (spread * normal).

    Unmixed with the vectors of Ruifrok and Johnston (2001) as skimage has them.
    """

    def change(pixels: Pixels, random: np.random.Generator) -> Pixels:
        from skimage.color import hed_from_rgb, rgb_from_hed  # as above

        amounts = -np.log((pixels.reshape(-1, 3) + 1.0) / 256) @ hed_from_rgb
        amounts *= np.exp(spread * random.standard_normal(3))
        new: Pixels = (256 * np.exp(-amounts @ rgb_from_hed) - 1).round().clip(0, 255).astype(np.uint8)
        return new.reshape(pixels.shape)

    return change


def _moved(angle_deg: float = 0.0, scale: float = 1.0, shift_px: float = 0.0) -> Change:
    """Turned and scaled about the middle, shifted right and down; mirrored at the edges."""

    def change(pixels: Pixels, random: np.random.Generator) -> Pixels:
        angle = np.deg2rad(angle_deg)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        matrix = np.eye(4)
        matrix[1:3, 1:3] = turn
        middle = (pixels.shape[1] - 1) / 2
        offset = np.zeros(4)
        offset[1:3] = middle - turn @ [middle, middle] - shift_px
        moved = affine_transform(pixels.astype(np.float32), matrix, offset, order=1, mode="reflect")
        return np.asarray(moved.round().clip(0, 255), np.uint8)

    return change


CHANGES: Sequence[tuple[str, Change]] = (
    ("as they are", lambda pixels, random: pixels),
    ("JPEG 4:2:0, quality 90", _stored(90)),
    ("JPEG 4:2:0, quality 80", _stored(80)),
    ("JPEG 4:2:0, quality 60", _stored(60)),
    ("JPEG 4:2:0, quality 40", _stored(40)),
    ("JPEG 4:4:4, quality 60", _stored(60, halved_chroma=False)),
    ("JPEG 4:2:0, quality 60, stored twice as fine", _stored(60, finer=2)),
    ("blur of 0.5 px", _look(blur_px=0.5)),
    ("blur of 1 px", _look(blur_px=1.0)),
    ("blur of 2 px", _look(blur_px=2.0)),
    ("sharpened by half", _look(sharpening=0.5)),
    ("noise of 3 grey values", _look(noise=3.0)),
    ("noise of 8 grey values", _look(noise=8.0)),
    ("darker by 10 %", _by_table(lambda v: v * 0.9)),
    ("brighter by 10 %", _by_table(lambda v: np.minimum(v * 1.1, 1.0))),
    ("gamma 0.8", _by_table(lambda v: v**0.8)),
    ("gamma 1.25", _by_table(lambda v: v**1.25)),
    ("hue turned by +9 degrees", _hue(0.025)),
    ("hue turned by -9 degrees", _hue(-0.025)),
    ("stains, spread 0.15", _stain(0.15)),
    ("stains, spread 0.3", _stain(0.3)),
    ("turned by 90 degrees", lambda pixels, random: np.rot90(pixels, axes=(1, 2)).copy()),
    ("turned by 30 degrees", _moved(angle_deg=30)),
    ("scaled by 0.9", _moved(scale=0.9)),
    ("scaled by 1.1", _moved(scale=1.1)),
    ("grid shifted by 10 px", _moved(shift_px=10)),
)
