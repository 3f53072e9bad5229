import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.base.errors import ListError
from wsi_pipeline.slides.catalog import SlideEntry, list_slides, shard_of


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder as scanners leave it."""
    for name in (
        "b.svs",
        "a.NDPI",
        "readme.txt",
        ".hidden.svs",
        "case/mirax.mrxs",
        "case/mirax/Data0000.dat",
        "case/mirax/preview.tif",
        "case/dicom/1.dcm",
        "case/dicom/2.dcm",
        "case/out/slide.zarr/looks_like.tiff",
        ".batch/z.svs",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def named(entries: list[SlideEntry]) -> list[str]:
    return [entry.name for entry in entries]


def test_a_folder_gives_each_slide_once_whatever_files_it_is_made_of(archive: Path) -> None:
    entries = list_slides([archive])
    assert named(entries) == ["a", "b", "mirax", "dicom"]
    assert [entry.path for entry in entries][2:] == [archive / "case/mirax.mrxs", archive / "case/dicom"]


def test_a_folder_of_dicom_files_is_one_slide(archive: Path) -> None:
    assert list_slides([archive / "case/dicom"]) == [SlideEntry(archive / "case/dicom", "dicom")]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.svs", ["b"]),
        ("**/*.mrxs", ["mirax"]),
        ("case/*", ["dicom", "mirax"]),
        ("case/dicom/*", ["dicom"]),
        ("[ab].*", ["a", "b"]),
    ],
)
def test_a_pattern_gives_the_slides_that_fit_it(archive: Path, pattern: str, names: list[str]) -> None:
    assert named(list_slides([str(archive / pattern)])) == names


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].svs").touch()
    assert named(list_slides([tmp_path / "a[1].svs"])) == ["a[1]"]


def test_a_list_gives_names_and_scales(tmp_path: Path) -> None:
    text = '\ufeffslide, name ,mpp\nx/a.svs,first,0.25\n/far/b.svs,,\n"c,d.svs",third,\n'
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    assert list_slides([tmp_path / "list.csv"], mpp=0.5) == [
        SlideEntry(tmp_path / "x/a.svs", "first", 0.25),
        SlideEntry(Path("/far/b.svs"), "b", 0.5),
        SlideEntry(tmp_path / "c,d.svs", "third", 0.5),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("slide,mmp\na.svs,1\n", "unknown column 'mmp' .known: slide, name, mpp"),
        ("path\na.svs\n", "unknown column 'path'"),
        ("name\na\n", "no column 'slide'"),
        ("slide,slide\na,b\n", "'slide' is there twice"),
        ("slide\n", "a list without slides"),
        ("", "no column 'slide'"),
        ("slide,mpp\na.svs,fine\n", "line 2: mpp 'fine'"),
        ("slide,name\na.svs,x/y\n", "line 2: name 'x/y'"),
        ("slide,name\na.svs,..\n", "line 2: name '..'"),
        ("slide\na,b.svs\n", "line 2: more fields than columns"),
        ("slide,name\n,b\n", "line 2: the column 'slide' is empty"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ListError, match=complaint):
        list_slides([tmp_path / "list.csv"])


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [("empty", "no slides in this folder"), ("*.svs", "no slide fits"), ("gone.csv", "No such file")],
)
def test_what_gives_no_slide_is_refused(tmp_path: Path, argument: str, complaint: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ListError, match=complaint):
        list_slides([str(tmp_path / argument)])


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(os.urandom(64) + b"\xff\xfe")
    with pytest.raises(ListError, match="cannot be read"):
        list_slides([tmp_path / "list.csv"])


def test_a_slide_named_twice_is_there_once(archive: Path) -> None:
    assert named(list_slides([archive / "b.svs", archive, archive / "b.svs"])) == ["b", "a", "mirax", "dicom"]


def test_the_second_slide_of_a_name_is_refused_unless_a_list_names_it(tmp_path: Path) -> None:
    first, second = list_slides([tmp_path / "x/a.svs", tmp_path / "y/a.svs"])
    assert not first.refused
    assert f"same name as {first.path}" in second.refused
    (tmp_path / "list.csv").write_text("slide,name\nx/a.svs,\ny/a.svs,other\n")
    assert not any(entry.refused for entry in list_slides([tmp_path / "list.csv"]))


@given(st.integers(0, 50), st.integers(1, 12))
def test_shards_part_the_slides(count: int, shards: int) -> None:
    entries = [SlideEntry(Path(str(i)), str(i)) for i in range(count)]
    parts = [shard_of(entries, f"{i}/{shards}") for i in range(1, shards + 1)]
    assert sorted((e for part in parts for e in part), key=lambda e: int(e.name)) == entries
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["0/4", "5/4", "x/4", "3", "1/0", "-1/3"])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(ListError, match="expected i/n"):
        shard_of([], shard)
