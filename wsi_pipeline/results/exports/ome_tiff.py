"""map.ome.tiff: the map as a pyramid that covers exactly the slide, for QuPath, OMERO and large_image.

One channel of float32, 0 to 1, and -1 where not scored. A pixel is about 8 um, and holds the cell at its centre; levels
coarser than a cell hold the mean of what is scored. So at the slide's own width and height it lies on the slide.
"""

import tifffile

from wsi_pipeline.base.files import OutPath, new_file
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.base.types import FloatMap
from wsi_pipeline.results.exports.exported_map import TITLE, ExportedMap, without_nan
from wsi_pipeline.results.figures.palette import sample
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.slide_grid import cells_at_centres, covering_grid, grid_of

TILE_PX = 256


def write_ome_tiff(path: OutPath, exported: ExportedMap) -> None:
    """Write the pyramid. Raises OutputError."""
    size0, mpp0 = exported.size0, exported.mpp0
    plane, size = covering_grid(size0, mpp0)
    levels = [(plane, size)]
    while max(size.width, size.height) > TILE_PX:
        size = Size(-(-size.width // 2), -(-size.height // 2))
        levels.append(grid_of(size0, size))
    with new_file(path) as file, tifffile.TiffWriter(file, ome=True) as tiff:
        for index, (plane, size) in enumerate(levels):
            um_x, um_y = plane.downsample_x * mpp0[0], plane.downsample_y * mpp0[1]
            first = {
                "subifds": len(levels) - 1,
                "metadata": {
                    "axes": "YX",
                    "Name": f"{exported.name}: {TITLE}",
                    "PhysicalSizeX": um_x,
                    "PhysicalSizeXUnit": "µm",
                    "PhysicalSizeY": um_y,
                    "PhysicalSizeYUnit": "µm",
                    "Channel": {"Name": [TITLE]},
                },
            }
            tiff.write(
                without_nan(_on(exported.finished, plane, size)),
                tile=(TILE_PX, TILE_PX),
                compression="zlib",
                photometric="minisblack",
                resolution=(1e4 / um_x, 1e4 / um_y),
                resolutionunit="CENTIMETER",
                **(first if index == 0 else {"subfiletype": 1, "metadata": None}),
            )


def _on(finished: FinishedMap, plane: Plane, size: Size) -> FloatMap:
    """The map on another grid: cells repeated, or the mean of them."""
    is_finer = (
        plane.downsample_x <= finished.plane.downsample_x
        and plane.downsample_y <= finished.plane.downsample_y
    )
    if is_finer:
        return cells_at_centres(finished.heatmap, finished.plane, plane, size)
    return sample(finished.heatmap, finished.plane, plane, (size.height, size.width))
