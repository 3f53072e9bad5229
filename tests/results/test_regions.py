import json
from dataclasses import replace

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
from wsi_pipeline.results.extent import largest_dimension_mm
from wsi_pipeline.results.geojson import DECIMALS, geojson_text, regions_from_geojson, regions_to_geojson
from wsi_pipeline.results.regions import DelineateOptions, TissueMask, delineate, rasterise
from wsi_pipeline.slides.annotations.geojson import qupath_origin0

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
    areas = [region.polygon.area for region in regions]
    assert shapely.union_all([region.polygon for region in regions]).area == pytest.approx(sum(areas))


LEVELS = st.sampled_from([0.0, 0.25, 0.499, 0.5, 0.6, 0.75, 1.0, np.nan])


@given(arrays(np.float32, shapes, elements=LEVELS), planes, st.floats(0.1, 2), st.floats(0.1, 2))
def test_each_cell_is_inside_or_outside_as_the_map_says_at_its_centre(heatmap, plane, mpp_x, mpp_y):
    options = replace(EVERYTHING, outline_um=100.0)
    regions = delineate(heatmap, plane, (mpp_x, mpp_y), 0.5, options)
    assert np.array_equal(rasterise(regions, plane, heatmap.shape), heatmap >= 0.5)
    for region in regions:
        inside = rasterise([region], plane, heatmap.shape)
        assert region.area_mm2 == pytest.approx(region.polygon.area * mpp_x * mpp_y / 1e6)
        assert region.mean_probability == pytest.approx(heatmap[inside].mean())
        assert region.max_probability == heatmap[inside].max()


def test_an_outline_runs_where_the_map_crosses_the_threshold():
    # Between centres at 300 and 500 um probability falls from 0.8 to 0.2: it is 0.5 half-way, 0.7 after a sixth.
    heatmap = np.repeat(np.array([[0.9, 0.8, 0.2, 0.0]], np.float32), 9, axis=0)
    plane = Plane(200.0, 200.0)
    for threshold, edge in ((0.5, 400.0), (0.7, 300 + 200 / 6)):
        (region,) = delineate(heatmap, plane, (1.0, 1.0), threshold, EVERYTHING)
        middle = shapely.LineString([(0, 900), (800, 900)]).intersection(region.polygon)
        assert middle.bounds[2] == pytest.approx(edge, abs=0.5)  # whole level-0 pixels


def test_a_disc_is_outlined_without_stairs_and_its_area_is_its_own():
    y, x = np.indices((40, 40)) + 0.5
    distance = np.hypot(x - 20.3, y - 19.6)
    heatmap = np.clip(0.5 + (12 - distance) / 4, 0, 1).astype(np.float32)
    (region,) = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, DelineateOptions())
    true_mm2 = np.pi * 12**2 * 0.04
    assert region.area_mm2 == pytest.approx(true_mm2, rel=0.01)
    assert region.polygon.length * 0.25 / 1000 == pytest.approx(
        2 * np.pi * 12 * 0.2, rel=0.01
    )  # of stairs: 4/pi more
    assert region.largest_mm == pytest.approx(24 * 0.2, rel=0.02)


def test_simplifying_keeps_within_its_tolerance_and_takes_points_away():
    noise = np.random.default_rng(3).random((60, 60), dtype=np.float32)
    heatmap = scipy.ndimage.gaussian_filter(noise, 4)
    heatmap = (heatmap - heatmap.min()) / np.ptp(heatmap)
    exact, fewer = (
        delineate(heatmap, CELLS_200_UM, MPP0, 0.5, DelineateOptions(min_area_mm2=0, outline_um=um))
        for um in (0.0, 60.0)
    )
    points = [sum(len(shapely.get_coordinates(r.polygon)) for r in each) for each in (exact, fewer)]
    assert points[1] < 0.9 * points[0]
    apart = [one.polygon.hausdorff_distance(other.polygon) for one, other in zip(exact, fewer, strict=True)]
    assert max(apart) * 0.25 <= 60.0


@given(arrays(np.float32, shapes, elements=LEVELS), arrays(np.bool_, (24, 24)))
def test_outlines_and_areas_are_of_tissue_on_the_slide_alone(heatmap, small):
    plane, mask_plane, mpp0 = Plane(100, 100), Plane(50, 50), (1.0, 1.0)
    tissue = TissueMask(small, mask_plane, np.isnan(heatmap))
    size0 = Size(1100, 900)
    regions = delineate(heatmap, plane, mpp0, 0.5, EVERYTHING, tissue, size0)
    assert all(region.polygon.is_valid for region in regions)
    left, top, right, bottom = shapely.union_all(
        [r.polygon for r in regions] or [shapely.box(0, 0, 1, 1)]
    ).bounds
    assert left >= 0
    assert top >= 0
    assert right <= 1100
    assert bottom <= 900
    inside = rasterise(regions, mask_plane, small.shape) & small
    assert sum(r.area_mm2 for r in regions) == pytest.approx(inside.sum() * 0.0025)
    # Cells that were not scored are in none, nor are those that the map says no of.
    assert not (rasterise(regions, plane, heatmap.shape) & ~(heatmap >= 0.5)).any()


