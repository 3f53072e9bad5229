"""Probabilities of single patches and of pictures: each brought to the scale of the model's card, or refused."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError, ScaleError, WsiError
from wsi_pipeline.base.images import read_image
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.stain_check import StainCheck, check_stain
from wsi_pipeline.models.stain import normalise_stain, patch_densities, stain_tables
from wsi_pipeline.slides.resample import resample
from wsi_pipeline.slides.slide import PLAUSIBLE_MPP
from wsi_pipeline.tiling.grid import GridOptions

if TYPE_CHECKING:  # model.py takes torch along
    from wsi_pipeline.models.card import ModelCard, Stain

# Files decoded and scored together: fills batches, bounds memory.
FILES_AT_ONCE = 256
DECODING_THREADS = 4
MAX_ENLARGED = GridOptions().max_upsampling
How = Literal["patch", "tiled", "squeezed"]


@dataclass(frozen=True, eq=False)
class CutImage:
    """A picture's patches at the model's scale."""

    how: How
    """"patch": it is one as it is; "tiled": patches cover all of it; "squeezed": all of it was made one."""

    size_px: tuple[int, int]
    """Width and height of the picture itself."""

    patches: NDArray[np.uint8]
    """uint8 [n, patch_px, patch_px, 3]; none once scored."""

    boxes: NDArray[np.float64]
    """float [n, 4]: x, y, width and height of each patch in the picture's own pixels."""


@dataclass(frozen=True, eq=False)
class ImageScore:
    """What a model says of one picture."""

    path: Path
    cut: CutImage
    probabilities: NDArray[np.float32]
    """float32 [n], calibrated probability of IDC of each patch."""

    share_above: float
    """Of the patches at or above the card's threshold."""

    densities: NDArray[np.float64]
    """float [n, 3], mean optical density of each patch."""

    stain_check: StainCheck | None
    """How far its stain is from the model's training data; none where the card does not know that."""

    @property
    def mean(self) -> float:
        """Mean probability of its patches; of one patch, its probability."""
        return float(self.probabilities.mean())

    @property
    def highest(self) -> float:
        """The highest probability of a patch."""
        return float(self.probabilities.max())


@dataclass(frozen=True)
class FailedImage:
    """A picture that was not scored, and why."""

    path: Path
    error: WsiError


def score_images(
    paths: Sequence[Path], classifier: Classifier, mpp: float | None = None, squeeze: bool = False
) -> Iterator[ImageScore | FailedImage]:
    """The score of each picture, or why it has none, in their order.

    `mpp` is the scale of all of them in um per pixel, `squeeze` makes each one patch whatever its size.
    """

    def load(path: Path) -> CutImage | FailedImage:
        card = classifier.card
        try:
            return cut_image(read_image(path), str(path), card.patch_px, card.mpp, mpp, squeeze)
        except WsiError as error:
            return FailedImage(path, error)

    with ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode") as pool:
        for start in range(0, len(paths), FILES_AT_ONCE):
            chosen = paths[start : start + FILES_AT_ONCE]
            yield from _score(chosen, list(pool.map(load, chosen)), classifier)


