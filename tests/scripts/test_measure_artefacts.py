"""What the measurement of artefacts counts."""

import numpy as np
import pytest

from scripts.results.measure_artefacts import Seen, counted, section, strokes
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.tiling.tissue import TissueOptions, find_tissue

MPP = (8.0, 8.0)
SHAPE = (400, 500)


@pytest.fixture(scope="module")
def pale():
    """A slide of pale tissue on glass, with the noise of a scanner."""
    tissue = np.zeros(SHAPE, bool)
    tissue[50:350, 50:450] = True
    rgb = np.where(tissue[..., None], (228, 190, 210), (243, 243, 243))
    rgb = np.clip(rgb + np.random.default_rng(0).normal(0, 2, rgb.shape), 0, 255).astype(np.uint8)
    plane = Plane(32, 32)
    found = find_tissue(rgb, plane, MPP, TissueOptions())
    return Seen(rgb, plane, MPP, found, found.mask, 0.1)


@pytest.mark.parametrize("ink", ["blue ink", "green ink", "cyan ink", "black ink"])
def test_ink_on_pale_tissue_is_counted_as_rejected_and_little_else(pale, ink):
    defect, rejected, rest, lost = counted(pale, ink)
    assert defect == (strokes(pale) & pale.clean).sum() > 5_000
    assert defect + rest == pale.clean.sum()
    assert rejected >= 0.99 * defect
    assert lost <= 0.06 * rest  # the margins of six strokes on a small slide


def test_blur_and_folds_are_counted_as_kept(pale):
    for name in ("fold", "blur, sigma 8 um"):
        _, rejected, _, lost = counted(pale, name)
        assert rejected == lost == 0


def test_the_section_says_the_share_of_all_slides_and_of_the_least(pale):
    rows = section([pale, pale]).splitlines()
    assert "Defects laid on 2 slides" in rows[0]
    (green,) = [row for row in rows if row.startswith("| green ink")]
    shares = [cell.strip() for cell in green.split("|")[2:4]]
    assert shares[0] == shares[1]
    assert float(shares[0].rstrip("%")) > 99
