import runpy

import numpy as np
import openslide
import pytest
from conftest import SHARED
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.tiling.tissue import Tissue, TissueOptions, find_tissue

OPTIONS = TissueOptions()
PLANE = Plane(32, 32)
MPP = (8.0, 8.0)

# What stains absorb of red, green and blue, of a total of one per channel at most.
STAINS = {
    "eosin": (0.1, 1.0, 0.6),
    "haematoxylin": (0.9, 1.0, 0.45),
    "blue counterstain": (1.0, 0.85, 0.35),
    "DAB": (0.45, 0.8, 1.0),
}
GREYS = [(243, 243, 243), (255, 255, 255), (222, 222, 222)]
GLASSES = [*GREYS, (242, 240, 226), (228, 234, 242), (241, 236, 239)]

glasses = st.one_of(
    st.sampled_from(GLASSES),
    st.builds(lambda level, tint: (level, level, level - tint), st.integers(205, 250), st.integers(0, 20)),
    st.builds(lambda level, tint: (level - tint, level, level), st.integers(205, 250), st.integers(0, 12)),
)
# What is left of red, green and blue under a dim lamp with a tint.
lamps = st.builds(
    lambda brightness, tint: brightness * np.asarray(tint),
    st.floats(0.5, 1),
    st.tuples(*[st.floats(0.85, 1)] * 3),
)
laws = settings(max_examples=25)


def empty_glass(height, width, glass, noise=0.0):
    rgb = np.broadcast_to(np.asarray(glass, float), (height, width, 3))
    return rgb + np.random.default_rng(0).normal(0, noise, rgb.shape)


def stained(rgb, where, stain, od=0.3):
    """The picture with the stain laid over the glass at `where`."""
    absorbed = np.exp(-od * np.asarray(STAINS[stain]))
    return np.where(where[..., None], rgb * absorbed, rgb)


def structured(rgb, stain, od):
    """The picture all covered with tissue that has structure, as real tissue has and glass has not."""
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 1, rgb.shape[:2]), 1.5)
    density = od * (1 + 0.25 * noise / noise.std()).clip(0.3)
    return rgb * np.exp(-density[..., None] * np.asarray(STAINS[stain]))


def ellipse(height, width, mpp, x_um, y_um, radius_x_um, radius_y_um):
    x_px, y_px = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return ((x_px * mpp[0] - x_um) / radius_x_um) ** 2 + ((y_px * mpp[1] - y_um) / radius_y_um) ** 2 < 1


def as_picture(rgb):
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def scene(mpp=MPP, glass=(243, 243, 243), stain="eosin", od=0.3, noise=1.5):
    """A 2.4 mm wide, 1.6 mm high plane with two pieces of tissue, and where they are."""
    width, height = round(2400 / mpp[0]), round(1600 / mpp[1])
    where = ellipse(height, width, mpp, 800, 700, 500, 400) | ellipse(height, width, mpp, 1800, 900, 300, 350)
    return as_picture(stained(empty_glass(height, width, glass, noise), where, stain, od)), where


def find(rgb, mpp=MPP, readable=None) -> Tissue:
    return find_tissue(rgb, PLANE, mpp, OPTIONS, readable)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


