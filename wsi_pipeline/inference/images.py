"""Probabilities of single patches and of pictures: each brought to the scale of the model's card, or refused."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError, ScaleError, UsageError, WsiError
from wsi_pipeline.base.images import MOST_PIXELS, read_image
from wsi_pipeline.base.text import counted
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.stain_check import StainCheck, check_stain
from wsi_pipeline.models.stain import (
    FULLY_COUNTED,
    colours_of,
    normalise_stain,
    patch_densities,
    stain_tables,
)
from wsi_pipeline.slides.resample import resample
from wsi_pipeline.slides.scale import PLAUSIBLE_MPP
from wsi_pipeline.tiling.export_info import EXPORT_FILE, ExportInfo, export_of, same_scale, scale_in
from wsi_pipeline.tiling.grid import GridOptions

if TYPE_CHECKING:  # model.py takes torch along
    from wsi_pipeline.models.card import ModelCard, Stain

log = logging.getLogger(__name__)

# Files decoded and scored together: fills batches, bounds memory.
FILES_AT_ONCE = 256
DECODING_THREADS = 4
MAX_ENLARGED = GridOptions().max_upsampling
How = Literal["patch", "tiled", "squeezed"]
# On what a picture's stain was measured.
OF_SLIDE, BY_ITSELF, AS_IT_IS = f"of the slide ({EXPORT_FILE})", "of the picture by itself", "left as it is"


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

    scale_from: str = "not known, taken as the model's"
    """What its scale is known from, for people."""


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

    stain_from: str
    """On what the stain that it was normalised by was measured, for people."""

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


@dataclass(frozen=True, eq=False)
class SharedStain:
    """A stain that several pictures share."""

    # float [n, 3], optical densities whose mean and number are those of its patches.
    densities: NDArray[np.float64]
    # On what it was measured, for people.
    measured: str
    # uint8 [m, S, S, 3], patches of the slide as they are, by which networks hear of it; none where there are none.
    sample: NDArray[np.uint8] | None = None


def score_images(
    paths: Sequence[Path],
    classifier: Classifier,
    mpp: float | None = None,
    squeeze: bool = False,
    one_slide: bool = False,
) -> Iterator[ImageScore | FailedImage]:
    """The score of each picture, or why it has none, in their order.

    `mpp` is the scale of all of them in um per pixel, `squeeze` makes each one patch whatever its size. Exported
    patches share the stain of their slide, as their export.json says; with `one_slide` all pictures are of one slide
    and share its stain, else each has its own. Raises UsageError where `one_slide` is said of patches of several.
    """
    card = classifier.card
    exports = _exports(paths)

    def load(path: Path) -> CutImage | FailedImage:
        try:
            export = exports[path.parent]
            if isinstance(export, WsiError):
                raise export
            rgb = read_image(path, MOST_PIXELS)
            known_from = _check_scale(path, rgb.shape[1], export, card, mpp, squeeze)
            cut = cut_image(rgb, str(path), card.patch_px, card.mpp, mpp, squeeze)
            return replace(cut, scale_from=known_from) if known_from else cut
        except WsiError as error:
            return FailedImage(path, error)

    with ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode") as pool:
        shared = {
            folder: _stain_of(export) for folder, export in exports.items() if isinstance(export, ExportInfo)
        }
        if one_slide:
            every = _stain_of_all(exports) or _measured(pool.map(load, _spread(paths)), len(paths))
            shared = dict.fromkeys(exports, every)
        for start in range(0, len(paths), FILES_AT_ONCE):
            chosen = paths[start : start + FILES_AT_ONCE]
            stains = [shared.get(path.parent) for path in chosen]
            yield from _score(chosen, list(pool.map(load, chosen)), stains, classifier)


def score_picture(
    rgb: NDArray[np.uint8], name: str, classifier: Classifier, mpp: float | None, squeeze: bool = False
) -> ImageScore:
    """The score of one picture's pixels, uint8 [height, width, 3], as `score_images` gives that of a file.

    Raises ScaleError, DataError as `cut_image` does.
    """
    card = classifier.card
    cut = cut_image(rgb, name, card.patch_px, card.mpp, mpp, squeeze)
    if mpp is not None:
        cut = replace(cut, scale_from="what was entered")
    (score,) = _score([Path(name)], [cut], [None], classifier)
    assert isinstance(score, ImageScore)
    return score


def _exports(paths: Sequence[Path]) -> dict[Path, ExportInfo | WsiError | None]:
    """Of each folder of pictures, the export that they are of, none, or why that cannot be known."""
    found: dict[Path, ExportInfo | WsiError | None] = {}
    for folder in {path.parent: None for path in paths}:
        try:
            found[folder] = export_of(folder)
        except WsiError as error:
            found[folder] = error
    return found


def _stain_of(export: ExportInfo) -> SharedStain | None:
    if export.od_mean is None:
        return None
    densities = np.tile(np.array(export.od_mean), (export.od_patches, 1))
    return SharedStain(densities, OF_SLIDE, _sample_of(export))


def _sample_of(export: ExportInfo) -> NDArray[np.uint8] | None:
    """The patches that the slide was sampled at, where they all lie there still and can be read."""
    try:
        # Those that could not be decoded were never written.
        names, most = [Path(name) for name in export.sample], export.patch_px**2
        patches = [read_image(name, most) for name in names if name.is_file()]
        return np.stack(patches) if len(patches) == export.od_patches else None
    except (WsiError, ValueError, OSError):
        return None


def _stain_of_all(exports: dict[Path, ExportInfo | WsiError | None]) -> SharedStain | None:
    """The stain of the one slide that exports among the folders are of; raises UsageError where they are of several."""
    known = {e.fingerprint: e for e in exports.values() if isinstance(e, ExportInfo)}
    if len(known) > 1:
        names = ", ".join(sorted(export.slide for export in known.values())[:5])
        raise UsageError(
            f"--one-slide: found patches of {len(known)} slides ({names}), expected pictures of one; leave it out, "
            f"their {EXPORT_FILE} says the stain of each"
        )
    return next((_stain_of(export) for export in known.values()), None)


def _spread(paths: Sequence[Path]) -> list[Path]:
    """As many pictures as a slide is sampled at, evenly over them."""
    count = min(FULLY_COUNTED, len(paths))
    return [paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]


def _measured(cuts: Iterable[CutImage | FailedImage], pictures: int) -> SharedStain:
    patches = [cut.patches for cut in cuts if isinstance(cut, CutImage)]
    these = f"of {'this' if pictures == 1 else 'these'} {counted(pictures, 'picture')}"
    if not patches:
        return SharedStain(np.empty((0, 3)), these)
    every = np.concatenate(patches)
    return SharedStain(patch_densities(every), these, every)


def _check_scale(
    path: Path, width: int, export: ExportInfo | None, card: "ModelCard", mpp: float | None, squeeze: bool
) -> str:
    """What the picture's scale is known from, empty where it is not.

    Raises ScaleError where it is known to be another than the picture would be taken for.
    """
    inside = None if export else scale_in(path)
    if export:
        found, known_from = export.mpp, EXPORT_FILE
    elif inside:
        found, known_from = inside[0], "the PNG itself"
    else:
        return "" if mpp is None else "--mpp"
    if mpp is not None:
        if not same_scale(found, mpp):
            raise ScaleError(
                f"{path}: found {found:g} um/px ({known_from}), expected {mpp:g} as --mpp says; give --mpp {found:g}"
            )
        return known_from
    taken = found * width / card.patch_px if squeeze else found
    if not same_scale(taken, card.mpp):
        as_squeezed = f", squeezed to {taken:g}" if squeeze else ""
        raise ScaleError(
            f"{path}: found {found:g} um/px ({known_from}{as_squeezed}), expected the model's {card.mpp:g}; give "
            f"--mpp {found:g} to have it brought there, if it is large enough, or export patches of that scale"
        )
    return known_from


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
    paths: Sequence[Path],
    cuts: Sequence[CutImage | FailedImage],
    stains: Sequence[SharedStain | None],
    classifier: Classifier,
) -> Iterator[ImageScore | FailedImage]:
    card = classifier.card
    good = [cut for cut in cuts if isinstance(cut, CutImage)]
    of_good = [stain for cut, stain in zip(cuts, stains, strict=True) if isinstance(cut, CutImage)]
    scores = iter(_scores(good, of_good, classifier))
    for path, cut, stain in zip(paths, cuts, stains, strict=True):
        if isinstance(cut, FailedImage):
            yield cut
            continue
        own = next(scores)
        densities = patch_densities(cut.patches)
        stain_check = check_stain(densities, card.stain)
        # The pixels have served: a batch of thousands of pictures should not keep them.
        cut = replace(cut, patches=cut.patches[:0])
        share_above = float((own >= card.threshold).mean())
        needs_pixels = card.stain_method != "gain"
        known = stain if stain and not (needs_pixels and stain.sample is None) else None
        stain_from = known.measured if known else BY_ITSELF
        if not card.stain_normalisation:
            stain_from = AS_IT_IS
        yield ImageScore(path, cut, own, share_above, densities, stain_check, stain_from)


def _scores(
    cuts: Sequence[CutImage], stains: Sequence[SharedStain | None], classifier: Classifier
) -> list[NDArray[np.float32]]:
    """The scores of each picture's patches: those of one slide by what networks hear of it, others without."""
    found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(cuts)
    kinds = {id(stain): stain for stain in stains if stain and stain.sample is not None}
    for key, stain in [*kinds.items(), (None, None)]:
        rows = [i for i, own in enumerate(stains) if (id(own) if id(own) in kinds else None) == key]
        if not rows:
            continue
        taken = [_as_taken(cuts[i], classifier.card, stains[i]) for i in rows]
        told = (
            classifier.hearing(stain.densities, stain.sample)
            if stain and stain.sample is not None
            else classifier
        )
        each = np.split(told.scores(np.concatenate(taken)), np.cumsum([len(part) for part in taken])[:-1])
        for i, scores in zip(rows, each, strict=True):
            found[i] = scores
    return found