def test_glass_inside_a_cell_and_beyond_the_slide_is_no_area():
    heatmap = np.full((10, 10), 0.9, np.float32)
    mask = np.zeros((80, 80), bool)
    mask[:, :60] = True
    mask[20:40, 20:40] = False  # a gap that is no scrap: it cuts the outline
    mask[60:62, 10:12] = False  # one that does not, and is no area either
    plane, mask_plane = Plane(200, 200), Plane(25, 25)
    tissue = TissueMask(mask, mask_plane, np.zeros_like(heatmap, bool))
    (region,) = delineate(heatmap, plane, (1.0, 1.0), 0.5, DelineateOptions(), tissue, Size(2000, 1900))
    assert region.area_mm2 == pytest.approx((60 * 76 - 400 - 4) * 0.025**2, rel=0.003)
    assert region.polygon.bounds[2] == pytest.approx(1500, abs=25)
    assert region.polygon.bounds[3] == 1900
    assert len(region.polygon.interiors) == 1


def test_beside_background_an_outline_reaches_the_tissues_own_edge():
    heatmap = np.full((9, 9), np.nan, np.float32)
    heatmap[:, :5] = 0.9
    mask = np.zeros((72, 72), bool)
    mask[:, :42] = True  # 42 pixels of 25: a quarter of a cell beyond the last one scored
    tissue = TissueMask(mask, Plane(25, 25), np.isnan(heatmap))
    (region,) = delineate(heatmap, Plane(200, 200), (1.0, 1.0), 0.5, EVERYTHING, tissue, Size(1800, 1800))
    assert region.area_mm2 == pytest.approx(42 * 72 * 0.025**2, rel=0.01)
    # What was rejected or could not be read stays out: the outline ends at the cells' edge.
    known = TissueMask(mask, Plane(25, 25), np.zeros_like(heatmap, bool))
    (region,) = delineate(heatmap, Plane(200, 200), (1.0, 1.0), 0.5, EVERYTHING, known, Size(1800, 1800))
    assert region.polygon.bounds[2] == pytest.approx(1000)


def test_a_region_whose_tissue_lies_apart_is_one_region_of_several_parts():
    heatmap = np.full((5, 9), 0.9, np.float32)
    mask = np.ones((40, 72), bool)
    mask[:, 30:36] = False
    tissue = TissueMask(mask, Plane(25, 25), np.zeros_like(heatmap, bool))
    (region,) = delineate(heatmap, Plane(200, 200), (1.0, 1.0), 0.5, EVERYTHING, tissue, Size(1800, 1000))
    assert region.polygon.geom_type == "MultiPolygon"
    assert len(region.polygon.geoms) == 2
    again, _ = regions_from_geojson(json.loads(json.dumps(regions_to_geojson([region], []))))
    assert again[0].polygon.equals(region.polygon)
    assert again[0] == replace(region, polygon=again[0].polygon)


def test_hysteresis_takes_in_what_hangs_together_with_something_sure():
    heatmap = heatmap_of("0000000\n0945040\n0000000")
    options = DelineateOptions(min_area_mm2=0.0, threshold_low=0.4)
    mask = rasterise(delineate(heatmap, CELLS_200_UM, MPP0, 0.8, options), CELLS_200_UM, heatmap.shape)
    assert mask.astype(int).tolist()[1] == [0, 1, 1, 1, 0, 0, 0]


def test_extents_and_distances_are_of_the_slide_whatever_its_pixels():
    heatmap = np.zeros((30, 30), np.float32)
    heatmap[5:10, 5:10] = heatmap[5:10, 20:25] = 0.9
    plane, mpp0 = Plane(400.0, 200.0), (0.25, 0.5)  # cells of 100 um
    one, other = delineate(heatmap, plane, mpp0, 0.45, EVERYTHING)
    # Outlines lie half-way between centres: 10 cells lie between the squares, less what each gains.
    assert one.nearest_mm == other.nearest_mm == pytest.approx(1.0, abs=0.02)
    assert one.largest_mm == pytest.approx(0.5 * 2**0.5, rel=0.15)
    both = largest_dimension_mm([one.polygon, other.polygon], mpp0)
    assert both == pytest.approx((2.0**2 + 0.5**2) ** 0.5, rel=0.03)
    assert largest_dimension_mm([], mpp0) == 0.0


