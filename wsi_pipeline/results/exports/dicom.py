"""regions.dcm and map.dcm: a DICOM Segmentation of the regions and a Parametric Map of the probabilities, by highdicom.

Both lie on the slide's own frame of reference where it came as DICOM, else on one that follows from its content. They
can be checked with any DICOM tool; the same report gives the same UIDs, so that what is sent twice is there once.
"""

from datetime import datetime
from typing import Any

import highdicom
import numpy as np
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr.coding import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes

from wsi_pipeline.base.files import OutPath, new_file
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.exports.dicom_source import Placement, placement_of, source_of, uid_of
from wsi_pipeline.results.exports.exported_map import NOT_SCORED, TITLE, ExportedMap, without_nan
from wsi_pipeline.results.regions import rasterise
from wsi_pipeline.results.slide_grid import covering_grid

TILE_PX = 512
MANUFACTURER = "wsi_pipeline"
# Their series' numbers in the slide's study.
SERIES = {"segmentation": 901, "parametric map": 902}


def write_segmentation(path: OutPath, exported: ExportedMap) -> None:
    """Write the regions as one segment, on a grid of about 8 um on the slide. Raises ResultError, OutputError."""
    plane, size = covering_grid(exported.size0, exported.mpp0)
    mask = rasterise(exported.finished.regions, plane, (size.height, size.width))
    source = source_of(exported)
    segment = SegmentDescription(
        segment_number=1,
        segment_label="Invasive ductal carcinoma",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=CodedConcept("82711006", "SCT", "Infiltrating duct carcinoma"),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(exported),
    )
    written = Segmentation(
        [source],
        mask.astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        omit_empty_frames=bool(mask.any()),
        content_label="IDC_REGIONS",
        content_description=f"Regions of IDC, probability of at least {exported.finished.threshold:.3g}",
        **_common(exported, source, plane, mask.shape, "segmentation"),
    )
    _save(path, written, exported)


def write_parametric_map(path: OutPath, exported: ExportedMap) -> None:
    """Write the map, float32, a pixel a cell; not scored is NOT_SCORED. Raises ResultError, OutputError."""
    finished, source = exported.finished, source_of(exported)
    mapping = RealWorldValueMapping(
        lut_label="IDC",
        lut_explanation=TITLE,
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1,
        intercept=0,
        quantity_definition=CodedConcept("111047", "DCM", "Probability of cancer"),
    )
    written = ParametricMap(
        [source],
        without_nan(finished.heatmap),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="IDC_PROBABILITY",
        content_description=f"Probability of IDC, {finished.kind}"[:64],
        **_common(exported, source, finished.plane, finished.heatmap.shape, "parametric map"),
    )
    written.FloatPixelPaddingValue = written.FloatPixelPaddingRangeLimit = NOT_SCORED
    _save(path, written, exported)


def _common(
    exported: ExportedMap, source: Dataset, plane: Plane, shape: tuple[int, ...], what: str
) -> dict[str, Any]:
    """What both say of themselves, and where their pixels lie, an array of `shape` on `plane`."""
    rows, columns = shape
    placement: Placement = placement_of(source, plane)
    report, summary = exported.summary["report_key"], exported.summary
    # Of a report that is made of the same map on another frame of reference, say a converted slide, UIDs are others.
    key = (report, source.FrameOfReferenceUID, what)
    return {
        "series_instance_uid": uid_of(*key, "series"),
        "sop_instance_uid": uid_of(*key, "instance"),
        "series_number": SERIES[what],
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": summary["versions"]["wsi_pipeline"],
        "device_serial_number": summary["map_key"],
        "pixel_measures": highdicom.PixelMeasuresSequence(placement.spacing_mm, placement.thickness_mm),
        "plane_orientation": highdicom.PlaneOrientationSequence(
            highdicom.CoordinateSystemNames.SLIDE, [float(value) for value in source.ImageOrientationSlide]
        ),
        "plane_positions": [
            highdicom.PlanePositionSequence(
                highdicom.CoordinateSystemNames.SLIDE, placement.position_mm, pixel_matrix_position=(1, 1)
            )
        ],
        "tile_pixel_array": True,
        "tile_size": (min(TILE_PX, rows), min(TILE_PX, columns)),
        # Each frame says where it lies: readers and validators that do not know TILED_FULL of segmentations do then.
        "dimension_organization_type": "TILED_SPARSE",
        "series_description": what,
    }


def _algorithm(exported: ExportedMap) -> highdicom.AlgorithmIdentificationSequence:
    models = exported.summary["map_recipe"]["models"]
    return highdicom.AlgorithmIdentificationSequence(
        name=" + ".join(model["name"] for model in models)[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=" + ".join(model["sha256"][:12] for model in models)[:64],
    )


def _save(path: OutPath, written: Dataset, exported: ExportedMap) -> None:
    finished = datetime.fromisoformat(exported.summary["finished"])
    for date in ("ContentDate", "InstanceCreationDate", "SeriesDate"):
        if date in written:
            setattr(written, date, finished.strftime("%Y%m%d"))
    for time in ("ContentTime", "InstanceCreationTime", "SeriesTime"):
        if time in written:
            setattr(written, time, finished.strftime("%H%M%S"))
    if "PatientOrientation" not in written:
        written.PatientOrientation = ""
    with new_file(path) as file:
        written.save_as(file, enforce_file_format=True)
