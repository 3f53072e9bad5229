"""Masks as annotations: pictures (PNG, TIFF) whose values are classes, at a scale of their own.

A mask counts from the corner of the whole slide. Its scale is the config's `mask_mpp`, else what a TIFF says in pixels
per centimetre, else that at which it is as wide and high as the slide.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.slides.annotations.coverage import Cells
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, Kind, listed

# Masks are as wide and high as the slide, but for rounding.
SHAPE_TOLERANCE = 0.02
# A mask of 8 um/px of the largest slides has 60 million pixels; of a pyramid, the finest level below this is read.
MOST_PIXELS = 2**26
# A "resolution" of one pixel a centimetre, as many programs write it, is no scale.
MOST_MPP = 1000.0
TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class LabelMask:
    """What a mask says of a slide."""

    path: Path
    plane: Plane
    """Where its pixels lie on the slide."""

    idc: NDArray[np.bool_]
    """[row, column]"""

    not_idc: NDArray[np.bool_]
    """As `idc`."""

    found: Mapping[str, int]
    """Pixels of each value, in words."""

    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return listed(self.found)


def read_mask(path: Path, options: AnnotationOptions, size0: Size, mpp0: tuple[float, float]) -> LabelMask:
    """The mask in the file, on a slide of `size0` and `mpp0`.

    Raises DataError where it cannot be read, is no grey picture, does not fit the slide, or holds a value that the
    options do not name.
    """
    values, said_mpp = _read(path)
    height, width = values.shape
    mpp = options.mask_mpp or said_mpp
    if mpp:
        plane = Plane(mpp / mpp0[0], mpp / mpp0[1])
        _check_extent(path, Size(width, height), mpp, size0, plane)
    else:
        if abs(width * size0.height / (height * size0.width) - 1) > SHAPE_TOLERANCE:
            raise DataError(
                f"{path}: found {width} x {height} px, the slide has {size0.width} x {size0.height}; expected a mask "
                "of the whole slide, or its scale: annotations: {mask_mpp: ...} in the config"
            )
        plane = Plane(size0.width / width, size0.height / height)
    present, pixels = np.unique(values, return_counts=True)
    if unnamed := [int(value) for value in present if int(value) not in options.mask_classes]:
        known = ", ".join(f"{value}: {name}" for value, name in options.mask_classes.items())
        raise DataError(
            f"{path}: found the values {', '.join(map(str, unnamed[:8]))}, of which the config knows nothing; it names "
            f"{known}. Name them under annotations: mask_classes"
        )
    kinds = {int(value): options.kind_of(options.mask_classes[int(value)].split(":")) for value in present}
    found, passed_over = Counter[str](), Counter[str]()
    for value, count in zip(present.tolist(), pixels.tolist(), strict=True):
        name = f"pixels of {value} ({options.mask_classes[value]})"
        found[name] += count
        if kinds[value] is None:
            passed_over[name] += count
    warnings = []
    if passed_over:
        warnings.append(
            f"{path.name}: {listed(passed_over)} passed over: their class stands in no list of the config"
        )
    if plane.downsample_x * width < size0.width * (1 - SHAPE_TOLERANCE):
        warnings.append(f"{path.name}: the mask covers a part of the slide; the rest has no label")
    idc, not_idc = (
        np.isin(values, [value for value, kind in kinds.items() if kind is wanted])
        for wanted in (Kind.IDC, Kind.NOT_IDC)
    )
    return LabelMask(path, plane, idc, not_idc, found, tuple(warnings))


def mask_share(mask: NDArray[np.bool_], plane: Plane, cells: Cells) -> NDArray[np.float64]:
    """[row, column], 0 to 1: the share of each cell that the mask on `plane` covers, exact to the area."""
    there, scale_x, scale_y = cells.plane, plane.downsample_x, plane.downsample_y
    down = _means(
        mask,
        (there.origin_y0 - plane.origin_y0 + cells.stride * there.downsample_y * np.arange(cells.rows))
        / scale_y,
        cells.side * there.downsample_y / scale_y,
    )
    across = _means(
        down.T,
        (there.origin_x0 - plane.origin_x0 + cells.stride * there.downsample_x * np.arange(cells.columns))
        / scale_x,
        cells.side * there.downsample_x / scale_x,
    )
    return across.T


def _means(values: NDArray[Any], starts: NDArray[np.floating], length: float) -> NDArray[np.float64]:
    """[n, columns]: means over rows starts[i] to starts[i] + length of `values`, 0 outside of these."""
    exact = np.int32 if values.dtype == bool else np.float64
    total = np.pad(np.cumsum(values, axis=0, dtype=exact), ((1, 1), (0, 0)))
    total[-1] = total[-2]

    def up_to(ends: NDArray[np.floating]) -> NDArray[np.float64]:
        ends = np.clip(ends, 0, len(values))
        whole = ends.astype(np.int64)
        return np.asarray(total[whole] + (ends - whole)[:, None] * (total[whole + 1] - total[whole]))

    return (up_to(starts + length) - up_to(starts)) / length


def _check_extent(path: Path, size: Size, mpp: float, size0: Size, plane: Plane) -> None:
    """Raises DataError where the mask reaches over the slide's right or lower edge by more than rounding."""
    width0, height0 = size.width * plane.downsample_x, size.height * plane.downsample_y
    if width0 > size0.width * (1 + SHAPE_TOLERANCE) or height0 > size0.height * (1 + SHAPE_TOLERANCE):
        raise DataError(
            f"{path}: found {size.width} x {size.height} px at {mpp:g} um, {width0:.0f} x {height0:.0f} px of the "
            f"slide's {size0.width} x {size0.height}; expected a mask no larger than the slide: give its scale as "
            "annotations: {mask_mpp: ...} in the config"
        )


def _read(path: Path) -> tuple[NDArray[Any], float | None]:
    """The values [row, column], and um per pixel where the file says."""
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            values, mpp = _read_tiff(path)
        else:
            with Image.open(path) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise ValueError(_too_large(picture.width, picture.height))
                values, mpp = np.asarray(picture), None
    except Exception as error:  # Pillow and tifffile raise many kinds
        raise DataError(
            f"{path}: cannot be read as a mask ({error}); save it again as PNG or TIFF"
        ) from error
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise DataError(
            f"{path}: found an array of {values.shape}, {values.dtype}; expected a grey picture of classes"
        )
    return values.astype(np.uint8) if values.dtype == bool else values, mpp


def _read_tiff(path: Path) -> tuple[NDArray[Any], float | None]:
    """The finest level of no more than MOST_PIXELS, and its um per pixel where the file says."""
    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        for level in levels:
            if level.size <= MOST_PIXELS:
                break
        else:
            raise ValueError(_too_large(levels[-1].shape[1], levels[-1].shape[0]))
        page = file.series[0].levels[0].keyframe
        values = np.squeeze(level.asarray())
        unit, resolution = page.tags.get("ResolutionUnit"), page.tags.get("XResolution")
        if unit is None or resolution is None or int(unit.value) != 3 or not resolution.value[0]:
            return values, None
        mpp = 1e4 * resolution.value[1] / resolution.value[0] * page.imagewidth / values.shape[1]
        return values, mpp if mpp < MOST_MPP else None


def _too_large(width: int, height: int) -> str:
    return f"{width} x {height} px, at most {MOST_PIXELS:,} are read: save it reduced, or as a pyramid"
