import json
import time

import numpy as np
import pytest
import scipy.ndimage
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.base.options import options_from_dict, options_to_dict
from wsi_pipeline.results.fields import choose_fields
from wsi_pipeline.results.geojson import qupath_origin0, regions_to_geojson
from wsi_pipeline.results.regions import DelineateOptions, delineate, rasterise

EVERYTHING = DelineateOptions(min_area_mm2=0.0, fill_holes_mm2=0.0)
MPP0 = (0.25, 0.25)
CELLS_200_UM = Plane(800.0, 800.0)  # one IDC patch a cell, at 40x

shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
masks = arrays(np.bool_, shapes)
planes = st.builds(
    Plane,
    downsample_x=st.floats(0.3, 3000),
    downsample_y=st.floats(0.3, 3000),
    origin_x0=st.floats(-1e5, 1e5),
    origin_y0=st.floats(-1e5, 1e5),
)


def heatmap_of(text: str) -> np.ndarray:
    """A map drawn in text: digits are tenths of probability, '.' is not scored."""
    rows = [line.strip() for line in text.strip().splitlines()]
    return np.array([[np.nan if c == "." else int(c) / 10 for c in row] for row in rows], np.float32)


@given(masks, planes)
def test_rasterised_regions_give_the_mask_back(mask, plane):
    regions = delineate(mask.astype(np.float32), plane, MPP0, 0.5, EVERYTHING)
    assert np.array_equal(rasterise(regions, plane, mask.shape), mask)


@given(masks, planes)
def test_polygons_are_valid_separate_and_as_many_as_edge_connected_parts(mask, plane):
    regions = delineate(mask.astype(np.float32), plane, MPP0, 0.5, EVERYTHING)
    assert all(region.polygon.is_valid for region in regions)
    assert len(regions) == scipy.ndimage.label(mask)[1]
    cell0 = plane.downsample_x * plane.downsample_y
    union = shapely.union_all([region.polygon for region in regions])
    assert union.area == pytest.approx(mask.sum() * cell0)


@given(
    arrays(np.float32, shapes, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nan])),
    planes,
    st.floats(0.1, 2),
    st.floats(0.1, 2),
)
def test_areas_and_probabilities_are_those_of_the_cells(heatmap, plane, mpp_x, mpp_y):
    regions = delineate(heatmap, plane, (mpp_x, mpp_y), 0.5, EVERYTHING)
    mask = heatmap >= 0.5
    cell_mm2 = plane.downsample_x * mpp_x * plane.downsample_y * mpp_y / 1e6
    assert sum(r.area_mm2 for r in regions) == pytest.approx(mask.sum() * cell_mm2)
    for region in regions:
        inside = rasterise([region], plane, heatmap.shape)
        assert region.area_mm2 == pytest.approx(region.polygon.area * mpp_x * mpp_y / 1e6)
        assert region.mean_probability == pytest.approx(heatmap[inside].mean())
        assert region.max_probability == heatmap[inside].max()
        assert not np.isnan(heatmap[inside]).any()