@given(masks)
def test_regions_are_named_by_size_the_largest_first(mask):
    regions = delineate(mask.astype(np.float32), CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    assert [r.name for r in regions] == [f"IDC {n}" for n in range(1, len(regions) + 1)]
    areas = [r.area_mm2 for r in regions]
    assert areas == sorted(areas, reverse=True)


def test_a_hole_stays_a_hole_and_an_island_in_it_is_a_region_of_its_own():
    heatmap = heatmap_of("99999\n90009\n90909\n90009\n99999")
    large, island = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    assert len(large.polygon.interiors) == 1
    assert large.polygon.interiors[0].bounds == pytest.approx((755.6, 755.6, 3244.4, 3244.4), abs=1)
    assert island.polygon.centroid.coords[0] == pytest.approx((2000, 2000))


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


def test_a_fine_map_is_written_in_few_bytes_without_holes_of_single_cells():
    """Cells of 12.5 um: noise makes a hole of one in ten of them, which nobody would draw."""
    noisy = 0.5 + 0.5 * np.random.default_rng(0).random((120, 120), dtype=np.float32)
    noisy[np.random.default_rng(1).random(noisy.shape) < 0.1] = 0.2
    noisy[60:80, 60:80] = 0.1
    plane, sizes = Plane(50.0, 50.0), []
    for options in (DelineateOptions(fill_holes_mm2=0.0), DelineateOptions()):
        (region,) = delineate(noisy, plane, MPP0, 0.5, options)
        text = geojson_text(regions_to_geojson([region], []))
        assert len(text) < 700 + 13 * shapely.get_num_coordinates(region.polygon)
        sizes.append(len(text))
    assert sizes[1] < 0.3 * sizes[0]
    assert not rasterise([region], plane, noisy.shape)[60:80, 60:80].any()  # a hole to be seen stays one
    # Of coarse cells each is a hole to be seen.
    (coarse,) = delineate(heatmap_of("999\n919\n999"), CELLS_200_UM, MPP0, 0.5, DelineateOptions())
    assert len(coarse.polygon.interiors) == 1


def test_small_regions_are_left_out_and_one_of_exactly_the_least_area_stays():
    heatmap = heatmap_of("990999\n990999\n000999")
    regions = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    (large, _), exactly = regions, regions[0].area_mm2
    assert delineate(heatmap, CELLS_200_UM, MPP0, 0.5, DelineateOptions(min_area_mm2=exactly)) == [
        replace(large, nearest_mm=None)
    ]
    assert delineate(heatmap, CELLS_200_UM, MPP0, 0.5, DelineateOptions(min_area_mm2=exactly * 1.001)) == []


@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (0, 0)])
def test_a_map_without_idc_has_no_regions(value, shape):
    heatmap = np.full(shape, value, np.float32)
    regions = delineate(heatmap, CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    assert regions == []
    assert not rasterise(regions, CELLS_200_UM, shape).any()


def test_a_region_rasterises_on_another_plane_too():
    (region,) = delineate(heatmap_of("000\n009\n009"), CELLS_200_UM, MPP0, 0.45, EVERYTHING)
    fine = rasterise([region], Plane(100.0, 200.0), (12, 24))
    assert fine.sum() * 100 * 200 == pytest.approx(region.polygon.area, rel=0.05)
    assert fine[6:10, 18:22].all()
    assert not fine[:3].any()


# --- GeoJSON ------------------------------------------------------------------------------------------


@given(masks, planes)
def test_geojson_reads_back_the_same_polygons(mask, plane):
    regions = delineate(mask.astype(np.float32), plane, MPP0, 0.5, EVERYTHING)
    collection = json.loads(geojson_text(regions_to_geojson(regions, [])))
    assert collection["type"] == "FeatureCollection"
    for feature, region in zip(collection["features"], regions, strict=True):
        assert feature["type"] == "Feature"
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid
        assert shapely.hausdorff_distance(polygon, region.polygon) <= 10**-DECIMALS
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["name"] == region.name
        assert feature["properties"]["measurements"]["Area mm^2"] == region.area_mm2


def test_coordinates_count_from_where_qupath_cuts_the_slide():
    size0 = Size(10_000, 20_000)
    bounds = {"x": "300", "y": "500", "width": "9000", "height": "18000"}
    cut = {f"openslide.bounds-{key}": value for key, value in bounds.items()}
    assert qupath_origin0({}, size0) == (0, 0)
    assert qupath_origin0(cut, size0) == (300, 500)
    assert qupath_origin0({**cut, "openslide.bounds-width": "10000"}, size0) == (0, 0)
    regions = delineate(heatmap_of("09"), CELLS_200_UM, MPP0, 0.5, EVERYTHING)
    (feature,) = regions_to_geojson(regions, [], qupath_origin0(cut, size0))["features"]
    left, top, right, bottom = regions[0].polygon.bounds
    moved = (left - 300, top - 500, right - 300, bottom - 500)
    assert shapely.geometry.shape(feature["geometry"]).bounds == pytest.approx(moved)


# --- options ------------------------------------------------------------------------------------------


def test_options_survive_a_round_trip_and_refuse_what_is_not_a_probability():
    options = DelineateOptions(threshold=0.4, min_area_mm2=0.3)
    assert options_from_dict(DelineateOptions, options_to_dict(options), "test") == options
    with pytest.raises(ConfigError, match="threshold"):
        options_from_dict(DelineateOptions, {"threshold": 1.2}, "test")
