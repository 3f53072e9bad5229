"""Where the tissue lies, from one low-power plane of the slide.

Tissue is what the stain has coloured. The colour of the glass is read off the slide itself; in optical
density relative to it (Ruifrok and Johnston 2001, "Quantification of histochemical staining by color
deconvolution") a grey, yellow or blue glass or a dim lamp drops out. A stain absorbs one channel more than
another, so the spread of optical density over red, green and blue marks stained tissue however pale, while
dust, shadows, coverslip edges and the black around a scan absorb all three alike. The threshold on that
spread is set by the noise of the glass, not by how much tissue there is (as Otsu's would be): a slide full of
tissue and a slide with a trace of it are treated alike. Then, in micrometres: gaps are closed, specks
dropped, small holes filled.

What this makes of fat: the thin walls of fat cells are stained and the cells are smaller than
`max_hole_um2`, so fat counts as tissue where its walls are seen, and as glass where they are not.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import closing, footprint_rectangle, remove_small_objects

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.types import Mask, RgbImage

Floats = NDArray[np.float32]

# What scanners make of clear glass under a white lamp.
USUAL_GLASS = 243.0
# Added to every value before the logarithm, on a slide of the usual brightness: near black, the scanner's noise would
# look like colour.
DARK_NOISE = 10.0
# Rows of the plane looked at together: what is worked out on the way takes several times the memory of the picture.
STRIP_ROWS = 256
# As many pixels, evenly over the plane, say what the glass is.
SAMPLED_PIXELS = 250_000
# Fewer pixels like glass than this, of all, may be anything.
MIN_GLASS_SHARE = 0.002
# A pixel is flat where no channel changes by more than this, as a logarithm, to any of the eight pixels so far from it:
# on real slides so are nine in ten pixels of glass, and two in a hundred of tissue.
FLAT_UM = 16.0
MAX_GLASS_CHANGE = 0.02
# A level of brightness is that of glass where at least this share of its pixels is flat: in narrow gaps half are.
MIN_FLAT_SHARE = 0.3
# The brightest channel of the dimmest glass; and the darkest channel of the most tinted glass, beside its brightest:
# tinted glass under a tinted lamp.
MIN_GLASS_LEVEL = 90.0
MIN_GLASS_TINT = 0.75
# Darker than this, on a slide of the usual brightness, is the black around a scan.
BLACK_LEVEL = 40.0
# Scanners pad with pure white.
PADDING_LEVEL = 253.5
# The brightest pixels, less those that a speck of dust lights up.
BRIGHT_PERCENTILE = 99.5
# Pixels are counted by brightness in steps of this, as a logarithm.
LEVEL_STEP = 0.005


@options
class TissueOptions:
    """How tissue is found beside glass."""

    mpp: Annotated[float, Field(ge=1, le=64)] = 8.0
    """Scale of the low-power plane, um/px: finer costs time, coarser loses thin strands. A 200 um patch spans
    25 px of it."""

    smooth_um: Annotated[float, Field(ge=0)] = 8.0
    """Sigma of the Gaussian laid over the plane first: one pixel quietens JPEG noise, keeps thin strands."""

    min_stain_od: Annotated[float, Field(gt=0)] = 0.035
    """Least spread of optical density between channels that counts as stain, however clean the glass: the
    tints of mounting medium at a coverslip's edge reach 0.03."""

    max_stain_od: Annotated[float, Field(gt=0)] = 0.08
    """The threshold never rises above this, however noisy the glass: pale fibrous tissue spreads by 0.1."""

    noise_sigmas: Annotated[float, Field(gt=0)] = 6.0
    """Between the two, the threshold: so many standard deviations of the noise of the glass."""

    min_stain_share: Annotated[float, Field(ge=0)] = 0.3
    """Least ratio of that spread to the mean optical density: stains lie above 0.4; grey dust, shadows and
    the edges of coverslips below 0.25."""

    close_um: Annotated[float, Field(ge=0)] = 16.0
    """Gaps up to twice this wide are closed: cracks, and breaks in the walls of fat cells."""

    min_object_um2: Annotated[float, Field(ge=0)] = 5_000.0
    """Smaller pieces are specks: 70 um a side, an eighth of a 200 um patch."""

    max_hole_um2: Annotated[float, Field(ge=0)] = 20_000.0
    """Smaller holes are filled: fat cells are 60 to 100 um wide; half a 200 um patch of nothing stays out."""

    frame_um: Annotated[float, Field(ge=0)] = 200.0
    """Rows or columns of one colour along an edge of the plane, up to this wide together, are its frame."""


