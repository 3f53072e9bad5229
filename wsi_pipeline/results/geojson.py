"""Regions and fields as GeoJSON that QuPath reads."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from shapely.geometry.polygon import orient

from wsi_pipeline.results.fields import GradingField
from wsi_pipeline.results.outlines import Polygons
from wsi_pipeline.results.regions import IdcRegion

IDC_CLASS = {"name": "IDC", "color": [200, 0, 0]}

FIELD_CLASS = {"name": "Grading field", "color": [0, 114, 178]}

AREA = "Area mm^2"
MEAN_PROBABILITY = "Mean probability of IDC"
MAX_PROBABILITY = "Max probability of IDC"
LARGEST = "Largest dimension mm"
NEAREST = "Nearest region mm"
# The level-0 point from which the coordinates count.
ORIGIN0 = "origin0"
# Of the ids of regions and fields.
OBJECT_IDS = uuid.UUID("8e4a2b0c-53f1-5c0e-9d0b-7f3a6f2d1b64")


def regions_to_geojson(
    regions: Sequence[IdcRegion],
    fields: Sequence[GradingField],
    origin0: tuple[float, float] = (0.0, 0.0),
    identity: str = "",
) -> dict[str, Any]:
    """A FeatureCollection of annotations as QuPath reads and writes it, in level-0 pixels from `origin0`.

    origin0: the level-0 point that the viewer shows at its (0, 0); `qupath_origin0` finds QuPath's. The collection
    says it under a key that GeoJSON does not know and viewers pass over, so that `regions_from_geojson` gives level-0
    pixels back.
    identity: what they are of, the map's key; with it and its name each has an id of its own, the same whenever it is
    written, by which a viewer knows again what it imported before.
    """

    def shifted(polygon: Polygons) -> Polygons:
        parts = [
            orient(part)
            for part in shapely.get_parts(shapely.transform(polygon, lambda xy: xy - np.asarray(origin0)))
        ]
        return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)

    features = [
        _feature(
            _id(identity, region.name),
            shapely.geometry.mapping(shifted(region.polygon)),
            region.name,
            IDC_CLASS,
            {
                AREA: region.area_mm2,
                MEAN_PROBABILITY: region.mean_probability,
                MAX_PROBABILITY: region.max_probability,
                LARGEST: region.largest_mm,
                **({} if region.nearest_mm is None else {NEAREST: region.nearest_mm}),
            },
        )
        for region in regions
    ]
    for field in fields:
        # GeoJSON knows no ellipse: QuPath writes a polygon with this mark, and reads its bounding box back.
        geometry = {**shapely.geometry.mapping(shifted(field_outline(field))), "isEllipse": True}
        name = f"{field.name} ({field.region_name})"
        features.append(
            _feature(
                _id(identity, field.name),
                geometry,
                name,
                FIELD_CLASS,
                {MEAN_PROBABILITY: field.mean_probability},
            )
        )
    return {"type": "FeatureCollection", ORIGIN0: [float(xy) for xy in origin0], "features": features}


def regions_from_geojson(collection: Mapping[str, Any]) -> tuple[list[IdcRegion], list[GradingField]]:
    """The regions and fields that `regions_to_geojson` wrote, in its order, in level-0 pixels.

    Raises KeyError, TypeError, ValueError or a ShapelyError for what it did not write.
    """
    origin0 = np.asarray(collection[ORIGIN0], np.float64)
    regions: list[IdcRegion] = []
    fields: list[GradingField] = []
    for feature in collection["features"]:
        polygon = shapely.transform(shapely.geometry.shape(feature["geometry"]), lambda xy: xy + origin0)
        properties = feature["properties"]
        name, numbers = properties["name"], properties["measurements"]
        if properties["classification"]["name"] == IDC_CLASS["name"]:
            probabilities = (numbers[MEAN_PROBABILITY], numbers[MAX_PROBABILITY])
            extents = (numbers[LARGEST], numbers.get(NEAREST))
            regions.append(IdcRegion(name, polygon, numbers[AREA], *probabilities, *extents))
        else:
            left, top, right, bottom = polygon.bounds
            centre, radii = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
            field_name, _, region_name = name.removesuffix(")").partition(" (")
            fields.append(GradingField(field_name, *centre, *radii, numbers[MEAN_PROBABILITY], region_name))
    return regions, fields


def field_outline(field: GradingField) -> shapely.Polygon:
    """The field's circle as a polygon in level-0 pixels."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x0 = field.x0 + field.radius_x0 * np.cos(angles)
    y0 = field.y0 + field.radius_y0 * np.sin(angles)
    return shapely.Polygon(np.stack([x0, y0], axis=1))


def _id(identity: str, name: str) -> str:
    return str(uuid.uuid5(OBJECT_IDS, f"{identity}/{name}"))


def _feature(
    object_id: str,
    geometry: dict[str, Any],
    name: str,
    classification: dict[str, Any],
    measurements: dict[str, float],
) -> dict[str, Any]:
    properties = {
        "objectType": "annotation",
        "name": name,
        "classification": classification,
        "measurements": measurements,
    }
    return {"type": "Feature", "id": object_id, "geometry": geometry, "properties": properties}