class TestFindTissue:
    @laws
    @given(glass=glasses, noise=st.floats(0, 4), fall=st.floats(0, 0.15))
    def test_glass_of_any_colour_holds_no_tissue_and_the_reason_is_said(self, glass, noise, fall):
        dimmer = 1 - fall * np.linspace(0, 1, 120)[None, :, None]
        found = find(as_picture(empty_glass(90, 120, glass, noise) * dimmer))
        assert not found.mask.any()
        assert "differs from the glass rgb(" in found.reason

    @laws
    @given(glass=glasses, stain=st.sampled_from([*STAINS]), od=st.floats(0.15, 1.5), noise=st.floats(0, 3))
    @example(glass=(255, 255, 255), stain="DAB", od=0.15, noise=0)
    def test_stained_pieces_are_found_on_any_glass(self, glass, stain, od, noise):
        rgb, where = scene(glass=glass, stain=stain, od=od, noise=noise)
        found = find(rgb)
        assert found.reason is None
        assert overlap(found.mask, where) > 0.9

    @pytest.mark.parametrize("stain", STAINS)
    def test_uneven_light_hides_no_pale_tissue(self, stain):
        rgb, where = scene(stain=stain, od=0.15)
        uneven = rgb * np.linspace(1, 0.88, rgb.shape[1])[None, :, None]
        assert overlap(find(as_picture(uneven)).mask, where) > 0.9

    @pytest.mark.parametrize("stain", STAINS)
    def test_pale_tissue_is_found(self, stain):
        rgb, where = scene(stain=stain, od=0.1)
        assert overlap(find(rgb).mask, where) > 0.9

    @pytest.mark.parametrize("stain", STAINS)
    @pytest.mark.parametrize("od", [0.3, 0.8])
    def test_a_plane_full_of_tissue_is_all_tissue(self, stain, od):
        rgb = as_picture(structured(empty_glass(100, 120, (243, 243, 243), 3), stain, od))
        found = find(rgb)
        assert found.glass_assumed
        assert found.mask.all()

    @laws
    @given(glass=st.sampled_from(GLASSES), top=st.integers(0, 60), left=st.integers(0, 60))
    def test_more_glass_around_it_changes_nothing(self, glass, top, left):
        rgb, _ = scene(glass=glass, noise=0)
        wider = np.full((rgb.shape[0] + top + 5, rgb.shape[1] + left + 5, 3), glass, np.uint8)
        inside = (slice(top, top + rgb.shape[0]), slice(left, left + rgb.shape[1]))
        wider[inside] = rgb
        expected = np.zeros(wider.shape[:2], bool)
        expected[inside] = find(rgb).mask
        assert (find(wider).mask == expected).all()

    @pytest.mark.parametrize("mpp", [(4.0, 4.0), (6.0, 6.0), (8.0, 7.6), (8.0, 4.0), (16.0, 16.0)])
    def test_the_area_found_does_not_depend_on_the_scale(self, mpp):
        def area_mm2(mask, mpp):
            return mask.sum() * mpp[0] * mpp[1] / 1e6

        expected_mm2 = area_mm2(find(scene()[0]).mask, MPP)
        assert area_mm2(find(scene(mpp)[0], mpp).mask, mpp) == pytest.approx(expected_mm2, rel=0.05)

    def test_holes_are_filled_when_small(self):
        rgb, where = scene(noise=0)
        fat_cell = ellipse(*where.shape, MPP, 700, 700, 50, 50)
        lumen = ellipse(*where.shape, MPP, 1000, 700, 130, 130)
        rgb[fat_cell | lumen] = 243
        mask = find(rgb).mask
        assert mask[fat_cell].all()
        assert mask[lumen].mean() < 0.2

    def test_tissue_cut_by_the_edge_of_the_slide_is_kept_to_the_edge(self):
        rgb, where = scene(noise=0)
        cut = (slice(60, 130), slice(60, 200))
        assert overlap(find(rgb[cut]).mask, where[cut]) > 0.95

    def test_one_pixel_of_glass_is_a_result(self):
        found = find(np.full((1, 1, 3), 243, np.uint8))
        assert found.mask.shape == (1, 1)
        assert found.reason