@dataclass(frozen=True)
class Glass:
    """Colour of the empty glass, and its noise: how far a channel's optical density strays from their mean.

    Uneven light dims all channels alike, and is no noise in this sense.
    """

    rgb: Floats  # [3]
    noise_od: float


@dataclass(frozen=True)
class Tissue:
    """Where tissue lies on `plane`; `reason` says why nothing was found, and is None where something was.

    `glass` is what the glass may be: one colour where it was seen, two where it was assumed, none where no pixel
    holds a picture.
    """

    mask: Mask
    plane: Plane
    reason: str | None
    glass: tuple[Glass, ...]

    @property
    def glass_assumed(self) -> bool:
        """Whether no empty glass was seen on the slide."""
        return len(self.glass) > 1


def find_tissue(
    rgb: RgbImage,
    plane: Plane,
    mpp: tuple[float, float],
    options: TissueOptions,
    readable: Mask | None = None,
) -> Tissue:
    """The tissue on a low-power plane.

    rgb: the whole plane, uint8 [row, col, 3]. plane: where it lies on the slide.
    mpp: micrometres per pixel of `rgb`, along x and along y.
    readable: False where the slide could not be decoded. Such a pixel has no say in anything, and counts as
    tissue where tissue meets it from two or more of the four sides.
    """
    readable = np.ones(rgb.shape[:2], np.bool_) if readable is None else readable
    seen = readable & ~_outside_scan(rgb, readable, mpp, options)
    if not seen.any():
        empty = np.zeros(rgb.shape[:2], np.bool_)
        return Tissue(
            empty, plane, f"none of the {seen.size} pixels of the low-power plane holds a picture", ()
        )

    smooth = _smoothed(rgb, seen, mpp, options)
    glass = find_glass(smooth, seen, mpp)
    by_noise_od = min(options.noise_sigmas * glass[0].noise_od, options.max_stain_od)
    threshold_od = max(by_noise_od, options.min_stain_od)
    stained = _is_stained(smooth, glass, threshold_od, options) & seen
    del smooth  # of a large slide the most that an overview holds
    mask = _tidied(stained, mpp, options)
    mask[~seen] = False
    mask |= _surrounded(mask, readable)
    reason = None if mask.any() else _why_empty(stained, glass[0], threshold_od, mpp, options)
    return Tissue(mask, plane, reason, glass)