def cut_image(
    rgb: NDArray[np.uint8], name: str, patch_px: int, card_mpp: float, mpp: float | None, squeeze: bool
) -> CutImage:
    """The patches of a picture, uint8 [height, width, 3], of `mpp` um per pixel.

    Without `mpp`, a picture of patch_px x patch_px is taken as one patch of the card's scale. With it, the picture
    is brought to the card's scale by area average and covered with patches, which overlap where its size is no
    multiple of theirs. Raises ScaleError where the scale would have to be guessed, DataError where the picture is
    smaller than a patch.
    """
    height, width = rgb.shape[:2]
    whole = np.array([[0, 0, width, height]], float)
    if squeeze:
        step = width / patch_px, height / patch_px
        return CutImage(
            "squeezed", (width, height), resample(rgb, patch_px, patch_px, (0, 0), step)[None], whole
        )
    if mpp is None:
        if (width, height) != (patch_px, patch_px):
            raise ScaleError(
                f"{name}: found {width} x {height} px of unknown scale, expected a patch of {patch_px} x {patch_px} "
                f"px at {card_mpp:g} um/px; say its scale with --mpp to have it tiled, or --resize to squeeze all "
                "of it into one patch"
            )
        return CutImage("patch", (width, height), rgb[None], whole)
    low, high = PLAUSIBLE_MPP
    if not low <= mpp <= high:
        raise ScaleError(f"--mpp {mpp:g}: expected {low:g} to {high:g} um per pixel")
    if mpp > card_mpp * MAX_ENLARGED:
        raise ScaleError(
            f"{name}: would be enlarged {mpp / card_mpp:.1f} times from {mpp:g} um/px to the model's {card_mpp:g}, at "
            f"most {MAX_ENLARGED:g} is allowed; correct --mpp, or take a finer scan"
        )
    step_px = card_mpp / mpp  # picture pixels to one of the card's scale
    columns, rows = (int(length / step_px + 1e-6) for length in (width, height))
    if min(columns, rows) < patch_px:
        raise DataError(
            f"{name}: found {width} x {height} px at {mpp:g} um/px, which is {columns} x {rows} px at the model's "
            f"{card_mpp:g} um/px, expected at least {patch_px} x {patch_px}; correct --mpp, or give a larger picture"
        )
    scaled = resample(rgb, columns, rows, (0, 0), (step_px, step_px))
    corners = [(x, y) for y in _starts(rows, patch_px) for x in _starts(columns, patch_px)]
    patches = np.stack([scaled[y : y + patch_px, x : x + patch_px] for x, y in corners])
    boxes = np.array([(x, y, patch_px, patch_px) for x, y in corners]) * step_px
    return CutImage("tiled", (width, height), patches, boxes)


def _starts(length: int, patch_px: int) -> list[int]:
    """Where the fewest patches that cover the length begin, spread evenly."""
    count = -(-length // patch_px)
    return [round(start) for start in np.linspace(0, length - patch_px, count)]


def _score(
    paths: Sequence[Path], cuts: Sequence[CutImage | FailedImage], classifier: Classifier
) -> Iterator[ImageScore | FailedImage]:
    card = classifier.card
    good = [cut for cut in cuts if isinstance(cut, CutImage)]
    every = (
        np.concatenate([_as_taken(cut, card) for cut in good]) if good else np.empty((0, 1, 1, 3), np.uint8)
    )
    scores = iter(np.split(classifier.scores(every), np.cumsum([len(cut.patches) for cut in good])))
    for path, cut in zip(paths, cuts, strict=True):
        if isinstance(cut, FailedImage):
            yield cut
            continue
        own = next(scores)
        densities = patch_densities(cut.patches)
        stain_check = check_stain(densities, card.stain)
        # The pixels have served: a batch of thousands of pictures should not keep them.
        cut = replace(cut, patches=cut.patches[:0])
        yield ImageScore(path, cut, own, float((own >= card.threshold).mean()), densities, stain_check)


def _as_taken(cut: CutImage, card: "ModelCard") -> NDArray[np.uint8]:
    # A picture is a slide of its own: of one patch, hardly anything is known of its stain, and hardly anything changes.
    return normalise_stain(
        cut.patches, stain_tables(patch_densities(cut.patches), card.stain, card.stain_normalisation)
    )


def image_info(score: ImageScore) -> dict[str, Any]:
    """What JSON says of a picture: plain values, `patch_scores` a row a patch."""
    patches = zip(score.cut.boxes.round(2).tolist(), score.probabilities.tolist(), strict=True)
    return {
        "file": str(score.path),
        "width_px": score.cut.size_px[0],
        "height_px": score.cut.size_px[1],
        "how": score.cut.how,
        "patches": len(score.probabilities),
        "probability": score.mean,
        "highest": score.highest,
        "share_above": score.share_above,
        "stain": asdict(score.stain_check) if score.stain_check else None,
        "warning": score.stain_check.warning if score.stain_check else "",
        "patch_scores": [{"box_px": box, "probability": value} for box, value in patches],
    }


def check_stain_of_all(scores: Sequence[ImageScore], stain: "Stain") -> StainCheck | None:
    """How far the pictures' stain, taken together, is from the card's: many single patches say more than each."""
    if not scores:
        return None
    return check_stain(np.concatenate([score.densities for score in scores]), stain)
