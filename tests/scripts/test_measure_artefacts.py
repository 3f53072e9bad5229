"""What the measurement of artefacts counts."""

from dataclasses import replace

import numpy as np
import pytest
from test_blur import natural

from scripts.results import measure_artefacts
from scripts.results.measure_artefacts import (
    GREY,
    LENGTH_UM,
    WIDTH_UM,
    Seen,
    as_they_stand,
    counted,
    counted_on_glass,
    on_glass,
    section,
    strokes,
)
from scripts.results.tissue_folds import with_folds
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
    spots = {reason: np.zeros(SHAPE, bool) for reason in ("pen", "fold")}
    spots["fold"][60:160, 60:160] = True
    carcinoma = found.mask & (np.indices(SHAPE)[0] < 150)
    return Seen(rgb, plane, MPP, found, found.mask, spots, carcinoma, 0.1)


@pytest.mark.parametrize("ink", ["blue ink", "green ink", "cyan ink", "black ink"])
def test_ink_on_pale_tissue_is_counted_as_rejected_and_little_else(pale, ink):
    defect, rejected, rest, lost = counted(pale, ink)
    assert defect == (strokes(pale, WIDTH_UM, LENGTH_UM) & pale.clean).sum() > 5_000
    assert defect + rest == pale.clean.sum()
    assert rejected >= 0.99 * defect
    assert lost <= 0.06 * rest  # the margins of six strokes on a small slide


@pytest.mark.parametrize(("name", "least"), [("fold, three layers", 0.3), ("blur, sigma 12 um", 0.8)])
def test_folds_and_areas_out_of_focus_are_counted_as_rejected(pale, name, least):
    defect, rejected, _, _ = counted(pale, name)
    assert rejected > least * defect > 0


@pytest.mark.parametrize("layers", [2, 3])
def test_a_fold_adds_the_layers_of_even_tissue_and_changes_nothing_beside_it(layers):
    tissue = np.ones((200, 200), bool)
    even = np.full((200, 200, 3), 180, np.uint8)
    folded, where = with_folds(even, tissue, np.full(3, 243, np.float32), MPP, layers)
    assert 0.02 < where.mean() < 0.9
    assert (folded[~where] == 180).all()
    assert np.abs(folded[where] - 243 * (180 / 243) ** layers).max() <= 1


def test_what_is_rejected_as_slides_stand_is_a_share_of_tissue_and_of_carcinoma(pale):
    tissue, carcinoma = pale.tissue.mask.sum(), pale.carcinoma.sum()
    rows = as_they_stand([pale, replace(pale, carcinoma=None)])
    assert f"| pen | {0:.3%} | {0:.4%} |" in rows
    assert f"| fold | {10_000 / tissue:.3%} | {9_000 / carcinoma:.4%} |" in rows


def test_what_lies_on_glass_lies_away_from_tissue_and_the_grey_is_not_scored(pale):
    for name in GREY:
        where = on_glass(pale, name)
        assert not where[50:350, 50:450].any()
        defect, tissue, scored = counted_on_glass(pale, name)
        assert where.sum() == defect > 20
        assert scored <= tissue <= 0.02 * defect


def test_the_section_says_the_share_of_all_slides_and_of_the_least(pale, monkeypatch):
    monkeypatch.setattr(measure_artefacts, "INKS", {"green ink": measure_artefacts.INKS["green ink"]})
    for others in ("FOLDS", "BLUR_UM", "GREY"):
        monkeypatch.setattr(measure_artefacts, others, {})
    rows = section([pale, pale]).splitlines()
    assert "Defects laid on 2 slides" in rows[0]
    green, _ = [row for row in rows if row.startswith("| green ink")]
    shares = [cell.strip() for cell in green.split("|")[2:4]]
    assert shares[0] == shares[1]
    assert float(shares[0].rstrip("%")) > 99
