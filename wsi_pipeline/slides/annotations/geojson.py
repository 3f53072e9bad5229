"""Outlines drawn by people (GeoJSON as QuPath exports it), and what they say of each patch."""

import json
from pathlib import Path
from typing import Annotated

import shapely

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.options import Field, options


@options
class AnnotationOptions:
    """How outlines become labels of patches."""

    idc_classes: tuple[str, ...] = ("IDC", "Tumor", "Tumour")
    """Names of the classes that mean IDC, as QuPath shows them; case does not matter."""

    min_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A patch is IDC where such outlines cover this share of it; half is the coarse outlines' own precision."""


def read_outlines(path: Path, options: AnnotationOptions) -> shapely.Geometry:
    """The union of all IDC outlines in the file, level-0 pixels; empty when it has none.

    Raises DataError when the file is no GeoJSON of polygons.
    """
    wanted = {name.casefold() for name in options.idc_classes}
    polygons = []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features = content["features"] if isinstance(content, dict) else content
        for feature in features:
            classification = feature.get("properties", {}).get("classification") or {}
            if str(classification.get("name", "")).casefold() in wanted:
                polygons.append(shapely.make_valid(shapely.geometry.shape(feature["geometry"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise DataError(
            f"{path}: expected GeoJSON as QuPath exports it (File, Export objects as GeoJSON): {error}"
        ) from error
    return shapely.union_all(polygons)
