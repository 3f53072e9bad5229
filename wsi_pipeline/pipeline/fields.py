"""Fields to grade in, of a finished map: where nuclei are counted, counting them, choosing."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wsi_pipeline.base.files import OutPath, remove
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.types import FloatMap
from wsi_pipeline.results.cellularity import COARSEST_MPP, haematoxylin
from wsi_pipeline.results.cellularity_image import write_cellularity
from wsi_pipeline.results.field_ground import FieldGround, at_centres, field_ground
from wsi_pipeline.results.field_score import where_to_count
from wsi_pipeline.results.fields import (
    NO_FIELDS,
    FieldChoice,
    FieldOptions,
    choose_fields,
    with_warning,
)
from wsi_pipeline.results.figures.field_sheet import write_crops, write_field_sheet
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.nuclei import can_be_counted, count_nuclei
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.results.run_folder import CELLULARITY, CROPS, SHEET
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.overview import Overview


def with_fields(
    finished: FinishedMap, slide: Slide, overview: Overview, options: FieldOptions
) -> FinishedMap:
    """The map with its fields for grading, for which pixels of the slide are read. Raises SlideError."""
    choice = fields_of(slide, overview, finished.heatmap, finished.plane, finished.regions, options)
    return replace(finished, choice=choice)


def write_fields(
    folder: OutPath, slide: Slide, overview: Overview, finished: FinishedMap, options: FieldOptions
) -> None:
    """Write fields.png, the nuclei that were counted, and crops where they are wanted; remove those of before.

    Raises OutputError, SlideError.
    """
    for name in (SHEET, CELLULARITY, CROPS):
        remove(folder / name)
    if not options.count:
        return
    choice = finished.choice
    if choice.cellularity is not None:
        write_cellularity(folder / CELLULARITY, choice.cellularity, slide.mpp)
    if options.crops_mpp is not None:
        write_crops(folder / CROPS, slide, choice.fields, options.crops_mpp)
    write_field_sheet(folder / SHEET, slide, overview.thumbnail, finished, options.diameter_mm)


def fields_of(
    slide: Slide,
    overview: Overview,
    heatmap: FloatMap,
    plane: Plane,
    regions: Sequence[IdcRegion],
    options: FieldOptions,
) -> FieldChoice:
    """Fields and hot spots of a map, [row, column] on `plane`, with these regions; none where there is no region.

    Reads pixels of the slide where nuclei are counted. Raises SlideError.
    """
    if not regions or not options.count:
        return NO_FIELDS
    tissue = overview.tissue.mask & ~overview.artefacts.rejected
    ground = field_ground(tissue, overview.tissue.plane, slide.bounds, slide.mpp, heatmap, plane, regions)
    if not options.max_counted_mm2:
        return choose_fields(ground, regions, options)
    if not can_be_counted(slide):
        choice = choose_fields(ground, regions, options)
        return with_warning(
            choice,
            f"fields for grading were chosen by probability and tissue alone: the slide has {max(slide.mpp):.3g} um "
            f"per pixel, and nuclei are counted on slides of {COARSEST_MPP:g} um per pixel or finer",
        )
    wanted = where_to_count(ground, _haematoxylin_of(overview, ground), options.max_counted_mm2)
    return choose_fields(ground, regions, options, count_nuclei(slide, wanted, ground.plane))


def _haematoxylin_of(overview: Overview, ground: FieldGround) -> FloatMap:
    """What the thumbnail shows of haematoxylin at each cell; 0 where it does not reach."""
    thumbnail = overview.thumbnail
    density = haematoxylin(thumbnail.rgb)
    return np.nan_to_num(
        at_centres(density, thumbnail.plane.coarser(2, 2), ground.plane, ground.usable.shape)
    )