def _as_taken(cut: CutImage, card: "ModelCard", stain: SharedStain | None) -> NDArray[np.uint8]:
    # A picture alone is a slide of its own: of one patch, hardly anything is known of its stain, and hardly anything
    # changes.
    if card.stain_method == "gain" or not card.stain_normalisation:
        densities = stain.densities if stain else patch_densities(cut.patches)
        return normalise_stain(cut.patches, stain_tables(densities, card.stain, card.stain_normalisation))
    sample = stain.sample if stain and stain.sample is not None else cut.patches
    try:
        return normalise_stain(
            cut.patches, colours_of(sample, card.stain, card.stain_normalisation, card.stain_method)
        )
    except DataError as error:
        log.warning("the stain of a picture is left as it is: %s", error)
        return cut.patches


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
        "stain_from": score.stain_from,
        "scale_from": score.cut.scale_from,
        "stain": asdict(score.stain_check) if score.stain_check else None,
        "warning": score.stain_check.warning if score.stain_check else "",
        "patch_scores": [{"box_px": box, "probability": value} for box, value in patches],
    }


def check_stain_of_all(scores: Sequence[ImageScore], stain: "Stain") -> StainCheck | None:
    """How far the pictures' stain, taken together, is from the card's: many single patches say more than each."""
    if not scores:
        return None
    return check_stain(np.concatenate([score.densities for score in scores]), stain)
