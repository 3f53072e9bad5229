from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import tifffile
from conftest import noise, write_scn, write_slide
from PIL import Image

from wsi_pipeline.base.errors import RegionReadError, ScaleError, SlideOpenError
from wsi_pipeline.base.geometry import Box, Plane, Size
from wsi_pipeline.slides.readers.openslide import OpenSlideReader
from wsi_pipeline.slides.readers.tile_cache import TiledLevels
from wsi_pipeline.slides.slide import Slide, open_slide

MakeSlide = Callable[..., Path]


def test_level_0_pixels_come_back_as_they_were_written(make_slide: MakeSlide) -> None:
    image = noise(700, 900)
    slide = open_slide(make_slide("a.tiff", image))
    assert np.array_equal(slide.read(Box(130, 250, 400, 300), Plane(1, 1)), image[250:550, 130:530])


def test_a_plane_twice_as_coarse_is_averaged_from_the_finer_level(make_slide: MakeSlide) -> None:
    image = noise(640, 960)
    slide = open_slide(make_slide("a.tiff", image, factors=(1, 4)))
    plane = slide.plane_at(1.0)
    assert slide.level_for(plane) == 0
    expected = image.reshape(320, 2, 480, 2, 3).mean(axis=(1, 3))
    assert np.abs(slide.read(Box(0, 0, 480, 320), plane) - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("mpp", "level"),
    [(0.25, 0), (0.5, 0), (1.99, 0), (2.0, 1), (2.2, 0), (4.0, 1), (7.9, 1), (8, 2), (9, 1), (99, 2)],
)
def test_the_level_read_is_the_coarsest_of_the_scale_or_twice_as_fine(
    make_slide: MakeSlide, mpp: float, level: int
) -> None:
    slide = open_slide(make_slide("a.tiff", noise(640, 960), factors=(1, 4, 16)))
    assert slide.level_for(slide.plane_at(mpp)) == level


def test_a_slide_is_looked_at_in_pieces_of_bounded_size_that_do_not_show(
    make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, Box]] = []

    class Noting(OpenSlideReader):
        def read(self, level: int, box: Box) -> np.ndarray:
            reads.append((level, box))
            return super().read(level, box)

    path = make_slide("a.tiff", noise(1100, 1300), factors=(1, 4), tile=32)
    slide = Slide(path, Noting(path), (0.5, 0.5), False)
    plane = slide.plane_at(3.3)  # 1.65 times the second level's
    assert slide.level_for(plane) == 0
    reads.clear()  # those that proved the levels
    whole = slide.read_whole(plane).rgb
    assert len(reads) == 1
    reads.clear()
    monkeypatch.setattr("wsi_pipeline.slides.slide.PIECE_PX", 100)
    slide = Slide(path, Noting(path), (0.5, 0.5), False)
    assert len(slide.levels) == 2
    reads.clear()
    assert np.array_equal(slide.read_whole(plane).rgb, whole)
    assert {level for level, _ in reads} == {1}
    assert max(max(box.width, box.height) for _, box in reads) <= 100 + 2 * 32


