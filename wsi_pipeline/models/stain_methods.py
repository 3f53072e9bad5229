"""Macenko's and Reinhard's stain normalisation, measured once on a sample of a slide and applied to all of it.

Macenko separates haematoxylin and eosin: the directions in optical density between which a sample's pixels lie, and
how much of each there is at most; both are brought to the reference's. Reinhard brings mean and standard deviation of
each channel of CIELAB to the reference's. Either is one function of R, G, B, the same for all pixels of a slide, and is
kept as a table of 33 x 33 x 33 colours between which Pillow interpolates.

M. Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009.
E. Reinhard et al., Color transfer between images, IEEE Computer Graphics and Applications 21(5), 2001; in CIELAB, as is
usual in histology, instead of its l-alpha-beta.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from skimage.color import lab2rgb, rgb2lab

from wsi_pipeline.base.errors import DataError

PixelMethod: TypeAlias = Literal["macenko", "reinhard"]
StainMethod: TypeAlias = Literal["gain", "macenko", "reinhard"]
Pixels: TypeAlias = NDArray[np.uint8]

# Macenko's: light of glass, density below which a pixel is glass, and percentiles that stand for the extremes.
GLASS, LEAST_DENSITY, EXTREME, MOST = 240.0, 0.15, 1.0, 99.0
# So few pixels of tissue say nothing of two stains.
LEAST_PIXELS = 500
# A card's reference: stains are of length 1 but for rounding, less alike than this cosine; and no density is higher.
ROUNDING, MOST_ALIKE, MOST_DENSITY = 1e-3, 0.9999, 20.0
# Colours along each side of the table.
TABLE_SIDE = 33
# Slides whose stain differs by more are something else than H&E.
MAX_RATIO = 4.0


@dataclass(frozen=True, eq=False)
class TwoStains:
    """What Macenko's method finds in pixels."""

    # float [3, 2]: unit vectors of haematoxylin and eosin in natural optical density of R, G, B.
    directions: NDArray[np.float64]
    # float [2]: how much of each there is, at the 99th percentile.
    most: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabSpread:
    """What Reinhard's method finds in pixels: mean and standard deviation of L, a, b, float [3] each."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


Found: TypeAlias = TwoStains | LabSpread


@dataclass(frozen=True, eq=False)
class ColourTable:
    """New colours of a slide, for TABLE_SIDE values of R, G and B each: uint8 [blue, green, red, channel]."""

    colours: Pixels

    def applied(self, pixels: Pixels) -> Pixels:
        """The pixels, uint8 [..., 3], in their new colours, interpolated between those of the table."""
        if not pixels.size:
            return pixels
        row = pixels.shape[-2]
        image = Image.frombuffer(
            "RGB", (row, pixels.size // (3 * row)), np.ascontiguousarray(pixels), "raw", "RGB", 0, 1
        )
        values = (self.colours.reshape(-1).astype(np.float32) / 255).tolist()
        filtered = image.filter(ImageFilter.Color3DLUT(TABLE_SIDE, values))
        return np.array(filtered).reshape(pixels.shape)


def find_stains(method: PixelMethod, pixels: Pixels) -> Found:
    """What the method finds in pixels, uint8 [..., 3]. Raises DataError where there is too little tissue to say."""
    flat = pixels.reshape(-1, 3)
    if method == "reinhard":
        lab = rgb2lab(flat[None])[0]
        return LabSpread(lab.mean(axis=0), np.maximum(lab.std(axis=0), 1e-3))
    density = _density(flat)
    tissue = density[(density >= LEAST_DENSITY).all(axis=1)]
    if len(tissue) < LEAST_PIXELS:
        raise DataError(
            f"found {len(tissue)} pixels of stained tissue, expected {LEAST_PIXELS} at least, to tell two stains apart"
        )
    _, vectors = np.linalg.eigh(np.cov(tissue.T))
    plane = vectors[:, 1:]  # [3, 2], of the two largest eigenvalues
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    along = tissue @ plane
    angles = np.arctan2(along[:, 1], along[:, 0])
    ends = [plane @ (np.cos(a), np.sin(a)) for a in np.percentile(angles, (EXTREME, 100 - EXTREME))]
    # Haematoxylin absorbs more red than eosin does.
    directions = np.array(sorted(ends, key=lambda vector: -vector[0])).T
    amounts = np.linalg.lstsq(directions, density.T, rcond=None)[0]  # [2, n]
    return TwoStains(directions, np.percentile(amounts, MOST, axis=1))


def colour_table(found: Found, reference: Found, strength: float = 1.0) -> ColourTable:
    """The table that brings a slide of `found` towards `reference`, all the way at a strength of 1, not at all at 0."""
    steps = np.linspace(0, 255, TABLE_SIDE)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    colours = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    if isinstance(found, TwoStains) and isinstance(reference, TwoStains):
        new = _restained(colours, found, reference, strength)
    else:
        assert isinstance(found, LabSpread)
        assert isinstance(reference, LabSpread)
        new = _recoloured(colours, found, reference, strength)
    side = (TABLE_SIDE,) * 3
    return ColourTable(new.clip(0, 255).round().astype(np.uint8).reshape(*side, 3))


def as_numbers(found: Found) -> tuple[float, ...]:
    """What was found as plain numbers, for a card: of two stains their vectors and amounts, of CIELAB mean and std."""
    parts = (found.directions, found.most) if isinstance(found, TwoStains) else (found.mean, found.std)
    return tuple(float(value) for part in parts for value in part.ravel())


def of_numbers(method: PixelMethod, numbers: Sequence[float]) -> Found:
    """What `as_numbers` made plain.

    Raises ValueError where these are not as many numbers as the method has, or none that it can find in pixels: stains
    of length 1 that differ, amounts and deviations above 0, colours within CIELAB.
    """
    wanted = 8 if method == "macenko" else 6
    if len(numbers) != wanted:
        raise ValueError(f"found {len(numbers)} numbers of {method}'s reference, expected {wanted}")
    values = np.array(numbers, float)
    if method == "macenko":
        stains = TwoStains(values[:6].reshape(3, 2), values[6:])
        lengths = np.hypot.reduce(stains.directions, axis=0)
        if not np.abs(lengths - 1).max() <= ROUNDING:
            raise ValueError(
                f"found the stains {values[:6].tolist()} of macenko's reference, expected unit vectors"
            )
        if stains.directions.prod(axis=1).sum() > MOST_ALIKE:
            raise ValueError(
                f"found the stains {values[:6].tolist()} of macenko's reference, expected two that differ"
            )
        if not ((values[6:] > 0) & (values[6:] <= MOST_DENSITY)).all():
            raise ValueError(
                f"found the amounts {values[6:].tolist()} of macenko's reference, expected above 0, at most "
                f"{MOST_DENSITY:g}"
            )
        return stains
    mean, std = values[:3], values[3:]
    if not 0 <= mean[0] <= 100 or np.abs(mean[1:]).max() > 128 or not ((std > 0) & (std <= 128)).all():
        raise ValueError(
            f"found mean {mean.tolist()} and deviation {std.tolist()} of reinhard's reference, expected L within 0 and "
            "100, a and b within -128 and 128, deviations above 0, at most 128"
        )
    return LabSpread(mean, std)


def _restained(
    rgb: NDArray[np.floating], found: TwoStains, reference: TwoStains, strength: float
) -> NDArray[np.float64]:
    ratio = (reference.most / np.maximum(found.most, 1e-3)).clip(1 / MAX_RATIO, MAX_RATIO) ** strength  # [2]
    directions = (1 - strength) * found.directions + strength * reference.directions
    directions = directions / np.linalg.norm(directions, axis=0)
    amounts = np.linalg.lstsq(found.directions, _density(rgb).T, rcond=None)[0]  # [2, n]
    new: NDArray[np.float64] = GLASS * np.exp(-(directions @ (amounts * ratio[:, None]))).T
    return new


def _recoloured(
    rgb: NDArray[np.floating], found: LabSpread, reference: LabSpread, strength: float
) -> NDArray[np.float64]:
    std = found.std ** (1 - strength) * reference.std**strength
    mean = (1 - strength) * found.mean + strength * reference.mean
    lab = (rgb2lab(rgb[None] / 255)[0] - found.mean) / found.std * std + mean
    lab[:, 0] = lab[:, 0].clip(0, 100)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Conversion from CIE-LAB")  # colours that no screen has
        return np.asarray(lab2rgb(lab[None])[0] * 255)


def _density(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Natural optical density, -log((RGB + 1) / 240)."""
    return np.asarray(-np.log((rgb.astype(float) + 1) / GLASS))
