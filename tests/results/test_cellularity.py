import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr
from skimage.color import hed2rgb, rgb2hed

from wsi_pipeline.results.cellularity import REACH_PX, find_blobs, haematoxylin, least_answer

PINK = 0.03  # of eosin, in scikit-image's units


def stained(haematoxylin_of: np.ndarray, eosin: float = PINK) -> np.ndarray:
    """Tissue with so much haematoxylin at each pixel on a pink ground, uint8 [row, column, 3]."""
    hed = np.stack(
        [haematoxylin_of, np.full(haematoxylin_of.shape, eosin), np.zeros(haematoxylin_of.shape)], axis=-1
    )
    return np.asarray(np.round(hed2rgb(hed) * 255), np.uint8)


def find_nuclei(rgb: np.ndarray) -> np.ndarray:
    blobs = find_blobs(rgb)
    return blobs.xy[blobs.answers >= least_answer(blobs.answers)]


def nuclei_at(places: list[tuple[int, int]], side: int, radius_px: float = 7) -> np.ndarray:
    """A square of tissue at 0.5 um per pixel with a nucleus of 7 um at each place (x, y)."""
    y, x = np.indices((side, side))
    density = np.full((side, side), 0.01)
    for left, top in places:
        density[(x - left) ** 2 + (y - top) ** 2 <= radius_px**2] = 0.06
    return stained(density)


def test_of_equals_beside_each_other_one_is_found():
    rgb = nuclei_at([(30, 30), (31, 30), (80, 80)], 120)
    mirrored = np.concatenate([rgb, rgb[:, ::-1]], axis=1)
    assert len(find_nuclei(rgb)) == 2
    assert len(find_nuclei(mirrored)) == 4
    # The nucleus that the mirror cuts in two is one, whose highest two pixels are equal.
    halves = np.concatenate([rgb[:, :80], rgb[:, :80][:, ::-1]], axis=1)
    xy = find_nuclei(halves)
    assert len(xy[np.abs(xy[:, 0] - 80) < 6]) == 1


def test_each_nucleus_is_found_once_where_it_lies():
    places = [(30, 20), (60, 24), (90, 90), (20, 100), (110, 40)]
    found = find_nuclei(nuclei_at(places, 130))
    assert len(found) == len(places)
    for place in places:
        assert np.linalg.norm(found - (np.array(place) + 0.5), axis=1).min() <= 2


def test_nuclei_that_touch_are_two():
    assert len(find_nuclei(nuclei_at([(40, 40), (54, 40)], 100))) == 2


@pytest.mark.parametrize("strength", [0.4, 1.0, 2.0])
def test_a_paler_or_darker_stain_holds_the_same_nuclei_and_its_specks_are_none(strength):
    density = np.full((140, 140), 0.01)
    y, x = np.indices(density.shape)
    for left, top in ((30, 30), (80, 60), (40, 100)):
        density[(x - left) ** 2 + (y - top) ** 2 <= 49] = 0.06
    density[(x - 110) ** 2 + (y - 110) ** 2 <= 16] = 0.019  # a pale speck
    changed = np.asarray(np.rint(255 * (stained(density) / 255.0) ** strength), np.uint8)
    found = find_nuclei(changed)
    assert len(found) == 3
    assert np.linalg.norm(found - 110, axis=1).min() > 20


def test_glass_eosin_and_a_tinted_lamp_hold_no_nuclei():
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal(243, 3, (200, 200, 3)), 0, 255).astype(np.uint8)
    assert len(find_nuclei(glass)) == 0
    assert len(find_nuclei(stained(np.full((200, 200), 0.01), eosin=0.15))) == 0
    picture = nuclei_at([(30, 30), (80, 60)], 120)
    tinted = np.asarray(np.round(picture * np.array([0.9, 0.95, 0.8])), np.uint8)
    assert find_nuclei(tinted) == pytest.approx(find_nuclei(picture), abs=2)


@pytest.mark.parametrize("shape", [(0, 0), (1, 50), (2, 2), (37, 5)])
def test_a_picture_of_any_size_is_looked_at(shape):
    assert find_nuclei(np.full((*shape, 3), 200, np.uint8)).shape == (0, 2)


def test_haematoxylin_is_what_scikit_image_makes_of_it():
    rgb = np.random.default_rng(1).integers(60, 255, (20, 30, 3), np.uint8)
    expected = rgb2hed(rgb)[..., 0]
    found = haematoxylin(np.repeat(np.repeat(rgb, 2, axis=0), 2, axis=1))
    assert np.maximum(found, 0) == pytest.approx(expected, abs=1e-6)


def test_what_is_found_in_a_piece_with_its_margin_is_what_is_found_in_the_whole():
    rng = np.random.default_rng(2)
    places = [tuple(map(int, place)) for place in rng.integers(0, 400, (150, 2))]
    whole = nuclei_at(places, 400)
    pieces = []
    for left, right in ((0, 200), (200, 400)):
        start, stop = max(0, left - REACH_PX), min(400, right + REACH_PX)
        found = find_blobs(whole[:, start:stop]).xy + np.array([start, 0])
        pieces.append(found[(found[:, 0] >= left) & (found[:, 0] < right)])
    there = np.concatenate(pieces)
    assert sorted(map(tuple, there)) == sorted(map(tuple, find_blobs(whole).xy))


def test_counts_of_drawn_fields_are_right_within_what_the_page_says(shared: Path):
    folder = shared / "data" / "nuclei" / "tnbc"
    if not folder.is_dir():
        pytest.skip("needs the fields with drawn nuclei, ../shared/data/nuclei/tnbc, which are not here")
    with (folder / "fields.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = np.array([int(row["nuclei_components"]) for row in rows])
    answers = []
    for row in rows:
        with Image.open(folder / f"{row['field']}.webp") as picture:
            answers.append(find_blobs(np.asarray(picture.convert("RGB").reduce(2))).answers)
    least = {
        patient: least_answer(
            np.concatenate([a for a, row in zip(answers, rows, strict=True) if row["patient"] == patient])
        )
        for patient in {row["patient"] for row in rows}
    }
    counts = [(a >= least[row["patient"]]).sum() for a, row in zip(answers, rows, strict=True)]
    assert len(rows) == 22
    assert spearmanr(counts, drawn).statistic >= 0.92
    assert np.median(np.abs(np.array(counts) - drawn) / drawn) <= 0.15
