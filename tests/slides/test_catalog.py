import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_slide
from hypothesis import given
from hypothesis import strategies as st
from pydicom import filereader
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from wsi_pipeline.base.errors import ListError, SlideOpenError
from wsi_pipeline.slides.catalog import SlideEntry, list_slides, shard_of
from wsi_pipeline.slides.readers import dicom
from wsi_pipeline.slides.readers.dicom import DicomFile, read_header
from wsi_pipeline.slides.readers.formats import slide_files
from wsi_pipeline.slides.slide import open_slide, slide_file

SLIDE, REPORT = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.5.1.4.1.1.88.11"


def write_dicom(path: Path, series: str, sop_class: str = SLIDE, modality: str = "SM") -> Path:
    """A DICOM file that has a header and no pixels."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID, data.SOPClassUID = sop_class, sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.Modality = series, modality
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_a_dicom_header_whose_values_cannot_be_made_is_none(tmp_path: Path) -> None:
    data = write_dicom(tmp_path / "good.dcm", "1.2.3").read_bytes()
    at = data.rindex(b"\x08\0\x60\0CS")  # the modality: a kind of value that is not known
    (tmp_path / "bad.dcm").write_bytes(data[: at + 4] + b"U\xe7" + data[at + 6 :])
    assert read_header(tmp_path / "good.dcm") == DicomFile(SLIDE, "1.2.3", "SM")
    assert read_header(tmp_path / "bad.dcm") is None


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
        "case/out/slide.zarr/looks_like.tiff",
        ".batch/z.svs",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("1.dcm", "2.dcm"):
        write_dicom(tmp_path / "case/dicom" / name, "1.2.3")
    return tmp_path


def named(entries: list[SlideEntry]) -> list[str]:
    return [entry.name for entry in entries]


def test_a_folder_gives_each_slide_once_whatever_files_it_is_made_of(archive: Path) -> None:
    entries = list_slides([archive])
    assert named(entries) == ["a", "b", "mirax", "dicom"]
    assert [entry.path for entry in entries][2:] == [archive / "case/mirax.mrxs", archive / "case/dicom"]


def test_a_dicom_file_on_a_failing_disk_is_read_again_and_named_where_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_dicom(tmp_path / f"d/{number}.dcm", "1.2.3")
    real, left = filereader.read_partial, [2]

    def stumbles(file: Any, **more: Any) -> Any:
        if left[0] and file.name.endswith("1.dcm"):
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, **more)

    waits: list[float] = []
    monkeypatch.setattr(filereader, "read_partial", stumbles)
    monkeypatch.setattr("wsi_pipeline.slides.readers.source.time.sleep", waits.append)
    assert [len(files) for files in dicom.sort_files(sorted(tmp_path.glob("d/*"))).series.values()] == [3]
    assert waits == [0.1, 0.4]
    dicom._header.cache_clear()
    left[0] = 100
    found = list_slides([tmp_path / "d"])
    assert named(found) == ["d"]
    assert str(found.passed_over) == "1 file of .dcm (not read: Input/output error)"


def test_a_folder_of_dicom_files_is_one_slide(archive: Path) -> None:
    assert list_slides([archive / "case/dicom"]) == [SlideEntry(archive / "case/dicom", "dicom")]


def test_what_is_passed_over_is_counted_by_its_ending(archive: Path) -> None:
    (archive / "case/notes.txt").touch()
    (archive / "LICENSE").touch()
    (archive / "scan.isyntax").touch()
    assert str(list_slides([archive]).passed_over) == (
        "2 .txt, 1 .isyntax, 1 .zarr folder, 1 file without an ending, 1 hidden file, 1 hidden folder"
    )


def test_links_to_folders_are_followed_and_each_folder_is_there_once(tmp_path: Path) -> None:
    for name in ("archive/a.svs", "share/b.svs", "share/deep/c.svs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "archive/link").symlink_to("../share")
    (tmp_path / "share/back").symlink_to("../archive")  # a circle
    (tmp_path / "share/again").symlink_to("deep")
    (tmp_path / "share/loop").symlink_to("loop")
    (tmp_path / "share/gone.svs").symlink_to("nowhere")
    found = list_slides([tmp_path / "archive"])
    assert named(found) == ["a", "b", "gone", "c"]
    assert found[-1].path == tmp_path / "archive/link/deep/c.svs"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(archive: Path) -> None:
    (archive / "case").chmod(0)
    try:
        assert f"{archive / 'case'} (permission denied)" in str(list_slides([archive]).passed_over)
        assert list_slides([archive / "case/x.svs"])[0].name == "x"
    finally:
        (archive / "case").chmod(0o755)


def test_a_path_longer_than_names_may_be_is_a_slide_that_fails_by_itself(tmp_path: Path) -> None:
    assert len(list_slides([tmp_path / ("x" * 300 + ".tif"), tmp_path / "a.svs"])) == 2


@pytest.mark.parametrize("suffix", [".qptiff", ".btf", ".avs", "", ".7"])
def test_files_whose_ending_says_nothing_are_slides_where_their_content_is_one(
    tmp_path: Path, suffix: str
) -> None:
    import numpy as np

    write_slide(tmp_path / "a.tiff", np.zeros((300, 300, 3), np.uint8)).rename(tmp_path / f"a{suffix}")
    (tmp_path / f"b{suffix}").write_bytes(b"II*\0 and nothing more")
    (tmp_path / f"c{suffix}").touch()
    found = list_slides([tmp_path])
    assert [entry.path.name for entry in found] == [f"a{suffix}"]
    ending = "files without an ending" if suffix in ("", ".7") else suffix
    assert str(found.passed_over) == f"2 {ending}"


def test_a_dicom_slide_is_a_series_however_its_files_are_named_and_given(archive: Path) -> None:
    folder = archive / "case/dicom"
    (folder / "1.dcm").rename(folder / "1.DCM")
    (folder / "2.dcm").rename(folder / "2")
    (folder / "._0.dcm").write_bytes(b"\0\5\26\7")
    write_dicom(folder / "0_annotation.dcm", "1.2.4", REPORT, "SR")
    found = list_slides([archive / "case/dicom"])
    assert found == [SlideEntry(folder, "dicom")]
    assert str(found.passed_over) == "1 file of .dcm (DICOM SR), 1 hidden file"
    assert list_slides([folder / "1.DCM", folder / "2"]) == [SlideEntry(folder, "dicom")]
    assert list_slides([str(folder / "*")]) == [SlideEntry(folder, "dicom")]
    assert str(list_slides([str(folder / "*")]).passed_over) == "1 file of .dcm (of no slide)"
    for file in ("1.DCM", "2"):
        (folder / file).unlink()
    (alone,) = list_slides([folder / "0_annotation.dcm"])
    assert alone.path == folder / "0_annotation.dcm"


def test_two_dicom_slides_of_one_folder_are_two_slides(archive: Path) -> None:
    folder = archive / "case/dicom"
    write_dicom(folder / "3.dcm", "9.8.7")
    expected = [SlideEntry(folder / "1.dcm", "dicom_1.2.3"), SlideEntry(folder / "3.dcm", "dicom_9.8.7")]
    assert list_slides([folder]) == expected
    assert list_slides(sorted(folder.iterdir())) == expected
    assert slide_files(folder / "1.dcm") == [folder / "1.dcm", folder / "2.dcm"]
    with pytest.raises(SlideOpenError, match="2 DICOM slides; expected the files of one"):
        slide_file(folder)


def test_a_dicom_folder_opens_whatever_else_lies_in_it(shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared / "data/slides/cmu_1_small_region_dicom", tmp_path / "d")
    folder.chmod(0o755)
    slide = open_slide(folder)
    fingerprint = slide.fingerprint()
    write_dicom(folder / "0.dcm", "1.2.3", REPORT, "SR")
    (folder / "00.dcm").touch()
    for file in folder.glob("1.2*.dcm"):
        file.rename(file.with_suffix(".DCM"))
    again = open_slide(folder)
    assert (again.size0, again.name) == (slide.size0, "d")
    assert again.fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("...tiff", "its name would be '..'"),
        ("manifest.csv.tiff", "as that of a file of the batch"),
        (".tiff", "its name would be '.tiff'"),
    ],
)
def test_a_slide_whose_name_no_run_folder_can_have_is_refused(tmp_path: Path, file: str, says: str) -> None:
    (entry,) = list_slides([tmp_path / file])
    assert says in entry.refused
    (tmp_path / "list.csv").write_text(f"slide,name\n{file},ok\n")
    assert not list_slides([tmp_path / "list.csv"])[0].refused


def test_a_list_that_names_its_own_folder_gives_that_folders_name(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("slide\n.\n")
    assert list_slides([tmp_path / "list.csv"])[0].name == tmp_path.name


def test_names_are_text_of_at_most_200_bytes_and_differ_where_files_do(tmp_path: Path) -> None:
    files = [os.fsdecode(b"n\xe9.tif"), "n\\xe9.tif", "x" * 240 + ".tif", "x" * 241 + ".tif", "new\nline.tif"]
    entries = list_slides([tmp_path / name for name in files])
    assert entries[0].name == "n\\xe9"
    assert entries[1].name == "n\\x5cxe9"
    assert entries[4].name == "new\\x0aline"
    assert len({entry.name for entry in entries}) == len(files)
    assert all(len(entry.name.encode()) <= 200 and not entry.refused for entry in entries)


def test_a_scale_for_where_the_file_says_none_goes_with_every_slide(archive: Path) -> None:
    (archive / "l.csv").write_text("slide,mpp\nb.svs,0.5\n")
    found = list_slides([archive / "a.NDPI", archive / "l.csv"], mpp_if_missing=0.25)
    assert [(entry.mpp, entry.mpp_if_missing) for entry in found] == [(None, 0.25), (0.5, 0.25)]


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
        ("slide\na\0b.svs\n", "line 2: a NUL byte in the slide's path"),
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


def test_the_patient_comes_from_the_list_or_from_the_name(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("slide,patient\nA-12_he.svs,\nB-7_he.svs,someone else\nscan.svs,\n")
    found = list_slides([tmp_path / "list.csv"], patient_pattern=re.compile(r"^([A-Z]-\d+)_"))
    assert [entry.patient for entry in found] == ["A-12", "someone else", ""]
    assert [entry.patient for entry in list_slides([tmp_path / "list.csv"])] == ["", "someone else", ""]
    whole = list_slides([tmp_path / "A-12_he.svs"], patient_pattern=re.compile("^[^_]+"))
    assert [entry.patient for entry in whole] == ["A-12"]


def test_a_slide_listed_as_of_two_patients_is_worked_on_once_and_the_second_says_why(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("slide,patient\na.svs,P1\na.svs,P1\na.svs,P2\n")
    first, second = list_slides([tmp_path / "list.csv"])
    assert (first.patient, first.refused) == ("P1", "")
    assert "listed as of patient 'P1' and again as of patient 'P2'" in second.refused
