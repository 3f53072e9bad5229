"""Pictures are taken whole or not at all."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import noise
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.images import png_scale, read_image

IMAGE = noise(400, 300)
JPEGS = {
    "4:2:0": {"quality": 85},
    "4:4:4": {"quality": 85, "subsampling": 0},
    "progressive": {"quality": 85, "progressive": True},
    "with restart markers": {"quality": 85, "restart_marker_rows": 1},
    "of RGB": {"quality": 85, "keep_rgb": True},
}


def as_jpeg(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "JPEG", **JPEGS[kind])
    return file.getvalue()


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_has_the_pixels_that_pillow_reads(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(as_jpeg(kind))
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(read_image(tmp_path / "a.jpg"), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_other_colours_is_as_before(tmp_path: Path, mode: str) -> None:
    Image.fromarray(IMAGE).convert(mode).save(tmp_path / "a.jpg")
    if mode == "L":
        with pytest.raises(DataError, match="without 8-bit colours"):
            read_image(tmp_path / "a.jpg")
        return
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(read_image(tmp_path / "a.jpg"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("share", np.linspace(0.25, 0.75, 20))
def test_a_jpeg_that_is_cut_is_refused_even_if_its_end_marker_is_put_back(
    tmp_path: Path, kind: str, share: float
) -> None:
    cut = as_jpeg(kind)[: int(len(as_jpeg(kind)) * share)]
    for found in (cut, cut + b"\xff\xd9"):
        (tmp_path / "a.jpg").write_bytes(found)
        with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
            read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "of RGB"])
def test_jpegs_with_a_hole_of_zeros_are_refused(tmp_path: Path, kind: str) -> None:
    data, taken = as_jpeg(kind), 0
    for share in np.linspace(0.25, 0.75, 20):
        at = int(len(data) * share)
        (tmp_path / "a.jpg").write_bytes(data[:at] + bytes(4000) + data[at + 4000 :])
        try:
            read_image(tmp_path / "a.jpg")
            taken += 1
        except DataError:
            pass
    assert taken <= 1  # zeros are blocks of one colour, and what follows may fall into step again


def test_of_jpegs_with_five_changed_bytes_what_the_decoder_stumbles_over_is_refused(tmp_path: Path) -> None:
    data, rng, refused = as_jpeg("4:2:0"), np.random.default_rng(0), 0
    for _ in range(20):
        changed = bytearray(data)
        for at in rng.integers(len(data) // 4, len(data) - 2, 5):
            changed[at] = int(rng.integers(0, 256))
        (tmp_path / "a.jpg").write_bytes(changed)
        try:
            read_image(tmp_path / "a.jpg")
        except DataError:
            refused += 1
    assert refused >= 8  # the others are pictures, if not the right ones: a JPEG has no checksum


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
@pytest.mark.parametrize("share", np.linspace(0.3, 0.7, 10))
def test_a_hole_in_a_tiff_is_refused(tmp_path: Path, compression: str, share: float) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", compression=compression, tile=(64, 64), metadata=None)
    assert np.abs(read_image(path).astype(int) - IMAGE).mean() < 4
    data = bytearray(path.read_bytes())
    at = int(len(data) * share)
    data[at : at + 1500] = bytes(1500)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tif: cannot be read as an image"):
        read_image(path)


def test_16_bit_planes_are_refused_and_8_bit_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    planes = np.moveaxis(IMAGE, -1, 0).copy()
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", metadata=None)
    assert np.array_equal(read_image(path), IMAGE)
    tifffile.imwrite(
        path, planes.astype(np.uint16) * 257, photometric="rgb", planarconfig="separate", metadata=None
    )
    with pytest.raises(DataError, match="found 16 bits a channel, each channel by itself, expected 8 bits"):
        read_image(path)


def test_a_jpeg_that_says_it_is_larger_than_its_header_is_refused(tmp_path: Path) -> None:
    data = bytearray(as_jpeg("4:4:4"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (9000).to_bytes(2, "big") * 2
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError):
        read_image(tmp_path / "a.jpg")


def test_a_file_that_the_system_does_not_give_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(as_jpeg("4:2:0"))

    def failing(_: Path) -> bytes:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read by the system .Input/output error"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"b\.jpg: cannot be read by the system .No such file"):
        read_image(tmp_path / "b.jpg")


def test_a_pipe_is_no_picture_and_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    os.mkfifo(path)
    with pytest.raises(DataError, match="found a pipe, a folder or a device"):
        read_image(path)
    assert png_scale(path) is None
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.png")