@given(masks)
def test_regions_are_named_by_size_the_largest_first(mask):
    regions = delineate(mask.astype(np.float32), CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    assert [r.name for r in regions] == [f"IDC {n}" for n in range(1, len(regions) + 1)]
    areas = [r.area_mm2 for r in regions]
    assert areas == sorted(areas, reverse=True)


@given(masks, planes)
def test_outlines_have_corners_only(mask, plane):
    for region in delineate(mask.astype(np.float32), plane, MPP0, 0.5, EVERYTHING):
        for ring in (region.polygon.exterior, *region.polygon.interiors):
            steps = np.diff(np.asarray(ring.coords), axis=0)
            across = steps[:, 1] == 0
            assert np.array_equal(steps[:, 0] == 0, ~across)
            assert (across[1:] != across[:-1]).all()


def test_a_hole_stays_a_hole_and_an_island_in_it_is_a_region_of_its_own():
    heatmap = heatmap_of("99999\n90009\n90909\n90009\n99999")
    large, island = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    assert len(large.polygon.interiors) == 1
    assert large.area_mm2 == pytest.approx(16 * 0.04)
    assert island.polygon.equals(shapely.box(1600, 1600, 2400, 2400))


def test_cells_touching_at_a_corner_are_two_regions():
    regions = delineate(heatmap_of("90\n09"), CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    assert len(regions) == 2


def test_cells_not_scored_are_in_no_region_even_in_a_filled_hole():
    heatmap = heatmap_of("99999\n9.999\n99919\n99999")
    options = DelineateOptions(min_area_mm2=0.0, fill_holes_mm2=1.0)
    (region,) = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, options)
    assert np.array_equal(rasterise([region], CELLS_200_UM, heatmap.shape), ~np.isnan(heatmap))
    assert region.mean_probability == pytest.approx((18 * 0.9 + 0.1) / 19)


def test_holes_are_filled_below_the_limit_only_and_never_at_the_edge():
    heatmap = heatmap_of("9999990\n9119919\n9999990")
    options = DelineateOptions(min_area_mm2=0.0, fill_holes_mm2=0.05)  # one cell is 0.04 mm2
    regions = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, options)
    mask = rasterise(regions, CELLS_200_UM, (3, 7))
    assert not mask[1, 1]
    assert not mask[1, 2]
    assert mask[1, 5]
    assert not mask[0, 6]


def test_small_regions_are_left_out_and_one_of_exactly_the_least_area_stays():
    heatmap = heatmap_of("990990\n000900")
    options = DelineateOptions(min_area_mm2=0.12)  # three cells of 0.04
    (region,) = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, options)
    assert region.area_mm2 == pytest.approx(0.12)


@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (0, 0)])
def test_a_map_without_idc_has_no_regions_and_no_fields(value, shape):
    heatmap = np.full(shape, value, np.float32)
    regions = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    assert regions == []
    assert choose_fields(heatmap, CELLS_200_UM, MPP0, regions, EVERYTHING) == []
    assert not rasterise(regions, CELLS_200_UM, shape).any()


def test_a_large_map_takes_seconds():
    noise = np.random.default_rng(0).random((2000, 2000), dtype=np.float32)
    heatmap = scipy.ndimage.gaussian_filter(noise, 10)
    started = time.perf_counter()
    regions = delineate(heatmap, Plane(50, 50), MPP0, 0.5, DelineateOptions())
    fields = choose_fields(heatmap, Plane(50, 50), MPP0, regions, DelineateOptions())
    assert len(regions) > 1
    assert len(fields) == 10
    assert time.perf_counter() - started < 15


