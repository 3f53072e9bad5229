import runpy

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.tiling.artefacts import ArtefactOptions, find_artefacts
from wsi_pipeline.tiling.tissue import TissueOptions, find_tissue

PLANE = Plane(32, 32)
MPP = (8.0, 8.0)
HEIGHT, WIDTH = 120, 160
# What stains absorb of red, green and blue; a blue counterstain is haematoxylin without eosin.
STAINS = {"eosin": (0.1, 1.0, 0.6), "haematoxylin": (0.93, 1.0, 0.42), "DAB": (0.45, 0.8, 1.0)}
INKS = {"green": (20, 140, 90), "blue": (40, 60, 180), "cyan": (60, 180, 200)}

EVERYWHERE = np.ones((HEIGHT, WIDTH), bool)
TISSUE = np.zeros((HEIGHT, WIDTH), bool)
TISSUE[20:100, 20:140] = True
STROKE = np.zeros((HEIGHT, WIDTH), bool)
STROKE[40:46, 60:130] = True  # 48 um by 560 um

laws = settings(max_examples=50)


def tissue_of(stains, glass=(243, 243, 243), noise=2.0):
    """A plane with a rectangle of tissue that took up so much (optical density) of each stain."""
    absorbed = np.exp(-sum(od * np.asarray(STAINS[stain]) for stain, od in stains.items()))
    rgb = np.where(TISSUE[..., None], np.asarray(glass) * absorbed, glass)
    return np.clip(np.rint(rgb + np.random.default_rng(0).normal(0, noise, rgb.shape)), 0, 255).astype(
        np.uint8
    )


def find(rgb, tissue=TISSUE, **switches):
    glass = find_tissue(rgb, PLANE, MPP, TissueOptions()).glass
    return find_artefacts(rgb, PLANE, MPP, tissue, glass, ArtefactOptions(**switches))