class TestLamp:
    """A lamp multiplies each channel of the whole slide: what is tissue stays so."""

    def section(self, stain="eosin", od=0.3):
        """A scene whose tissue has structure, and where it is."""
        glass = empty_glass(200, 300, (243, 243, 243), 1.5)
        where = scene()[1]
        return np.where(where[..., None], structured(glass, stain, od), glass), where

    def check(self, rgb, where):
        found = find(as_picture(rgb))
        assert not found.glass_assumed
        assert abs(found.mask.mean() - where.mean()) < 0.03
        assert overlap(found.mask, where) > 0.9

    @laws
    @given(lamp=lamps, stain=st.sampled_from([*STAINS]), od=st.floats(0.2, 1.2))
    @example(lamp=(0.6, 0.6, 0.6), stain="eosin", od=0.3)
    @example(lamp=(1, 1, 0.85), stain="eosin", od=0.3)
    @example(lamp=(1, 0.85, 1), stain="eosin", od=0.3)
    def test_tissue_beside_glass_is_found_under_any_lamp(self, lamp, stain, od):
        rgb, where = self.section(stain, od)
        self.check(rgb * lamp, where)

    @laws
    @given(lamp=lamps)
    def test_the_glass_found_is_that_of_the_lamp(self, lamp):
        rgb, _ = self.section()
        (glass,) = find(as_picture(rgb * lamp)).glass
        assert np.abs(glass.rgb - 243 * np.asarray(lamp)).max() < 2.5

    @laws
    @given(lamp=lamps)
    def test_empty_glass_holds_no_tissue_under_any_lamp(self, lamp):
        found = find(as_picture(empty_glass(90, 120, (243, 243, 243), 1.5) * lamp))
        assert not found.mask.any()
        assert not found.glass_assumed

    @laws
    @given(lamp=lamps, x_um=st.floats(100, 2300))
    def test_a_bright_spot_is_not_taken_for_the_glass(self, lamp, x_um):
        rgb, where = self.section()
        spot = ellipse(*where.shape, MPP, x_um, 150, 90, 90)
        rgb = np.where(spot[..., None], 255, rgb * lamp)
        found = find(as_picture(rgb))
        assert not found.glass_assumed
        assert overlap(found.mask & ~spot, where & ~spot) > 0.9

    @laws
    @given(lamp=lamps, level=st.integers(0, 30), width=st.integers(1, 60))
    def test_a_black_frame_changes_nothing(self, lamp, level, width):
        rgb, where = self.section()
        framed = np.full((200 + 2 * width, 300 + 2 * width, 3), 0.6 * level)
        framed[width:-width, width:-width] = rgb * lamp
        found = find(as_picture(framed)).mask
        inside = found[width:-width, width:-width]
        assert found.sum() == inside.sum()
        assert overlap(inside, where) > 0.9

    @laws
    @given(lamp=lamps, stain=st.sampled_from([*STAINS]), od=st.floats(0.3, 1.2))
    @example(lamp=(0.85, 1, 0.85), stain="eosin", od=0.3)
    def test_without_glass_all_is_tissue_and_the_glass_is_said_to_be_assumed(self, lamp, stain, od):
        rgb = structured(empty_glass(100, 120, (243, 243, 243), 1.5), stain, od) * lamp
        found = find(as_picture(rgb))
        assert found.glass_assumed
        assert found.mask.mean() > 0.97

    def test_a_lamp_that_dims_bit_by_bit_changes_the_share_bit_by_bit(self):
        rgb, _ = self.section(od=0.2)
        shares = [find(as_picture(rgb * lamp)).mask.mean() for lamp in np.arange(1, 0.5, -0.02)]
        assert np.abs(np.diff(shares)).max() < 0.01

    def test_a_small_gap_in_a_slide_full_of_tissue_is_enough_glass(self):
        glass = empty_glass(200, 300, (243, 243, 243), 1.5)
        gap = ellipse(200, 300, MPP, 1000, 700, 160, 160)
        rgb = np.where(gap[..., None], glass, structured(glass, "eosin", 0.4)) * (0.7, 0.6, 0.7)
        found = find(as_picture(rgb))
        assert not found.glass_assumed
        assert overlap(found.mask, ~gap) > 0.98


