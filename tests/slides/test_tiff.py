"""Storage tiles decoded directly are what OpenSlide reads; where they are not, OpenSlide is asked."""

import logging
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import noise, write_scn, write_slide
from simplejpeg import encode_jpeg

from wsi_pipeline.base.errors import SlideOpenError
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.slides.readers import jpeg_tiles
from wsi_pipeline.slides.readers.jpeg_tiles import DecodeTiles, TileTargets
from wsi_pipeline.slides.readers.openslide import OpenSlideReader
from wsi_pipeline.slides.readers.tiff import TiffReader, open_reader
from wsi_pipeline.slides.readers.tile_cache import TileDecoder, TiledLevels
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import GridOptions
from wsi_pipeline.tiling.overview import OverviewOptions, make_overview
from wsi_pipeline.tiling.patches import read_blocks

APERIO = "Aperio Image Library\n|AppMag = 20|MPP = 0.5"
SIZE = (700, 900)  # neither side ends where a tile ends
KINDS = {
    "uncompressed": {},
    "BigTIFF": {"bigtiff": True},
    "deflate": {"compression": "deflate"},
    "deflate with predictor": {"compression": "deflate", "predictor": True},
    "LZW": {"compression": "lzw"},
    "LZW with predictor": {"compression": "lzw", "predictor": True},
    "zstd": {"compression": "zstd"},
    "JPEG of RGB": {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}},
    "JPEG of YCbCr": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1)},
    "JPEG 4:2:2": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 1)},
    "JPEG 4:2:0": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)},
    "JPEG 2000 of RGB": {"compression": 33005, "description": APERIO},
}


def write_tiff(path: Path, bigtiff: bool = False, **page: object) -> Path:
    """One level of noise in tiles of 256 px."""
    options = {"photometric": "rgb", "metadata": None, "resolution": (2e4, 2e4), "resolutionunit": 3} | page
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tif:
        tif.write(noise(*SIZE), tile=(256, 256), **options)  # type: ignore[arg-type]
    return path


def through_openslide(path: Path, mpp: tuple[float, float] = (0.5, 0.5)) -> Slide:
    return Slide(path, OpenSlideReader(path), mpp, False)


def whole(slide: Slide, level: int = 0) -> Box:
    return Box(0, 0, slide.levels[level].size.width, slide.levels[level].size.height)


@pytest.mark.parametrize("kind", KINDS)
def test_each_compression_is_decoded_directly_and_equals_openslide(tmp_path: Path, kind: str) -> None:
    path = write_tiff(tmp_path / "a.tiff", **KINDS[kind])
    slide = open_slide(path)
    assert slide._reader.tile_decoder(0) is not None
    box = Box(-5, -5, 1000, 800)  # over every edge
    assert np.array_equal(slide.read(box, Plane(1, 1)), through_openslide(path).read(box, Plane(1, 1)))


@pytest.mark.parametrize(("photometric", "is_right"), [(6, True), (2, False)])
def test_jpeg_tiles_with_a_header_of_their_own_go_by_the_file_s_tag(
    tmp_path: Path, photometric: int, is_right: bool
) -> None:
    image = noise(512, 512)
    tiles = [
        encode_jpeg(np.ascontiguousarray(image[y : y + 256, x : x + 256]), colorsubsampling="444")
        for y in (0, 256)
        for x in (0, 256)
    ]
    assert tiles[0][6:10] == b"JFIF"  # which means YCbCr, whatever the tag says
    path = tmp_path / "a.tiff"
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            iter(tiles),
            shape=image.shape,
            dtype=np.uint8,
            tile=(256, 256),
            compression="jpeg",
            photometric="ycbcr",
            subsampling=(1, 1),
            metadata=None,
            resolution=(2e4, 2e4),
            resolutionunit=3,
        )
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["PhotometricInterpretation"].overwrite(photometric)
    slide, other = open_slide(path), through_openslide(path)
    assert slide._reader.tile_decoder(0) is not None
    ours = slide.read(whole(slide), Plane(1, 1))
    assert np.array_equal(ours, other.read(whole(slide), Plane(1, 1)))
    assert (np.abs(ours.astype(int) - image).mean() < 5) == is_right


