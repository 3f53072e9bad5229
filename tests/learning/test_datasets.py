"""Labelled patches are read from both layouts alike, and never with one patient on two sides."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.learning.datasets import SHEET_COLUMNS, SplitOptions, check_no_leak, load_split

PX = 8
# (patient, split, label), three patches each.
GROUPS = [("a", "train", 0), ("a", "train", 1), ("b", "extra", 1), ("c", "val", 0), ("c", "val", 1)]


def patch(number: int) -> np.ndarray:
    return np.full((PX, PX, 3), (number * 5, 255 - number, number), np.uint8)


def write_sheets(folder: Path, groups=GROUPS, size_of=lambda number: (PX, PX)) -> Path:
    sheet = np.full((PX, SHEET_COLUMNS * PX, 3), 255, np.uint8)
    rows = []
    for number in range(3 * len(groups)):
        patient, split, label = groups[number // 3]
        width, height = size_of(number)
        sheet[:height, number * PX : number * PX + width] = patch(number)[:height, :width]
        row = {"patient": patient, "split": split, "label": label, "x": 1 + number * PX, "y": 1}
        rows.append(row | {"width": width, "height": height, "sheet": "one.png", "index": number})
    (folder / "sheets").mkdir(parents=True)
    Image.fromarray(sheet).save(folder / "sheets" / "one.png")
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_folders(folder: Path) -> Path:
    for number in range(3 * len(GROUPS)):
        patient, _, label = GROUPS[number // 3]
        place = folder / patient / str(label)
        place.mkdir(parents=True, exist_ok=True)
        name = f"{patient}_idx5_x{1 + number * PX}_y1_class{label}.png"
        Image.fromarray(patch(number)).save(place / name)
    return folder


def seen(side):
    return sorted(
        (str(p), int(y), x.tobytes()) for p, y, x in zip(side.patients, side.labels, side.pixels, strict=True)
    )


def test_sheets_give_each_patch_with_its_label_on_the_side_its_split_says(tmp_path):
    train, val = load_split(write_sheets(tmp_path), PX, SplitOptions())
    assert seen(train) == sorted((GROUPS[n // 3][0], GROUPS[n // 3][2], patch(n).tobytes()) for n in range(9))
    assert set(val.patients) == {"c"}
    assert val.pixels.shape == (6, PX, PX, 3)


def test_folders_give_the_same_as_sheets(tmp_path):
    split = SplitOptions(val_patients=("c",))
    from_sheets = load_split(write_sheets(tmp_path / "sheets"), PX, split)
    from_folders = load_split(write_folders(tmp_path / "folders"), PX, split)
    assert [seen(side) for side in from_sheets] == [seen(side) for side in from_folders]


def test_folders_without_named_val_patients_are_refused(tmp_path):
    with pytest.raises(DataError, match="val_patients"):
        load_split(write_folders(tmp_path), PX, SplitOptions())


def test_patches_cut_short_by_an_edge_are_left_out(tmp_path):
    folder = write_sheets(tmp_path, size_of=lambda number: (PX - 3, PX) if number == 0 else (PX, PX))
    train, _ = load_split(folder, PX, SplitOptions())
    assert len(train) == 8


def test_a_patient_on_both_sides_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"1 patient on both sides of the split \(a\)"):
        load_split(write_sheets(tmp_path, [*GROUPS, ("a", "val", 1)]), PX, SplitOptions())
    with pytest.raises(DataError, match="both sides"):
        check_no_leak({"a", "b"}, {"b"})


def test_one_split_named_for_both_sides_is_a_leak_too(tmp_path):
    with pytest.raises(DataError, match="both sides"):
        load_split(write_sheets(tmp_path), PX, SplitOptions(train=("train", "val")))


def test_a_side_without_one_of_the_labels_is_refused(tmp_path):
    with pytest.raises(DataError, match="both labels"):
        load_split(write_sheets(tmp_path, GROUPS[:4]), PX, SplitOptions())


def test_a_val_patient_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="zoe"):
        load_split(write_sheets(tmp_path), PX, SplitOptions(val_patients=("c", "zoe")))


@pytest.mark.parametrize("spoil", ["missing", "damaged", "short"])
def test_a_sheet_that_does_not_hold_its_patches_is_named(tmp_path, spoil):
    folder = write_sheets(tmp_path)
    sheet = folder / "sheets" / "one.png"
    if spoil == "missing":
        sheet.unlink()
    elif spoil == "damaged":
        sheet.write_bytes(sheet.read_bytes()[:40])
    else:
        Image.new("RGB", (SHEET_COLUMNS * PX, PX - 1)).save(sheet)
    with pytest.raises(DataError, match=r"one\.png"):
        load_split(folder, PX, SplitOptions())


def test_a_manifest_that_is_none_is_refused(tmp_path):
    manifest = write_sheets(tmp_path) / "manifest.csv"
    text = manifest.read_text()
    for spoilt, found in (
        ("", "columns"),
        ("a,b\n1,2\n", "columns"),
        (text + "z,val,1,1,1,8,8,one.png,x\n", "'z'"),
    ):
        manifest.write_text(spoilt)
        with pytest.raises(DataError, match=found):
            load_split(tmp_path, PX, SplitOptions())


def test_a_folder_that_is_not_there_or_holds_other_names_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_split(tmp_path / "nowhere", PX, SplitOptions())
    folder = write_folders(tmp_path / "folders")
    next((folder / "a" / "0").iterdir()).rename(folder / "a" / "0" / "b_idx5_x1_y1_class0.png")
    with pytest.raises(DataError, match="expected the name a_idx5"):
        load_split(folder, PX, SplitOptions(val_patients=("c",)))


def test_one_patient_alone_cannot_be_split(tmp_path):
    folder = write_sheets(tmp_path, GROUPS[:2])
    with pytest.raises(DataError, match=r"one patient alone, a, expected two at least"):
        load_split(folder, PX, SplitOptions(val_share=0.5))
