"""What an overview warns of."""

import numpy as np
import pytest
from conftest import write_slide
from test_tissue import as_picture, empty_glass, scene, structured

from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.grid import GridOptions
from wsi_pipeline.tiling.overview import BESIDE_ARTEFACTS, TOO_LITTLE, OverviewOptions, make_overview

GRID = GridOptions(patch_px=50, mpp=4.0)


def overview_of(image, folder):
    slide = open_slide(write_slide(folder / "one.tiff", as_picture(image), mpp=(4.0, 4.0)))
    return make_overview(slide, OverviewOptions(), GRID)


def test_a_slide_without_glass_is_tissue_and_warns_that_the_glass_is_assumed(tmp_path):
    overview = overview_of(structured(empty_glass(400, 500, (243, 243, 243)), "eosin", 0.4), tmp_path)
    assert overview.tissue.mask.mean() > 0.97
    (warning,) = [warning for warning in overview.warnings if "glass" in warning]
    assert warning.startswith("no empty glass was seen")
    assert "rgb(2" in warning


@pytest.mark.parametrize("lamp", [(1, 1, 1), (0.6, 0.6, 0.6), (1, 0.85, 1), (0.9, 0.9, 0.78)])
def test_a_slide_with_glass_plans_the_same_patches_under_any_lamp_and_does_not_warn(lamp, tmp_path):
    (tmp_path / "lit").mkdir()
    plain = overview_of(scene(mpp=(4.0, 4.0))[0], tmp_path)
    lit = overview_of(scene(mpp=(4.0, 4.0))[0] * np.asarray(lamp), tmp_path / "lit")
    assert plain.warnings == lit.warnings == ()
    assert (plain.plan.scored != lit.plan.scored).sum() <= 1
    assert plain.plan.scored.any()


def test_tissue_that_no_patch_scores_is_counted_by_its_reason(tmp_path):
    # Patches of 50 x 50 px at 4 um: 25 x 25 px of the tissue plane.
    image = empty_glass(400, 500, (243, 243, 243))
    stained = structured(image, "eosin", 0.5)
    image[100:200, 100:202] = stained[100:200, 100:202]
    image[102:148, 102:136] = (40, 60, 180)  # ink on two thirds of one patch
    overview = overview_of(image, tmp_path)
    kept, rejected = (
        flags.repeat(25, axis=0).repeat(25, axis=1) for flags in (overview.plan.kept, overview.plan.rejected)
    )
    clean = overview.tissue.mask & ~overview.artefacts.rejected
    found, areas = overview.passed_over, overview.passed_over_mm2((4.0, 4.0))
    assert np.array_equal(found[TOO_LITTLE], clean & ~kept)
    assert np.array_equal(found[BESIDE_ARTEFACTS], clean & rejected)
    assert areas == {name: pytest.approx(mask.sum() * 64 / 1e6) for name, mask in found.items()}
    assert min(areas.values()) > 0
    assert not any("min_tissue" in warning for warning in overview.warnings)


def test_much_tissue_in_patches_with_too_little_is_warned_of(tmp_path):
    image = empty_glass(400, 500, (243, 243, 243))
    stained = structured(image, "eosin", 0.5)
    for rows, columns in ((slice(100, 150), slice(100, 150)), (slice(200, 400), slice(96, 100))):
        image[rows, columns] = stained[rows, columns]
    (warning,) = [w for w in overview_of(image, tmp_path).warnings if "min_tissue" in w]
    assert "of tissue not scored" in warning
