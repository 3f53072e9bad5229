"""The slide that DICOM exports refer to: its own DICOM header, or one derived from it where it came as another file.

Coordinates are DICOM's: millimetres on the slide, of pixel centres.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.sequence import Sequence as Items

from wsi_pipeline.base.errors import ResultError
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.text import printable
from wsi_pipeline.results.exports.exported_map import ExportedMap
from wsi_pipeline.slides.readers.dicom import SLIDE_CLASS, damage_as_none
from wsi_pipeline.slides.readers.formats import is_dicom_file, slide_files
from wsi_pipeline.slides.readers.source import with_retries

# UIDs of one slide or one report are the same whenever and wherever they are made.
_UIDS = uuid.UUID("5b0f6f0e-3f5c-5d3a-9a55-6f4f3c1f7d10")
# Rows run along x of the slide, columns along y; from the upper left corner.
_ORIENTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_SECTION_MM = 0.004
MOST_FRAME_PX = 2**16 - 1


@dataclass(frozen=True)
class Placement:
    """Where a grid of pixels lies on the slide: spacing (of rows, of columns) and the first pixel's centre."""

    spacing_mm: tuple[float, float]
    thickness_mm: float
    position_mm: tuple[float, float, float]


def uid_of(*names: str) -> str:
    """A UID that is the same for the same names."""
    return f"2.25.{uuid.uuid5(_UIDS, '/'.join(names)).int}"


def source_of(exported: ExportedMap) -> Dataset:
    """The header of the slide's level 0, without pixels.

    Raises ResultError where the slide came as DICOM and is not where it was, or is another one.
    """
    path = exported.slide_path
    if not path.exists():
        if path.suffix.lower() in ("", ".dcm"):
            raise ResultError(
                f"{path}: the slide is not there; a DICOM export of a slide that came as DICOM needs its geometry: say "
                f"where the slide lies with --slide"
            )
        return _derived_source(exported)
    files = slide_files(path) if path.is_file() else sorted(path.iterdir())
    if not any(file.is_file() and is_dicom_file(file) for file in files):
        return _derived_source(exported)
    size0 = exported.size0
    for file in files:
        header = _header(file)
        if header is not None and (
            header.get("TotalPixelMatrixColumns"),
            header.get("TotalPixelMatrixRows"),
        ) == (size0.width, size0.height):
            _check_geometry(file, header)
            return header
    raise ResultError(
        f"{path}: found no DICOM level of {size0.width} x {size0.height} px, expected that of the slide that was mapped"
    )


def placement_of(source: Dataset, plane: Plane) -> Placement:
    """Where the pixels of `plane` lie on the slide of that header, by the header's own spacing and origin."""
    measures = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    row_mm, column_mm = (float(value) for value in measures.PixelSpacing)
    origin = source.TotalPixelMatrixOriginSequence[0]
    start = (origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem)
    start_z = getattr(origin, "ZOffsetInSlideCoordinateSystem", 0) or 0
    orientation = [float(value) for value in source.ImageOrientationSlide]
    x0, y0 = plane.point_to_level0(0.5, 0.5)
    along_mm, down_mm = (x0 - 0.5) * column_mm, (y0 - 0.5) * row_mm
    position = [
        float(value) + along_mm * orientation[i] + down_mm * orientation[3 + i]
        for i, value in enumerate((*start, start_z))
    ]
    return Placement(
        (plane.downsample_y * row_mm, plane.downsample_x * column_mm),
        float(getattr(measures, "SliceThickness", None) or _SECTION_MM),
        (position[0], position[1], position[2]),
    )


def _check_geometry(file: Path, header: Dataset) -> None:
    try:
        placement_of(header, Plane(1.0, 1.0))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ResultError(
            f"{file}: found no whole geometry ({error}), expected PixelSpacing, TotalPixelMatrixOriginSequence and "
            "ImageOrientationSlide; leave dicom out of --exports"
        ) from error


def _header(file: Path) -> Dataset | None:
    """The header of a level of a slide; None where it is none. Raises SlideReadError where it cannot be read."""
    if not file.is_file():
        return None

    def read() -> Dataset | None:
        with damage_as_none():
            header = pydicom.dcmread(file, stop_before_pixels=True)
            is_level = header.get("SOPClassUID") == SLIDE_CLASS and "VOLUME" in list(
                header.get("ImageType", [])
            )
            return header if is_level else None
        return None

    return with_retries(file, read)


def _derived_source(exported: ExportedMap) -> Dataset:
    """A header for a slide that is no DICOM; its UIDs, of its frame of reference too, follow from its content."""
    fingerprint = exported.summary["map_recipe"]["slide"]["fingerprint"]
    size0, (mpp_x, mpp_y) = exported.size0, exported.mpp0
    name = printable(exported.name)[:64]
    source = Dataset()
    source.SOPClassUID, source.SOPInstanceUID = SLIDE_CLASS, uid_of(fingerprint, "instance")
    source.StudyInstanceUID, source.SeriesInstanceUID = (
        uid_of(fingerprint, "study"),
        uid_of(fingerprint, "series"),
    )
    source.FrameOfReferenceUID = uid_of(fingerprint, "frame of reference")
    source.PositionReferenceIndicator = "SLIDE_CORNER"
    source.Modality, source.StudyID, source.SeriesNumber, source.InstanceNumber = "SM", "", 1, 1
    source.PatientName, source.PatientID = "", name
    for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"):
        setattr(source, keyword, "")
    source.ReferringPhysicianName = ""
    source.ContainerIdentifier = name
    source.IssuerOfTheContainerIdentifierSequence = Items()
    container = Dataset()
    container.CodeValue, container.CodingSchemeDesignator = "433466003", "SCT"
    container.CodeMeaning = "Microscope slide"
    source.ContainerTypeCodeSequence = Items([container])
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = name, uid_of(fingerprint, "specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = Items()
    specimen.SpecimenPreparationSequence = Items()
    source.SpecimenDescriptionSequence = Items([specimen])
    source.SpecificCharacterSet = "ISO_IR 192"
    source.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    source.TotalPixelMatrixColumns, source.TotalPixelMatrixRows = size0.width, size0.height
    source.TotalPixelMatrixFocalPlanes, source.NumberOfOpticalPaths = 1, 1
    # The size of a frame, which DICOM bounds, is of no use here: the objects have frames of their own.
    source.Rows, source.Columns = min(size0.height, MOST_FRAME_PX), min(size0.width, MOST_FRAME_PX)
    source.NumberOfFrames = 1
    source.DimensionOrganizationType = "TILED_FULL"
    source.ImageOrientationSlide = list(_ORIENTATION)
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = mpp_x / 2000
    origin.YOffsetInSlideCoordinateSystem = mpp_y / 2000
    source.TotalPixelMatrixOriginSequence = Items([origin])
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp_y / 1000, mpp_x / 1000], _SECTION_MM
    shared.PixelMeasuresSequence = Items([measures])
    source.SharedFunctionalGroupsSequence = Items([shared])
    return source
