"""Where the tissue lies, from one low-power plane of the slide.

Tissue is what the stain has coloured. The glass colour is read off the slide itself; optical density
relative to it (Ruifrok and Johnston 2001) makes a grey, yellow or blue glass, or a dim lamp, drop out. A stain
absorbs one channel more than another, so the spread of optical density over red, green and blue marks stained
tissue however pale, while dust, shadows, coverslip edges and the black around a scan absorb all three alike.
The threshold on that spread is set by the glass's own noise, not by how much tissue there is (as Otsu's would
be): a slide full of tissue and a slide with a trace of it behave alike. Then, in micrometres: gaps are closed,
specks dropped, small holes filled.

What this makes of fat: the thin walls of fat cells are stained and the cells are smaller than
`max_hole_um2`, so fat counts as tissue where its walls are seen, and as glass where they are not.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from wsi_pipeline.geometry import Plane
from wsi_pipeline.options import Field, options

Rgb = NDArray[np.uint8]  # [row, col, 3]
Mask = NDArray[np.bool_]  # [row, col]
Floats = NDArray[np.float32]

# Taken for the glass where no pixel looks like any: what scanners make of clear glass.
USUAL_GLASS = np.array([243, 243, 243], np.float32)
# Added to every value before the logarithm: near black, the scanner's noise would look like colour.
DARK_NOISE = 10.0


@options
class TissueOptions:
    """How tissue is told from glass."""

    mpp: Annotated[float, Field(ge=1, le=64)] = 8.0
    """Scale of the low-power plane: finer costs time, coarser loses thin strands. 200 um patches span 25 px."""

    smooth_um: Annotated[float, Field(ge=0)] = 8.0
    """Sigma of the Gaussian laid over the plane first: one pixel quietens JPEG noise and keeps thin strands."""

    min_stain_od: Annotated[float, Field(gt=0)] = 0.035
    """Least spread of optical density between channels that counts as stain, whatever the glass: on clean glass
    the noise alone would let pale tints through (another glass, a wet edge)."""

    max_stain_od: Annotated[float, Field(gt=0)] = 0.08
    """The threshold never rises above this, whatever the glass: the palest fibrous tissue spreads about 0.1."""

    noise_sigmas: Annotated[float, Field(gt=0)] = 6.0
    """Between the two, the threshold: so many standard deviations of the glass's own spread."""

    min_stain_share: Annotated[float, Field(ge=0)] = 0.25
    """Least ratio of that spread to the mean optical density: stains lie above 0.4, grey dust, ink and shadows
    below 0.2."""

    close_um: Annotated[float, Field(ge=0)] = 24.0
    """Gaps up to twice this wide are closed: cracks, and breaks in the walls of fat cells."""

    min_object_um2: Annotated[float, Field(ge=0)] = 10_000.0
    """Smaller pieces are specks: a quarter of a 200 um patch."""

    max_hole_um2: Annotated[float, Field(ge=0)] = 20_000.0
    """Smaller holes are filled: fat cells are 60 to 100 um wide; half a 200 um patch of nothing stays out."""

    frame_um: Annotated[float, Field(ge=0)] = 200.0
    """Rows or columns of one colour along an edge of the plane, up to this wide together, are its frame."""


@dataclass(frozen=True)
class Tissue:
    """Where tissue lies on `plane`; `reason` says why nothing was found, and is None where something was."""

    mask: Mask
    plane: Plane
    reason: str | None


@dataclass(frozen=True)
class Glass:
    """Colour of the empty glass, and the standard deviation of each channel's optical density there."""

    rgb: Floats  # [3]
    noise_od: float


