"""A CSV of patients says who is trained on; what does not fit the set is refused by name."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.learning.datasets import SplitOptions
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.datasets.split import split_sides
from wsi_pipeline.learning.training.context import split_slides

PATIENTS = ("11", "12", "13", "14")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """IDC folders of four patients, two patches of each label."""
    for patient in PATIENTS:
        for label in (0, 1):
            for x in (1, 51):
                path = tmp_path / f"set/{patient}/{label}/{patient}_idx5_x{x}_y1_class{label}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(path)
    return tmp_path / "set"


def write(folder: Path, text: str) -> str:
    path = folder.parent / "patients.csv"
    path.write_text(text, encoding="utf-8-sig")
    return str(path)


def sides(folder: Path, text: str, **options: object) -> list[set[str]]:
    listing = list_images(folder)
    found = split_sides(listing, SplitOptions(patients_csv=write(folder, text), **options))  # type: ignore[arg-type]
    return [set(listing.patients[side].tolist()) for side in found]


def test_patients_stand_where_the_csv_says_and_others_are_left_out_with_a_line(folder, caplog):
    text = "split,patient,age\ntrain,11,50\nval,12,60\ntest,13,70\nextra , 14,\n"
    with caplog.at_level(logging.INFO):
        assert sides(folder, text) == [{"11", "14"}, {"12"}]
    assert (
        "left out 1 patient whose split is neither of train (train, extra) nor of val (val): test"
        in caplog.text
    )
    assert sides(folder, text, val=("test",)) == [{"11", "14"}, {"13"}]
    listing = list_images(folder)
    csv = write(folder, text)
    train, val = split_sides(listing, SplitOptions(patients_csv=csv))
    assert np.intersect1d(train, val).size == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "patient,split\n11,train\n12,val\n13,train\n",
            r"found no line of 1 patient whose patches lie in .*\(14\)",
        ),
        (
            "patient,split\n11,train\n12,val\n13,train\n14,val\n99,val\n",
            r"found 1 patient of whom .* has no labelled patch \(99\), expected names such as 11, 12, 13, 14",
        ),
        (
            "patient,split\n11,train\n12,val\n13,train\n14,val\n11,val\n",
            r"line 6: found the patient 11 in 'val' and before in 'train'",
        ),
        ("patient,split\n11,train\n12,\n", r"line 3: found patient '12' and split '', expected both"),
        ("patient,split\n11,train\n12\n", r"line 3: found patient '12' and split ''"),
        ("name,side\n11,train\n", r"found the columns name, side, expected patient and split"),
        ("", r"found the columns none"),
        (
            "patient,split\n11,a\n12,a\n13,a\n14,train\n",
            r"found the splits a, train, none of which is in val \(val\)",
        ),
    ],
)
def test_what_does_not_fit_the_set_is_refused_by_name(folder, text, said):
    with pytest.raises(DataError, match=said):
        sides(folder, text)


def test_a_patient_may_be_listed_twice_on_one_side(folder):
    text = "patient,split\n11,train\n11,train\n12,val\n13,val\n14,train\n"
    assert sides(folder, text) == [{"11", "14"}, {"12", "13"}]


def test_a_csv_beside_another_split_or_of_a_set_without_patients_is_refused(folder, tmp_path):
    text = "patient,split\n11,train\n12,val\n13,val\n14,train\n"
    with pytest.raises(DataError, match=r"found patients_csv .* beside val_patients or val_share"):
        sides(folder, text, val_share=0.2)
    pair = tmp_path / "pair"
    pair.mkdir()
    np.save(pair / "X.npy", np.zeros((4, 8, 8, 3), np.uint8))
    np.save(pair / "Y.npy", np.arange(4) % 2)
    with pytest.raises(DataError, match="found array pair that name no patients"):
        split_sides(list_images(pair), SplitOptions(patients_csv=write(folder, text)))
    with pytest.raises(DataError, match=r"none\.csv: cannot be read as a CSV of patients"):
        split_sides(list_images(folder), SplitOptions(patients_csv="none.csv"))


def test_slides_for_a_context_step_are_split_by_it_too(folder):
    csv = write(folder, "patient,split\n11,train\n12,val\n13,train\n14,test\n")
    options = SplitOptions(patients_csv=csv)
    assert split_slides(["11", "12", "13", "14"], options, None) == (["11", "13"], ["12"])
    with pytest.raises(DataError, match="beside val_patients or --manifest"):
        split_slides(["11", "12"], options, Path("manifest.csv"))
    with pytest.raises(DataError, match="found no patient 15"):
        split_slides(["11", "15"], options, None)