def find_glass(rgb: Floats, seen: Mask, mpp: tuple[float, float]) -> tuple[Glass, ...]:
    """What the empty glass may be: one colour where glass is seen, two that are assumed where there is none.

    rgb: a smoothed plane [row, col, 3], 0 to 255. seen: which pixels count, at least one.
    mpp: micrometres per pixel, along x and along y.

    How bright the lamp is, and its tint, is the slide's own affair: every step here gives the same when a channel
    of the whole plane is multiplied. Glass is flat: over 16 um it changes by its noise only, where tissue has
    structure. Of the flat pixels the brightest common level is the glass: what is paler than tissue and fills
    the slide is still darker than what lies beside it. Pure white is padding that scanners add, and counts as
    glass only where there is no other that is nearly grey.

    Where nothing is flat, bright and common, all that is seen may be tissue. Then the glass is assumed: grey, as
    bright as the brightest pixels are in their brightest channel (right under a white lamp); or as bright in each
    channel as the brightest pixels are there (right where the lamp has a tint, but blind to tissue of one colour).
    """
    sample, flat = _sampled(rgb, seen, mpp)
    brightest, darkest = sample.max(axis=1), sample.min(axis=1)
    lamp_colour = (brightest >= MIN_GLASS_LEVEL) & (darkest >= MIN_GLASS_TINT * brightest)
    white = darkest >= PADDING_LEVEL
    beside_padding = lamp_colour & ~white
    if white.mean() >= MIN_GLASS_SHARE:  # or it is overexposed glass, and what is pink beside it is tissue
        beside_padding &= _nearly_grey(sample)
    for candidates in (beside_padding, lamp_colour):
        glass = _brightest_common(sample, candidates, flat)
        if glass:
            return (glass,)
    grey = np.full(3, np.percentile(brightest, BRIGHT_PERCENTILE), np.float32)
    by_channel = np.percentile(sample, BRIGHT_PERCENTILE, axis=0).astype(np.float32)
    return Glass(grey, 0.0), Glass(by_channel, 0.0)


def by_strips(rows: int, work: Callable[[slice], None]) -> None:
    """Do the work on all rows of a plane, two strips at a time: what is worked out of them takes little memory."""
    with ThreadPoolExecutor(2, thread_name_prefix="strips") as pool:
        list(pool.map(work, (slice(top, top + STRIP_ROWS) for top in range(0, rows, STRIP_ROWS))))


def channel_od(rgb: RgbImage | Floats, glass: Glass) -> tuple[Floats, Floats, Floats]:
    """Optical density of red, green and blue relative to the glass, each [row, col]; 0 where brighter."""
    if rgb.dtype == np.uint8:  # by look-up: the very same in a third of the time
        tables = channel_od(np.arange(256, dtype=np.float32)[None, :, None].repeat(3, axis=2), glass)
        red, green, blue = (tables[c][0][rgb[..., c]] for c in range(3))
        return red, green, blue
    noise = glass.rgb * np.float32(DARK_NOISE / USUAL_GLASS)
    red, green, blue = (
        np.maximum(np.log((glass.rgb[c] + noise[c]) / (rgb[..., c] + noise[c])), 0) for c in range(3)
    )
    return red, green, blue


def _is_stained(rgb: Floats, glass: tuple[Glass, ...], threshold_od: float, options: TissueOptions) -> Mask:
    """Where the plane is stained relative to any colour that the glass may have."""
    stained = np.zeros(rgb.shape[:2], np.bool_)

    def look_at(rows: slice) -> None:
        for one in glass:
            red, green, blue = channel_od(rgb[rows], one)
            spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
            share = options.min_stain_share / 3 * (red + green + blue)
            stained[rows] |= spread > np.maximum(share, threshold_od)

    by_strips(len(rgb), look_at)
    return stained


def _sampled(rgb: Floats, seen: Mask, mpp: tuple[float, float]) -> tuple[Floats, Mask]:
    """Pixels evenly over those seen [n, 3], and which of them are flat [n]."""
    every = seen.size // SAMPLED_PIXELS + 1
    height, width = seen.shape
    at = np.flatnonzero(seen.ravel()[::every]) * every
    if not len(at):
        at = np.flatnonzero(seen)
    pixels = rgb.reshape(-1, 3)
    sample = np.maximum(pixels[at], 1).astype(np.float32)
    row, column = at // width, at % width
    down, right = (max(1, round(FLAT_UM / size_um)) for size_um in (mpp[1], mpp[0]))
    flat = np.ones(len(at), np.bool_)
    for rows, columns in product((-down, 0, down), (-right, 0, right)):
        beside = np.clip(row + rows, 0, height - 1) * width + np.clip(column + columns, 0, width - 1)
        change = np.abs(np.log(np.maximum(pixels[beside], 1) / sample)).max(axis=1)
        flat &= seen.ravel()[beside] & (change <= MAX_GLASS_CHANGE)
    return sample, flat


