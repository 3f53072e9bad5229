"""What people say of a slide's regions: accepted, rejected, redrawn, added, with class, note, time and reviewer.

Beside the run and never over the model's own: `review.jsonl`, every change, and `review.geojson`, the newest state as
QuPath, `tile-slides --annotations` and training take it.
"""

import secrets
from typing import Any

import numpy as np
import shapely

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.base.files import OutPath, write_json
from wsi_pipeline.base.geometry import Size
from wsi_pipeline.base.text import counted
from wsi_pipeline.results.geojson import ORIGIN0
from wsi_pipeline.slides.annotations.files import REVIEW_NAME
from wsi_pipeline.viewer.append_log import AppendLog, LogContent

LOG_NAME = "review.jsonl"
# With their colours in QuPath. What is rejected becomes "Not IDC": somebody looked at it and said so.
CLASSES = {
    "IDC": [200, 0, 0],
    "DCIS": [230, 159, 0],
    "Normal": [0, 158, 115],
    "Not IDC": [86, 180, 233],
    "Ignore*": [120, 120, 120],
}
VERDICTS = ("accepted", "rejected", "redrawn", "added")
REJECTED_CLASS = "Not IDC"
MOST_POINTS, MOST_TEXT, MOST_NAME = 20_000, 4_000, 64
MOST_FEATURES = 5_000


