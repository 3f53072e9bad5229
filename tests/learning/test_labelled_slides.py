"""Which slides of a folder have which labels."""

import logging
from pathlib import Path

import pytest

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.learning.datasets.labelled_slides import find_labelled_slides


def found(folder: Path, *names: str) -> list[tuple[str, str]]:
    for name in names:
        (folder / name).touch()
    return [(slide.name, known.name) for slide, known in find_labelled_slides(folder)]


def test_each_slide_is_found_with_its_own_labels(tmp_path: Path) -> None:
    assert found(
        tmp_path, "S1.svs", "S1.2.svs", "S1_labels.png", "S1.2_labels.png", "a.tiff", "a.geojson"
    ) == [
        ("S1.2.svs", "S1.2_labels.png"),
        ("S1.svs", "S1_labels.png"),
        ("a.tiff", "a.geojson"),
    ]


@pytest.mark.parametrize(
    "other", ["a.csv", "a.xml", "a.txt", "a.jpg", "a.qpdata", "a.part", "._a.svs", "._a_labels.png"]
)
def test_what_is_no_slide_is_not_taken_for_one(tmp_path: Path, other: str) -> None:
    assert found(tmp_path, "a.svs", "a_labels.png", other) == [("a.svs", "a_labels.png")]


def test_names_are_no_patterns(tmp_path: Path) -> None:
    assert found(tmp_path, "a[1].svs", "a[1]_labels.png") == [("a[1].svs", "a[1]_labels.png")]


def test_a_picture_of_labels_comes_before_outlines_and_what_is_left_over_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pairs = found(tmp_path, "a.svs", "a_labels.png", "a.svs.geojson", "b.svs")
    assert pairs == [("a.svs", "a_labels.png")]
    assert "a.svs.geojson, are passed over: a label picture lies beside it" in caplog.text
    assert "1 slide without labels passed over: b.svs" in caplog.text


def test_labels_that_fit_no_slide_or_two_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        found(tmp_path / "none")
    with pytest.raises(DataError, match=r"found no slide with labels \(1 without"):
        found(tmp_path, "a.svs")
    with pytest.raises(DataError, match=r"b_labels\.png: found no slide b\.\* beside it"):
        found(tmp_path, "b_labels.png", "a_labels.png")
    (tmp_path / "b_labels.png").unlink()
    with pytest.raises(DataError, match=r"a_labels\.png: found two slides that it may be of"):
        found(tmp_path, "a.tif")
