"""What an overview warns of."""

import numpy as np
import pytest
from conftest import write_slide
from test_tissue import as_picture, empty_glass, scene, structured

from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.grid import GridOptions
from wsi_pipeline.tiling.overview import OverviewOptions, make_overview

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