class TestWhatIsNoTissue:
    def spoilt(self):
        rgb, where = scene()
        return rgb, where, find(rgb).mask

    @pytest.mark.parametrize("level", [0, 60, 130, 200])
    def test_grey_and_black_dust(self, level):
        rgb, _, expected = self.spoilt()
        dust = ellipse(*expected.shape, MPP, 1500, 200, 150, 60)
        rgb[dust] = level
        assert (find(rgb).mask == expected).all()

    def test_small_coloured_specks(self):
        rgb, _, expected = self.spoilt()
        rgb[10:14, 250:254] = (120, 60, 150)
        assert (find(rgb).mask == expected).all()

    def test_specks_alone_are_a_reason(self):
        rgb = np.full((200, 200, 3), 243, np.uint8)
        rgb[10:14, 50:54] = (200, 120, 170)
        found = find(rgb)
        assert not found.mask.any()
        assert "only specks" in found.reason

    @pytest.mark.parametrize("colour", [(0, 0, 0), (9, 3, 14), (255, 255, 255)])
    def test_the_border_of_a_scan(self, colour):
        rgb, _, expected = self.spoilt()
        rgb[:, :20] = colour
        rgb[-10:] = colour
        rgb[:40, :30] = colour
        assert overlap(find(rgb).mask, expected) > 0.999

    @pytest.mark.parametrize("colour", [(200, 120, 170), (60, 90, 160), (120, 120, 120)])
    def test_a_frame_of_one_colour(self, colour):
        rgb, _, expected = self.spoilt()
        rgb[:5] = rgb[-5:] = colour
        rgb[:, :5] = rgb[:, -5:] = colour
        assert overlap(find(rgb).mask, expected) > 0.999

    def test_white_padding_beside_duller_glass(self):
        rgb, _ = scene(glass=(241, 236, 239))
        expected = find(rgb).mask
        padded = np.full((rgb.shape[0] + 300, rgb.shape[1] + 300, 3), 255, np.uint8)
        padded[150:-150, 150:-150] = rgb
        mask = find(padded).mask
        assert mask.sum() == pytest.approx(expected.sum(), rel=0.01)
        assert overlap(mask[150:-150, 150:-150], expected) > 0.99


class TestUnreadable:
    @laws
    @given(fill=st.sampled_from([0, 255, 128]), colour=st.booleans(), x=st.integers(0, 250))
    def test_what_stands_in_for_pixels_not_read_changes_nothing(self, fill, colour, x):
        rgb, _ = scene()
        readable = np.ones(rgb.shape[:2], bool)
        readable[40:90, x : x + 40] = False
        one, other = rgb.copy(), rgb.copy()
        one[~readable] = (fill, 0, fill) if colour else fill
        other[~readable] = 243
        assert (find(one, readable=readable).mask == find(other, readable=readable).mask).all()

    def test_it_is_tissue_where_tissue_surrounds_it(self):
        rgb, where = scene()
        readable = np.ones(where.shape, bool)
        readable[80:95, 90:110] = False  # within tissue
        readable[20:30, 200:220] = False  # within glass
        readable[80:95, 150:175] = False  # across the right edge of the left piece
        expected = find(rgb).mask
        rgb[~readable] = 255
        mask = find(rgb, readable=readable).mask
        assert mask[80:95, 90:110].all()
        assert not mask[20:30, 200:220].any()
        across = mask[80:95, 150:175]
        assert abs(across.mean() - expected[80:95, 150:175].mean()) < 0.1

    def test_nothing_readable_is_a_reason(self):
        found = find(np.zeros((50, 60, 3), np.uint8), readable=np.zeros((50, 60), bool))
        assert not found.mask.any()
        assert "none of the 3000 pixels" in found.reason