def test_a_level_whose_size_was_rounded_has_its_whole_factor(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", noise(643, 961), factors=(1, 4)))
    assert slide.levels[1].plane == Plane(4, 4)


def test_anisotropic_pixels_become_square(make_slide: MakeSlide) -> None:
    image = np.full((600, 600, 3), 255, np.uint8)
    image[100:300, 100:500] = 0  # 100 um high at 0.5, 100 um wide at 0.25
    slide = open_slide(make_slide("a.tiff", image, mpp=(0.25, 0.3333), factors=(1,)))
    assert slide.mpp == pytest.approx((0.25, 0.3333), abs=1e-4)
    size = slide.size_on(slide.plane_at(1.0))
    assert (size.width, size.height) == (150, 200)
    dark = slide.read(Box(0, 0, 150, 200), slide.plane_at(1.0))[..., 0] < 128
    assert dark.any(axis=0).sum() == pytest.approx(100, abs=1)
    assert dark.any(axis=1).sum() == pytest.approx(66.7, abs=1)


def test_outside_of_the_slide_is_white(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", np.full((100, 80, 3), 7, np.uint8), factors=(1,)))
    rgb = slide.read(Box(-10, -10, 200, 200), Plane(1, 1))
    assert (rgb[10:110, 10:90] == 7).all()
    assert (rgb[:10] == 255).all()
    assert (rgb[:, 90:] == 255).all()
    assert (rgb[110:] == 255).all()


def test_a_slide_smaller_than_what_is_read_gives_its_pixels(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide("a.tiff", np.full((3, 5, 3), 9, np.uint8), factors=(1,)))
    assert (slide.read(Box(0, 0, 50, 50), Plane(1, 1))[:3, :5] == 9).all()


@pytest.mark.parametrize(("step", "reach"), [(190, 0), (512, 40)])
def test_each_storage_tile_is_decoded_once_when_blocks_share_tiles_or_reach_over_each_other(
    make_slide: MakeSlide, step: int, reach: int
) -> None:
    image = noise(1500, 1700)
    reads: list[Box] = []

    class Counting(OpenSlideReader):
        def read(self, level: int, box: Box) -> np.ndarray:
            reads.append(box)
            return super().read(level, box)

    levels = TiledLevels(Counting(make_slide("a.tiff", image, factors=(1,))))
    got = np.zeros_like(image)
    for y in range(0, 1500, step):
        for x in range(0, 1700, step):
            box = Box(x - reach, y - reach, step + 2 * reach, step + 2 * reach)
            box = box.intersect(Box(0, 0, 1700, 1500))
            got[box.y : box.bottom, box.x : box.right] = levels.read(0, box, overlap_px=2 * reach)[0]
    assert np.array_equal(got, image)
    decoded = np.zeros((6, 7), int)
    for box in reads:
        decoded[box.y // 256 : -(-box.bottom // 256), box.x // 256 : -(-box.right // 256)] += 1
    assert (decoded == 1).all()


def test_tiles_are_let_go_once_every_block_that_shares_them_has_had_them(make_slide: MakeSlide) -> None:
    image = noise(1000, 1500)
    levels = TiledLevels(OpenSlideReader(make_slide("a.tiff", image, factors=(1,))))
    most = 0
    for y in (0, 500):
        for x in (0, 500, 1000):
            part = levels.read(0, Box(x, y, 500, 500))[0]
            assert np.array_equal(part, image[y : y + 500, x : x + 500])
            most = max(most, levels._kept_bytes)
    assert most > 0
    assert levels._kept_bytes == 0


def test_pixels_between_those_stored_do_not_depend_on_the_box_they_are_read_with(
    make_slide: MakeSlide,
) -> None:
    path = make_slide(
        "a.tiff", noise(1021, 2043), factors=(1, 4), tile=64
    )  # no whole quarters: a downsample of 3.998
    levels = TiledLevels(OpenSlideReader(path))
    size = OpenSlideReader(path).level_sizes[1]
    whole = levels.read(1, Box(0, 0, size.width, size.height))[0]
    for box in (Box(100, 70, 90, 110), Box(64, 64, 64, 64), Box(301, 0, 200, size.height)):
        part = TiledLevels(OpenSlideReader(path)).read(1, box)[0]
        assert np.array_equal(part, whole[box.y : box.bottom, box.x : box.right])


def test_threads_that_share_tiles_read_the_same_pixels_and_decode_none_twice(make_slide: MakeSlide) -> None:
    image = noise(1024, 1024)
    reads: list[Box] = []

    class Counting(OpenSlideReader):
        def read(self, level: int, box: Box) -> np.ndarray:
            reads.append(box)
            return super().read(level, box)

    levels = TiledLevels(Counting(make_slide("a.tiff", image, factors=(1,))))
    got = np.zeros_like(image)

    def work(rows: range) -> None:
        for y in rows:
            got[y : y + 100] = levels.read(0, Box(0, y, 1024, min(100, 1024 - y)))[0]

    threads = [Thread(target=work, args=(range(start, 1024, 400),)) for start in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(got, image)
    assert sum(-(-box.width // 256) * -(-box.height // 256) for box in reads) == 16


def test_planes_start_where_the_scanned_area_of_a_larger_canvas_starts(tmp_path: Path) -> None:
    image = noise(800, 1200)
    slide = open_slide(write_scn(tmp_path / "a.scn", image, 700, 2400, canvas=(4000, 6000)))
    assert (slide.size0.width, slide.size0.height) == (4000, 6000)
    assert slide.bounds == Box(700, 2400, 1200, 800)
    plane = slide.plane_at(0.5)
    assert slide.size_on(plane) == Size(1200, 800)
    assert np.array_equal(slide.read(Box(10, 20, 300, 400), plane), image[20:420, 10:310])
    coarse = slide.plane_at(2.0)
    assert slide.level_for(coarse) == 1
    reduced = np.asarray(Image.fromarray(image).reduce(4), int)
    assert np.abs(slide.read(Box(0, 0, 300, 200), coarse) - reduced).max() <= 1
    assert (slide.read(Box(-50, -50, 50, 50), plane) == 255).all()  # the canvas, never scanned


def test_a_slide_without_scale_is_refused_and_taken_with_one(make_slide: MakeSlide) -> None:
    path = make_slide("a.tiff", noise(100, 100), mpp=None, factors=(1,))
    with pytest.raises(ScaleError, match=r"a\.tiff.*does not say its scale.*--mpp"):
        open_slide(path)
    slide = open_slide(path, mpp=0.25)
    assert slide.mpp == (0.25, 0.25)
    assert slide.mpp_overridden


@pytest.mark.parametrize(
    ("power", "hint"), [("40", "40x objective, often 0.25"), ("0", ""), ("-20", ""), ("x", ""), ("inf", "")]
)
def test_a_slide_without_scale_says_what_its_objective_says_if_it_is_one(
    tmp_path: Path, power: str, hint: str
) -> None:
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as tif:
        page = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
        tif.write(noise(300, 300), description=f"Aperio Image Library\n|AppMag = {power}", **page)
    with pytest.raises(ScaleError, match=r"a\.svs: the file does not say its scale") as caught:
        open_slide(path)
    assert hint in str(caught.value)
    assert ("objective" in str(caught.value)) == bool(hint)


@pytest.mark.parametrize("mpp", [(0.004, 0.004), (25.0, 25.0), (0.2, 0.5)])
def test_an_implausible_scale_is_refused(make_slide: MakeSlide, mpp: tuple[float, float]) -> None:
    with pytest.raises(ScaleError, match=r"expected .*--mpp"):
        open_slide(make_slide("a.tiff", noise(100, 100), mpp=mpp, factors=(1,)))


def test_an_implausible_override_is_refused(make_slide: MakeSlide) -> None:
    with pytest.raises(ScaleError, match="--mpp says 40"):
        open_slide(make_slide("a.tiff", noise(100, 100)), mpp=40)


def test_a_file_changed_in_place_has_another_fingerprint(tmp_path: Path) -> None:
    image = noise(300, 300).copy()
    before = open_slide(write_slide(tmp_path / "a.tiff", image)).fingerprint()
    image[7, 7] ^= 1
    assert open_slide(write_slide(tmp_path / "a.tiff", image)).fingerprint() != before


def test_what_is_no_slide_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    (tmp_path / "empty.svs").touch()
    (tmp_path / "folder").mkdir()
    for name, found in (
        ("text.svs", "no slide format"),
        ("empty.svs", "0 bytes"),
        ("folder", "without .dcm"),
        ("gone.svs", "no such file"),
    ):
        with pytest.raises(SlideOpenError, match=found) as caught:
            open_slide(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["zero_bytes.svs", "unopenable.tiff", "webp_unsupported.tiff", "truncated.svs"]
)
def test_shared_files_that_cannot_be_opened_are_refused_by_name(shared: Path, name: str) -> None:
    with pytest.raises(SlideOpenError, match=name):
        open_slide(shared / "data/bad" / name)


def test_a_corrupt_tile_is_an_error_where_it_is_and_nowhere_else(shared: Path) -> None:
    bad = open_slide(shared / "data/bad/five_tiles_corrupt.svs")
    good = open_slide(shared / "data/slides/cmu_1_small_region.svs")
    whole = Box(0, 0, bad.size0.width, bad.size0.height)
    pixels = bad.read_readable(whole, Plane(1, 1))
    truth = good.read(whole, Plane(1, 1))
    assert np.array_equal(pixels.rgb[pixels.readable], truth[pixels.readable])
    lost = np.argwhere(~pixels.readable) // 240
    assert len(np.unique(lost, axis=0)) == 5
    y, x = np.argwhere(~pixels.readable)[0]
    with pytest.raises(RegionReadError, match="five_tiles_corrupt"):
        bad.read(Box(int(x), int(y), 10, 10), Plane(1, 1))
    assert bad.read(Box(0, 0, 0, 0), Plane(1, 1)).size == 0


def test_dicom_reads_as_the_svs_it_was_made_from(shared: Path) -> None:
    dicom = open_slide(shared / "data/slides/cmu_1_small_region_dicom")
    svs = open_slide(shared / "data/slides/cmu_1_small_region.svs")
    assert dicom.name == "cmu_1_small_region_dicom"
    assert dicom.mpp == pytest.approx(svs.mpp)
    box = Box(0, 0, 500, 700)
    a, b = (slide.read(box, slide.plane_at(2)).astype(int) for slide in (dicom, svs))
    assert np.abs(a - b).mean() < 2  # its JPEG tiles are decoded by another library


def test_reading_a_real_pyramid_agrees_with_reducing_level_0(shared: Path) -> None:
    slide = open_slide(shared / "data/slides/breast_40x.svs")
    plane = slide.plane_at(4.0)
    assert slide.level_for(plane) == 1
    box = Box(100, 100, 200, 150)
    region = plane.to_level0(box)
    level0 = slide.read(
        Box(
            int(region.left),
            int(region.top),
            int(region.right - region.left),
            int(region.bottom - region.top),
        ),
        Plane(1, 1),
    )
    reduced = np.asarray(Image.fromarray(level0).resize((200, 150), Image.Resampling.BOX), float)
    assert np.abs(slide.read(box, plane) - reduced).mean() < 3
