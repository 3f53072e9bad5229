"""Exports, each read by the library of those who made its format, and laid against the slide's own geometry."""

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pydicom
import pytest
import shapely
import tifffile
from conftest import SHARED
from field_grounds import chosen

from wsi_pipeline.base.errors import ResultError, UsageError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.results.exports import formats
from wsi_pipeline.results.exports.exported_map import ExportedMap
from wsi_pipeline.results.exports.formats import EXPORTS, check_exports, exports_in, exports_of, files_of
from wsi_pipeline.results.exports.written import write_exports
from wsi_pipeline.results.fields import FieldOptions
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.geojson import regions_to_geojson
from wsi_pipeline.results.regions import DelineateOptions, delineate, rasterise
from wsi_pipeline.results.slide_grid import cells_at_centres, covering_grid
from wsi_pipeline.tiling.overview import Thumbnail

highdicom = pytest.importorskip("highdicom", reason="of the extra `exports`")
ome_types = pytest.importorskip("ome_types", reason="only for tests")

# A slide whose extent is no multiple of cells or pixels, with pixels that are not square.
SIZE0, MPP0 = Size(9001, 7203), (0.5, 0.52)
PLANE = Plane(400, 400 * 0.5 / 0.52, 13.0, 27.0)


def exported(
    path: Path = Path("a.tiff"), size0: Size = SIZE0, mpp0: tuple[float, float] = MPP0
) -> ExportedMap:
    plane = Plane(PLANE.downsample_x, PLANE.downsample_y, PLANE.origin_x0, PLANE.origin_y0)
    shape = (int(-(-size0.height // plane.downsample_y)), int(-(-size0.width // plane.downsample_x)))
    y, x = np.mgrid[: shape[0], : shape[1]]
    heatmap = np.exp(-((x - shape[1] / 2.4) ** 2 + (y - shape[0] / 2.1) ** 2) / (shape[0] * 1.5)).astype(
        np.float32
    )
    heatmap[shape[0] // 2, shape[1] // 2 - 1] = 0.01  # a hole
    heatmap[0] = np.nan
    regions = delineate(heatmap, plane, mpp0, 0.4, DelineateOptions(min_area_mm2=0))
    choice = chosen(heatmap, plane, mpp0, regions, FieldOptions(diameter_mm=0.3))
    cells = {"scored": int(np.isfinite(heatmap).sum()), "rejected": 0, "unreadable": 0}
    finished = FinishedMap(heatmap, plane, "each patch alone", 0.4, regions, {"cells": cells}, choice)
    summary = {
        "size0": [size0.width, size0.height],
        "mpp": list(mpp0),
        "mpp_overridden": False,
        "patch_px": 50,
        "patch_mpp": 4.0,
        "tissue_mm2": 3.0,
        "warnings": ["a warning"],
        "finished": datetime(2026, 11, 26, 12, 30, tzinfo=UTC).isoformat(timespec="seconds"),
        "versions": {"wsi_pipeline": "0.1.0"},
        "map_key": "0123456789abcdef",
        "report_key": "fedcba9876543210",
        "map_recipe": {"slide": {"fingerprint": "f" * 64}, "models": [{"name": "m", "sha256": "a" * 64}]},
    }
    thumbnail = Thumbnail(np.full((72, 90, 3), 200, np.uint8), Plane(size0.width / 90, size0.height / 72))
    return ExportedMap("Müller 李", path, finished, summary, thumbnail)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportedMap]:
    folder, made = tmp_path_factory.mktemp("run"), exported()
    assert len(made.finished.regions[0].polygon.interiors) == 1
    assert made.finished.fields
    paths = write_exports(folder, list(EXPORTS), made)
    assert tuple(path.name for path in paths) == files_of(list(EXPORTS))
    return folder, made


def test_the_ome_tiff_covers_exactly_the_slide_with_the_cells_where_they_are(
    written: tuple[Path, ExportedMap],
) -> None:
    folder, made = written
    path = folder / "map.ome.tiff"
    pixels = ome_types.from_tiff(path, validate=True).images[0].pixels
    assert pixels.physical_size_x * pixels.size_x == pytest.approx(SIZE0.width * MPP0[0], rel=1e-6)
    assert pixels.physical_size_y * pixels.size_y == pytest.approx(SIZE0.height * MPP0[1], rel=1e-6)
    assert pixels.physical_size_x_unit.value == "µm"
    assert pixels.channels[0].name == "probability of IDC"
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        values = [level.asarray() for level in levels]
        assert tiff.is_ome
        assert all(page.is_tiled for level in levels for page in level.pages)
    assert len(values) > 1
    assert max(values[-1].shape) <= 256
    heatmap, plane = made.finished.heatmap, made.finished.plane
    for y, x in np.random.default_rng(0).integers(0, values[0].shape, (500, 2)):
        x0 = (x + 0.5) / values[0].shape[1] * SIZE0.width
        y0 = (y + 0.5) / values[0].shape[0] * SIZE0.height
        column, row = int((x0 - 13) // plane.downsample_x), int((y0 - 27) // plane.downsample_y)
        inside = 0 <= row < heatmap.shape[0] and 0 <= column < heatmap.shape[1]
        scored = inside and np.isfinite(heatmap[row, column])
        assert values[0][y, x] == (heatmap[row, column] if scored else -1)


def test_a_covering_grid_ends_where_the_slide_does_and_is_never_too_large() -> None:
    for size0, mpp0 in (
        (Size(100_000, 90_000), (0.25, 0.25)),
        (Size(900_000, 900_000), (0.25, 0.25)),
        (SIZE0, MPP0),
    ):
        plane, size = covering_grid(size0, mpp0)
        assert plane.point_to_level0(size.width, size.height) == pytest.approx((size0.width, size0.height))
        assert size.area <= 2**26 * 1.01
    assert covering_grid(Size(3, 2), (0.25, 0.25))[1] == Size(1, 1)
    outside = cells_at_centres(np.ones((1, 1), np.float32), Plane(10, 10, 5, 5), Plane(5, 5), Size(4, 4))
    assert np.array_equal(np.isfinite(outside), np.outer([0, 1, 1, 0], [0, 1, 1, 0]).astype(bool))


def test_asaps_polygons_less_its_holes_are_the_regions(written: tuple[Path, ExportedMap]) -> None:
    folder, made = written
    root = ElementTree.parse(folder / "regions.asap.xml").getroot()
    groups = {group.get("Name") for group in root.iter("Group")}
    polygons: dict[str, list[shapely.Polygon]] = {name: [] for name in groups}
    for annotation in root.iter("Annotation"):
        places = sorted(annotation.iter("Coordinate"), key=lambda place: int(place.get("Order")))
        polygon = shapely.Polygon([(float(place.get("X")), float(place.get("Y"))) for place in places])
        polygons[annotation.get("PartOfGroup")].append(polygon)
    left = shapely.union_all(polygons["IDC"]).difference(shapely.union_all(polygons["Hole in IDC"]))
    regions = shapely.union_all([region.polygon for region in made.finished.regions])
    assert left.symmetric_difference(regions).area < 1e-4 * regions.area
    assert len(polygons["Grading field"]) == len(made.finished.fields)


def slide_mm(header: pydicom.Dataset, x0: float, y0: float) -> np.ndarray:
    """Where a level-0 point lies on a slide, by its DICOM header, in mm; DICOM counts from pixel centres."""
    transform = highdicom.spatial.ImageToReferenceTransformer.for_image(header, for_total_pixel_matrix=True)
    return transform(np.array([[x0, y0]]))[0]  # image coordinates are of corners, as level-0 ones are


def check_dicom(folder: Path, made: ExportedMap, header: pydicom.Dataset) -> None:
    """Both objects lie where the header's level 0 says, and hold the regions and the map."""
    mask = highdicom.seg.segread(folder / "regions.dcm")
    total = mask.get_total_pixel_matrix(combine_segments=True)
    plane, size = covering_grid(made.size0, made.mpp0)
    assert np.array_equal(total, rasterise(made.finished.regions, plane, (size.height, size.width)))
    values = highdicom.pm.ParametricMap.from_dataset(pydicom.dcmread(folder / "map.dcm"))
    heatmap = values.get_total_pixel_matrix(apply_real_world_transform=False)
    assert np.array_equal(heatmap, np.where(np.isfinite(made.finished.heatmap), made.finished.heatmap, -1))
    assert values.FloatPixelPaddingValue == -1
    for dataset, on in ((mask, plane), (values, made.finished.plane)):
        assert dataset.FrameOfReferenceUID == header.FrameOfReferenceUID
        assert dataset.StudyInstanceUID == header.StudyInstanceUID
        assert dataset.ContentDate == "20261126"
        for column, row in ((0, 0), (7, 3), (5.5, 6.25)):
            own = highdicom.spatial.ImageToReferenceTransformer.for_image(
                dataset, for_total_pixel_matrix=True
            )
            place = own(np.array([[column, row]], dtype=float))[0]
            assert place == pytest.approx(slide_mm(header, *on.point_to_level0(column, row)), abs=1e-4)
    if shutil.which("dciodvfy"):
        for name in ("regions.dcm", "map.dcm"):
            told = subprocess.run(["dciodvfy", folder / name], capture_output=True, text=True).stderr
            assert "Error" not in told


def test_dicom_objects_of_another_slide_lie_on_a_frame_of_reference_that_follows_from_it(
    written: tuple[Path, ExportedMap],
) -> None:
    from wsi_pipeline.results.exports.dicom_source import source_of

    folder, made = written
    check_dicom(folder, made, source_of(made))


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_slide_of_more_pixels_than_a_frame_of_dicom_may_have_is_exported(tmp_path: Path) -> None:
    from wsi_pipeline.results.exports.dicom_source import source_of

    made = exported(size0=Size(70_000, 3_000), mpp0=(0.25, 0.25))
    write_exports(tmp_path, ["dicom"], made)
    check_dicom(tmp_path, made, source_of(made))


def test_dicom_objects_of_a_dicom_slide_lie_on_its_own_geometry(tmp_path: Path) -> None:
    slide = SHARED / "data/slides/cmu_1_small_region_dicom"
    if not slide.is_dir():
        pytest.skip("needs the shared data folder beside the checkout (../shared), which is not here")
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in slide.iterdir()]
    header = max((h for h in headers if h.ImageType[2] == "VOLUME"), key=lambda h: h.TotalPixelMatrixColumns)
    spacing = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    size0 = Size(header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows)
    made = exported(slide, size0, (float(spacing[1]) * 1000, float(spacing[0]) * 1000))
    write_exports(tmp_path, ["dicom"], made)
    check_dicom(tmp_path, made, header)


def test_a_dicom_slide_that_has_gone_is_not_given_another_geometry(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="--slide"):
        write_exports(tmp_path, ["dicom"], exported(tmp_path / "gone.dcm"))
    assert not list(tmp_path.iterdir())


def test_a_dicom_slide_whose_header_is_not_whole_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    import highdicom  # noqa: F401  # what is not installed is said first

    folder = tmp_path / "slide"
    folder.mkdir()
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.SeriesInstanceUID, data.Modality = "1.2.3", "SM"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    made = exported(folder)
    data.save_as(folder / "no size.dcm", enforce_file_format=True)
    with pytest.raises(ResultError, match="found no DICOM level of"):
        write_exports(tmp_path, ["dicom"], made)
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = made.size0.width, made.size0.height
    data.save_as(folder / "size.dcm", enforce_file_format=True)
    with pytest.raises(ResultError, match="SharedFunctionalGroupsSequence"):
        write_exports(tmp_path, ["dicom"], made)
    content = (folder / "size.dcm").read_bytes()
    at = content.rindex(b"\x08\0\x16\0UI")  # the class of the object: a kind of value that is not known
    (folder / "size.dcm").write_bytes(content[: at + 4] + b"U\xe7" + content[at + 6 :])
    with pytest.raises(ResultError, match="found no DICOM level of"):
        write_exports(tmp_path, ["dicom"], made)
    assert [path.name for path in tmp_path.iterdir()] == ["slide"]


def test_the_same_report_is_the_same_bytes_and_in_dicom_the_same_object(
    written: tuple[Path, ExportedMap], tmp_path: Path
) -> None:
    folder, made = written
    for path in write_exports(tmp_path, ["asap", "pdf"], made):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    for path in write_exports(tmp_path, ["dicom"], made):
        there, here = pydicom.dcmread(folder / path.name), pydicom.dcmread(path)
        for uid in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            assert there[uid].value == here[uid].value


def test_the_pdf_has_a_page_for_the_report_and_one_to_grade_on(written: tuple[Path, ExportedMap]) -> None:
    content = (written[0] / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert (
        content.count(b"/Type /Page ") + content.count(b"/Type /Page\n") + content.count(b"/Type /Page/") == 2
    )


def test_without_a_picture_of_the_slide_there_is_no_pdf(tmp_path: Path) -> None:
    made = exported()
    made = ExportedMap(made.name, made.slide_path, made.finished, made.summary)
    with pytest.raises(ResultError, match="--slide"):
        write_exports(tmp_path, ["pdf"], made)


def test_regions_have_ids_of_their_own_that_stay(written: tuple[Path, ExportedMap]) -> None:
    finished = written[1].finished
    first, again, other = (
        [
            feature["id"]
            for feature in regions_to_geojson(finished.regions, finished.fields, (0, 0), key)["features"]
        ]
        for key in ("a", "a", "b")
    )
    assert first == again
    assert len(set(first)) == len(finished.regions) + len(finished.fields)
    assert not set(first) & set(other)


def test_a_list_of_exports_is_checked_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exports_of("pdf,ometiff") == ("ometiff", "pdf")
    assert exports_of("none") == ()
    with pytest.raises(UsageError, match="found 'tiff', expected some of ometiff, dicom, asap, pdf"):
        exports_of("tiff,pdf")
    assert exports_in({"map.dcm", "report.png"}) == {"dicom"}
    check_exports(["dicom", "asap"])
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    check_exports(["asap", "pdf", "ometiff"])
    with pytest.raises(
        UsageError, match=r"needs highdicom, which is not installed: pip install '\.\[exports\]'"
    ):
        check_exports(["dicom"])
    json.dumps(formats.EXPORT_FILES)