class TestFindArtefacts:
    @laws
    @given(
        stains=st.dictionaries(st.sampled_from([*STAINS]), st.floats(0.1, 0.9), min_size=1),
        glass=st.sampled_from([(243, 243, 243), (242, 240, 226), (228, 234, 242), (241, 236, 239)]),
    )
    def test_stained_tissue_is_never_rejected(self, stains, glass):
        quality = find(tissue_of(stains, glass))
        assert not quality.rejected.any()
        assert quality.areas_mm2 == {"pen": 0, "red": 0, "dark": 0, "blur": 0, "fold": 0}

    @laws
    @given(
        stains=st.dictionaries(st.sampled_from([*STAINS]), st.floats(0.1, 0.9), min_size=1),
        lamp=st.tuples(*[st.floats(0.5, 1)] * 3).filter(lambda lamp: min(lamp) >= 0.85 * max(lamp)),
    )
    def test_a_lamp_makes_no_ink(self, stains, lamp):
        assert not find((tissue_of(stains) * lamp).astype(np.uint8)).rejected.any()

    @pytest.mark.parametrize("ink", INKS)
    def test_ink_on_tissue_is_rejected_with_a_margin(self, ink):
        rgb = tissue_of({"eosin": 0.4, "haematoxylin": 0.1})
        rgb[STROKE] = INKS[ink]
        quality = find(rgb)
        assert quality.rejected[STROKE].all()
        assert quality.rejected[38:48, 58:132].all()
        assert quality.rejected.sum() == 10 * 74
        assert quality.areas_mm2 == {
            "pen": pytest.approx(740 * 64 / 1e6),
            "red": 0,
            "dark": 0,
            "blur": 0,
            "fold": 0,
        }

    @pytest.mark.parametrize("colour", [(200, 30, 40), (201, 67, 78), (160, 10, 20)])
    def test_red_ink_and_clotted_blood_are_rejected(self, colour):
        rgb = tissue_of({"eosin": 0.4, "haematoxylin": 0.1})
        rgb[STROKE] = colour
        quality = find(rgb)
        assert quality.rejected[STROKE].all()
        assert quality.areas_mm2 == {
            "pen": 0,
            "red": pytest.approx(740 * 64 / 1e6),
            "dark": 0,
            "blur": 0,
            "fold": 0,
        }

    @pytest.mark.parametrize(
        ("colour", "reason"),
        [
            ((40, 60, 180), "pen"),
            ((200, 30, 40), "red"),
            ((235, 120, 30), "red"),
            ((240, 220, 60), "red"),
        ],
    )
    @pytest.mark.parametrize(
        "stains", [{"eosin": 0.7, "haematoxylin": 0.1}, {"eosin": 0.3, "haematoxylin": 0.5}]
    )
    def test_ink_that_lies_over_dense_tissue_is_rejected(self, colour, reason, stains):
        rgb = tissue_of(stains)
        rgb[STROKE] = rgb[STROKE] * (np.asarray(colour) / 243)
        found = find(rgb)
        assert found.spots[reason][STROKE].mean() > 0.95
        assert found.rejected.sum() < 900

    @pytest.mark.parametrize("level", [0, 20, 60])
    def test_black_dirt_on_tissue_is_rejected(self, level):
        rgb = tissue_of({"eosin": 0.4})
        rgb[STROKE] = level
        quality = find(rgb)
        assert quality.rejected[STROKE].all()
        assert quality.areas_mm2 == {
            "pen": 0,
            "red": 0,
            "dark": pytest.approx(740 * 64 / 1e6),
            "blur": 0,
            "fold": 0,
        }

    def test_only_tissue_is_rejected(self):
        rgb = tissue_of({"eosin": 0.4})
        rgb[:, 100:] = 0
        without_the_unreadable = TISSUE.copy()
        without_the_unreadable[:, 100:] = False
        quality = find(rgb, without_the_unreadable)
        assert not quality.rejected[~without_the_unreadable].any()

    def test_a_check_switched_off_rejects_nothing_and_has_no_area(self):
        rgb = tissue_of({"eosin": 0.4})
        rgb[STROKE] = INKS["blue"]
        rgb[80:90, 60:70] = 0
        assert find(rgb, check_pen=False).areas_mm2.keys() == {"red", "dark", "blur", "fold"}
        assert find(rgb, check_dark=False).areas_mm2.keys() == {"pen", "red", "blur", "fold"}
        assert find(rgb, check_blur=False).areas_mm2.keys() == {"pen", "red", "dark", "fold"}
        nothing = find(
            rgb, check_pen=False, check_red=False, check_dark=False, check_blur=False, check_folds=False
        )
        assert not nothing.rejected.any()
        assert nothing.areas_mm2 == {}

    def test_specks_are_left_alone(self):
        rgb = tissue_of({"eosin": 0.4})
        rgb[50:53, 50:53] = 0
        assert not find(rgb).rejected.any()

    def test_tissue_without_any_glass_is_judged_too(self):
        rgb = tissue_of({"eosin": 0.4})
        rgb[STROKE] = INKS["green"]
        inside = (slice(25, 95), slice(25, 135))
        quality = find(rgb[inside], EVERYWHERE[inside])
        assert (quality.rejected == find(rgb).rejected[inside]).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real slides (../shared) are not here")
class TestRealSlides:
    @pytest.mark.parametrize(("patient", "reason"), [("8913", "pen"), ("8917", "dark"), ("9124", "red")])
    def test_inked_margins_are_rejected_and_carcinoma_is_not(self, tmp_path, patient, reason):
        runpy.run_path(str(SHARED / "data/make_idc.py"))["write_slides"](tmp_path, [patient])
        rgb = np.asarray(Image.open(tmp_path / f"{patient}.tiff").reduce(2))
        carcinoma = np.asarray(Image.open(tmp_path / f"{patient}_labels.png"))[::2, ::2] == 1
        quality = find(rgb, find_tissue(rgb, PLANE, MPP, TissueOptions()).mask)
        assert quality.areas_mm2[reason] > 0.05
        assert quality.areas_mm2["blur"] == 0
        assert not (quality.rejected & carcinoma).any()
