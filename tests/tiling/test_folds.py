"""Folds: found where tissue is laid on tissue, and no band that is dark for another reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scripts.results.tissue_folds import with_folds
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.artefacts import ArtefactOptions, find_artefacts
from wsi_pipeline.tiling.folds import find_folds
from wsi_pipeline.tiling.tissue import Glass, TissueOptions, find_tissue

MPP = (8.0, 8.0)
SHAPE = (300, 320)
GLASS = Glass(np.full(3, 243, np.float32), 0.0)
EOSIN, HAEMATOXYLIN = np.array([0.0, 1.0, 0.6]), np.array([0.93, 1.0, 0.42])
EVERYWHERE = np.ones(SHAPE, bool)


def stain(mean_od, seed):
    """Optical density of one stain, uneven as tissue is."""
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    return np.maximum(mean_od * (1 + 0.3 * rough / rough.std()), 0)


def plane_of(eosin, haematoxylin):
    od = eosin[..., None] * EOSIN + haematoxylin[..., None] * HAEMATOXYLIN
    return np.clip(np.rint(243 * np.exp(-od)), 0, 255).astype(np.uint8)


def band(angle, width_um, length_um=1_600.0, mpp=MPP, shape=SHAPE):
    rows, columns = np.indices(shape)
    x, y = (columns - shape[1] / 2) * mpp[0], (rows - shape[0] / 2) * mpp[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (np.abs(along) <= length_um / 2) & (np.abs(across) <= width_um / 2)


def find(rgb, tissue=EVERYWHERE, mpp=MPP):
    options = ArtefactOptions()
    return find_folds(rgb, mpp, tissue, GLASS, options.min_fold_ratio, options.min_fold_um)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 100),
    angle=st.floats(0, np.pi),
    width_um=st.floats(100, 250),
    layers=st.integers(2, 3),
)
def test_a_band_of_more_layers_is_found_and_little_beside_it(seed, angle, width_um, layers):
    where = band(angle, width_um)
    thick = np.where(where, layers, 1)
    eosin, haematoxylin = stain(0.3, seed), stain(0.2, seed + 1)
    assert not find(plane_of(eosin, haematoxylin)).any()
    found = find(plane_of(eosin * thick, haematoxylin * thick))
    assert found[where].mean() > 0.75
    assert not found[~ndimage.binary_dilation(where, np.ones((3, 3)), iterations=30)].any()
    rims = 2 * 60 * 1_600 / 64  # 60 um on either side
    assert (found & ~where).sum() < rims + 0.5 * where.sum()


@pytest.mark.parametrize(("more_eosin", "more_haematoxylin"), [(1.0, 3.0), (1.1, 4.0), (2.5, 1.0)])
def test_a_strand_of_carcinoma_or_of_collagen_is_no_fold(more_eosin, more_haematoxylin):
    where = band(0.4, 160)
    rgb = plane_of(
        stain(0.3, 0) * np.where(where, more_eosin, 1), stain(0.2, 1) * np.where(where, more_haematoxylin, 1)
    )
    assert not find(rgb).any()


def test_what_is_dense_along_a_rim_or_short_or_between_fat_is_no_fold():
    eosin, haematoxylin = stain(0.3, 0), stain(0.2, 1)
    where = band(0.0, 160)
    thick = np.where(where, 2, 1)
    only_below = np.indices(SHAPE)[0] >= SHAPE[0] / 2 - 10
    assert not find(plane_of(eosin * thick * only_below, haematoxylin * thick * only_below), only_below).any()
    short = np.where(band(0.0, 160, 400), 2, 1)
    assert not find(plane_of(eosin * short, haematoxylin * short)).any()
    walls = np.where(where | (np.indices(SHAPE) % 8 < 2).any(axis=0), 1, 0)  # of cells 64 um wide
    assert not find(plane_of(eosin * walls, haematoxylin * walls)).any()


def test_pixels_that_are_no_squares_are_measured_each_by_its_own_size():
    where = band(0.8, 150, mpp=(8.0, 12.0))
    thick = np.where(where, 2, 1)
    found = find(plane_of(stain(0.3, 0) * thick, stain(0.2, 1) * thick), mpp=(8.0, 12.0))
    assert found[where].mean() > 0.75


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 3)])
def test_planes_smaller_than_a_fold_are_looked_at_too(size):
    assert not find(np.full((*size, 3), 150, np.uint8), np.ones(size, bool)).any()


@pytest.mark.parametrize("layers", [2, 3])
def test_folds_of_real_tissue_are_found_and_none_where_there_are_none(shared, layers):
    with open_slide(shared / "data/slides/breast_40x.svs") as slide:
        plane = slide.plane_at(TissueOptions().mpp)
        rgb = slide.read_whole(plane).rgb
    tissue = find_tissue(rgb, plane, MPP, TissueOptions())
    folded, where = with_folds(rgb, tissue.mask, tissue.glass[0].rgb, MPP, layers)

    def artefacts(of, **switches):
        return find_artefacts(of, Plane(32, 32), MPP, tissue.mask, tissue.glass, ArtefactOptions(**switches))

    assert not artefacts(rgb).spots["fold"].any()
    found = artefacts(folded)
    assert (found.spots["fold"] & where).sum() > 0.3 * (tissue.mask & where).sum()
    assert found.areas_mm2["fold"] == pytest.approx(found.spots["fold"].sum() * 64 / 1e6)
    assert found.rejected[found.spots["fold"]].all()
    assert "fold" not in artefacts(folded, check_folds=False).spots
