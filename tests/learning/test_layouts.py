"""Each layout gives the same list of images, labels and patients, and says clearly where it is not that."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.learning.datasets import SplitOptions, load_split
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.datasets.load import list_labelled

PX = 8


def write_image(path: Path, number: int = 0, size: tuple[int, int] = (PX, PX)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number, 100, 200)).save(path)
    return path


def write_pair(folder: Path, count: int = 20, **wrong: np.ndarray) -> Path:
    arrays = {
        "X": np.arange(count * PX * PX * 3, dtype=np.uint64).astype(np.uint8).reshape(count, PX, PX, 3),
        "Y": np.arange(count) % 2,
    }
    folder.mkdir(exist_ok=True)
    for name, array in (arrays | wrong).items():
        np.save(folder / f"{name}.npy", array)
    return folder


def write_classes(folder: Path, *places: str, count: int = 4, size: tuple[int, int] = (PX, PX)) -> Path:
    for number, place in enumerate(places):
        for i in range(count):
            write_image(folder / place / f"SOB_{number}-{i // 2}_{i}.png", 10 * number + i, size)
    return folder


def test_an_array_pair_gives_its_images_and_labels_by_image(tmp_path):
    listing = list_images(write_pair(tmp_path))
    assert (len(listing), listing.by) == (20, "image")
    assert listing.labels.tolist() == [0, 1] * 10
    assert (listing.load(7) == np.load(tmp_path / "X.npy")[7]).all()
    assert (list_images(tmp_path, channels="bgr").load(7) == np.load(tmp_path / "X.npy")[7][..., ::-1]).all()


def test_an_array_with_a_damaged_header_is_refused_in_a_line(tmp_path: Path) -> None:
    np.save(tmp_path / "Y.npy", np.zeros(8, np.uint8))
    np.save(tmp_path / "X.npy", np.zeros((8, 50, 50, 3), np.uint8))
    content = (tmp_path / "X.npy").read_bytes()
    for header in (content[:30] * 4, content[:8] + b"\xff\xff" + content[10:], b"", content[:40]):
        (tmp_path / "X.npy").write_bytes(header)
        with pytest.raises(
            DataError, match=r"X\.npy: cannot be read as an array \(.+\); expected"
        ) as refused:
            list_images(tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"X": np.zeros((20, PX, PX), np.uint8)},
            r"X\.npy: found uint8 \[20, 8, 8\], expected uint8 \[N, S, S, 3\]",
        ),
        ({"X": np.zeros((20, PX, PX, 3))}, "found float64"),
        ({"Y": np.zeros(19)}, r"Y\.npy: found float64 \[19\] of 0\.0, expected 20 labels"),
        ({"Y": np.arange(20)}, "of 0, 1, 2, 3, 4, ..., expected 20 labels of 0 or 1"),
        ({"Y": np.array([{}] * 20)}, r"Y\.npy: cannot be read"),
    ],
)
def test_a_pair_of_other_arrays_is_refused(tmp_path, wrong, said):
    with pytest.raises(DataError, match=said):
        list_images(write_pair(tmp_path, **wrong))


def test_a_pair_of_which_one_is_missing_is_refused(tmp_path):
    (write_pair(tmp_path) / "Y.npy").unlink()
    with pytest.raises(DataError, match=r"Y\.npy: cannot be read"):
        list_images(tmp_path)


def test_class_folders_keep_their_parts_and_name_their_labels(tmp_path):
    write_classes(tmp_path, "train/benign/SOB/adenosis", "train/malignant", "Test/benign", "Test/malignant")
    (tmp_path / "train" / "benign" / "Thumbs.db").touch()
    listing = list_images(tmp_path)
    assert listing.by == "image"
    assert set(zip(listing.parts.tolist(), listing.labels.tolist(), strict=True)) == {
        (part, label) for part in ("train", "test") for label in (0, 1)
    }
    assert len(listing) == 16


def test_classes_that_may_be_either_need_a_word(tmp_path):
    write_classes(tmp_path, "normal", "in_situ", "invasive")
    with pytest.raises(DataError, match="in_situ may be either"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="no ductal"):
        list_images(tmp_path, ["ductal"])
    listing = list_images(tmp_path, ["in_situ", "invasive"])
    assert {n.split("/")[0]: int(y) for n, y in zip(listing.names, listing.labels, strict=True)} == {
        "in_situ": 1,
        "invasive": 1,
        "normal": 0,
    }


def test_a_folder_that_is_neither_part_nor_class_is_named(tmp_path):
    write_classes(tmp_path, "train/benign", "masks/benign")
    with pytest.raises(DataError, match="found masks beside parts"):
        list_images(tmp_path)


def test_patients_are_found_in_names_and_never_stand_on_two_sides(tmp_path):
    write_classes(tmp_path, "train/benign", "train/malignant", "test/benign", "test/malignant")
    split = SplitOptions(val=("test",), patient_pattern=r"SOB_\d-(\d)")
    assert set(list_labelled(tmp_path, split).patients) == {"0", "1"}
    with pytest.raises(DataError, match=r"2 patients on both sides of the split \(0, 1\)"):
        load_split(tmp_path, PX, split)
    for pattern, said in ((r"SLIDE(\d)", "finds no patient in 16 of 16"), ("(", "no regular expression")):
        with pytest.raises(DataError, match=said):
            list_labelled(tmp_path, SplitOptions(patient_pattern=pattern))


def test_public_patches_sorted_into_classes_keep_their_patients(tmp_path):
    for part, patient in (("train", "p"), ("test", "p")):
        for label in "01":
            write_image(tmp_path / part / label / f"{patient}_idx5_x1_y1_class{label}.png")
    with pytest.raises(DataError, match="1 patient on both sides"):
        load_split(tmp_path, PX, SplitOptions(val=("test",)))


@pytest.mark.parametrize("root", ["", "s1", "s1/export"])
def test_what_tile_slides_exports_is_listed_by_slide(tmp_path, root):
    for slide in ("s1", "s2"):
        for label in "01":
            for x in (0, 8):
                folder = tmp_path / slide / "export" / slide
                write_image(folder / label / f"{slide}_x{x}_y0_class{label}.png", x)
        write_image(tmp_path / slide / "export" / slide / "unlabelled" / f"{slide}_x0_y8.png")
    (tmp_path / "manifest.csv").write_text("slide,path,status\n")
    listing = list_images(tmp_path / root)
    assert (listing.by, len(listing)) == ("slide", 5 if root else 10)
    assert sorted(listing.labels[listing.patients == "s1"].tolist()) == [-1, 0, 0, 1, 1]
    if not root:
        train, val = load_split(tmp_path, PX, SplitOptions(val_patients=("s2",)))
        assert (set(train.patients), set(val.patients), val.by) == ({"s1"}, {"s2"}, "slide")
        assert len(train) == 4


def test_an_export_of_another_name_is_refused(tmp_path):
    write_image(tmp_path / "s1" / "export" / "s1" / "1" / "s1_x0_y0_class0.png")
    with pytest.raises(DataError, match="expected a name s1_x<x>_y<y>_class"):
        list_images(tmp_path)


def test_a_folder_of_no_known_layout_lists_those_known(tmp_path):
    for name in ("notes.txt", "deep/deeper/image.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"found deep, notes\.txt; expected manifest.csv with sheets; .* X\.npy"
    ):
        list_images(tmp_path)


def test_a_share_of_patients_is_drawn_whole_and_by_the_seed(tmp_path):
    for patient in "abcdefghij":
        for label in "01":
            for x in (1, 9):
                write_image(tmp_path / patient / label / f"{patient}_idx5_x{x}_y1_class{label}.png")
    sides = [load_split(tmp_path, PX, SplitOptions(val_share=0.3, val_seed=seed)) for seed in (0, 0, 1)]
    drawn = [set(val.patients) for _, val in sides]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 3
    assert not drawn[0] & set(sides[0][0].patients)
    assert (len(sides[0][0]), len(sides[0][1]), sides[0][1].by) == (28, 12, "patient")


def test_a_share_of_images_is_drawn_class_by_class(tmp_path):
    labels = np.array([1] * 40 + [0] * 160)
    pair = write_pair(tmp_path, 200, Y=labels)
    train, val = load_split(pair, PX, SplitOptions(val_share=0.25))
    assert (len(val), int(val.labels.sum()), val.by) == (50, 10, "image")
    assert not set(train.names) & set(val.names)
    assert len(train) == 150


def test_a_share_is_drawn_from_the_training_part_alone(tmp_path):
    write_classes(tmp_path, "train/benign", "train/malignant", "test/benign", "test/malignant", count=8)
    train, val = load_split(tmp_path, PX, SplitOptions(val_share=0.25))
    assert {name.split("/")[0] for name in [*train.names, *val.names]} == {"train"}
    assert (len(train), len(val)) == (12, 4)


def test_a_set_that_does_not_say_whom_to_judge_on_is_refused_with_its_choices(tmp_path):
    write_classes(tmp_path, "train/benign", "train/malignant", "test/benign", "test/malignant")
    with pytest.raises(
        DataError, match=r"parts are test, train, .* val: \[\.\.\.\], one of the parts, or val_share"
    ):
        load_split(tmp_path, PX, SplitOptions())


def test_the_card_of_a_set_without_patients_says_that_its_numbers_are_by_image(tmp_path):
    import torch

    from wsi_pipeline.learning.training.train import TrainOptions, train
    from wsi_pipeline.models.model import load_model

    options = TrainOptions(
        name="tiny",
        architecture_options={"widths": [4, 8], "blocks": [1, 1], "squeeze": 2},
        patch_px=PX,
        split=SplitOptions(val_share=0.3),
        epochs=1,
        batch_size=8,
    )
    weights = train(options, write_pair(tmp_path / "pair", 40), tmp_path / "out", torch.device("cpu"))
    card = load_model(weights).card
    assert card.training["by"] == "image"
    assert card.metrics["note"].startswith("by image: the data names no patients")