def _nearly_grey(sample: Floats) -> Mask:
    """Which pixels [n, 3] have a slight tint of yellow, grey or blue, not the pink or brown of a pale stain."""
    red, green, blue = sample.T
    grey = sample.min(axis=1) >= 0.885 * sample.max(axis=1)
    return np.asarray(grey & (green >= 0.975 * (red + blue) / 2) & (green >= 0.963 * red))


def _brightest_common(sample: Floats, lamp_colour: Mask, flat: Mask) -> Glass | None:
    """The glass among pixels [n, 3], or None where there is none."""
    level = np.log(sample).mean(axis=1)  # [n]
    bins = np.rint(level / LEVEL_STEP).astype(int)
    size = round(np.log(256) / LEVEL_STEP) + 2
    of_lamp_colour, counts = (
        ndimage.uniform_filter1d(np.bincount(bins[chosen], minlength=size).astype(float), 3)
        for chosen in (lamp_colour, lamp_colour & flat)
    )
    mostly_flat = counts >= MIN_FLAT_SHARE * of_lamp_colour
    candidates = lamp_colour & flat & mostly_flat[bins]
    if candidates.sum() < max(1, MIN_GLASS_SHARE * len(sample)):
        return None
    counts *= mostly_flat
    common = np.flatnonzero(counts >= 0.2 * counts.max())[-1]
    while counts[common - 1] > counts[common]:  # from the peak's bright foot up to its top
        common -= 1
    colour = np.median(sample[candidates & (np.abs(level / LEVEL_STEP - common) <= 1.6)], axis=0)
    # On the bright side of the peak there is noise only, no pale tissue; a median absolute deviation of noise
    # is 1 / 1.4826 of its standard deviation.
    brighter = sample[candidates & (level >= np.log(colour).mean())]
    od = np.log(brighter / colour)
    tint_od = od - od.mean(axis=1, keepdims=True)  # [n, 3]
    return Glass(colour.astype(np.float32), 1.4826 * float(np.median(np.abs(tint_od))))


def _smoothed(rgb: RgbImage, seen: Mask, mpp: tuple[float, float], options: TissueOptions) -> Floats:
    """The plane [row, col, 3] under a Gaussian that takes nothing from pixels not seen."""
    sigma_px = (options.smooth_um / mpp[1], options.smooth_um / mpp[0])

    def blur(channel: NDArray[np.uint8], out: Floats) -> Floats:
        return np.asarray(ndimage.gaussian_filter(channel, sigma_px, output=out, mode="nearest"))

    smooth = np.empty(rgb.shape, np.float32)
    if seen.all():
        for c in range(3):
            blur(rgb[..., c], smooth[..., c])
        return smooth
    weight = blur(seen.view(np.uint8), np.empty(seen.shape, np.float32))
    np.maximum(weight, 1e-6, out=weight)
    for c in range(3):
        blur(rgb[..., c] * seen, smooth[..., c])
        smooth[..., c] /= weight
    return smooth


def _outside_scan(rgb: RgbImage, readable: Mask, mpp: tuple[float, float], options: TissueOptions) -> Mask:
    """Black that reaches in from an edge of the plane, and frames of one colour along its edges."""
    every = readable.size // SAMPLED_PIXELS + 1
    sample = rgb.reshape(-1, 3)[::every][readable.ravel()[::every]]
    brightest = np.percentile(sample.max(axis=1), BRIGHT_PERCENTILE) if len(sample) else USUAL_GLASS
    black_level = BLACK_LEVEL * min(1, brightest / USUAL_GLASS)
    black = readable & (rgb[..., 0] < black_level) & (rgb[..., 1] < black_level) & (rgb[..., 2] < black_level)
    labels = label(black, connectivity=1)
    at_edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    outside: Mask = black & np.isin(labels, at_edge)
    for axis, size_um in ((0, mpp[1]), (1, mpp[0])):
        marked, known, lines = (
            np.moveaxis(outside, axis, 0),
            np.moveaxis(readable, axis, 0),
            np.moveaxis(rgb, axis, 0),
        )
        widest_px = int(options.frame_um / size_um)
        marked[: _frame_px(lines, known, widest_px)] = True
        marked[::-1][: _frame_px(lines[::-1], known[::-1], widest_px)] = True
    return outside


