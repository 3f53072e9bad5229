"""cellularity.zarr: the nuclei that fields were chosen by, as an OME-Zarr image beside the store."""

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from wsi_pipeline.base.files import OutPath, new_tree
from wsi_pipeline.results.cellularity import COUNT_MPP
from wsi_pipeline.results.multiscales import multiscale, shown_as
from wsi_pipeline.results.nuclei import Cellularity

TITLE = "nuclei per mm2"
ROOT_FILE = "zarr.json"
CHUNK = 1024
# Of a viewer's window: dense carcinoma has as many.
SHOWN_TO = 8_000.0


def write_cellularity(path: OutPath, cellularity: Cellularity, mpp0: tuple[float, float]) -> None:
    """Write it in the place of an earlier one: array `0`, float32 [y, x], NaN where nuclei were not counted.

    mpp0: um per level-0 pixel, along x and y. Raises OutputError.
    """
    contents: dict[str, Buffer] = {}
    values = cellularity.per_mm2(mpp0)
    image = multiscale(TITLE, cellularity.plane, mpp0, 1)
    root = zarr.create_group(
        MemoryStore(contents),
        zarr_format=3,
        attributes={
            "ome": shown_as(image, [(TITLE, "00FF00", SHOWN_TO)]),
            "wsi_pipeline": {"counted_mpp": COUNT_MPP, "least_answer": cellularity.least_answer},
        },
    )
    array = root.create_array(
        "0",
        shape=values.shape,
        chunks=tuple(max(1, min(CHUNK, n)) for n in values.shape),
        dtype=np.float32,
        fill_value=np.nan,
        compressors=ZstdCodec(level=0),
        dimension_names=["y", "x"],
    )
    array[...] = values
    with new_tree(path, {name: part.to_bytes() for name, part in contents.items()}, ROOT_FILE):
        pass
