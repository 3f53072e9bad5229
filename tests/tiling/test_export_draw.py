"""Which patches of a slide are exported follows from the options, and is spread over the slide."""

import numpy as np
import pytest
from conftest import noise, write_slide

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.export_draw import ExportOptions, SlideOfPatient, draw_patches, evenly, export_recipe
from wsi_pipeline.tiling.grid import GridOptions, Plan, plan_patches

ONE = SlideOfPatient("p")


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """40 x 30 patches, the last rows of them artefact."""
    path = write_slide(tmp_path_factory.mktemp("plan") / "a.tiff", noise(600, 800), factors=(1,))
    with open_slide(path) as slide:
        mask = np.ones((60, 80), np.bool_)
        artefact = np.zeros_like(mask)
        artefact[-8:] = True
        return plan_patches(
            slide, mask, artefact, Plane(10, 10), GridOptions(patch_px=20, mpp=0.5, min_tissue=1)
        )


def labels_of(plan: Plan) -> np.ndarray:
    """IDC in the left fifth, no label in the right quarter, not IDC between."""
    _, columns = np.nonzero(plan.kept)
    return np.where(columns < 8, 1, np.where(columns >= 30, -1, 0)).astype(np.int8)


def test_without_limits_all_planned_patches_are_drawn_and_nothing_is_said(plan):
    draw = draw_patches(plan, labels_of(plan), ExportOptions(), ONE, "f")
    assert np.array_equal(draw.chosen, plan.scored)
    assert sum(draw.patches.values()) == plan.scored.sum() < plan.kept.sum()
    assert (set(draw.left_out.values()), draw.words) == ({0}, "")


def test_so_many_of_each_label_are_drawn_spread_over_the_slide_and_the_rest_is_counted(plan):
    draw = draw_patches(plan, labels_of(plan), ExportOptions(most_of_class=64), ONE, "f")
    assert draw.patches == {"idc": 64, "not_idc": 64, "unlabelled": 64}
    assert draw.left_out["not_idc"] == plan.scored[:, 8:30].sum() - 64
    assert not (draw.chosen & ~plan.scored).any()
    # Of each quarter of the middle about a quarter is drawn.
    middle = draw.chosen[:26, 8:30]
    quarters = [part.sum() for half in np.array_split(middle, 2) for part in np.array_split(half, 2, axis=1)]
    assert sum(quarters) == 64
    assert min(quarters) >= 12
    left = sum(draw.left_out.values())
    assert f"export: 192 of {plan.scored.sum():,} patches (64 of" in draw.words
    assert f"{left:,} left out" in draw.words


def test_a_draw_follows_from_its_seed_and_slide(plan):
    def drawn(seed: int, fingerprint: str) -> bytes:
        options = ExportOptions(most_of_slide=50, seed=seed)
        return draw_patches(plan, labels_of(plan), options, ONE, fingerprint).chosen.tobytes()

    assert drawn(0, "f") == drawn(0, "f")
    assert len({drawn(0, "f"), drawn(1, "f"), drawn(0, "g")}) == 3


def test_a_patients_slides_share_its_patches_and_labels_are_balanced(plan):
    options = ExportOptions(most_of_patient=100, unlabelled=False)
    draws = [draw_patches(plan, labels_of(plan), options, SlideOfPatient("p", n, 3), "f") for n in range(3)]
    assert [sum(draw.patches.values()) for draw in draws] == [34, 33, 33]
    assert draws[0].patches == {"idc": 17, "not_idc": 17, "unlabelled": 0}
    both = draw_patches(plan, labels_of(plan), ExportOptions(most_of_patient=100, most_of_slide=10), ONE, "f")
    assert sum(both.patches.values()) == 10


def test_the_idc_layout_has_no_place_for_patches_without_a_label(plan):
    draw = draw_patches(plan, None, ExportOptions(format="idc"), ONE, "f")
    assert not draw.chosen.any()
    assert draw.left_out["unlabelled"] == plan.scored.sum()


def test_amounts_are_even_as_far_as_they_suffice():
    assert evenly({1: 3, 0: 100, -1: 100}, 103) == {1: 3, 0: 50, -1: 50}
    assert evenly({1: 3, 0: 5}, 100) == {1: 3, 0: 5}
    assert evenly({1: 3, 0: 5}, 0) == {1: 0, 0: 0}


def test_only_what_decides_the_exported_files_names_them():
    assert export_recipe(ExportOptions(), ONE) == export_recipe(ExportOptions(seed=3, shard_patches=9), ONE)
    assert export_recipe(ExportOptions(most_of_class=5), ONE) != export_recipe(
        ExportOptions(most_of_class=5, seed=3), ONE
    )
    assert export_recipe(ExportOptions(most_of_patient=5), ONE) != export_recipe(
        ExportOptions(most_of_patient=5), SlideOfPatient("p", 0, 2)
    )
