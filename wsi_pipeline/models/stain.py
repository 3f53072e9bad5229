"""Stain of one slide brought part of the way to that of a model's training data, by one table a channel.

Laboratories and scanners stain and light differently; within a slide that is the same everywhere. So the slide's mean
optical density (Beer-Lambert: -log10 of the light let through) is measured once, and each channel's density is
multiplied towards the training mean. Only part of the way: how dense a slide is also says what is on it. A card may ask
for Macenko's or Reinhard's method instead (stain_methods.py).
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.models.stain_methods import (
    ColourTable,
    StainMethod,
    colour_table,
    find_stains,
    of_numbers,
)

if TYPE_CHECKING:  # model.py takes torch along
    from wsi_pipeline.models.card import ModelCard, Stain

log = logging.getLogger(__name__)

DENSITY = -np.log10((np.arange(256) + 1) / 256).astype(np.float32)
# A mean over so few patches is half of it chance: it is trusted by half.
HALF_TRUSTED = 16
# More say no more: a slide is sampled at so many, and a patient of 2,000 labelled patches should look the same.
FULLY_COUNTED = 64
MAX_GAIN = 2.0

Tables = NDArray[np.uint8]
# What normalises a slide's pixels: a table a channel, or one of colours.
Normaliser = Tables | ColourTable


def stain_gain(
    densities: NDArray[np.floating], stain: "Stain", strength: float
) -> NDArray[np.float64] | None:
    """What each channel's optical density is multiplied by, float [3]; None where nothing is to change.

    `densities`, float [n, 3], are the mean optical densities of n patches of one slide. The gain is
    (training mean / slide mean) ** s, where s is `strength` (0 to 1) times m / (m + 16), m being n but 64 at
    most; it is no more than 2 either way.
    """
    target = np.array(stain.od_mean)
    if strength == 0 or not len(densities) or not target.all():
        return None
    counted = min(len(densities), FULLY_COUNTED)
    trusted = strength * counted / (counted + HALF_TRUSTED)
    gain = (target / np.maximum(densities.mean(axis=0), 1e-3)) ** trusted
    return np.asarray(gain.clip(1 / MAX_GAIN, MAX_GAIN))


def stain_gain_of(card: "ModelCard", densities: NDArray[np.floating]) -> list[float] | None:
    """The gain of a slide of these densities under a card, R, G, B, for the summary."""
    if card.stain_method != "gain":
        return None
    gain = stain_gain(densities, card.stain, card.stain_normalisation)
    return None if gain is None else [round(float(value), 4) for value in gain]


def stain_tables(densities: NDArray[np.floating], stain: "Stain", strength: float) -> Tables | None:
    """For each of R, G, B the new value of each old one, uint8 [3, 256], by `stain_gain`; None where it is none."""
    gain = stain_gain(densities, stain, strength)
    return None if gain is None else tables_of(gain)


def tables_of(gain: NDArray[np.float64]) -> Tables:
    """The tables, uint8 [3, 256], that multiply the optical density of R, G and B by `gain`, float [3]."""
    density = gain[:, None] * DENSITY.astype(float)  # [3, 256]
    new: Tables = (256 * 10**-density - 1).clip(0, 255).round().astype(np.uint8)
    return new


def colours_of(
    sample: NDArray[np.uint8], stain: "Stain", strength: float, method: StainMethod
) -> Normaliser | None:
    """How a slide, of which these are patches, uint8 [n, S, S, 3], is normalised; None where it is left as it is.

    `sample` may be of many patches: no more than 64 are looked at by Macenko's and Reinhard's methods, evenly taken.
    Raises DataError where Macenko's method finds too little tissue.
    """
    if strength == 0 or not len(sample):
        return None
    if method == "gain":
        return stain_tables(patch_densities(sample), stain, strength)
    some = sample[np.linspace(0, len(sample) - 1, min(FULLY_COUNTED, len(sample))).astype(int)]
    return colour_table(find_stains(method, some), of_numbers(method, stain.reference), strength)


def normalise_stain(patches: NDArray[np.uint8], tables: Normaliser | None) -> NDArray[np.uint8]:
    """The patches, uint8 [..., 3], by those tables; the very same where there are none."""
    if tables is None or not patches.size:
        return patches
    if isinstance(tables, ColourTable):
        return tables.applied(patches)
    # Pillow looks up in bytes: twice as fast as numpy, which makes an index of each.
    row = patches.shape[-2]
    image = Image.frombuffer(
        "RGB", (row, patches.size // (3 * row)), np.ascontiguousarray(patches), "raw", "RGB", 0, 1
    )
    return np.array(image.point(tables.ravel().tolist())).reshape(patches.shape)


def normalise_stain_by_patient(
    pixels: NDArray[np.uint8],
    patients: NDArray[np.str_],
    stain: "Stain",
    strength: float,
    method: StainMethod = "gain",
) -> NDArray[np.uint8]:
    """Labelled patches, uint8 [N, S, S, 3], each by the tables of its patient's.

    The log names patients whose stain cannot be told, and who are left as they are.
    """
    if strength == 0:
        return pixels
    new = np.empty_like(pixels)
    for patient in np.unique(patients):
        rows = np.flatnonzero(patients == patient)
        try:
            tables = colours_of(pixels[rows], stain, strength, method)
        except DataError as error:
            log.warning("%s: stain left as it is: %s", patient, error)
            tables = None
        new[rows] = normalise_stain(pixels[rows], tables)
    return new


def as_the_card_wants(
    pixels: NDArray[np.uint8], patients: NDArray[np.str_], card: "ModelCard"
) -> NDArray[np.uint8]:
    """Labelled patches, uint8 [N, S, S, 3], as the card's network takes them."""
    return normalise_stain_by_patient(
        pixels, patients, card.stain, card.stain_normalisation, card.stain_method
    )


def patch_densities(patches: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Mean optical density, -log10((RGB + 1) / 256), of each patch, uint8 [H, W, 3]: float [N, 3]."""
    means = [DENSITY[patch].mean(axis=(0, 1), dtype=float) for patch in patches]
    return np.array(means).reshape(-1, 3)  # [N, 3]
