"""A store's images as OME-Zarr 0.5 says them: their levels, where these lie on the slide, how viewers show them.

Physical coordinates are micrometres from the upper left corner of level 0, of pixel centres. Viewers differ in what
they make of that: some leave a translation out, some draw pixels from their corners. Either moves an image by half a
pixel, which of a cell of 200 um is 100 um. So the images that viewers are pointed to have small pixels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.tiling.cell_status import Status

# A pyramid ends at a level that fits a thumbnail.
SMALLEST_LEVEL = 64
# Pixels of the images for viewers: half of one is less than a nucleus, and a map of 25 mm takes 10 kB.
DISPLAY_UM = 8.0
# Of one image for viewers: a map of a million cells is not made larger than can be written in a second.
MOST_DISPLAY_PIXELS = 2**26

STATUS_COLOURS = {
    Status.BACKGROUND: (0, 0, 0, 0),
    Status.SCORED: (68, 119, 170, 255),
    Status.REJECTED: (204, 187, 68, 255),
    Status.UNREADABLE: (238, 102, 119, 255),
    Status.PLANNED: (187, 187, 187, 255),
}


def display_factor(plane: Plane, mpp0: tuple[float, float], size: Size) -> int:
    """How often cells are repeated along x and y for viewers: a power of two, so that levels fall on whole cells.

    plane, size: of the cells. Pixels come to about DISPLAY_UM, and to no more than MOST_DISPLAY_PIXELS.
    """
    cell_um = max(plane.downsample_x * mpp0[0], plane.downsample_y * mpp0[1])
    wanted = round(math.log2(max(1.0, cell_um / DISPLAY_UM)))
    allowed = int(math.log2(max(1.0, MOST_DISPLAY_PIXELS / max(1, size.area))) / 2)
    return int(2 ** min(wanted, allowed))


def level_count(size: Size) -> int:
    """Levels of a pyramid, each half the last, down to a thumbnail."""
    levels, side = 1, max(size.width, size.height)
    while side > SMALLEST_LEVEL:
        side = -(-side // 2)
        levels += 1
    return levels


def multiscale(
    name: str, plane: Plane, mpp0: tuple[float, float], levels: int, folder: str = "", channels: bool = False
) -> dict[str, Any]:
    """OME-Zarr 0.5 metadata of an image [y, x] whose level 0 lies on `plane`, each next one twice as coarse.

    channels: the image is [channel, y, x].
    """
    datasets = []
    extra = int(channels)
    for index in range(levels):
        level = plane.coarser(2**index, 2**index)
        x0, y0 = level.point_to_level0(0.5, 0.5)
        scale = [1.0] * extra + [level.downsample_y * mpp0[1], level.downsample_x * mpp0[0]]
        translation = [0.0] * extra + [y0 * mpp0[1], x0 * mpp0[0]]
        transforms = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": translation},
        ]
        datasets.append({"path": f"{folder}{index}", "coordinateTransformations": transforms})
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] * extra
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in ("y", "x")]
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}


def shown_as(metadata: dict[str, Any], channels: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """The metadata of an image with how it is shown: of each channel its label, colour and highest value.

    Every viewer shows 0 to that value then, and stretches nothing; only the first channel is on at first.
    """
    shown = [
        {
            "label": label,
            "color": colour,
            "active": index == 0,
            "window": {"start": 0.0, "end": highest, "min": 0.0, "max": highest},
        }
        for index, (label, colour, highest) in enumerate(channels)
    ]
    return metadata | {"omero": {"channels": shown, "rdefs": {"model": "color"}}}


def image_label(
    metadata: dict[str, Any], source: str, names: Mapping[Status, str] | None = None
) -> dict[str, Any]:
    """The metadata of an image as that of labels on the image at `source`, with what its values mean."""
    label: dict[str, Any] = {"source": {"image": source}}
    if names:
        label["colors"] = [{"label-value": int(v), "rgba": list(STATUS_COLOURS[v])} for v in names]
        label["properties"] = [{"label-value": int(v), "name": name} for v, name in names.items()]
    return metadata | {"image-label": label}


def halve_mean(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half the size, each value the mean of the scored of four; NaN where none is."""
    height, width = level.shape
    even = np.pad(level, ((0, height % 2), (0, width % 2)), constant_values=np.nan)
    quarters = np.stack([even[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    scored = ~np.isnan(quarters)
    count = scored.sum(axis=0)
    total = np.where(scored, quarters, 0).sum(axis=0, dtype=np.float64)
    mean = np.full(count.shape, np.nan, np.float32)
    np.divide(total, count, out=mean, where=count > 0, casting="same_kind")
    return mean


def halve_nearest(level: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half the size, each value the upper left one of four."""
    return level[::2, ::2]
