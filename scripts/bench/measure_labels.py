"""How long outlines and masks take to label a grid, on one core: by default 600,000 patches, 100,000 vertices.

python -m scripts.bench.measure_labels
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import shapely
from PIL import Image

from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, read_outlines
from wsi_pipeline.slides.annotations.masks import read_mask
from wsi_pipeline.tiling.grid import Grid, Plan
from wsi_pipeline.tiling.patch_labels import label_patches

SIDE, PATCH_PX = 775, 50
OUTLINES = 8


def star(x: float, y: float, radius: float, vertices: int) -> shapely.Polygon:
    """An outline with many bays."""
    turn = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    reach = radius * (1 + 0.2 * np.sin(40 * turn))
    return shapely.Polygon(np.c_[x + reach * np.cos(turn), y + reach * np.sin(turn)])


def geojson(vertices: int) -> str:
    """OUTLINES outlines of so many vertices each: IDC, and nested in each one of stroma."""
    features = []
    for n in range(OUTLINES // 2):
        x, y = 10_000 + 18_000 * (n % 2), 10_000 + 18_000 * (n // 2)
        for radius, name in ((7_000, "Tumor"), (3_000, "Stroma")):
            geometry = shapely.geometry.mapping(star(x, y, radius, vertices))
            properties = {"classification": {"name": name}}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features})


def main(vertices: int = 100_000) -> None:
    """Print the seconds."""
    kept = np.ones((SIDE, SIDE), np.bool_)
    plan = Plan(Grid(Plane(1, 1), PATCH_PX, PATCH_PX, SIDE, SIDE), kept.astype(np.float32), kept, ~kept, 8)
    size0, options = Size(SIDE * PATCH_PX, SIDE * PATCH_PX), AnnotationOptions()
    with tempfile.TemporaryDirectory() as folder:
        outlines, mask = Path(folder, "a.geojson"), Path(folder, "a_mask.png")
        outlines.write_text(geojson(vertices))
        began = time.process_time()
        labels = label_patches(plan, read_outlines(outlines, options, size0), options)
        seconds = time.process_time() - began
        counts = f"{(labels == 1).sum():,} IDC, {(labels == 0).sum():,} not"
        print(
            f"{len(labels):,} patches, {OUTLINES} outlines of {vertices:,} vertices: {seconds:.1f} s ({counts})"
        )
        Image.fromarray((np.arange(4000 * 4000) // 999 % 2).astype(np.uint8).reshape(4000, 4000)).save(mask)
        began = time.process_time()
        label_patches(plan, read_mask(mask, options, size0, (0.25, 0.25)), options)
        print(f"{len(labels):,} patches, a mask of 4,000 x 4,000 px: {time.process_time() - began:.1f} s")


if __name__ == "__main__":
    main()