def find_tissue(
    rgb: Rgb, plane: Plane, mpp: tuple[float, float], options: TissueOptions, readable: Mask | None = None
) -> Tissue:
    """The tissue on a low-power plane.

    rgb: the whole plane, uint8 [row, col, 3]. plane: where it lies on the slide.
    mpp: micrometres per pixel of `rgb`, along x and along y.
    readable: False where the slide could not be decoded. Such a pixel has no say in anything, and counts as
    tissue where tissue meets it from two or more of the four sides.
    """
    readable = np.ones(rgb.shape[:2], np.bool_) if readable is None else readable
    seen = readable & ~_outside_scan(rgb, mpp, options)
    if not seen.any():
        empty = np.zeros(rgb.shape[:2], np.bool_)
        return Tissue(empty, plane, f"none of the {seen.size} pixels of the low-power plane holds a picture")

    smooth = _smoothed(rgb, seen, mpp, options)
    glass = find_glass(smooth, seen)
    threshold_od = float(
        np.clip(options.noise_sigmas * glass.noise_od, options.min_stain_od, options.max_stain_od)
    )
    stained = _is_stained(smooth, glass, threshold_od, options) & seen
    mask = _tidied(stained, mpp, options)
    mask[~seen] = False
    mask |= _surrounded(mask, readable)
    return Tissue(mask, plane, None if mask.any() else _why_empty(stained, glass, threshold_od, mpp, options))


