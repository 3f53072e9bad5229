"""Only within people's outlines: what an overview is, once all that lies outside of an area is left out."""

from dataclasses import replace

import numpy as np

from wsi_pipeline.base.text import counted
from wsi_pipeline.slides.annotations.coverage import Cells, covered_share
from wsi_pipeline.slides.annotations.geojson import Inside
from wsi_pipeline.tiling.overview import Overview

# Share of a patch, and of a pixel of the tissue's mask, that must lie inside.
MIN_INSIDE = 0.5


def within(overview: Overview, inside: Inside, mpp0: tuple[float, float]) -> Overview:
    """The overview with tissue and patches within the area alone, and a warning that says so.

    A patch belongs to it where half of the patch lies inside; `mpp0` is um per level-0 pixel.
    """
    tissue, plan, grid = overview.tissue, overview.plan, overview.plan.grid
    height, width = tissue.mask.shape
    pixels = covered_share(inside.area, Cells(tissue.plane, width, height)) >= MIN_INSIDE
    cells = Cells(grid.plane, grid.columns, grid.rows, grid.patch_px, grid.stride_px)
    patches = covered_share(inside.area, cells) >= MIN_INSIDE
    limited = replace(
        overview,
        tissue=replace(tissue, mask=tissue.mask & pixels),
        artefacts=replace(overview.artefacts, rejected=overview.artefacts.rejected & pixels),
        plan=replace(
            plan,
            tissue=np.where(patches, plan.tissue, 0).astype(np.float32),
            kept=plan.kept & patches,
            rejected=plan.rejected & patches,
        ),
    )
    there, all_of_it = limited.tissue_mm2(mpp0), overview.tissue_mm2(mpp0)
    warning = (
        f"mapped within the {counted(inside.outlines, 'outline')} of {inside.path.name} alone: {there:.2f} of "
        f"{all_of_it:.2f} mm2 of tissue; shares and areas are of what lies inside"
    )
    if overview.artefacts.areas_mm2 and overview.artefacts.rejected.any():
        warning += ", tissue not scored for its artefacts is of the whole slide"
    nothing = () if limited.plan.kept.any() or not plan.kept.any() else ("no patch lies within the outlines",)
    return replace(limited, warnings=(warning, *nothing, *inside.warnings, *overview.warnings))
