"""Images are decoded once; the cache gives the same pixels, and is made anew when the folder changes."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_layouts import PX, write_classes, write_image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.images import read_image
from wsi_pipeline.learning.datasets import SplitOptions, load_split
from wsi_pipeline.learning.datasets.cache import decode, squeezed
from wsi_pipeline.learning.datasets.layouts import list_images

SPLIT = SplitOptions(val=("test",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(
        tmp_path / "set", "train/benign", "train/malignant", "test/benign", "test/malignant", count=8
    )


def test_a_second_load_opens_no_image_and_gives_the_same(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = load_split(folder, PX, SPLIT, tmp_path / "cache")
    assert "decoded 32 images" in caplog.text
    for path in folder.rglob("*.png"):  # whoever opened one now would fail
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = load_split(folder, PX, SPLIT, tmp_path / "cache")
    assert [side.pixels.tobytes() for side in first] == [side.pixels.tobytes() for side in second]


def test_the_cache_holds_what_the_files_hold(folder, tmp_path):
    listing = list_images(folder)
    every = np.arange(len(listing))
    made = decode(listing, every, PX, False, tmp_path / "cache")
    kept = decode(listing, every, PX, False, tmp_path / "cache")
    assert isinstance(kept.pixels, np.memmap)
    for index in every:
        assert (kept.pixels[index] == listing.load(index)).all()
    assert (made.pixels == kept.pixels).all()
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")] == []


def test_processes_that_want_one_cache_at_once_all_get_it_and_one_makes_it(folder, tmp_path):
    code = """
import hashlib, logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from wsi_pipeline.learning.datasets import SplitOptions, load_split
sides = load_split(Path(sys.argv[1]), 8, SplitOptions(val=("test",)), Path(sys.argv[2]))
print(hashlib.sha256(b"".join(side.pixels.tobytes() for side in sides)).hexdigest())
"""
    for number in range(2):
        command = [sys.executable, "-c", code, folder, tmp_path / f"cache{number}"]
        runs = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        said = [run.communicate() for run in runs]
        assert [run.returncode for run in runs] == [0] * 4, said
        assert len({out for out, _ in said}) == 1
        assert sum("decoded 32 images" in complaint for _, complaint in said) == 1
        assert len(list((tmp_path / f"cache{number}").iterdir())) == 1


def test_what_a_killed_process_left_of_a_cache_goes_when_it_is_made(folder, tmp_path):
    load_split(folder, PX, SPLIT, tmp_path / "cache")
    [made] = (tmp_path / "cache").iterdir()
    made.rename(made.with_name(f".{made.name}.0123456789abcdef.part"))
    load_split(folder, PX, SPLIT, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [made]


@pytest.mark.parametrize("change", ["changed", "added", "removed", "damaged cache"])
def test_a_changed_folder_is_decoded_anew_in_place(folder, tmp_path, change):
    load_split(folder, PX, SPLIT, tmp_path / "cache")
    image = folder / "train" / "benign" / "SOB_0-0_0.png"
    if change == "changed":
        write_image(image, 250)
    elif change == "added":
        write_image(image.with_name("more.png"), 250)
    elif change == "removed":
        image.unlink()
    else:
        next((tmp_path / "cache").glob("*/pixels.npy")).write_bytes(b"")
    train, _ = load_split(folder, PX, SPLIT, tmp_path / "cache")
    assert len(train) == 16 + {"added": 1, "removed": -1}.get(change, 0)
    assert (train.pixels[:, 0, 0, 0] == 250).sum() == (change in ("changed", "added"))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_unreadable_images_are_refused_by_name_or_left_out_on_request(folder, tmp_path):
    broken = folder / "train" / "benign" / "SOB_0-0_0.png"
    broken.write_bytes(broken.read_bytes()[:50])
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(DataError, match=r"found 1 of 32 images .*SOB_0-0_0\.png"):
            load_split(folder, PX, SPLIT, tmp_path)
        train, _ = load_split(folder, PX, SplitOptions(val=("test",), skip_unreadable=True), tmp_path)
        assert len(train) == 15


def test_images_of_another_size_are_refused_or_squeezed_by_area(tmp_path):
    folder = write_classes(tmp_path, *(f"{p}/{c}" for p in ("train", "test") for c in "01"), size=(32, 24))
    with pytest.raises(DataError, match=r"found no image of 8 x 8 px, the first has 32 x 24; .*resize: true"):
        load_split(folder, PX, SPLIT)
    train, _ = load_split(folder, PX, SplitOptions(val=("test",), resize=True))
    assert train.pixels.shape == (8, PX, PX, 3)
    blocks = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    mean = blocks.reshape(8, 3, 8, 4, 3).mean(axis=(1, 3))
    assert np.abs(squeezed(blocks, PX) - mean).max() <= 0.51


def test_what_has_no_colours_or_hides_some_is_not_guessed(tmp_path):
    Image.new("L", (PX, PX)).save(tmp_path / "grey.png")
    Image.new("I;16", (PX, PX)).save(tmp_path / "deep.png")
    Image.new("RGBA", (PX, PX), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    (tmp_path / "text.png").write_text("no image")
    for name, said in (
        ("grey", "mode L"),
        ("deep", "mode I;16"),
        ("text", "no image format"),
        ("none", "No such"),
    ):
        with pytest.raises(DataError, match=rf"{name}\.png: cannot be read .*{said}"):
            read_image(tmp_path / f"{name}.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()
