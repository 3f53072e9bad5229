"""A slide looked at from afar: thumbnail, tissue, artefacts, and from these the plan of patches."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import UnreadableSlideError
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.types import Mask, RgbImage
from wsi_pipeline.slides.resample import resample
from wsi_pipeline.slides.slide import Pixels, Slide
from wsi_pipeline.tiling.artefacts import ArtefactOptions, Artefacts, find_artefacts
from wsi_pipeline.tiling.cell_status import Status, initial_status
from wsi_pipeline.tiling.grid import GridOptions, Plan, plan_grid, plan_patches
from wsi_pipeline.tiling.tissue import Tissue, TissueOptions, find_tissue

# The pictures' thumbnail: as many pixels along its longer side, if the slide has them.
THUMBNAIL_PX = 2000
# Scanners' 40x is anything from 0.22 to 0.27 um/px: that is no cause for a warning.
NOTABLE_UPSAMPLING = 1.1
# Of all tissue: rims alone, which every slide has, are less.
NOTABLE_TOO_LITTLE = 0.1
# What tissue.png and summary.json call tissue that lies where no patch is scored, though nothing is wrong with it.
TOO_LITTLE, BESIDE_ARTEFACTS = "too little", "beside artefacts"


@options
class OverviewOptions:
    """How a slide is looked at before any patch is read."""

    tissue: TissueOptions = TissueOptions()
    quality: ArtefactOptions = ArtefactOptions()
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.25
    """A slide fails when more than this share of it cannot be decoded; below, it is mapped with gaps."""


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A small picture of a whole slide, and where it lies on it."""

    rgb: RgbImage
    plane: Plane

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rgb.shape[0], self.rgb.shape[1]


@dataclass(frozen=True, eq=False)
class Overview:
    """What is known of a slide before any patch is read."""

    thumbnail: Thumbnail
    tissue: Tissue
    artefacts: Artefacts
    plan: Plan
    warnings: tuple[str, ...]

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """uint8 [row, column] at the tissue plane: 0 none, 1 tissue, 2 tissue rejected by quality."""
        return np.where(self.artefacts.rejected, 2, 1).astype(np.uint8) * self.tissue.mask

    def tissue_mm2(self, mpp0: tuple[float, float]) -> float:
        """Area of the tissue, less what of it was rejected by quality; `mpp0` is um per level-0 pixel."""
        plane = self.tissue.plane
        pixel_um2 = plane.downsample_x * mpp0[0] * plane.downsample_y * mpp0[1]
        return float((self.labels == 1).sum()) * pixel_um2 / 1e6

    @cached_property
    def passed_over(self) -> dict[str, Mask]:
        """Tissue that is no artefact and yet not scored, [row, col] of the tissue plane, by reason.

        TOO_LITTLE: its patches hold less than min_tissue. BESIDE_ARTEFACTS: too much of them is artefact.
        """
        clean = self.tissue.mask & ~self.artefacts.rejected
        status, plane, cells = initial_status(self.plan), self.tissue.plane, self.plan.grid.map_plane
        rows, columns = np.arange(clean.shape[0]) + 0.5, np.arange(clean.shape[1]) + 0.5
        row = (plane.origin_y0 + rows * plane.downsample_y - cells.origin_y0) / cells.downsample_y
        column = (plane.origin_x0 + columns * plane.downsample_x - cells.origin_x0) / cells.downsample_x
        # What is planned reaches over the slide's edge, or to within a pixel of it.
        at_row, at_column = (
            np.clip(np.floor(at).astype(int), 0, length - 1)
            for at, length in zip((row, column), status.shape, strict=True)
        )
        of_pixels = status[at_row[:, None], at_column[None, :]]
        return {
            TOO_LITTLE: clean & (of_pixels == Status.BACKGROUND),
            BESIDE_ARTEFACTS: clean & (of_pixels == Status.REJECTED),
        }

    def passed_over_mm2(self, mpp0: tuple[float, float]) -> dict[str, float]:
        """Its areas; `mpp0` is um per level-0 pixel."""
        plane = self.tissue.plane
        pixel_um2 = plane.downsample_x * mpp0[0] * plane.downsample_y * mpp0[1]
        return {name: float(mask.sum()) * pixel_um2 / 1e6 for name, mask in self.passed_over.items()}

    def on_thumbnail(self, mask: Mask) -> Mask:
        """A mask of the tissue plane, bool [row, column] of the thumbnail."""
        height, width = self.thumbnail.shape
        return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST), np.bool_)


