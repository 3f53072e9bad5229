import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.outlines import rasterise_polygons, trace
from wsi_pipeline.results.regions import DelineateOptions, delineate, rasterise

ONE_TO_ONE = Plane(1.0, 1.0)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    sigma=st.sampled_from([0.0, 0.7, 2.0]),
    tolerance=st.sampled_from([0.3, 0.8, 3.0, 50.0]),
)
def test_points_left_out_and_moved_by_less_than_the_clearance_move_no_centre(seed, sigma, tolerance):
    from scipy.ndimage import gaussian_filter, label

    chance, clearance = np.random.default_rng(seed), 0.03
    heatmap = gaussian_filter(chance.random((24, 30)), sigma).astype(np.float32)
    threshold = float(np.quantile(heatmap, chance.uniform(0.2, 0.7)))
    labels = label(heatmap >= threshold)[0]
    outlines = trace(heatmap, labels, threshold, None, tolerance, clearance)
    assert len(outlines) == labels.max()
    for area, outline in outlines.items():
        assert outline.is_valid
        for move in (0.0, 0.99 * clearance / 2**0.5):
            rings = []
            for ring in shapely.get_rings(outline):
                points = shapely.get_coordinates(ring)[:-1]
                rings.append(points + chance.choice([-move, move], points.shape))
            polygon = shapely.Polygon(rings[0], rings[1:])
            assert polygon.is_valid
            assert np.array_equal(rasterise_polygons(polygon, ONE_TO_ONE, labels.shape), labels == area)


def test_a_noisy_map_has_half_the_points_in_whole_pixels_and_keeps_its_cells():
    heatmap = np.random.default_rng(5).random((150, 150), dtype=np.float32)
    plane, mpp0 = Plane(50.0, 50.0), (0.25, 0.25)
    points = []
    for outline_um in (0.0, 10.0):
        options = DelineateOptions(min_area_mm2=0.0, fill_holes_mm2=0.0, outline_um=outline_um)
        regions = delineate(heatmap, plane, mpp0, 0.35, options)
        assert all(region.polygon.is_valid for region in regions)
        assert np.array_equal(rasterise(regions, plane, heatmap.shape), heatmap >= np.float32(0.35))
        xy0 = shapely.get_coordinates([region.polygon for region in regions])
        assert np.array_equal(xy0, np.round(xy0))
        points.append(len(xy0))
    assert points[1] < 0.55 * points[0]
