"""Regions, fields and hot spots as GeoJSON that QuPath reads."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.polygon import orient

from wsi_pipeline.results.fields import GradingField, HotSpot
from wsi_pipeline.results.outlines import Polygons
from wsi_pipeline.results.regions import IdcRegion

IDC_CLASS = {"name": "IDC", "color": [200, 0, 0]}

FIELD_CLASS = {"name": "Grading field", "color": [0, 114, 178]}
HOT_SPOT_CLASS = {"name": "Hot spot", "color": [230, 159, 0]}

AREA = "Area mm^2"
MEAN_PROBABILITY = "Mean probability of IDC"
MAX_PROBABILITY = "Max probability of IDC"
LARGEST = "Largest dimension mm"
NEAREST = "Nearest region mm"
USABLE = "Tissue mm^2"
WANTED = "Wanted tissue mm^2"
IN_REGIONS = "Tissue in regions mm^2"
NUCLEI = "Carcinoma nuclei per mm^2"
FRONT = "Share at the invasive front"
# The level-0 point from which the coordinates count.
ORIGIN0 = "origin0"
# Of coordinates in the file at most; outlines have whole pixels where cells have fifty or more.
DECIMALS = 3
# Of the ids of regions and fields.
OBJECT_IDS = uuid.UUID("8e4a2b0c-53f1-5c0e-9d0b-7f3a6f2d1b64")


def regions_to_geojson(
    regions: Sequence[IdcRegion],
    fields: Sequence[GradingField],
    origin0: tuple[float, float] = (0.0, 0.0),
    identity: str = "",
    hot_spots: Sequence[HotSpot] = (),
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
            for part in shapely.get_parts(
                shapely.transform(polygon, lambda xy: np.round(xy - np.asarray(origin0), DECIMALS))
            )
        ]
        return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)

    features = [
        _feature(
            _id(identity, region.name),
            _geometry(shifted(region.polygon)),
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
    circles: list[GradingField | HotSpot] = [*fields, *hot_spots]
    for spot in circles:
        # GeoJSON knows no ellipse: QuPath writes a polygon with this mark, and reads its bounding box back.
        geometry = {**_geometry(shifted(field_outline(spot))), "isEllipse": True}
        if isinstance(spot, HotSpot):
            numbers = {USABLE: spot.usable_mm2, WANTED: spot.wanted_mm2, IN_REGIONS: spot.idc_mm2}
            features.append(_feature(_id(identity, spot.name), geometry, spot.name, HOT_SPOT_CLASS, numbers))
        else:
            name = f"{spot.name} ({spot.region_name})"
            features.append(
                _feature(_id(identity, spot.name), geometry, name, FIELD_CLASS, _numbers_of(spot))
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
        elif properties["classification"]["name"] == FIELD_CLASS["name"]:
            field_name, _, region_name = name.removesuffix(")").partition(" (")
            fields.append(
                GradingField(
                    field_name,
                    *_circle_of(polygon),
                    mean_probability=numbers[MEAN_PROBABILITY],
                    region_name=region_name,
                    usable_mm2=numbers[USABLE],
                    nuclei_per_mm2=numbers.get(NUCLEI),
                    front_share=numbers[FRONT],
                )
            )
    return regions, fields


def hot_spots_from_geojson(collection: Mapping[str, Any]) -> list[HotSpot]:
    """The hot spots that `regions_to_geojson` wrote, in its order, in level-0 pixels.

    Raises KeyError, TypeError, ValueError or a ShapelyError for what it did not write.
    """
    origin0 = np.asarray(collection[ORIGIN0], np.float64)
    spots: list[HotSpot] = []
    for feature in collection["features"]:
        properties = feature["properties"]
        if properties["classification"]["name"] == HOT_SPOT_CLASS["name"]:
            polygon = shapely.transform(shapely.geometry.shape(feature["geometry"]), lambda xy: xy + origin0)
            numbers = properties["measurements"]
            areas = (numbers[WANTED], numbers[USABLE], numbers[IN_REGIONS])
            spots.append(HotSpot(properties["name"], *_circle_of(polygon), *areas))
    return spots


def field_outline(field: GradingField | HotSpot) -> shapely.Polygon:
    """The circle as a polygon in level-0 pixels."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x0 = field.x0 + field.radius_x0 * np.cos(angles)
    y0 = field.y0 + field.radius_y0 * np.sin(angles)
    return shapely.Polygon(np.stack([x0, y0], axis=1))


def _geometry(polygon: Polygons) -> dict[str, Any]:
    """The polygon as GeoJSON."""
    parts = [
        [whole_numbers(shapely.get_coordinates(ring)) for ring in shapely.get_rings(part)]
        for part in shapely.get_parts(polygon)
    ]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def whole_numbers(xy: NDArray[np.float64]) -> list[list[float]]:
    """The points, [n, 2], as integers where all are: as text without a point, a seventh less."""
    whole = xy.astype(np.int64)
    points: list[list[float]] = (whole if np.array_equal(whole, xy) else xy).tolist()
    return points


def _id(identity: str, name: str) -> str:
    return str(uuid.uuid5(OBJECT_IDS, f"{identity}/{name}"))


def _circle_of(polygon: shapely.Polygon) -> tuple[float, float, float, float]:
    """Centre x0, y0 and radii along x and y of the circle that the polygon stands for."""
    left, top, right, bottom = polygon.bounds
    return (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2


def geojson_text(collection: Mapping[str, Any]) -> str:
    """The collection as text, a feature a line: indented, each number on a line, it would be three times as long."""
    rest = {key: value for key, value in collection.items() if key != "features"}
    head = json.dumps(rest, allow_nan=False)[:-1]
    features = [
        json.dumps(feature, allow_nan=False, separators=(",", ":")) for feature in collection["features"]
    ]
    return f'{head}, "features": [\n' + ",\n".join(features) + "\n]}\n"


def _numbers_of(field: GradingField) -> dict[str, float]:
    numbers = {MEAN_PROBABILITY: field.mean_probability, USABLE: field.usable_mm2, FRONT: field.front_share}
    return numbers if field.nuclei_per_mm2 is None else numbers | {NUCLEI: field.nuclei_per_mm2}


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