def find_glass(rgb: Floats, seen: Mask) -> Glass:
    """The colour of the empty glass and its noise, from a (smoothed) plane [row, col, 3], 0 to 255.

    Glass is bright and nearly colourless; a tint is yellow, grey or blue, never the pink or purple of a stain that
    absorbs green most. Its colour is the mode of such pixels. Pure white is padding that scanners add, and
    counts as glass only where there is no other.
    """
    sample = rgb[seen][:: max(1, int(seen.sum()) // 1_000_000)]  # [n, 3]
    brightest, darkest = sample.max(axis=1), sample.min(axis=1)
    not_pink = sample[:, 1] >= (sample[:, 0] + sample[:, 2]) / 2 - 8
    like_glass = (brightest >= 170) & (brightest - darkest <= 45) & not_pink
    padding = darkest >= 253.5
    for candidates in (like_glass & ~padding, like_glass):
        if candidates.sum() >= 0.002 * len(sample):
            return _mode(sample[candidates])
    return Glass(USUAL_GLASS, 0.0)


def stain_od(rgb: Floats, glass: Glass) -> tuple[Floats, Floats]:
    """Mean optical density over the channels, and its spread (largest less smallest), both [row, col].

    Brighter than the glass counts as no density at all.
    """
    low = high = total = np.zeros(rgb.shape[:2], np.float32)
    for channel in range(3):  # one channel at a time: a third of the memory
        od = np.log((glass.rgb[channel] + DARK_NOISE) / (rgb[..., channel] + DARK_NOISE))
        od = np.maximum(od, 0, out=od)
        low = np.minimum(low, od) if channel else od
        high = np.maximum(high, od)
        total = total + od
    return total / 3, high - low


def _is_stained(rgb: Floats, glass: Glass, threshold_od: float, options: TissueOptions) -> Mask:
    mean, spread = stain_od(rgb, glass)
    return (spread > threshold_od) & (spread > options.min_stain_share * mean)


def _mode(sample: Floats) -> Glass:
    colour = np.array([np.bincount(np.rint(c).astype(int)).argmax() for c in sample.T], np.float32)
    # Half of the candidates nearest to the mode are glass, surely; what lies further may be pale tissue.
    nearest = np.abs(sample - colour).max(axis=1)
    half = sample[nearest <= np.median(nearest)]
    return Glass(colour, float(np.log((half + DARK_NOISE) / (colour + DARK_NOISE)).std()))


def _smoothed(rgb: Rgb, seen: Mask, mpp: tuple[float, float], options: TissueOptions) -> Floats:
    """The plane [row, col, 3] under a Gaussian that takes nothing from pixels not seen."""
    sigma_px = (options.smooth_um / mpp[1], options.smooth_um / mpp[0])

    def blur(channel: NDArray[Any]) -> Floats:
        return np.asarray(ndimage.gaussian_filter(channel.astype(np.float32), sigma_px, mode="nearest"))

    if seen.all():
        return np.stack([blur(rgb[..., c]) for c in range(3)], axis=-1)
    weight = np.maximum(blur(seen), 1e-6)
    return np.stack([blur(np.where(seen, rgb[..., c], 0)) / weight for c in range(3)], axis=-1)


def _outside_scan(rgb: Rgb, mpp: tuple[float, float], options: TissueOptions) -> Mask:
    """Black that reaches in from an edge of the plane, and frames of one colour along its edges."""
    black = rgb.max(axis=2) < 40
    labels = measure.label(black, connectivity=1)
    at_edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    outside: Mask = black & np.isin(labels, at_edge)
    for axis, size_um in ((0, mpp[1]), (1, mpp[0])):
        lines = rgb if axis == 0 else rgb.swapaxes(0, 1)
        marked = outside if axis == 0 else outside.T
        widest_px = int(options.frame_um / size_um)
        first, last = _frame_px(lines, widest_px), _frame_px(lines[::-1], widest_px)
        marked[:first] = True
        marked[len(marked) - last :] = True
    return outside


def _frame_px(lines: Rgb, widest_px: int) -> int:
    """How many of the first lines are a frame: each of one colour, ending within `widest_px` lines."""
    for i, line in enumerate(lines[: widest_px + 1]):
        if np.ptp(line.astype(np.int16), axis=0).max() > 6:
            return i
    return 0  # one colour further in, too: that is what the slide looks like, not a frame


def _tidied(stained: Mask, mpp: tuple[float, float], options: TissueOptions) -> Mask:
    radius_px = [round(options.close_um / size_um) for size_um in (mpp[1], mpp[0])]
    size_px = [2 * r + 1 for r in radius_px]
    # Squares, as two passes of lines: a disc costs ten times as much, and a patch does not see the difference.
    closed = np.pad(stained, [(r, r) for r in radius_px]).astype(np.uint8)
    closed = ndimage.minimum_filter(ndimage.maximum_filter(closed, size_px), size_px)
    closed = closed[
        radius_px[0] : closed.shape[0] - radius_px[0], radius_px[1] : closed.shape[1] - radius_px[1]
    ]
    pixel_um2 = mpp[0] * mpp[1]
    kept = _without_small(closed.astype(np.bool_), options.min_object_um2 / pixel_um2)
    return ~_without_small(~kept, options.max_hole_um2 / pixel_um2)


def _without_small(mask: Mask, min_px: float) -> Mask:
    labels = measure.label(mask, connectivity=1)
    large = np.bincount(labels.ravel()) >= min_px
    large[0] = False
    return np.asarray(large[labels])


def _surrounded(mask: Mask, readable: Mask) -> Mask:
    """Unreadable pixels whose nearest readable pixel is tissue on two or more of their four sides."""
    if readable.all():
        return np.zeros_like(mask)
    sides = np.zeros(mask.shape, np.uint8)
    for axis in (0, 1):
        m, r = (mask, readable) if axis == 0 else (mask.T, readable.T)
        s = sides if axis == 0 else sides.T
        rows = np.arange(len(m))[:, None]
        before = np.maximum.accumulate(np.where(r, rows, -1), axis=0)
        after = np.minimum.accumulate(np.where(r, rows, len(m))[::-1], axis=0)[::-1]
        columns = np.arange(m.shape[1])[None, :]
        s += (before >= 0) & m[np.maximum(before, 0), columns]
        s += (after < len(m)) & m[np.minimum(after, len(m) - 1), columns]
    return ~readable & (sides >= 2)


def _why_empty(
    stained: Mask, glass: Glass, threshold_od: float, mpp: tuple[float, float], options: TissueOptions
) -> str:
    colour = "rgb({:.0f}, {:.0f}, {:.0f})".format(*glass.rgb)
    largest_px = int(np.bincount(measure.label(stained).ravel())[1:].max(initial=0))
    if largest_px == 0:
        return (
            f"nothing differs from the glass {colour} in colour by {threshold_od:.3f} optical density or more"
        )
    return (
        f"only specks differ from the glass {colour}: the largest is {largest_px * mpp[0] * mpp[1]:.0f} um2, "
        f"tissue is expected to be {options.min_object_um2:.0f} um2 or more (min_object_um2)"
    )
