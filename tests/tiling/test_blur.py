"""Tissue out of focus: found where it is made so, on real tissue and generated, and nowhere else."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.artefacts import ArtefactOptions, find_artefacts
from wsi_pipeline.tiling.blur import find_blur
from wsi_pipeline.tiling.tissue import TissueOptions, find_tissue

MPP = (8.0, 8.0)
LEAST, WINDOW_UM = ArtefactOptions().min_sharpness, ArtefactOptions().sharpness_um


def natural(height, width, seed):
    """Detail at every scale, as tissue has: each octave of frequency with the same energy. uint8 [row, col, 3]."""
    chance = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    detail = np.fft.ifft2(np.fft.fft2(chance.normal(size=(height, width))) / frequency).real
    grey = 150 + 25 * (detail - detail.mean()) / detail.std()
    return np.clip(np.rint(grey[..., None] * (1.0, 0.7, 0.9)), 0, 255).astype(np.uint8)


def blurred(rgb, where, sigma_px):
    smooth = ndimage.gaussian_filter(rgb.astype(np.float32), (*sigma_px, 0))
    return np.clip(np.rint(np.where(where[..., None], smooth, rgb)), 0, 255).astype(np.uint8)


def find(rgb, tissue, mpp=MPP):
    return find_blur(rgb, mpp, tissue, LEAST, WINDOW_UM)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1_000),
    top=st.integers(0, 300),
    left=st.integers(0, 200),
    shape=st.tuples(st.integers(560, 700), st.integers(330, 400)),
    sigma=st.floats(1, 3),
)
def test_an_area_out_of_focus_is_found_and_hardly_more(seed, top, left, shape, sigma):
    rgb = natural(*shape, seed)
    tissue = np.ones(shape, bool)
    where = np.zeros(shape, bool)
    where[top : top + 120, left : left + 120] = True
    assert not find(rgb, tissue).any()
    found = find(blurred(rgb, where, (sigma, sigma)), tissue)
    assert found[where].mean() > 0.9
    near = ndimage.binary_dilation(where, np.ones((3, 3)), iterations=14)  # two blocks, and one for the grid
    assert not found[~near].any()


def test_strips_leave_no_seam():
    rgb = natural(1200, 200, 0)
    rgb = blurred(rgb, np.ones(rgb.shape[:2], bool), (1.5, 1.5))
    tissue = np.ones(rgb.shape[:2], bool)
    assert find(rgb, tissue).all()
    sharp_below = rgb.copy()
    sharp_below[600:] = natural(600, 200, 1)
    found = find(sharp_below, tissue)
    assert found[:560].all()
    assert not found[640:].any()


def test_pixels_that_are_no_squares_are_measured_each_by_its_own_size():
    rgb = natural(400, 800, 0)
    where = np.zeros(rgb.shape[:2], bool)
    where[100:220, 200:440] = True
    found = find(blurred(rgb, where, (1.2, 1.2)), np.ones(rgb.shape[:2], bool), mpp=(4.0, 8.0))
    assert found[where].mean() > 0.9
    assert found[~where].mean() < 0.02


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 3)])
def test_planes_smaller_than_a_window_are_measured_too(size):
    assert find(natural(*size, 0), np.ones(size, bool)).shape == size


def test_little_tissue_flat_tissue_and_noise_are_not_out_of_focus():
    flat = np.full((300, 300, 3), 180, np.uint8)
    everywhere = np.ones((300, 300), bool)
    assert not find(flat, everywhere).any()
    noisy = np.clip(flat + np.random.default_rng(0).normal(0, 2, flat.shape), 0, 255).astype(np.uint8)
    assert not find(noisy, everywhere).any()
    smooth = blurred(natural(300, 300, 0), everywhere, (2, 2))
    sliver = np.zeros((300, 300), bool)
    sliver[100:110] = True
    assert find(smooth, everywhere).all()
    assert not find(smooth, sliver).any()


def test_sharp_rims_of_ink_do_not_hide_tissue_out_of_focus():
    tissue = np.ones((400, 400), bool)
    rgb = blurred(natural(400, 400, 0), tissue, (1.5, 1.5))
    for row in range(0, 400, 40):
        rgb[row : row + 6] = (20, 140, 90)
    with_ink = _artefacts(rgb, tissue)
    assert with_ink.spots["pen"].any()
    assert with_ink.spots["blur"][~with_ink.spots["pen"]].mean() > 0.9


def test_areas_of_real_tissue_are_found_out_of_focus_once_they_are(shared):
    with open_slide(shared / "data/slides/breast_40x.svs") as slide:
        plane = slide.plane_at(TissueOptions().mpp)
        rgb = slide.read_whole(plane).rgb
    tissue = find_tissue(rgb, plane, MPP, TissueOptions()).mask
    assert not _artefacts(rgb, tissue).spots["blur"].any()
    content = BytesIO()
    Image.fromarray(rgb).save(content, "jpeg", quality=40)
    assert not _artefacts(np.asarray(Image.open(content)), tissue).spots["blur"].any()
    where = np.zeros(tissue.shape, bool)
    where[: tissue.shape[0] // 2] = True
    found = _artefacts(blurred(rgb, where, (1, 1)), tissue)
    assert (found.spots["blur"] & where).sum() > 0.9 * (tissue & where).sum()
    assert found.areas_mm2["blur"] == pytest.approx(found.spots["blur"].sum() * 64 / 1e6)
    assert found.rejected[found.spots["blur"]].all()


def _artefacts(rgb, tissue):
    plane = Plane(32, 32)
    glass = find_tissue(rgb, plane, MPP, TissueOptions()).glass
    return find_artefacts(rgb, plane, MPP, tissue, glass, ArtefactOptions())