def read_plane(path, mpp_x):
    """The slide at about the default scale, and its scale in x and y."""
    with openslide.OpenSlide(path) as slide:
        level = slide.get_best_level_for_downsample(OPTIONS.mpp / mpp_x)
        picture = slide.read_region((0, 0), level, slide.level_dimensions[level])
        size = [round(n * mpp_x / OPTIONS.mpp) for n in slide.dimensions]
        mpp = tuple(n0 / n * mpp_x for n0, n in zip(slide.dimensions, size, strict=True))
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(
        Image.alpha_composite(white, picture).convert("RGB").resize(size, Image.Resampling.BOX)
    ), mpp


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real slides (../shared) are not here")
class TestRealSlides:
    @pytest.mark.parametrize(
        ("name", "mpp_x", "expected_mm2"),
        [
            ("breast_40x.svs", 0.26, (7.0, 8.2)),
            ("cmu_1_small_region.svs", 0.499, (0.6, 0.75)),
            ("jp2k_no_mpp.svs", 0.5, (2.4, 2.7)),
            ("ihc_sparse_jp2k.svs", 0.5026, (0.15, 0.3)),
        ],
    )
    def test_the_area_is_what_the_eye_sees(self, name, mpp_x, expected_mm2):
        rgb, mpp = read_plane(SHARED / "data/slides" / name, mpp_x)
        found = find(rgb, mpp)
        assert found.reason is None
        least_mm2, most_mm2 = expected_mm2
        assert least_mm2 < found.mask.sum() * mpp[0] * mpp[1] / 1e6 < most_mm2

    @pytest.mark.parametrize(
        "lamp", [(0.78, 0.78, 0.78), (0.5, 0.5, 0.5), (1, 1, 0.85), (1, 0.85, 1), (0.6, 0.7, 0.7)]
    )
    @pytest.mark.parametrize(("name", "mpp_x"), [("breast_40x.svs", 0.26), ("cmu_1_small_region.svs", 0.499)])
    def test_the_lamp_changes_the_share_by_less_than_a_hundredth(self, name, mpp_x, lamp):
        rgb, mpp = read_plane(SHARED / "data/slides" / name, mpp_x)
        share = find(rgb, mpp).mask.mean()
        assert abs(find(as_picture(rgb * lamp), mpp).mask.mean() - share) < 0.01

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("lamp", [(1, 1, 1), (0.7, 0.7, 0.7), (1, 0.85, 1)])
    @pytest.mark.parametrize(
        ("name", "least", "most"), [("frozen_section", 0.2, 0.3), ("frozen_tinted_glass", 0.28, 0.38)]
    )
    def test_tissue_on_tinted_glass_is_found(self, name, least, most, lamp):
        with Image.open(SHARED / f"data/frozen/{name}.jpg") as picture:
            size = [round(n * 0.687 / OPTIONS.mpp) for n in picture.size]
            picture.draft("RGB", (picture.width // 8, picture.height // 8))
            picture.load()
        found = find(as_picture(np.asarray(picture.resize(size, Image.Resampling.BOX)) * np.asarray(lamp)))
        assert not found.glass_assumed
        assert least < found.mask.mean() < most

    def test_a_field_inside_tissue_is_all_tissue(self):
        rgb, mpp = read_plane(SHARED / "data/slides/breast_40x.svs", 0.26)
        field = rgb[100:180, 430:530]
        for lamp in [(1, 1, 1), (0.6, 0.6, 0.6), (0.85, 1, 0.85)]:
            found = find(as_picture(field * lamp), mpp)
            assert found.glass_assumed
            assert found.mask.mean() > 0.97

    def test_dust_out_of_focus_and_hair_stay_out(self):
        rgb, mpp = read_plane(SHARED / "data/slides/breast_40x.svs", 0.26)
        mask = find(rgb, mpp).mask
        assert not mask[220:233, 463:477].any()  # a dark spot
        assert not mask[:14, 595:680].any()  # a hair
        assert not mask[:100, :240].any()  # faint rings

    @pytest.mark.parametrize("patient", ["9035", "8957", "14306"])
    def test_no_patch_with_carcinoma_is_lost_from_a_whole_mount(self, patient, tmp_path):
        runpy.run_path(str(SHARED / "data/make_idc.py"))["write_slides"](tmp_path, [patient])
        rgb, mpp = read_plane(tmp_path / f"{patient}.tiff", 4.0)
        labels = np.asarray(Image.open(tmp_path / f"{patient}_labels.png"))[::2, ::2]
        mask = find(rgb, mpp).mask[: labels.shape[0], : labels.shape[1]]
        labels = labels[: mask.shape[0], : mask.shape[1]]
        covered = [
            mask[y : y + 25, x : x + 25].mean()
            for y in range(0, mask.shape[0], 25)
            for x in range(0, mask.shape[1], 25)
            if (labels[y : y + 25, x : x + 25] == 1).mean() > 0.5
        ]
        assert covered
        assert min(covered) >= 0.1
        assert mask[labels == 255].mean() < 0.01
