"""A result, opened again."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import shapely
import zarr
from conftest import noise, s3_server_or_skip, write_scn, write_slide
from field_grounds import chosen
from models import brightness_model, dimmer_model, random_step
from test_infer import section

import wsi_pipeline as wp
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.geojson import DECIMALS, geojson_text, regions_from_geojson, regions_to_geojson
from wsi_pipeline.results.regions import DelineateOptions, delineate, rasterise

MakeSlide = Callable[..., Path]


@pytest.fixture
def slide(make_slide: MakeSlide) -> Path:
    return make_slide("a.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that tests copy."""
    folder = tmp_path_factory.mktemp("made")
    path = write_slide(folder / "a.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))
    return Path(wp.infer_slide(path, folder, model=brightness_model(threshold=0.6), device="cpu").folder)


@pytest.fixture
def result(made: Path, tmp_path: Path) -> wp.Result:
    shutil.copytree(made, tmp_path / "out/a")
    return wp.open_result(tmp_path / "out/a")


def scn_section(path: Path) -> Path:
    """A slide that is scanned from (800, 400) on, whose map starts there, and QuPath's coordinates too."""
    return write_scn(path, np.repeat(np.repeat(section(600, 800, 50), 4, 0), 4, 1), 800, 400, (5000, 3500))


def test_the_map_is_the_stores_with_the_centres_of_its_cells(result: wp.Result) -> None:
    stored = zarr.open_array(result.folder / "slide.zarr/heatmap/0", mode="r")[...]
    assert result.map.dtype == np.float32
    assert np.array_equal(result.map, stored, equal_nan=True)
    assert np.array_equal(result.x_um, 100.0 + 200 * np.arange(32))
    assert np.array_equal(result.y_um, 100.0 + 200 * np.arange(24))
    assert result.extent_um == (0.0, 6400.0, 4800.0, 0.0)
    assert np.array_equal(result.status == wp.Status.SCORED, np.isfinite(result.map))
    assert result.patch_map is None
    assert result.uncertainty is None


def test_arrays_are_read_only(result: wp.Result) -> None:
    for values in (result.map, result.status):
        with pytest.raises(ValueError, match="read-only"):
            values[0, 0] = 1


def test_the_layers_of_a_context_step_and_of_an_ensemble_are_there(slide: Path, tmp_path: Path) -> None:
    step = random_step()
    model = replace(brightness_model(), context=step)
    in_context = wp.infer_slide(slide, tmp_path / "context", model=model, device="cpu")
    assert in_context.patch_map is not None
    assert np.array_equal(np.isfinite(in_context.patch_map), np.isfinite(in_context.map))
    assert np.nanmax(np.abs(in_context.patch_map - in_context.map)) > 0.01
    dimmer = dimmer_model()
    other = replace(dimmer, card=replace(dimmer.card, weights_sha256="1" * 64))
    both = wp.infer_slide(slide, tmp_path / "both", model=[brightness_model(), other], device="cpu")
    assert both.uncertainty is not None
    assert 0 < np.nanmax(both.uncertainty) <= 0.5
    assert both.summary["uncertainty"]["models"] == 2


@pytest.mark.parametrize("kind", ["tiff", "scn"])
def test_regions_lie_on_the_cells_of_the_map_in_pixels_and_in_micrometres(
    kind: str, slide: Path, tmp_path: Path
) -> None:
    """Law: the outlines that are read back are the map's, also where a slide counts from the bounds it declares."""
    path = slide if kind == "tiff" else scn_section(tmp_path / "b.scn")
    result = wp.infer_slide(path, tmp_path / "out", model=brightness_model(threshold=0.6), device="cpu")
    assert result.regions
    x, y = (axis.ravel() for axis in np.meshgrid(result.x_um, result.y_um))
    inside_um = np.zeros(x.shape, bool)
    inside = np.zeros(x.shape, bool)
    mpp = result.summary["mpp"]
    for region in result.regions:
        assert region.polygon.is_valid
        inside_um |= shapely.contains_xy(region.polygon_um, x, y)
        inside |= shapely.contains_xy(region.polygon, x / mpp[0], y / mpp[1])
        # Counted in pixels of the tissue mask.
        assert region.polygon_um.area / 1e6 == pytest.approx(region.area_mm2, rel=0.01)
    # 0.1 mm2 are three cells: none of this map's regions is as small, so that all is in regions.
    with np.errstate(invalid="ignore"):
        above = result.map.ravel() >= 0.6
    (step_x, step_y), (x_um, y_um) = result.cells_um("labels/tissue")
    # A centre within a pixel of the tissue's edge may be on either side of its outline.
    tissue = result.level("labels/tissue", 0) == 1
    tissue = scipy.ndimage.binary_erosion(tissue, np.ones((3, 3)))
    rows, columns = np.round((y - y_um) / step_y).astype(int), np.round((x - x_um) / step_x).astype(int)
    rows, columns = rows.clip(0, tissue.shape[0] - 1), columns.clip(0, tissue.shape[1] - 1)
    on_tissue = tissue[rows, columns]
    assert (above & on_tissue).sum() > 10
    for found in (inside, inside_um):
        assert np.array_equal(found[on_tissue], above[on_tissue])
        assert not found[~above].any()
    listed = [(r.name, round(r.area_mm2, 4), round(r.mean_probability, 4)) for r in result.regions]
    found = [(r["name"], r["area_mm2"], r["mean_probability"]) for r in result.summary["regions"]]
    assert listed == found
    for field in result.fields:
        assert field.circle_um.area / 1e6 == pytest.approx(0.2376, rel=0.01)
        assert field.region_name in [r.name for r in result.regions]
    assert result.fields
    idc_mm2 = sum(region.area_mm2 for region in result.regions)
    assert [spot.wanted_mm2 for spot in result.hot_spots] == [w for w in (1.0, 2.0) if idc_mm2 >= w]
    for spot in result.hot_spots:
        assert spot.circle_um.area / 1e6 >= 0.99 * spot.usable_mm2


def test_regions_and_fields_that_are_written_are_read_back() -> None:
    """Law, on a plane with an origin and two scales: all values, and the same cells."""
    heatmap = np.where(noise(40, 60)[..., 0] > 120, 0.9, 0.2).astype(np.float32)
    plane, mpp = Plane(400.0, 410.0, 1024.5, 77.25), (0.25, 0.26)
    options = DelineateOptions(min_area_mm2=0.0)
    regions = delineate(heatmap, plane, mpp, 0.5, options)
    fields = chosen(heatmap, plane, mpp, regions, wp.FieldOptions(min_tumour=0.2)).fields
    assert len(regions) > 1
    assert fields
    written = json.loads(geojson_text(regions_to_geojson(regions, fields, origin0=(1000.0, 60.0))))
    again, fields_again = regions_from_geojson(written)
    assert np.array_equal(rasterise(again, plane, (40, 60)), heatmap >= 0.5)
    for one, other in zip(regions, again, strict=True):
        assert shapely.hausdorff_distance(one.polygon, other.polygon) <= 10**-DECIMALS
        assert vars(one) | {"polygon": None} == vars(other) | {"polygon": None}
    for field, other in zip(fields, fields_again, strict=True):
        assert (field.name, field.region_name) == (other.name, other.region_name)
        numbers = [(f.x0, f.y0, f.radius_x0, f.radius_y0, f.mean_probability) for f in (field, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=2 * 10**-DECIMALS)


def test_pictures_are_the_files_that_are_there(result: wp.Result) -> None:
    assert set(result.pictures) == {"report", "overlay", "heatmap", "tissue", "fields"}
    assert all(path.is_file() for path in result.pictures.values())
    (result.folder / "report.png").unlink()
    assert "report" not in wp.open_result(result.folder).pictures


def test_a_data_array_has_coordinates_in_micrometres(result: wp.Result) -> None:
    pytest.importorskip("xarray")
    array = result.data_array()
    assert array.dims == ("y", "x")
    assert array.attrs["long_name"] == "probability of IDC"
    assert array.x.attrs["units"] == "um"
    assert array.sel(x=1500, y=900, method="nearest").item() == pytest.approx(result.map[4, 7])
    assert result.data_array("status").dtype == np.uint8
    with pytest.raises(wp.ResultError, match=r"has no 'uncertainty'; it has map, status"):
        result.data_array("uncertainty")


def test_a_geo_data_frame_has_a_row_for_each_region(result: wp.Result) -> None:
    pytest.importorskip("geopandas")
    frame = result.geo_data_frame()
    assert list(frame["name"]) == [region.name for region in result.regions]
    assert frame.area.to_numpy() / 1e6 == pytest.approx(frame["area_mm2"].to_numpy(), rel=0.01)
    assert result.geo_data_frame("level0").geometry[0].equals(result.regions[0].polygon)
    with pytest.raises(wp.UsageError, match="expected 'um' or 'level0'"):
        result.geo_data_frame("mm")  # type: ignore[arg-type]


@pytest.mark.parametrize(("package", "call"), [("xarray", "data_array"), ("geopandas", "geo_data_frame")])
def test_a_package_that_is_not_installed_is_named(
    package: str, call: str, result: wp.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(wp.UsageError, match=f"pip install {package}"):
        getattr(result, call)()


def test_reading_writes_nothing_and_keeps_no_file_open(result: wp.Result) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(result.folder.rglob("*"))}

    before = state()
    again = wp.open_result(str(result.folder))
    _ = (again.map, again.status, again.patch_map, again.regions, again.fields, again.summary, again.patches)
    _ = (again.is_complete, again.pictures, again.extent_um)
    assert state() == before
    if Path("/proc/self/fd").is_dir():
        handles = [handle.resolve() for handle in Path("/proc/self/fd").iterdir() if handle.exists()]
        assert not [handle for handle in handles if result.folder.parent in handle.parents]


def test_a_run_that_was_broken_off_has_a_map_and_says_what_it_has_not(slide: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise Stop

    config = wp.InferConfig(grid=wp.GridOptions(block_px=256))
    with pytest.raises(Stop):
        wp.infer_slide(slide, tmp_path, model=brightness_model(), config=config, progress=stop, device="cpu")
    result = wp.open_result(tmp_path / "a")
    assert not result.is_complete
    committed = result.status == wp.Status.SCORED
    assert committed.any()
    assert (result.status == wp.Status.PLANNED).any()
    assert np.array_equal(np.isfinite(result.map), committed)
    for name in ("summary", "regions", "fields"):
        with pytest.raises(wp.ResultError, match=r"broken off"):
            getattr(result, name)
    done = wp.infer_slide(slide, tmp_path, model=brightness_model(), config=config, device="cpu")
    assert done.is_complete


def test_a_result_of_tiling_has_patches_and_no_map(slide: Path, tmp_path: Path) -> None:
    result = wp.tile_slide(slide, tmp_path, config="tile_idc")
    assert result.is_complete
    assert len(result.patches.x0) == len(result.patches.tissue) == result.summary["counts"]["patches"]
    assert result.patches.label is None
    for name in ("map", "status", "x_um", "regions", "patch_map"):
        with pytest.raises(wp.ResultError, match="has no map"):
            getattr(result, name)


def test_what_is_no_result_says_what_was_found(result: wp.Result, tmp_path: Path) -> None:
    for place, found in [
        (tmp_path / "none", "no such folder"),
        (result.folder.parent, "expected one of them: a"),
        (result.folder / "slide.zarr", "has no slide.zarr"),
    ]:
        with pytest.raises(wp.ResultError, match=found):
            wp.open_result(place)


def test_damage_is_an_error_of_ours(result: wp.Result) -> None:
    chunk = next(path for path in (result.folder / "slide.zarr/heatmap/0/c").rglob("*") if path.is_file())
    chunk.write_bytes(b"\x00damaged")
    (result.folder / "regions.geojson").write_text('{"features": [{}]}')
    (result.folder / "summary.json").write_text("{")
    again = wp.open_result(result.folder)
    for name in ("map", "regions", "summary"):
        with pytest.raises(wp.ResultError):
            getattr(again, name)
    (result.folder / "slide.zarr/zarr.json").write_text("{}")
    with pytest.raises(wp.ResultError, match="no store of this package"):
        wp.open_result(result.folder)


def test_regions_of_an_earlier_version_are_not_guessed_at(result: wp.Result) -> None:
    path = result.folder / "regions.geojson"
    collection = json.loads(path.read_text())
    del collection["origin0"]
    path.write_text(json.dumps(collection))
    with pytest.raises(wp.ResultError, match="origin0"):
        _ = wp.open_result(result.folder).regions


@pytest.mark.slow
def test_a_result_on_an_object_store_is_the_one_in_a_folder(
    slide: Path, result: wp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("upath")
    (tmp_path / "s3").mkdir()
    with s3_server_or_skip(tmp_path / "s3") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        there = wp.infer_slide(slide, "s3://maps/face", model=brightness_model(threshold=0.6), device="cpu")
        again = wp.open_result("s3://maps/face/a")
        assert again.is_complete
        assert np.array_equal(again.map, result.map, equal_nan=True)
        assert again.summary["idc_mm2"] == there.summary["idc_mm2"] == result.summary["idc_mm2"]
        assert [r.polygon for r in again.regions] == [r.polygon for r in result.regions]
        assert again.pictures["report"].exists()
        with pytest.raises(wp.ResultError, match=r"no such folder|has no slide"):
            wp.open_result("s3://maps/nothing")
