"""Regions and fields as GeoJSON that QuPath reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from shapely.geometry.polygon import orient

from wsi_pipeline.results.fields import GradingField
from wsi_pipeline.results.regions import IdcRegion

IDC_CLASS = {"name": "IDC", "color": [200, 0, 0]}

FIELD_CLASS = {"name": "Grading field", "color": [0, 114, 178]}


def regions_to_geojson(
    regions: Sequence[IdcRegion], fields: Sequence[GradingField], origin0: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """A FeatureCollection of annotations as QuPath reads and writes it, in level-0 pixels from `origin0`.

    origin0: the level-0 point that the viewer shows at its (0, 0); `qupath_origin0` finds QuPath's.
    """

    def shifted(polygon: shapely.Polygon) -> shapely.Polygon:
        return orient(shapely.transform(polygon, lambda xy: xy - np.asarray(origin0)))

    features = [
        _feature(
            shapely.geometry.mapping(shifted(region.polygon)),
            region.name,
            IDC_CLASS,
            {
                "Area mm^2": region.area_mm2,
                "Mean probability of IDC": region.mean_probability,
                "Max probability of IDC": region.max_probability,
            },
        )
        for region in regions
    ]
    for field in fields:
        # GeoJSON knows no ellipse: QuPath writes a polygon with this mark, and reads its bounding box back.
        geometry = {**shapely.geometry.mapping(shifted(_ellipse(field))), "isEllipse": True}
        name = f"{field.name} ({field.region_name})"
        features.append(
            _feature(geometry, name, FIELD_CLASS, {"Mean probability of IDC": field.mean_probability})
        )
    return {"type": "FeatureCollection", "features": features}


def _ellipse(field: GradingField) -> shapely.Polygon:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x0 = field.x0 + field.radius_x0 * np.cos(angles)
    y0 = field.y0 + field.radius_y0 * np.sin(angles)
    return shapely.Polygon(np.stack([x0, y0], axis=1))


def _feature(
    geometry: dict[str, Any], name: str, classification: dict[str, Any], measurements: dict[str, float]
) -> dict[str, Any]:
    properties = {
        "objectType": "annotation",
        "name": name,
        "classification": classification,
        "measurements": measurements,
    }
    return {"type": "Feature", "geometry": geometry, "properties": properties}
