"""What the measurement of artefacts counts."""

import numpy as np
import pytest
from test_blur import natural

from scripts.results.measure_artefacts import (
    GREY,
    LENGTH_UM,
    WIDTH_UM,
    Seen,
    counted,
    counted_on_glass,
    on_glass,
    section,
    strokes,
)
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.tiling.tissue import TissueOptions, find_tissue

MPP = (8.0, 8.0)
SHAPE = (600, 700)


@pytest.fixture(scope="module")
def pale():
    """A slide of pale tissue on glass, with the noise of a scanner."""
    tissue = np.zeros(SHAPE, bool)
    tissue[50:350, 50:450] = True
    detail = (natural(*SHAPE, 0)[..., :1].astype(float) - 150) / 6  # as fine as coarse, as tissue has it
    rgb = np.where(tissue[..., None], np.add(detail, (228, 190, 210)), (243, 243, 243))
    rgb = np.clip(rgb + np.random.default_rng(0).normal(0, 2, rgb.shape), 0, 255).astype(np.uint8)
    plane = Plane(32, 32)
    found = find_tissue(rgb, plane, MPP, TissueOptions())
    return Seen(rgb, plane, MPP, found, found.mask, 0, 0.1)


@pytest.mark.parametrize("ink", ["blue ink", "green ink", "cyan ink", "black ink"])
def test_ink_on_pale_tissue_is_counted_as_rejected_and_little_else(pale, ink):
    defect, rejected, rest, lost = counted(pale, ink)
    assert defect == (strokes(pale, WIDTH_UM, LENGTH_UM) & pale.clean).sum() > 5_000
    assert defect + rest == pale.clean.sum()
    assert rejected >= 0.99 * defect
    assert lost <= 0.06 * rest  # the margins of six strokes on a small slide


def test_folds_are_counted_as_kept_and_areas_out_of_focus_as_rejected(pale):
    _, rejected, _, lost = counted(pale, "fold")
    assert rejected == lost == 0
    defect, rejected, _, _ = counted(pale, "blur, sigma 12 um")
    assert rejected > 0.8 * defect > 0


def test_what_lies_on_glass_lies_away_from_tissue_and_the_grey_is_not_scored(pale):
    for name in GREY:
        where = on_glass(pale, name)
        assert not where[50:350, 50:450].any()
        defect, tissue, scored = counted_on_glass(pale, name)
        assert where.sum() == defect > 20
        assert scored <= tissue <= 0.02 * defect


def test_the_section_says_the_share_of_all_slides_and_of_the_least(pale):
    rows = section([pale, pale]).splitlines()
    assert "Defects laid on 2 slides" in rows[0]
    green, _ = [row for row in rows if row.startswith("| green ink")]
    shares = [cell.strip() for cell in green.split("|")[2:4]]
    assert shares[0] == shares[1]
    assert float(shares[0].rstrip("%")) > 99
