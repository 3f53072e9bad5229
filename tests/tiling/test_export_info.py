"""export.json may come with patches from elsewhere: what it says has bounds, and leads to no file but its own."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.inference.images import _sample_of
from wsi_pipeline.tiling.export_info import EXPORT_FILE, MOST_BYTES, ExportInfo, export_of, read_export

NAN = float("nan")
INFO = ExportInfo("a", "f", 50, 50, 4.0, (0.1, 0.2, 0.1), 2, ("0/a_x0_y0.png", "0/a_x1_y0.png"))


def written(folder: Path, **changes: Any) -> Path:
    values = INFO.as_json()
    stain = values["stain"] | changes.pop("stain", {})
    (folder / EXPORT_FILE).write_text(json.dumps(values | {"stain": stain} | changes))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"mpp": NAN},
        {"mpp": 1e-300},
        {"mpp": 1e300},
        {"patch_px": 10**15},
        {"stride_px": 0},
        {"stain": {"od_mean": [NAN, 0.2, 0.2]}},
        {"stain": {"od_mean": [1e300, 0.2, 0.2]}},
        {"stain": {"od_mean": [-1, 0.2, 0.2]}},
        {"stain": {"patches": -5}},
        {"stain": {"patches": 10**10}},
        {"stain": {"sample": ["0/a.png"] * 5_000}},
        {"stain": {"sample": ["/dev/zero"]}},
        {"stain": {"sample": ["../a.png"]}},
        {"stain": {"sample": ["0/../../a.png"]}},
        {"stain": {"sample": ["0/a\0.png"]}},
        {"stain": {"sample": ["0/" + "a" * 1_000 + ".png"]}},
        {"stain": {"sample": [["0", "a.png"]]}},
    ],
)
def test_what_no_export_says_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert export_of(written(tmp_path))
    with pytest.raises(DataError, match="does not say what the patches beside it are"):
        export_of(written(tmp_path, **changes))
    assert read_export(tmp_path) is None


def test_neither_a_pipe_nor_what_is_too_large_is_read(tmp_path: Path) -> None:
    with (tmp_path / EXPORT_FILE).open("wb") as file:
        file.truncate(MOST_BYTES * 4)
    tracemalloc.start()
    try:
        assert read_export(tmp_path) is None
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    (tmp_path / EXPORT_FILE).unlink()
    os.mkfifo(tmp_path / EXPORT_FILE)  # a read of it would never end
    assert read_export(tmp_path) is None


@pytest.mark.parametrize("second", ["a pipe", "a large picture", "nothing", "a patch"])
def test_a_sample_is_of_patches_or_none(tmp_path: Path, second: str) -> None:
    info = export_of(written(tmp_path))
    assert info
    (tmp_path / "0").mkdir()
    patch = np.full((50, 50, 3), 100, np.uint8)
    Image.fromarray(patch).save(info.sample[0])
    if second == "a pipe":
        os.mkfifo(info.sample[1])
    elif second != "nothing":
        Image.fromarray(patch if second == "a patch" else np.zeros((3000, 3000, 3), np.uint8)).save(
            info.sample[1]
        )
    found = _sample_of(info)
    assert (found is not None) == (second == "a patch")