def make_overview(slide: Slide, options: OverviewOptions, grid: GridOptions) -> Overview:
    """Thumbnail, tissue, artefacts and plan; one read of a low-power plane.

    Raises UnreadableSlideError, and what `plan_grid` raises.
    """
    plan_grid(slide, grid)  # raises for a grid that cannot be, before anything is read
    plane = slide.plane_at(_thumbnail_mpp(slide, options.tissue.mpp))
    thumbnail = slide.read_whole(plane)
    share = 1 - float(thumbnail.readable.mean())
    if share > options.max_unreadable:
        raise UnreadableSlideError(too_unreadable(slide, share, options.max_unreadable))
    seen, mask_plane = _reduced(thumbnail, plane, slide.plane_at(options.tissue.mpp), slide)
    mpp = (mask_plane.downsample_x * slide.mpp[0], mask_plane.downsample_y * slide.mpp[1])
    thumbnail, plane = _no_larger(thumbnail, plane, slide)
    tissue = find_tissue(seen.rgb, mask_plane, mpp, options.tissue, seen.readable)
    artefacts = find_artefacts(
        seen.rgb, mask_plane, mpp, tissue.mask & seen.readable, tissue.glass, options.quality
    )
    plan = plan_patches(slide, tissue.mask, artefacts.rejected, mask_plane, grid)
    warnings = [*slide.warnings]
    if slide.scale_note:
        warnings.append(slide.scale_note)
    if grid.mpp and max(slide.mpp) > grid.mpp * NOTABLE_UPSAMPLING:
        warnings.append(
            f"patches are enlarged {max(slide.mpp) / grid.mpp:.2f} times: the slide has {max(slide.mpp):g} "
            f"um per pixel, the grid wants {grid.mpp:g}"
        )
    if tissue.glass_assumed:
        colours = " or ".join("rgb({:.0f}, {:.0f}, {:.0f})".format(*glass.rgb) for glass in tissue.glass)
        warnings.append(
            f"no empty glass was seen: tissue was found as if the glass were {colours}; look at tissue.png"
        )
    if tissue.reason:
        warnings.append(f"no tissue: {tissue.reason}")
    elif not plan.kept.any():
        warnings.append(f"no patch holds {grid.min_tissue:.0%} tissue")
    warnings += [
        f"{mm2:.2f} mm2 of tissue not scored: {name}" for name, mm2 in artefacts.areas_mm2.items() if mm2
    ]
    overview = Overview(Thumbnail(thumbnail.rgb, plane), tissue, artefacts, plan, tuple(warnings))
    return replace(overview, warnings=(*warnings, *_too_little(overview, slide, grid)))


def _too_little(overview: Overview, slide: Slide, grid: GridOptions) -> list[str]:
    """What to say where much of the tissue lies in patches that hold too little of it."""
    mm2, all_mm2 = overview.passed_over_mm2(slide.mpp)[TOO_LITTLE], overview.tissue_mm2(slide.mpp)
    if mm2 <= NOTABLE_TOO_LITTLE * all_mm2 or not overview.plan.kept.any():
        return []
    return [
        f"{mm2:.2f} of {all_mm2:.2f} mm2 of tissue not scored: it lies in patches with less than "
        f"{grid.min_tissue:.0%} tissue (min_tissue)"
    ]


def thumbnail_of(slide: Slide) -> Thumbnail:
    """A picture of the slide, THUMBNAIL_PX along its longer side or less. Raises UnreadableSlideError."""
    plane = slide.plane_at(_thumbnail_mpp(slide, float("inf")))
    return Thumbnail(slide.read_whole(plane).rgb, plane)


def _thumbnail_mpp(slide: Slide, tissue_mpp: float) -> float:
    """No coarser than the tissue plane, no finer than the slide, else THUMBNAIL_PX along the longer side."""
    longest_um = max(slide.bounds.width * slide.mpp[0], slide.bounds.height * slide.mpp[1])
    return min(tissue_mpp, max(*slide.mpp, longest_um / THUMBNAIL_PX))


def _reduced(pixels: Pixels, plane: Plane, wanted: Plane, slide: Slide) -> tuple[Pixels, Plane]:
    """The pixels on a coarser plane, without reading again."""
    if plane == wanted:
        return pixels, plane
    size = slide.size_on(wanted)
    step = (wanted.downsample_x / plane.downsample_x, wanted.downsample_y / plane.downsample_y)
    rgb = resample(pixels.rgb, size.width, size.height, (0, 0), step)
    if pixels.unreadable is None:
        return Pixels(rgb), wanted
    lost = np.repeat(np.where(pixels.unreadable, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    return Pixels(rgb, resample(lost, size.width, size.height, (0, 0), step)[..., 0] > 0), wanted


def _no_larger(thumbnail: Pixels, plane: Plane, slide: Slide) -> tuple[Pixels, Plane]:
    """The thumbnail reduced to THUMBNAIL_PX along its longer side, where the tissue plane of a large slide has more."""
    longest_um = max(slide.bounds.width * slide.mpp[0], slide.bounds.height * slide.mpp[1])
    wanted = slide.plane_at(longest_um / THUMBNAIL_PX)
    return (
        _reduced(thumbnail, plane, wanted, slide)
        if wanted.downsample_x > plane.downsample_x
        else (thumbnail, plane)
    )


def too_unreadable(slide: Slide, share: float, allowed: float) -> str:
    """Why a slide is given up of which `share`, 0 to 1, cannot be decoded."""
    return (
        f"{slide.path}: {share:.0%} of it cannot be decoded, at most {allowed:.0%} is allowed (max_unreadable); "
        f"copy or scan it again"
    )