class Review:
    """The review of one slide."""

    def __init__(self, folder: OutPath, size0: Size, origin0: tuple[float, float], map_key: str | None):
        """`origin0` is the level-0 point that QuPath counts from, as in regions.geojson."""
        self._folder, self._size0, self._origin0, self._map_key = folder, size0, origin0, map_key
        self._log = AppendLog(folder / LOG_NAME, is_change)

    def state(self) -> dict[str, Any]:
        """As the page takes it."""
        return self._answer(self._log.read())

    def change(self, body: dict[str, Any]) -> dict[str, Any]:
        """The state after one more change. Raises UsageError for a change that is none, RevisionConflict."""
        with self._log.held():
            return self._changed(body)

    def _changed(self, body: dict[str, Any]) -> dict[str, Any]:
        action, reviewer = body.get("action"), clean_name(body.get("reviewer"), "reviewer")
        values: dict[str, Any] = {"action": action, "map_key": self._map_key}
        features = replayed(self._log.read().entries)
        if action == "put":
            values["feature"] = self._checked(body.get("feature"))
            if len(features) >= MOST_FEATURES and values["feature"]["properties"]["id"] not in features:
                raise UsageError(
                    f"found {counted(len(features), 'outline')}, at most {MOST_FEATURES} are kept for a slide"
                )
        elif action == "delete":
            values["feature_id"] = str(body.get("feature_id"))
            if values["feature_id"] not in features:
                raise UsageError("there is no such outline; it may have been deleted meanwhile")
        elif action != "undo":
            raise UsageError(f"found action {str(action)[:50]!r}, expected put, delete or undo")
        revision = body.get("revision")
        if not isinstance(revision, int):
            raise UsageError("'revision': expected the whole number of the state that was changed")
        content = self._log.add(revision, reviewer, values)
        write_json(self._folder / REVIEW_NAME, self._geojson(replayed(content.entries)))
        return self._answer(content)

    def _answer(self, content: LogContent) -> dict[str, Any]:
        history = [
            {
                "revision": entry["revision"],
                "time": entry.get("time"),
                "reviewer": entry.get("reviewer"),
                "action": entry.get("action"),
                "feature_id": entry.get("feature_id") or _id_of(entry.get("feature")),
                "verdict": _properties_of(entry.get("feature")).get("verdict"),
            }
            for entry in content.entries
        ]
        features = list(replayed(content.entries).values())
        return {
            "revision": content.revision,
            "features": {"type": "FeatureCollection", "features": features},
            "classes": list(CLASSES),
            "colors": CLASSES,
            "history": history[-200:],
            "passed_over": self._log.about_passed_over(content),
        }

    def _checked(self, feature: Any) -> dict[str, Any]:
        """The feature with what is known of it alone. Raises UsageError."""
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise UsageError("'feature': expected a GeoJSON Feature")
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        verdict = properties.get("verdict")
        if verdict is not None and verdict not in VERDICTS:
            raise UsageError(f"found verdict {str(verdict)[:50]!r}, expected one of {', '.join(VERDICTS)}")
        note = properties.get("note") or ""
        if not isinstance(note, str) or len(note) > MOST_TEXT:
            raise UsageError(f"'note': expected a text of at most {MOST_TEXT} characters")
        name = properties.get("id") or secrets.token_hex(8)
        polygon = self._polygon(feature.get("geometry"))
        return {
            "type": "Feature",
            "id": clean_name(name, "id"),
            "geometry": shapely.geometry.mapping(polygon),
            "properties": {
                "id": clean_name(name, "id"),
                "class": clean_name(properties.get("class") or "IDC", "class"),
                "verdict": verdict,
                "note": note,
                "source_region": str(properties.get("source_region") or "")[:MOST_NAME] or None,
            },
        }

    def _polygon(self, geometry: Any) -> shapely.Polygon | shapely.MultiPolygon:
        try:
            polygon = shapely.geometry.shape(geometry)
            points = shapely.get_coordinates(polygon)
        except Exception as error:  # whatever is no geometry: shapely raises many kinds
            raise UsageError(f"'geometry': expected a GeoJSON polygon in level-0 pixels ({error})") from error
        if polygon.geom_type not in ("Polygon", "MultiPolygon") or polygon.is_empty:
            raise UsageError(
                f"'geometry': found {polygon.geom_type}, expected a polygon that encloses something"
            )
        if len(points) > MOST_POINTS:
            raise UsageError(f"'geometry': found {len(points):,} points, expected at most {MOST_POINTS:,}")
        if not np.isfinite(points).all():
            raise UsageError("'geometry': found coordinates that are no numbers")
        if not polygon.is_valid:
            polygon = shapely.make_valid(polygon)
            parts = [p for p in shapely.get_parts(polygon) if p.geom_type == "Polygon"]
            polygon = shapely.MultiPolygon(parts) if len(parts) > 1 else (parts or [shapely.Polygon()])[0]
        slide = shapely.box(0, 0, self._size0.width, self._size0.height)
        cut = polygon.intersection(slide)
        parts = [p for p in shapely.get_parts(cut) if p.geom_type == "Polygon" and p.area > 0]
        if not parts:
            raise UsageError("'geometry': nothing of the outline lies on the slide")
        return shapely.MultiPolygon(parts) if len(parts) > 1 else parts[0]

    def _geojson(self, features: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """As QuPath reads it, and says who said it."""
        origin = np.asarray(self._origin0)
        found = []
        for feature in features.values():
            own = feature["properties"]
            polygon = shapely.transform(shapely.geometry.shape(feature["geometry"]), lambda xy: xy - origin)
            class_name = REJECTED_CLASS if own["verdict"] == "rejected" else own["class"]
            metadata = {key: own[key] for key in ("verdict", "note", "source_region", "reviewer", "time")}
            found.append(
                {
                    "type": "Feature",
                    "id": feature["id"],
                    "geometry": shapely.geometry.mapping(polygon),
                    "properties": {
                        "objectType": "annotation",
                        "name": own["source_region"] or own["id"],
                        "classification": {"name": class_name, "color": CLASSES.get(class_name, [0, 0, 0])},
                        "metadata": {key: str(value) for key, value in metadata.items() if value},
                    },
                }
            )
        return {"type": "FeatureCollection", ORIGIN0: list(map(float, self._origin0)), "features": found}


def replayed(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The features, by id, after all entries; an undo takes the last change back that was not undone yet.

    Entries that are no whole change are passed over.
    """
    standing: list[dict[str, dict[str, Any]]] = [{}]
    for entry in filter(is_change, entries):
        action, newest = entry["action"], standing[-1]
        if action == "undo":
            if len(standing) > 1:
                standing.pop()
        elif action == "delete":
            standing.append({name: value for name, value in newest.items() if name != entry["feature_id"]})
        else:
            feature = entry["feature"]
            name = str(feature["properties"]["id"])
            properties = feature["properties"] | {
                "reviewer": entry.get("reviewer"),
                "time": entry.get("time"),
            }
            standing.append(newest | {name: feature | {"properties": properties}})
    return standing[-1]


def is_change(entry: dict[str, Any]) -> bool:
    """Whether it is what `Review.change` writes; a file changed by hand may hold anything."""
    action, feature = entry.get("action"), entry.get("feature")
    if action == "put":
        return (
            isinstance(feature, dict)
            and "id" in feature
            and set(_properties_of(feature)) >= _PROPERTIES
            and _is_outline(feature.get("geometry"))
        )
    return action == "undo" or (action == "delete" and isinstance(entry.get("feature_id"), str))


# What a feature of a change says of itself.
_PROPERTIES = {"id", "class", "verdict", "note", "source_region"}


def _is_outline(geometry: Any) -> bool:
    try:
        return shapely.geometry.shape(geometry).geom_type in ("Polygon", "MultiPolygon")
    except Exception:  # whatever is no geometry: shapely raises many kinds
        return False


def clean_name(value: Any, what: str) -> str:
    """A short text without control characters. Raises UsageError."""
    if not isinstance(value, str) or not value.strip() or len(value) > MOST_NAME or not value.isprintable():
        raise UsageError(f"'{what}': expected a name of at most {MOST_NAME} characters")
    return value.strip()


def _id_of(feature: Any) -> str | None:
    properties = _properties_of(feature)
    return str(properties["id"]) if "id" in properties else None


def _properties_of(feature: Any) -> dict[str, Any]:
    """Those of a feature; none of what is no feature, as a file changed by hand may hold."""
    properties = feature.get("properties") if isinstance(feature, dict) else None
    return properties if isinstance(properties, dict) else {}
