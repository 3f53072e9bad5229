"""Damaged files of every kind that is read are refused with a line, within 512 MB and 5 s."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import zarr

from scripts.bench import fuzz
from wsi_pipeline.base.errors import DataError, ListError, ResultError
from wsi_pipeline.base.geometry import Size
from wsi_pipeline.jobs.locks import parse_lock
from wsi_pipeline.results.opened import Result
from wsi_pipeline.results.run_folder import read_summary
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, read_outlines
from wsi_pipeline.slides.catalog import list_slides
from wsi_pipeline.tiling.export_info import export_of

DEEP = "[" * 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.READERS)
def test_whatever_is_in_a_file_it_is_read_or_refused(tmp_path: Path, name: str) -> None:
    # In a process of its own: what breaks in C would take the tests along.
    command = [sys.executable, "-m", "scripts.bench.fuzz", name, "--tries", "100"]
    places = ["--work", str(tmp_path), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(
        [*command, *places], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))[name]
    assert found["tries"] >= 100
    assert found["taken"] + found["refused"] == found["tries"]


def test_what_is_not_refused_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        if len(path.read_bytes()) % 3 == 0:
            raise ZeroDivisionError

    monkeypatch.setitem(fuzz.READERS, "csv", fuzz.Reader(fails, "a.csv", lambda: [b"ab"]))
    found = fuzz.fuzz("csv", 0, 50, 0, tmp_path)
    (fault,) = found.faults
    assert fault.startswith("ZeroDivisionError at test_fuzz.py")
    assert len(Path(found.faults[fault]).read_bytes()) % 3 == 0


def test_json_that_is_too_deep_is_no_result(tmp_path: Path) -> None:
    for name in ("summary.json", "export.json"):
        (tmp_path / name).write_text(DEEP, encoding="utf-8")
    assert read_summary(tmp_path) == {}
    with pytest.raises(DataError, match="does not say what the patches beside it are"):
        export_of(tmp_path)
    zarr.create_group(tmp_path / "slide.zarr", attributes={"wsi_pipeline": {}})
    with pytest.raises(ResultError, match=r"summary\.json cannot be read"):
        _ = Result(tmp_path).summary


def test_a_small_packed_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(fuzz.READERS["geojson"].good()[0]))
    tracemalloc.start()
    try:
        read_outlines(tmp_path / "a.geojson.gz", AnnotationOptions(), Size(1000, 1000))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_what_a_message_quotes_of_a_file_steers_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('slide,"a\x1b[2J\nb"\n1.svs,2\n', encoding="utf-8")
    with pytest.raises(ListError) as caught:
        list_slides([tmp_path / "list.csv"])
    assert "unknown column 'a\\x1b[2J\\x0ab'" in str(caught.value)


def test_numbers_without_end_are_no_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_bytes(fuzz.EXPORT.replace(b'"patch_px": 50', b'"patch_px": 1e999'))
    with pytest.raises(DataError, match="does not say what the patches beside it are"):
        export_of(tmp_path)
    assert parse_lock('{"beat": 1e999}')[0] is None
