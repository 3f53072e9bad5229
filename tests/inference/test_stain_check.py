"""A stain like the training data's passes, another is told; a few patches are given the benefit of chance."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_slide
from models import brightness_model
from openslide import OpenSlide
from test_infer import section

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.inference.stain_check import check_stain, slide_densities
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.datasets.listing import decode_each
from wsi_pipeline.models.card import Stain
from wsi_pipeline.models.model import SHIPPED, load_model
from wsi_pipeline.models.stain import patch_densities
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import make_overview

# Level-0 corners.
IHC_TISSUE = [
    *(
        (2785, 1591),
        (4775, 5968),
        (4377, 6366),
        (4775, 6366),
        (5173, 6366),
        (3979, 6764),
        (4377, 6764),
        (7162, 6764),
    ),
    *(
        (7560, 6764),
        (7958, 6764),
        (6764, 7162),
        (7162, 7162),
        (7560, 7162),
        (7958, 7162),
        (8356, 7162),
        (7958, 7560),
    ),
]
STAIN = Stain(od_mean=(0.1, 0.22, 0.14), od_std=(0.06, 0.1, 0.06), od_patient_std=(0.03, 0.06, 0.03))


def densities(od: tuple[float, float, float], count: int = 64) -> np.ndarray:
    return np.tile(np.array(od), (count, 1))


def test_density_is_that_of_the_formula():
    patch = np.array([[[255, 25, 9], [255, 25, 9]]], np.uint8)
    assert patch_densities(patch[None]).round(4).tolist() == [
        [0.0, round(-np.log10(26 / 256), 4), round(-np.log10(10 / 256), 4)]
    ]


@pytest.mark.parametrize(
    ("od", "far"),
    [
        ((0.1, 0.22, 0.14), False),
        ((0.15, 0.33, 0.2), False),  # a strong stain of the same hue
        ((0.3, 0.66, 0.42), True),  # three times as strong
        ((0.15, 0.14, 0.12), True),  # no colour is out of range, but their ratio is
    ],
)
def test_strength_and_hue_beyond_what_patients_differ_by_are_far(od, far):
    stain_check = check_stain(densities(od), STAIN)
    assert stain_check
    assert stain_check.is_far == far
    assert ("unlike the model's training data" in stain_check.warning) == far


def test_a_single_patch_is_judged_by_how_single_patches_differ():
    od = (0.02, 0.02, 0.02)  # fat
    many, one = check_stain(densities(od), STAIN), check_stain(densities(od, 1), STAIN)
    assert many
    assert one
    assert many.is_far
    assert not one.is_far
    assert one.hue_fold is None


def test_a_card_without_spread_and_no_patches_say_nothing():
    assert check_stain(densities((0.1, 0.2, 0.1)), Stain()) is None
    assert check_stain(np.empty((0, 3)), STAIN) is None


def test_validation_patients_pass_and_another_stain_is_flagged(shared):
    stain = load_model(SHIPPED / "idc_default.safetensors").card.stain
    listing = list_images(shared / "data/idc")
    for patient in np.unique(listing.patients[listing.parts == "val"])[::6]:
        patches = np.flatnonzero((listing.patients == patient) & (listing.labels >= 0))[:200:10]
        pixels = [pixels for _, pixels in decode_each(listing, patches) if not isinstance(pixels, DataError)]
        stain_check = check_stain(patch_densities(pixels), stain)
        assert stain_check
        assert not stain_check.is_far, patient
    # Patches of the tissue that infer-slide finds on an IHC slide, at about 4 um/px; to survey all of it is slow.
    with OpenSlide(shared / "data/slides/ihc_sparse_jp2k.svs") as ihc:
        regions = [ihc.read_region(at, 0, (400, 400)).convert("RGB").reduce(8) for at in IHC_TISSUE]
    stain_check = check_stain(patch_densities(np.asarray(region) for region in regions), stain)
    assert stain_check
    assert stain_check.is_far


# What stains absorb of red, green and blue.
HAEMATOXYLIN, EOSIN, DAB = np.array([(0.54, 0.74, 0.42), (0.09, 0.83, 0.5), (0.45, 0.8, 1.0)])


def mixtures(one: np.ndarray, other: np.ndarray, seed: int = 0) -> np.ndarray:
    """Densities of 64 patches, float [64, 3], each with so much of both stains as chance gives it."""
    amounts = np.random.default_rng(seed).gamma(2, 0.08, (64, 2))
    return amounts @ np.stack([one, other])


@pytest.mark.parametrize("seed", range(10))
def test_red_and_blue_swapped_are_named(seed):
    stained = mixtures(HAEMATOXYLIN, EOSIN, seed)
    right, swapped = check_stain(stained, STAIN), check_stain(stained[:, ::-1], STAIN)
    assert right
    assert swapped
    assert not right.swapped
    assert swapped.swapped
    assert swapped.is_far
    assert "red and blue look swapped" in swapped.warning


@pytest.mark.parametrize("seed", range(10))
def test_haematoxylin_and_dab_are_not_taken_for_swapped(seed):
    stain_check = check_stain(mixtures(HAEMATOXYLIN, DAB, seed), STAIN)
    assert stain_check
    assert not stain_check.swapped


@pytest.mark.parametrize("lamp", [*itertools.product((0.85, 1.0), repeat=3)])
def test_the_tint_of_a_lamp_is_not_taken_for_swapped(lamp):
    stain_check = check_stain(mixtures(HAEMATOXYLIN, EOSIN) - np.log10(lamp), STAIN)
    assert stain_check
    assert not stain_check.swapped


def test_few_patches_are_never_called_swapped():
    stain_check = check_stain(mixtures(HAEMATOXYLIN, EOSIN)[:15, ::-1], STAIN)
    assert stain_check
    assert not stain_check.swapped


def test_a_real_slide_is_called_swapped_when_it_is(shared):
    stain = load_model(SHIPPED / "idc_default.safetensors").card.stain
    with OpenSlide(shared / "data/slides/breast_40x.svs") as slide:
        level = slide.get_best_level_for_downsample(16)
        places = [(int(x), int(y)) for x in range(1000, 24000, 1600) for y in range(1000, 9600, 1600)]
        patches = [np.asarray(slide.read_region(at, level, (50, 50)).convert("RGB")) for at in places]
    right, swapped = (
        check_stain(patch_densities(p[..., ::step] for p in patches), stain) for step in (1, -1)
    )
    assert right
    assert swapped
    assert (right.swapped, swapped.swapped) == (False, True)


def test_a_slide_is_measured_on_patches_spread_over_its_tissue(tmp_path):
    image = section()
    slide = open_slide(write_slide(tmp_path / "one.tiff", image, mpp=(4.0, 4.0)))
    config = InferConfig()
    config = replace(config, grid=replace(config.grid, patch_px=50, mpp=4.0))
    plan = make_overview(slide, config.overview, config.grid).plan
    found = slide_densities(slide, plan)
    assert len(found) == min(64, int(plan.scored.sum()))
    rows, columns = np.nonzero(plan.scored)
    boxes = [plan.grid.patch_box(int(c), int(r)) for r, c in zip(rows, columns, strict=True)]
    every = patch_densities(image[box.y : box.y + 50, box.x : box.x + 50] for box in boxes)
    assert np.abs(found.mean(axis=0) - every.mean(axis=0)).max() < 0.01


def test_a_slide_of_another_stain_is_mapped_and_flagged_in_its_summary(tmp_path):
    slide = write_slide(tmp_path / "one.tiff", section(), mpp=(4.0, 4.0))
    model = brightness_model()
    opened = open_slide(slide)
    config = InferConfig()
    grid = replace(config.grid, patch_px=50, mpp=4.0)
    own = slide_densities(opened, make_overview(opened, config.overview, grid).plan).mean(axis=0)
    stain = replace(STAIN, od_mean=tuple(own * 4), od_patient_std=(0.01, 0.01, 0.01))
    model = replace(model, card=replace(model.card, stain=stain))
    classifier = Classifier([model], torch.device("cpu"), ClassifyOptions(precision="fp32"))
    result = infer_slide(slide, tmp_path / "out", config, classifier)
    summary = json.loads((result.folder / "summary.json").read_text())
    flagged = [warning for warning in summary["warnings"] if "stain is unlike" in warning]
    assert len(flagged) == 1
    assert flagged == [warning for warning in result.warnings if "stain" in warning]
    assert summary["stain"]["patches"] > 0