def test_a_region_rasterises_on_another_plane_too():
    (region,) = delineate(heatmap_of("00\n09"), CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    fine = rasterise([region], Plane(100.0, 200.0), (8, 16))
    expected = np.zeros((8, 16), bool)
    expected[4:, 8:] = True
    assert np.array_equal(fine, expected)


# --- fields -------------------------------------------------------------------------------------------


def test_fields_are_circles_of_the_diameter_that_do_not_overlap_the_surest_first():
    heatmap = np.full((40, 40), 0.6, np.float32)
    heatmap[30, 8] = 1.0
    plane, mpp0 = Plane(400.0, 200.0), (0.25, 0.5)
    regions = delineate(heatmap, plane, mpp0, 0.5, EVERYTHING)
    fields = choose_fields(heatmap, plane, mpp0, regions, DelineateOptions())
    assert len(fields) == 10
    assert {f.region_name for f in fields} == {"IDC 1"}
    assert (2 * fields[0].radius_x0 * 0.25, 2 * fields[0].radius_y0 * 0.5) == (550.0, 550.0)
    centres_um = np.array([(f.x0 * mpp0[0], f.y0 * mpp0[1]) for f in fields])
    distances = np.linalg.norm(centres_um[:, None] - centres_um[None], axis=2)
    assert distances[~np.eye(10, dtype=bool)].min() >= 550
    hot = np.array(plane.point_to_level0(8.5, 30.5)) * mpp0
    assert np.linalg.norm(centres_um[0] - hot) < 275
    assert fields[0].mean_probability > fields[1].mean_probability == pytest.approx(0.6, abs=1e-6)


def test_a_field_lies_in_tumour_for_its_least_share():
    heatmap = np.zeros((9, 9), np.float32)
    heatmap[4, 4] = 0.9  # 0.04 mm2: a sixth of a field
    regions = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    assert choose_fields(heatmap, CELLS_200_UM, MPP0, regions, DelineateOptions()) == []
    (field,) = choose_fields(
        heatmap, CELLS_200_UM, MPP0, regions, DelineateOptions(min_field_tumour=0.1, field_count=3)
    )
    assert (field.x0, field.y0) == CELLS_200_UM.point_to_level0(4.5, 4.5)
    assert field.mean_probability == pytest.approx(0.9 * 0.04 / 0.2376, rel=0.01)


def test_a_field_mean_leaves_out_what_was_not_scored():
    heatmap = np.full((9, 9), np.nan, np.float32)
    heatmap[:, 4:] = 0.8
    regions = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    fields = choose_fields(heatmap, CELLS_200_UM, MPP0, regions, DelineateOptions())
    assert [f.mean_probability for f in fields] == pytest.approx([0.8] * len(fields))


# --- GeoJSON ------------------------------------------------------------------------------------------


@given(masks, planes)
def test_geojson_reads_back_the_same_polygons(mask, plane):
    regions = delineate(mask.astype(np.float32), plane, MPP0, 0.5, EVERYTHING)
    collection = json.loads(json.dumps(regions_to_geojson(regions, []), allow_nan=False))
    assert collection["type"] == "FeatureCollection"
    for feature, region in zip(collection["features"], regions, strict=True):
        assert feature["type"] == "Feature"
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid
        assert polygon.equals(region.polygon)
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["name"] == region.name
        assert feature["properties"]["measurements"]["Area mm^2"] == region.area_mm2


def test_a_field_is_an_ellipse_for_qupath_and_its_bounding_box_the_circle():
    heatmap = np.ones((9, 9), np.float32)
    regions = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    fields = choose_fields(heatmap, CELLS_200_UM, MPP0, regions, DelineateOptions(field_count=1))
    feature = regions_to_geojson(regions, fields)["features"][1]
    assert feature["geometry"]["isEllipse"] is True
    bounds = shapely.geometry.shape(feature["geometry"]).bounds
    f = fields[0]
    assert bounds == pytest.approx(
        (f.x0 - f.radius_x0, f.y0 - f.radius_y0, f.x0 + f.radius_x0, f.y0 + f.radius_y0)
    )
    assert feature["properties"]["name"] == "Field 1 (IDC 1)"


def test_coordinates_count_from_where_qupath_cuts_the_slide():
    size0 = Size(10_000, 20_000)
    bounds = {"x": "300", "y": "500", "width": "9000", "height": "18000"}
    cut = {f"openslide.bounds-{key}": value for key, value in bounds.items()}
    assert qupath_origin0({}, size0) == (0, 0)
    assert qupath_origin0(cut, size0) == (300, 500)
    assert qupath_origin0({**cut, "openslide.bounds-width": "10000"}, size0) == (0, 0)
    regions = delineate(heatmap_of("09"), CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    (feature,) = regions_to_geojson(regions, [], qupath_origin0(cut, size0))["features"]
    assert shapely.geometry.shape(feature["geometry"]).bounds == (500, -500, 1300, 300)


# --- options ------------------------------------------------------------------------------------------


def test_options_survive_a_round_trip_and_refuse_what_is_not_a_probability():
    options = DelineateOptions(threshold=0.4, field_count=3)
    assert options_from_dict(DelineateOptions, options_to_dict(options), "test") == options
    with pytest.raises(ConfigError, match="threshold"):
        options_from_dict(DelineateOptions, {"threshold": 1.2}, "test")
