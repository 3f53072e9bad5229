"""What can be known of a JPEG 2000 codestream without decoding it."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from conftest import noise
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.geometry import Size
from wsi_pipeline.slides.readers.jp2k import damage_of

SIZE = Size(256, 256)
IMAGE = noise(256, 256)
LAYERS = {"quality_mode": "rates", "quality_layers": [40, 20, 5]}
KINDS = {
    "lossless": {},
    "lossy": {"irreversible": True, "quality_mode": "rates", "quality_layers": [30]},
    "layers": LAYERS,
    "by resolution, then layer": {"progression": "RLCP", **LAYERS},
    "by resolution, then place": {"progression": "RPCL", **LAYERS},
    "by place": {"progression": "PCRL", **LAYERS},
    "by component": {"progression": "CPRL", **LAYERS},
    "precincts": {"precinct_size": (128, 128), "codeblock_size": (32, 32), **LAYERS},
    "no halvings": {"num_resolutions": 1},
    "halved to nothing": {"num_resolutions": 9},
    "tiles": {"tile_size": (128, 128)},
}


def encoded(kind: str, image: NDArray[np.uint8] = IMAGE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG2000", no_jp2=True, **KINDS[kind])
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image", ["tissue", "one colour", "black"])
def test_what_an_encoder_writes_is_whole(kind: str, image: str) -> None:
    pictures = {"tissue": IMAGE, "one colour": np.full_like(IMAGE, 200), "black": np.zeros_like(IMAGE)}
    assert damage_of(encoded(kind, pictures[image]), SIZE) is None


def test_empty_packets_are_no_run_of_lost_bytes_and_more_zeros_than_packets_are() -> None:
    file = io.BytesIO()
    flat = Image.fromarray(np.full_like(IMAGE, 200))
    flat.save(file, "JPEG2000", no_jp2=True, quality_mode="rates", quality_layers=list(range(40, 1, -1)))
    header = file.getvalue()[: file.getvalue().index(b"\xff\x90")]
    packets = 39 * 3 * 6  # layers, components, resolutions

    def of_zeros(count: int) -> bytes:
        part = bytes.fromhex("ff90000a0000") + (14 + count).to_bytes(4, "big") + bytes.fromhex("0001ff93")
        return header + part + bytes(count) + b"\xff\xd9"

    assert damage_of(of_zeros(packets), SIZE) is None
    assert damage_of(of_zeros(packets + 1), SIZE)
    assert damage_of(of_zeros(packets - 1), SIZE)


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0.2, 0.8))
def test_what_is_cut_off_or_was_overwritten_with_zeros_is_known(kind: str, share: float) -> None:
    data = encoded(kind)
    at = int(len(data) * share)
    lost = {
        "cut short": data[:at],
        "cut short, with its end marker": data[:at] + b"\xff\xd9",
        "the rest zeros": data[:at] + bytes(len(data) - at),
        "the rest zeros, with its end marker": data[:at] + bytes(len(data) - at - 2) + b"\xff\xd9",
        "a sector of zeros": data[:at] + bytes(512) + data[at + 512 :],
        "another file's sector": data[:at]
        + bytes(range(256))
        + bytes(reversed(range(256)))
        + data[at + 512 :],
    }
    for what, damaged in lost.items():
        assert damage_of(damaged, SIZE), what


def test_a_picture_of_another_size_is_known_before_it_is_decoded() -> None:
    found = damage_of(encoded("lossy"), Size(240, 240))
    assert found == "the codestream is of 256 x 256 pixels, expected 240 x 240"


@given(st.binary(max_size=300), st.integers(0, 120))
def test_no_bytes_make_it_stumble(tail: bytes, kept: int) -> None:
    data = encoded("lossy")[:kept] + tail
    assert damage_of(data, SIZE) is not None or not data.startswith(b"\xff\x4f")


@given(st.lists(st.tuples(st.integers(2, 400), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_headers_make_it_stumble_neither(changes: list[tuple[int, int]]) -> None:
    data = bytearray(encoded("precincts"))
    for at, value in changes:
        data[at] = value
    data[700:900] = bytes(200)  # so that packets are read
    damage_of(bytes(data), SIZE)


def test_every_tile_of_real_slides_is_whole(shared: Path) -> None:
    for name in ("ihc_sparse_jp2k.svs", "jp2k_no_mpp.svs"):
        path = shared / "data/slides" / name
        data = path.read_bytes()
        with tifffile.TiffFile(path) as tif:
            for page in (page for page in tif.pages if page.compression in (33003, 33005)):
                size = Size(page.tilewidth, page.tilelength)
                parts = zip(page.dataoffsets, page.databytecounts, strict=True)
                found = [damage_of(data[at : at + count], size) for at, count in parts if count]
                assert len(found) > 10
                assert not any(found)


def test_half_a_tile_of_zeros_is_a_picture_to_the_decoder() -> None:
    """Why it is checked: once a decoder of its own accord refuses this, the check can go."""
    data = encoded("lossy")
    half = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    assert imagecodecs.jpeg2k_decode(half).shape == (256, 256, 3)