@pytest.mark.parametrize("description", [None, APERIO])
def test_missing_tiles_are_what_openslide_makes_of_them(tmp_path: Path, description: str | None) -> None:
    path = write_tiff(tmp_path / "a.tiff", compression="jpeg", description=description)
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = list(tif.pages[0].tags["TileByteCounts"].value)
        counts[1] = counts[-1] = 0
        tif.pages[0].tags["TileByteCounts"].overwrite(counts)
    slide, other = open_slide(path), through_openslide(path)
    assert slide._reader.tile_decoder(0) is not None
    ours, theirs = (s.read_readable(whole(s), Plane(1, 1)) for s in (slide, other))
    assert np.array_equal(ours.rgb, theirs.rgb)
    assert np.array_equal(ours.readable, theirs.readable)
    assert (ours.rgb[:256, 256:512] == 255).all()


DAMAGES = {
    "overwritten": lambda tile: bytes(len(tile)),
    "broken off": lambda tile: tile[: len(tile) // 2] + bytes(len(tile) - len(tile) // 2),
    "ended early": lambda tile: tile[: len(tile) // 2] + b"\xff\xd9" + bytes(len(tile) - len(tile) // 2 - 2),
    "garbled": lambda tile: tile[: len(tile) // 2] + b"\xa5" * 300 + tile[len(tile) // 2 + 300 :],
}


def damaged(path: Path, tile: int, damage: Callable[[bytes], bytes]) -> Path:
    """The file with one storage tile of its first page damaged."""
    with tifffile.TiffFile(path) as tif:
        start, length = tif.pages[0].dataoffsets[tile], tif.pages[0].databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[start : start + length] = damage(bytes(data[start : start + length]))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["JPEG of RGB", "JPEG 4:2:0", "JPEG 2000 of RGB", "deflate", "LZW"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tile_is_unreadable_whatever_openslide_makes_of_it(
    tmp_path: Path, kind: str, damage: str
) -> None:
    path = write_tiff(tmp_path / "a.tiff", **KINDS[kind])
    truth = through_openslide(path).read(Box(0, 0, 900, 700), Plane(1, 1))
    slide = open_slide(damaged(path, 5, DAMAGES[damage]))
    pixels = slide.read_readable(whole(slide), Plane(1, 1))
    # In the middle of a code block of JPEG 2000 nothing tells another byte from the right one.
    if (kind, damage) != ("JPEG 2000 of RGB", "garbled"):
        assert not pixels.readable[256:512, 256:512].any()
        assert np.count_nonzero(~pixels.readable) == 256 * 256
    outside = np.ones((700, 900), np.bool_)
    outside[256:512, 256:512] = False
    assert np.array_equal(pixels.rgb[outside], truth[outside])


def test_a_tile_of_four_gigabytes_is_damaged_also_where_openslide_is_asked(tmp_path: Path) -> None:
    # Run under a limit of memory: GLib, of which OpenSlide asks as much, would end the process.
    path = write_tiff(tmp_path / "a.tiff", compression="deflate", description=APERIO)
    with tifffile.TiffFile(path) as tif:
        counts = tif.pages[0].tags["TileByteCounts"]  # type: ignore[union-attr]
        width = counts.valuebytecount // counts.count
    data, fifth = bytearray(path.read_bytes()), counts.valueoffset + 4 * width
    data[fifth : fifth + width] = b"\xff" * width
    path.write_bytes(data)
    script = f"""
import resource
from wsi_pipeline.base.errors import RegionReadError
from wsi_pipeline.base.geometry import Box
from wsi_pipeline.slides.readers.tiff import open_reader
reader = open_reader({str(path)!r})
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
assert reader.read(0, Box(0, 0, 256, 256)).shape == (256, 256, 3)
try:
    reader.read(0, Box(200, 200, 400, 400))
except RegionReadError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "4,294,967,295 bytes, too many for 256 x 256 pixels" in done.stdout


def test_a_slide_whose_first_tiles_are_all_damaged_is_not_left_to_a_reader_that_takes_them(
    tmp_path: Path,
) -> None:
    path = write_tiff(tmp_path / "a.tiff", compression="jpeg")
    for tile in range(12):
        if tile != 7:
            damaged(path, tile, DAMAGES["garbled"])
    slide = open_slide(path)
    readable = slide.read_readable(whole(slide), Plane(1, 1)).readable
    assert np.count_nonzero(readable) == 132 * 256  # the tile at the end of the second row is cut by the edge
    taken = through_openslide(path).read_readable(whole(slide), Plane(1, 1)).readable
    assert np.count_nonzero(taken) > np.count_nonzero(readable)


def test_a_file_whose_tiles_decode_to_other_pixels_is_left_to_openslide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wsi_pipeline")
    # The tag says YCbCr, which OpenSlide goes by; the tiles say RGB.
    path = write_tiff(tmp_path / "a.tiff", compression=33003, description=APERIO)
    slide, other = open_slide(path), through_openslide(path)
    for box in (whole(slide), Box(0, 0, 300, 300)):
        assert np.array_equal(slide.read(box, Plane(1, 1)), other.read(box, Plane(1, 1)))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "a.tiff is read through OpenSlide" in told[0]
    assert "decodes to other pixels, by up to" in told[0]


def test_what_is_stored_in_no_rgb_tiles_is_left_to_openslide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wsi_pipeline")
    slide = open_slide(write_scn(tmp_path / "a.scn", noise(800, 1200), 700, 2400, canvas=(4000, 6000)))
    for plane in (slide.plane_at(0.5), slide.plane_at(2)):
        slide.read(Box(0, 0, 100, 100), plane)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "no page of 8-bit RGB tiles" in told[0]


def test_a_level_that_openslide_reads_between_pixels_still_proves_itself(tmp_path: Path) -> None:
    # 1001 x 803 px reduced to 251 x 201: OpenSlide's downsample is 3.99.
    path = write_slide(tmp_path / "a.tiff", noise(803, 1001), tile=64)
    reader = OpenSlideReader(path)
    assert max(map(abs, reader.read_offset(1, Box(192, 128, 59, 64)))) > 0.05
    slide = open_slide(path)
    assert slide._reader.tile_decoder(1) is not None
    with tifffile.TiffFile(path) as tif:
        assert np.array_equal(TiledLevels(slide._reader).read(1, whole(slide, 1))[0], tif.pages[1].asarray())


@pytest.mark.parametrize("in_one_call", [False, True])
def test_threads_decode_each_tile_once_and_read_the_same(tmp_path: Path, in_one_call: bool) -> None:
    if in_one_call and not jpeg_tiles.is_built():
        pytest.skip("the C function was not built here: no compiler or no jpeglib.h")
    path = write_slide(tmp_path / "a.tiff", noise(1000, 1100), factors=(1,), compression="jpeg", tile=128)
    decoded: Counter[tuple[int, int]] = Counter()

    class Counting(TiffReader):
        def tile_decoder(self, level: int) -> TileDecoder | None:
            decode = super().tile_decoder(level)
            assert decode is not None

            def counted(column: int, row: int) -> np.ndarray:
                decoded[column, row] += 1
                return decode(column, row)

            return counted

        def tiles_decoder(self, level: int) -> DecodeTiles | None:
            decode = super().tiles_decoder(level)
            if not in_one_call:
                return None
            assert decode is not None

            def counted(targets: TileTargets, threads: int) -> np.ndarray:
                decoded.update((column, row) for column, row, *_ in targets.places.tolist())
                return decode(targets, threads)

            return counted

    slide = Slide(path, Counting(OpenSlideReader(path)), (0.5, 0.5), False)
    got = np.zeros((1000, 1100, 3), np.uint8)

    def work(start: int) -> None:
        for y in range(start, 1000, 400):
            for x in range(0, 1100, 150):
                box = Box(x, y, min(150, 1100 - x), 100)
                got[box.y : box.bottom, box.x : box.right] = slide.read(box, Plane(1, 1))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(got, through_openslide(path).read(Box(0, 0, 1100, 1000), Plane(1, 1)))
    assert decoded == Counter({(column, row): 1 for column in range(9) for row in range(8)})


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("breast_40x.svs", 0),
        ("cmu_1_small_region.svs", 0),
        ("jp2k_no_mpp.svs", 0),
        ("ihc_sparse_jp2k.svs", 1),  # YCbCr is turned to RGB by another program
    ],
)
def test_real_slides_are_decoded_directly_and_equal_openslide(
    shared: Path, name: str, tolerance: int
) -> None:
    path = shared / "data/slides" / name
    slide, other = open_slide(path, 0.5), through_openslide(path)
    assert slide._reader.tile_decoder(0) is not None
    size = slide.size0
    for x, y in ((0, 0), (size.width // 2, size.height // 3), (size.width - 500, size.height - 600)):
        ours, theirs = (s.read(Box(x, y, 700, 700), Plane(1, 1)) for s in (slide, other))
        assert np.abs(ours.astype(int) - theirs).max() <= tolerance


@pytest.mark.parametrize("mpp", [0.499, 4.0])
def test_plan_and_patches_do_not_tell_which_reader_was_used(shared: Path, mpp: float) -> None:
    path = shared / "data/slides/cmu_1_small_region.svs"
    direct = open_slide(path)
    found = []
    for slide in (direct, through_openslide(path, direct.mpp)):
        plan = make_overview(slide, OverviewOptions(), GridOptions(patch_px=50, mpp=mpp)).plan
        read = read_blocks(
            plan.blocks(), plan.grid, lambda b, s=slide, p=plan: s.read_readable(b, p.grid.plane), 2
        )
        found.append((plan.kept, np.concatenate([cut.rgb for _, cut in read])))
    assert len(found[0][1])
    for ours, theirs in zip(*found, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_file_that_vanishes_while_open_is_read_on(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", compression="jpeg")
    slide = open_slide(path)
    before = slide.read(Box(0, 0, 10, 10), Plane(1, 1))
    shutil.move(path, tmp_path / "b.tiff")
    after = slide.read(whole(slide), Plane(1, 1))
    assert np.array_equal(after[:10, :10], before)


def test_what_is_no_tiff_has_the_plain_reader(shared: Path) -> None:
    dicom = next((shared / "data/slides/cmu_1_small_region_dicom").glob("*.dcm"))
    assert isinstance(open_reader(dicom), OpenSlideReader)


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ({"tile": None}, "a TIFF, its first page of 900 x 700 pixels in strips"),
        ({"byteorder": ">"}, "a TIFF, big-endian, its first page of 900 x 700 pixels in tiles"),
    ],
)
def test_a_tiff_that_openslide_does_not_read_is_called_what_it_is(
    tmp_path: Path, page: dict[str, object], found: str
) -> None:
    path = tmp_path / "a.tiff"
    options: dict[str, object] = {"tile": (256, 256), "photometric": "rgb", "metadata": None} | page
    with tifffile.TiffWriter(path, byteorder=options.pop("byteorder", "<")) as tif:  # type: ignore[arg-type]
        tif.write(noise(*SIZE), **options)  # type: ignore[arg-type]
    with pytest.raises(SlideOpenError, match=rf"a\.tiff: {found}, which OpenSlide does not read"):
        open_slide(path)
