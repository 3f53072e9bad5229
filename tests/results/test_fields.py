import json
import math

import numpy as np
import pytest
import shapely
from field_grounds import chosen, ground_of
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.results.discs import disc_of
from wsi_pipeline.results.field_ground import FieldGround
from wsi_pipeline.results.field_score import where_to_count
from wsi_pipeline.results.fields import FieldOptions, _room_taken, _take_room, choose_fields
from wsi_pipeline.results.geojson import (
    field_outline,
    hot_spots_from_geojson,
    regions_from_geojson,
    regions_to_geojson,
)
from wsi_pipeline.results.nuclei import Cellularity
from wsi_pipeline.results.regions import DelineateOptions, IdcRegion, delineate

MPP0 = (0.25, 0.25)
CELLS_200_UM = Plane(800.0, 800.0)
OPTIONS = FieldOptions()
FIELD_MM2 = math.pi * 0.275**2


def regions_of(
    heatmap: np.ndarray, plane: Plane = CELLS_200_UM, mpp0: tuple[float, float] = MPP0
) -> list[IdcRegion]:
    return delineate(heatmap, plane, mpp0, 0.5, DelineateOptions(min_area_mm2=0.0))


def cellularity(ground: FieldGround, per_mm2: np.ndarray | float) -> Cellularity:
    """As if so many nuclei per mm2 had been counted in every cell of a region."""
    nuclei = np.where(ground.tumour, np.asarray(per_mm2) * ground.cell_mm2, np.nan).astype(np.float32)
    return Cellularity(ground.plane, nuclei, 0.01)


def centres_um(fields) -> np.ndarray:
    return np.array([(f.x0 * MPP0[0], f.y0 * MPP0[1]) for f in fields])


def test_fields_are_circles_of_the_diameter_that_do_not_overlap_the_likeliest_first():
    heatmap = np.full((40, 40), 0.6, np.float32)
    heatmap[28:33, 6:11] = 1.0
    plane, mpp0 = Plane(400.0, 200.0), (0.25, 0.5)
    regions = regions_of(heatmap, plane, mpp0)
    fields = chosen(heatmap, plane, mpp0, regions).fields
    assert len(fields) == 10
    assert {f.region_name for f in fields} == {"IDC 1"}
    assert (2 * fields[0].radius_x0 * 0.25, 2 * fields[0].radius_y0 * 0.5) == (550.0, 550.0)
    centres = np.array([(f.x0 * mpp0[0], f.y0 * mpp0[1]) for f in fields])
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    assert distances[~np.eye(10, dtype=bool)].min() >= 550 * (1 - 1e-9)
    hot = np.array(plane.point_to_level0(8.5, 30.5)) * mpp0
    assert np.linalg.norm(centres[0] - hot) < 275
    assert fields[0].mean_probability > fields[-1].mean_probability == pytest.approx(0.6, abs=0.02)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.3, 0.9), st.sampled_from([0.3, 0.55, 0.8]))
def test_every_field_lies_in_the_slide_on_tissue_and_in_tumour_and_none_over_another(
    seed, share, diameter_mm
):
    rng = np.random.default_rng(seed)
    heatmap = (rng.random((14, 18)) < share).astype(np.float32)
    coarse = rng.random((14, 18)) < 0.85
    tissue = coarse.repeat(25, axis=0).repeat(25, axis=1)
    regions = regions_of(heatmap)
    if not regions:
        return
    options = FieldOptions(diameter_mm=diameter_mm)
    choice = chosen(heatmap, CELLS_200_UM, MPP0, regions, options, tissue)
    slide = shapely.box(0, 0, 18 * 800, 14 * 800)
    glass = shapely.union_all(
        [shapely.box(x * 800, y * 800, x * 800 + 800, y * 800 + 800) for y, x in np.argwhere(~coarse)]
    )
    tumour = shapely.union_all([region.polygon for region in regions])
    circles = [shapely.Point(f.x0, f.y0).buffer(f.radius_x0, 64) for f in choice.fields]
    for field, circle in zip(choice.fields, circles, strict=True):
        assert slide.buffer(1).contains(circle)
        on_tissue = 1 - circle.intersection(glass).area / circle.area
        assert on_tissue >= 0.9 - 0.02
        assert field.usable_mm2 == pytest.approx(on_tissue * circle.area / 16e6, rel=0.03)
        # Counted by the centres of 50 um cells: the outlines of noise cut a third of a field's cells anywhere.
        assert circle.intersection(tumour).area / circle.area >= 0.5 - 0.1
    for i, one in enumerate(circles):
        for other in circles[:i]:
            assert one.intersection(other).area < 0.001 * one.area
    if len(choice.fields) < 10:
        found = {0: "no field", 1: "1 field"}.get(n := len(choice.fields), f"{n} fields")
        assert choice.warnings[0].startswith(f"{found} for grading found room (10 asked for)")


