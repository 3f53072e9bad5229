"""Where to grade: circles of a high-power field, and the hot spot, chosen for where mitoses are likeliest.

The rule: a place counts by its carcinoma nuclei per mm2 of tissue, each nucleus with the model's probability where it
lies, those outside of regions not at all; and more at the invasive front. Mitoses are not seen: where cells lie densest
and grow outwards they are likeliest, and there they are to be counted. Where nuclei cannot be counted, the mean
probability stands in their place. docs/fields.md says it in full.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import shapely

from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.text import counted
from wsi_pipeline.base.types import Mask
from wsi_pipeline.results.discs import Floats, mean_at, mean_in_disc
from wsi_pipeline.results.field_ground import FieldGround
from wsi_pipeline.results.field_score import FieldScore, first_of, radius_um_of
from wsi_pipeline.results.nuclei import Cellularity
from wsi_pipeline.results.regions import IdcRegion

# Areas that reading protocols count mitoses in, mm2; the first is where the hottest place is sought.
HOT_SPOTS_MM2 = (1.0, 2.0)
# A spot is as large as wanted, and regions hold as much, where so much of it is there: areas are counted by pixels.
ENOUGH = 0.98
# The largest radius of the circle that holds so much tissue; beyond it is no spot.
MOST_HOT_SPOT_UM = 2_000.0
# Where room is short, places that count so much of the hottest left are as good as it: fields are laid closer then.
NEARLY_HOTTEST = 0.85


@options
class FieldOptions:
    """Where fields for grading are laid, and what is left of them beside the map."""

    count: Annotated[int, Field(ge=0)] = 10
    """At most this many fields; 0: none, nor a hot spot. Mitoses are counted in 10 high-power fields (Elston and Ellis
    1991)."""

    diameter_mm: Annotated[float, Field(gt=0, le=5)] = 0.55
    """Diameter of the high-power field. 0.55 mm (0.24 mm2) is the usual 40x objective with a 22 mm eyepiece
    field; the mitosis score depends on it (Cree et al. 2021, doi:10.1038/s41379-021-00825-7)."""

    min_tissue: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a field that must be tissue that is not rejected: on glass nothing is counted."""

    min_tumour: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a field that must lie in regions. Half: fields at the growing edge qualify, strays do not."""

    front_bonus: Annotated[float, Field(ge=0, le=4)] = 0.25
    """How much more a place within half a millimetre of the invasive front counts, as a share: cells divide more at the
    growing edge, where counting is to begin. 0: the front counts as the inside does."""

    max_counted_mm2: Annotated[float, Field(ge=0)] = 12.0
    """At most so much of the regions is looked at for nuclei, where they are densest by the thumbnail's haematoxylin: a
    few seconds. 0: nuclei are not counted."""

    crops_mpp: Annotated[float, Field(gt=0, le=4)] | None = None
    """um per pixel of a PNG of each field, in the folder `fields`; 0.25 is 40x. None: none."""


@dataclass(frozen=True)
class GradingField:
    """A circle on the slide to grade in: an ellipse in level-0 pixels where these are not square."""

    name: str
    x0: float
    y0: float
    radius_x0: float
    radius_y0: float
    mean_probability: float
    region_name: str
    usable_mm2: float
    """Tissue in it that is not rejected."""

    nuclei_per_mm2: float | None
    """Carcinoma nuclei per mm2 of its tissue; None where they were not counted."""

    front_share: float
    """Of what of it lies in regions, the share at the invasive front."""


@dataclass(frozen=True)
class HotSpot:
    """The circle around the hottest place that holds a wanted area of tissue; an ellipse in level-0 pixels."""

    name: str
    x0: float
    y0: float
    radius_x0: float
    radius_y0: float
    wanted_mm2: float
    usable_mm2: float
    """Tissue in it that is not rejected; less than wanted where there is no more around."""

    idc_mm2: float
    """Of that, what lies in regions."""


@dataclass(frozen=True, eq=False)
class FieldChoice:
    """Fields, the hottest first, the hot spots, and how they were chosen."""

    fields: tuple[GradingField, ...]
    hot_spots: tuple[HotSpot, ...]
    rule: str
    """By what they were chosen, in a sentence."""

    warnings: tuple[str, ...] = ()
    """What is not as wanted, a sentence each."""

    cellularity: Cellularity | None = None
    """What they were chosen by, where nuclei were counted."""


NO_FIELDS = FieldChoice((), (), "")


def choose_fields(
    ground: FieldGround,
    regions: Sequence[IdcRegion],
    options: FieldOptions,
    cellularity: Cellularity | None = None,
) -> FieldChoice:
    """Circles that do not overlap, wholly inside the slide, with tissue and tumour enough, the hottest first.

    cellularity: nuclei by cell of the ground; None where they cannot be counted, or are not asked for.
    """
    if not options.count:
        return NO_FIELDS
    by = FieldScore(ground, options.front_bonus, cellularity)
    radius_um = options.diameter_mm * 1000 / 2
    score, tissue = by.in_discs(radius_um)
    allowed = by.is_tumour(radius_um, options.min_tumour) & _inside(ground, radius_um)
    # The disc on cells is known to a hundredth of it: what it excludes is less than that short of tissue.
    allowed &= tissue >= options.min_tissue - 0.02
    score = np.where(allowed, score, -1.0)
    fields = _laid(ground, by, regions, options, score.copy(), 1.0)
    if len(fields) < options.count:
        closer = _laid(ground, by, regions, options, score, NEARLY_HOTTEST)
        fields = max(fields, closer, key=len)
    idc_mm2 = sum(region.area_mm2 for region in regions)
    hot_spots = _hot_spots(ground, by, idc_mm2)
    said = (*_room_warnings(fields, options), *_hot_spot_warnings(hot_spots, idc_mm2))
    return FieldChoice(fields, hot_spots, by.rule, said, cellularity)


def with_warning(choice: FieldChoice, warning: str) -> FieldChoice:
    """The choice with one more thing to say, the first."""
    return replace(choice, warnings=(warning, *choice.warnings))


def _laid(
    ground: FieldGround,
    by: FieldScore,
    regions: Sequence[IdcRegion],
    options: FieldOptions,
    score: Floats,
    nearly_hottest: float,
) -> tuple[GradingField, ...]:
    """Fields where `score` is highest, -1 where none may lie; it is changed.

    Of places with at least `nearly_hottest` of the highest score left, the one that leaves most room is taken.
    """
    radius_um = options.diameter_mm * 1000 / 2
    radius0 = (radius_um / ground.mpp0[0], radius_um / ground.mpp0[1])
    disc, width_height = by.disc(radius_um), ground.cell_um
    area_mm2 = math.pi * (radius_um / 1000) ** 2
    rows, columns = np.arange(score.shape[0])[:, None], np.arange(score.shape[1])[None, :]
    polygons = np.array([region.polygon for region in regions])
    whole_disc = by.disc(2 * radius_um)
    taken = _room_taken(score, whole_disc)
    fields: list[GradingField] = []
    found: list[float] = []
    while len(fields) < options.count:
        hottest = float(score.max(initial=-1.0))
        if hottest < 0:
            break
        nearly = np.flatnonzero(score >= nearly_hottest * hottest)
        for place in nearly[np.argsort(taken.ravel()[nearly], kind="stable")]:
            row, column = (int(n) for n in np.unravel_index(place, score.shape))
            x0, y0 = ground.plane.point_to_level0(column + 0.5, row + 0.5)
            usable_mm2 = ground.usable_mm2(x0, y0, radius_um)
            if usable_mm2 >= options.min_tissue * area_mm2:
                found.append(float(score[row, column]))
                break
            score[row, column] = -1.0
        else:
            continue
        fields.append(
            GradingField(
                name=f"Field {len(fields) + 1}",
                x0=x0,
                y0=y0,
                radius_x0=radius0[0],
                radius_y0=radius0[1],
                mean_probability=mean_at(ground.probability, disc, row, column),
                region_name=regions[int(shapely.distance(polygons, shapely.Point(x0, y0)).argmin())].name,
                usable_mm2=usable_mm2,
                nuclei_per_mm2=by.nuclei_per_mm2(disc, row, column),
                front_share=by.front_share(disc, row, column),
            )
        )
        away = ((rows - row) * width_height[1]) ** 2 + ((columns - column) * width_height[0]) ** 2
        score[away < (2 * radius_um) ** 2 * (1 - 1e-9)] = -1.0
        _take_room(taken, score, whole_disc, row, column)
    order = sorted(range(len(fields)), key=lambda i: -found[i])
    return tuple(replace(fields[i], name=f"Field {n}") for n, i in enumerate(order, start=1))


def _room_taken(score: Floats, disc: Floats) -> Floats:
    """How much of where fields may still lie a field at each cell would take from others; rounded against noise."""
    return np.round(mean_in_disc(score >= 0, disc), 4)


def _take_room(taken: Floats, score: Floats, disc: Floats, row: int, column: int) -> None:
    """Bring `taken` up to date, in place, after a field was laid on a cell: nothing changed but around it."""
    half_y, half_x = disc.shape[0] // 2, disc.shape[1] // 2
    top, left = max(0, row - 3 * half_y), max(0, column - 3 * half_x)
    around = score[top : row + 3 * half_y + 1, left : column + 3 * half_x + 1]
    change_top, change_left = max(0, row - 2 * half_y), max(0, column - 2 * half_x)
    inner = slice(change_top, row + 2 * half_y + 1), slice(change_left, column + 2 * half_x + 1)
    height, width = taken[inner].shape
    anew = _room_taken(around, disc)[change_top - top :, change_left - left :]
    taken[inner] = anew[:height, :width]


def _hot_spots(ground: FieldGround, by: FieldScore, idc_mm2: float) -> tuple[HotSpot, ...]:
    """Around the place whose circle of the first area is hottest, circles that hold as much tissue each.

    None is larger than all `idc_mm2` of the regions: it would be counted in tissue that is no carcinoma.
    """
    offered = [wanted for wanted in HOT_SPOTS_MM2 if _is_held(idc_mm2, wanted)]
    if not offered:
        return ()
    first_um = radius_um_of(HOT_SPOTS_MM2[0])
    score, tissue = by.in_discs(first_um)
    # On a thin core such a circle is never full of tissue: the fuller, the better.
    score = np.where(by.is_tumour(first_um, 0.0), np.round(score * tissue, 6), -1.0)
    row, column = first_of(score)
    if score[row, column] <= 0:
        return ()
    x0, y0 = ground.plane.point_to_level0(column + 0.5, row + 0.5)
    spots = []
    for wanted in offered:
        radius_um = _radius_that_holds(ground, x0, y0, wanted)
        spots.append(
            HotSpot(
                name=f"Hot spot {wanted:g} mm2",
                x0=x0,
                y0=y0,
                radius_x0=radius_um / ground.mpp0[0],
                radius_y0=radius_um / ground.mpp0[1],
                wanted_mm2=wanted,
                usable_mm2=(usable_mm2 := ground.usable_mm2(x0, y0, radius_um)),
                idc_mm2=min(usable_mm2, ground.idc_mm2(x0, y0, radius_um)),
            )
        )
    return tuple(spots)


def _is_held(there_mm2: float, wanted_mm2: float) -> bool:
    """Whether there is as much as is wanted, but for what counting by pixels may lose."""
    return there_mm2 >= ENOUGH * wanted_mm2


def _radius_that_holds(ground: FieldGround, x0: float, y0: float, wanted_mm2: float) -> float:
    """The least radius, to a micrometre, of a circle with so much tissue; the largest allowed where none has."""
    least, most = radius_um_of(wanted_mm2), MOST_HOT_SPOT_UM
    # A circle full of tissue: its pixels are counted, and may be a few short.
    if ground.usable_mm2(x0, y0, least) >= 0.99 * wanted_mm2:
        return least
    if ground.usable_mm2(x0, y0, most) < wanted_mm2:
        return most
    while most - least > 1:
        middle = (least + most) / 2
        least, most = (least, middle) if ground.usable_mm2(x0, y0, middle) >= wanted_mm2 else (middle, most)
    return most


def _inside(ground: FieldGround, radius_um: float) -> Mask:
    """The cells around whose centre a circle lies wholly inside the scanned area."""
    bounds, plane = ground.bounds, ground.plane
    rows, columns = ground.usable.shape
    x0 = plane.origin_x0 + (np.arange(columns) + 0.5) * plane.downsample_x
    y0 = plane.origin_y0 + (np.arange(rows) + 0.5) * plane.downsample_y
    reach_x, reach_y = (radius_um / mpp for mpp in ground.mpp0)
    in_x = (x0 - reach_x >= bounds.x) & (x0 + reach_x <= bounds.right)
    in_y = (y0 - reach_y >= bounds.y) & (y0 + reach_y <= bounds.bottom)
    return np.asarray(in_y[:, None] & in_x[None, :], np.bool_)


def _room_warnings(fields: Sequence[GradingField], options: FieldOptions) -> list[str]:
    """That there is no room for as many fields as are asked for."""
    if len(fields) >= options.count:
        return []
    found = counted(len(fields), "field") if fields else "no field"
    return [
        f"{found} for grading found room ({options.count} asked for): each is a circle of {options.diameter_mm:g} mm "
        f"inside the slide, {options.min_tissue:.0%} of it tissue and {options.min_tumour:.0%} in regions, and none "
        f"over another"
    ]


def _hot_spot_warnings(hot_spots: Sequence[HotSpot], idc_mm2: float) -> list[str]:
    """Which hot spots are not offered, and which hold less tissue than their names say."""
    said = [
        f"{spot.name}: there is no more than {spot.usable_mm2:.2f} mm2 of tissue within "
        f"{MOST_HOT_SPOT_UM / 1000:g} mm of it"
        for spot in hot_spots
        if not _is_held(spot.usable_mm2, spot.wanted_mm2)
    ]
    too_large = [f"{wanted:g} mm2" for wanted in HOT_SPOTS_MM2 if not _is_held(idc_mm2, wanted)]
    if too_large:
        said.append(
            f"no hot spot of {' or '.join(too_large)}: the regions hold {idc_mm2:.2f} mm2 of tissue in all; count "
            f"mitoses in all of it"
        )
    return said