def _frame_px(lines: RgbImage, readable: Mask, widest_px: int) -> int:
    """How many of the first lines are a frame: each of one colour, ending within `widest_px` lines."""
    for i in range(min(widest_px + 1, len(lines))):
        colours = lines[i][readable[i]]  # [n, 3]
        if len(colours) and np.any(colours.max(axis=0) - colours.min(axis=0) > 6):
            return i
    return 0  # one colour further in, too: that is what the slide looks like, not a frame


def _tidied(stained: Mask, mpp: tuple[float, float], options: TissueOptions) -> Mask:
    radius_px = [round(options.close_um / size_um) for size_um in (mpp[1], mpp[0])]
    size_px = [2 * r + 1 for r in radius_px]
    # Squares, as two passes of lines: a disc costs ten times as much, and a patch sees no difference.
    padded = np.pad(stained, [(r, r) for r in radius_px]).astype(np.uint8)
    closed = closing(padded, footprint_rectangle(size_px, decomposition="separable"))
    rows, columns = (slice(r, r + n) for r, n in zip(radius_px, stained.shape, strict=True))
    pixel_um2 = mpp[0] * mpp[1]
    kept = without_small(closed[rows, columns].astype(np.bool_), options.min_object_um2 / pixel_um2)
    return _without_holes(kept, options.max_hole_um2 / pixel_um2)


def without_small(mask: Mask, min_px: float) -> Mask:
    """The mask less its pieces (pixels that share an edge) of fewer than `min_px` pixels."""
    return np.asarray(remove_small_objects(mask, max_size=math.ceil(min_px) - 1, connectivity=1))


def _without_holes(mask: Mask, min_px: float) -> Mask:
    """The mask with its holes of fewer than `min_px` pixels filled; what reaches the plane's edge is none.

    For skimage's remove_small_holes what reaches the edge is a hole too.
    """
    labels = label(np.pad(~mask, 1, constant_values=True), connectivity=1)
    small = np.bincount(labels.ravel()) < min_px
    small[[0, labels[0, 0]]] = False  # the mask itself, and all that is joined around the plane
    return np.asarray(mask | small[labels[1:-1, 1:-1]])


def _surrounded(mask: Mask, readable: Mask) -> Mask:
    """Unreadable pixels whose nearest readable pixel is tissue on two or more of their four sides."""
    if readable.all():
        return np.zeros_like(mask)
    sides = np.zeros(mask.shape, np.uint8)
    for axis in (0, 1):
        for step in (1, -1):
            tissue, known, count = (np.moveaxis(a, axis, 0)[::step] for a in (mask, readable, sides))
            rows = np.arange(len(known))[:, None]
            nearest = np.maximum.accumulate(np.where(known, rows, -1), axis=0)  # row, -1 where none came yet
            count += (nearest >= 0) & np.take_along_axis(tissue, np.maximum(nearest, 0), axis=0)
    return ~readable & (sides >= 2)


def _why_empty(
    stained: Mask, glass: Glass, threshold_od: float, mpp: tuple[float, float], options: TissueOptions
) -> str:
    colour = "rgb({:.0f}, {:.0f}, {:.0f})".format(*glass.rgb)
    largest_px = int(np.bincount(label(stained, connectivity=1).ravel())[1:].max(initial=0))
    if largest_px == 0:
        return (
            f"nothing differs from the glass {colour} in colour by {threshold_od:.3f} optical density or more"
        )
    return (
        f"only specks differ from the glass {colour}: the largest is {largest_px * mpp[0] * mpp[1]:.0f} um2, "
        f"tissue is expected to be {options.min_object_um2:.0f} um2 or more (min_object_um2)"
    )