def test_more_nuclei_come_first_where_the_model_is_as_sure():
    heatmap = np.full((20, 40), 0.9, np.float32)
    ground = ground_of(heatmap, CELLS_200_UM, MPP0, regions := regions_of(heatmap))
    columns = np.arange(ground.usable.shape[1]) * ground.cell_um[0]
    dense = np.where(columns > 5_000, 4_000.0, 2_000.0)[None, :]
    choice = choose_fields(ground, regions, OPTIONS, cellularity(ground, dense))
    assert (centres_um(choice.fields)[:, 0] > 5_000).all()
    # Each nucleus counts by the model's probability.
    assert choice.fields[0].nuclei_per_mm2 == pytest.approx(0.9 * 4_000, rel=0.01)
    assert "nuclei per mm2" in choice.rule


def test_the_invasive_front_comes_before_the_inside_of_a_tumour_as_dense_and_glass_is_no_front():
    heatmap = np.zeros((30, 30), np.float32)
    heatmap[:, :20] = 0.9
    tissue = np.ones((750, 750), bool)
    tissue[:, :60] = False  # the tumour's left edge is the section's
    regions = regions_of(heatmap)
    ground = ground_of(heatmap, CELLS_200_UM, MPP0, regions, tissue)
    counted = cellularity(ground, 3_000.0)
    at_front = choose_fields(ground, regions, FieldOptions(front_bonus=0.5, count=5), counted).fields
    assert (centres_um(at_front)[:, 0] > 3_000).all()
    assert min(field.front_share for field in at_front) > 0.9
    anywhere = choose_fields(ground, regions, FieldOptions(front_bonus=0.0, count=20), counted).fields
    assert min(field.front_share for field in anywhere) == 0


def test_a_field_that_was_not_wholly_looked_at_is_no_field():
    heatmap = np.full((20, 20), 0.9, np.float32)
    ground = ground_of(heatmap, CELLS_200_UM, MPP0, regions := regions_of(heatmap))
    counted = cellularity(ground, 3_000.0)
    counted.nuclei[:, 40:] = np.nan
    choice = choose_fields(ground, regions, OPTIONS, counted)
    assert choice.fields
    assert (centres_um(choice.fields)[:, 0] + 275 <= 41 * ground.cell_um[0]).all()
    assert "; counted in 7.6 of 15.9 mm2" in choice.rule


def test_fields_are_packed_so_that_as_many_find_room_as_there_is():
    heatmap = np.zeros((20, 20), np.float32)
    heatmap[4:10, 4:10] = 0.9  # 1.2 mm a side: four fields of 0.55 mm
    regions = regions_of(heatmap)
    options = FieldOptions(min_tumour=0.95)
    assert len(chosen(heatmap, CELLS_200_UM, MPP0, regions, options).fields) == 4


def test_a_field_lies_in_tumour_for_its_least_share():
    heatmap = np.zeros((9, 9), np.float32)
    heatmap[4, 4] = 0.9  # 0.04 mm2: a sixth of a field
    regions = regions_of(heatmap)
    assert chosen(heatmap, CELLS_200_UM, MPP0, regions).fields == ()
    options = FieldOptions(min_tumour=0.02, count=3)
    (field,) = chosen(heatmap, CELLS_200_UM, MPP0, regions, options).fields
    assert np.hypot(*(centres_um([field])[0] - 900)) < 150
    assert field.mean_probability == pytest.approx(0.9 * 0.04 / FIELD_MM2, rel=0.1)


def test_a_field_mean_leaves_out_what_was_not_scored():
    heatmap = np.full((9, 9), np.nan, np.float32)
    heatmap[:, 4:] = 0.8
    fields = chosen(heatmap, CELLS_200_UM, MPP0, regions_of(heatmap)).fields
    assert [f.mean_probability for f in fields] == pytest.approx([0.8] * len(fields))


def test_the_hot_spot_holds_its_areas_of_tissue_around_the_densest_place():
    heatmap = np.full((30, 30), 0.9, np.float32)
    tissue = np.zeros((750, 750), bool)
    tissue[300:425] = True  # a core 1 mm wide
    regions = regions_of(heatmap)
    ground = ground_of(heatmap, CELLS_200_UM, MPP0, regions, tissue)
    columns = np.arange(ground.usable.shape[1]) * ground.cell_um[0]
    dense = np.where(abs(columns - 4_000) < 700, 5_000.0, 2_000.0)[None, :]
    choice = choose_fields(ground, regions, OPTIONS, cellularity(ground, dense))
    assert [spot.name for spot in choice.hot_spots] == ["Hot spot 1 mm2", "Hot spot 2 mm2"]
    for spot, wanted in zip(choice.hot_spots, (1.0, 2.0), strict=True):
        assert np.hypot(*(centres_um([spot])[0] - (4_000, 2_900))) < 120
        inside = shapely.Point(spot.x0, spot.y0).buffer(spot.radius_x0, 64)
        core = shapely.box(0, 300 * 32, 24_000, 425 * 32)
        assert inside.intersection(core).area / 16e6 == pytest.approx(wanted, rel=0.02)
        assert spot.usable_mm2 == pytest.approx(wanted, rel=0.02)


def test_where_there_is_too_little_tissue_for_a_hot_spot_it_is_said():
    heatmap = np.zeros((6, 40), np.float32)
    heatmap[:, :6] = heatmap[:, -6:] = 0.9  # two of 1.44 mm2, 5.6 mm apart
    tissue = (heatmap > 0).repeat(25, axis=0).repeat(25, axis=1)
    choice = chosen(heatmap, CELLS_200_UM, MPP0, regions_of(heatmap), tissue=tissue)
    assert any("Hot spot 2 mm2: there is no more than 1.44 mm2" in warning for warning in choice.warnings)


def test_no_hot_spot_is_larger_than_all_carcinoma_and_each_says_how_much_of_it_it_holds():
    heatmap = np.zeros((30, 30), np.float32)
    heatmap[10:15, 10:16] = 0.9  # 1.2 mm2 in stroma
    choice = chosen(heatmap, CELLS_200_UM, MPP0, regions := regions_of(heatmap))
    (spot,) = choice.hot_spots
    assert (spot.wanted_mm2, spot.usable_mm2) == (1.0, pytest.approx(1.0, abs=0.02))
    inside = shapely.Point(spot.x0, spot.y0).buffer(spot.radius_x0, 64).intersection(regions[0].polygon)
    assert spot.idc_mm2 == pytest.approx(inside.area / 16e6, rel=0.03)
    assert spot.idc_mm2 < 0.95
    said = f"no hot spot of 2 mm2: the regions hold {regions[0].area_mm2:.2f} mm2 of tissue in all"
    assert any(warning.startswith(said) for warning in choice.warnings)
    heatmap[12:] = 0.0  # 0.48 mm2: one field of it, or two
    choice = chosen(heatmap, CELLS_200_UM, MPP0, regions_of(heatmap))
    assert choice.hot_spots == ()
    assert any(warning.startswith("no hot spot of 1 mm2 or 2 mm2") for warning in choice.warnings)


def test_no_more_is_looked_at_than_is_allowed_and_it_is_where_haematoxylin_is_densest():
    heatmap = np.full((60, 60), 0.9, np.float32)
    ground = ground_of(heatmap, CELLS_200_UM, MPP0, regions_of(heatmap))
    haematoxylin = np.zeros(ground.usable.shape, np.float32)
    haematoxylin[:, 150:] = 0.05
    wanted = where_to_count(ground, haematoxylin, 12.0)
    looked_at = wanted.sum() * ground.cell_mm2
    assert 9 < looked_at <= 12
    assert not wanted[:, :125].any()
    assert where_to_count(ground, haematoxylin, 1_000.0).sum() == ground.tumour.sum()
    assert where_to_count(ground, haematoxylin, 0.5).any()


def test_fields_and_hot_spots_are_ellipses_for_qupath_and_are_read_back():
    heatmap = np.full((20, 20), 0.9, np.float32)
    ground = ground_of(heatmap, CELLS_200_UM, MPP0, regions := regions_of(heatmap))
    choice = choose_fields(ground, regions, FieldOptions(count=2), cellularity(ground, 3_000.0))
    written = regions_to_geojson(regions, choice.fields, (300.0, -20.0), "key", choice.hot_spots)
    written = json.loads(json.dumps(written, allow_nan=False))
    drawn = written["features"][1:]
    assert [f["properties"]["name"] for f in drawn] == [
        *("Field 1 (IDC 1)", "Field 2 (IDC 1)", "Hot spot 1 mm2", "Hot spot 2 mm2")
    ]
    assert all(feature["geometry"]["isEllipse"] is True for feature in drawn)
    again, fields = regions_from_geojson(written)
    assert len(again) == len(regions)
    circles = [*choice.fields, *choice.hot_spots]
    read_back = [*fields, *hot_spots_from_geojson(written)]
    for circle, other in zip(circles, read_back, strict=True):
        assert vars(circle).keys() == vars(other).keys()
        for name, value in vars(circle).items():
            assert getattr(other, name) == (pytest.approx(value) if isinstance(value, float) else value)
        assert field_outline(circle).equals_exact(field_outline(other), 2e-3)


def test_no_fields_are_chosen_where_none_are_wanted():
    heatmap = np.full((20, 20), 0.9, np.float32)
    choice = chosen(heatmap, CELLS_200_UM, MPP0, regions_of(heatmap), FieldOptions(count=0))
    assert (choice.fields, choice.hot_spots, choice.warnings) == ((), (), ())


def test_room_that_a_field_takes_is_the_same_brought_up_to_date_as_counted_again():
    rng = np.random.default_rng(3)
    score = np.where(rng.random((60, 70)) < 0.7, rng.random((60, 70)), -1.0)
    disc = disc_of(8.0, 6.0)
    taken = _room_taken(score, disc)
    for row, column in ((30, 40), (2, 3), (58, 69), (20, 10)):
        rows, columns = np.ogrid[:60, :70]
        score[((rows - row) / 6.0) ** 2 + ((columns - column) / 8.0) ** 2 < 1] = -1.0
        _take_room(taken, score, disc, row, column)
        assert taken == pytest.approx(_room_taken(score, disc), abs=2e-4)
