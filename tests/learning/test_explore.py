"""The page names what a person must know before training: leaks, doubles, damage, stains that stand out."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from test_duplicates import PX, pink
from test_layouts import write_classes, write_pair

from wsi_pipeline.cli import explore_patches
from wsi_pipeline.learning.datasets.explore import explore
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.datasets.load import list_labelled
from wsi_pipeline.learning.datasets.split import SplitOptions


def write(folder: Path, patient: str, label: int, number: int, rgb: np.ndarray) -> Path:
    place = folder / patient / str(label)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{patient}_idx5_x{number * PX + 1}_y1_class{label}.png"
    Image.fromarray(rgb).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight patients of twelve images: h stained thrice as strong; copies, a strip and damage among them."""
    root = tmp_path / "set"
    for p, patient in enumerate("abcdefgh"):
        for number in range(12):
            rgb = pink(100 * p + number, 3.0 if patient == "h" else 1.0)
            write(root, patient, number % 2, number, rgb)
    write(root, "b", 0, 20, pink(0))  # a's first
    write(root, "c", 1, 21, np.ascontiguousarray(np.rot90(pink(102))))  # b's third, a 0 there
    write(root, "d", 0, 22, pink(9)[:13])
    broken = write(root, "e", 1, 23, pink(8))
    broken.write_bytes(broken.read_bytes()[:100])
    return root


def said(found) -> dict[str, int]:
    return {finding.what: finding.count for finding in found.findings}


def test_all_that_was_planted_is_found_and_nothing_else(folder):
    found = explore(list_images(folder))
    assert said(found) == {
        "Images that cannot be decoded": 1,
        "Images of another size than 50 x 50 px": 1,
        "Groups across patients, alike pixel for pixel": 1,
        "Images there more than once, pixel for pixel": 1,
        "Groups across labels, alike nearly (re-encoded, flipped or turned)": 1,
        "Groups across patients, alike nearly (re-encoded, flipped or turned)": 1,
        "Images there more than once, nearly (re-encoded, flipped or turned)": 1,
        "Patients whose stain stands out": 1,
    }
    assert [p.name for p in found.patients if p.is_far] == ["h"]
    names = [
        {found.listing.names[i][0] for i in group} for group in (*found.exact.groups, *found.near.groups)
    ]
    assert names == [{"a", "b"}, {"b", "c"}]


def test_copies_on_both_sides_of_the_configured_split_are_a_leak(folder):
    found = explore(list_images(folder), SplitOptions(val_patients=("a",)))
    assert said(found)["Groups across sides, alike pixel for pixel"] == 1
    assert set(found.sides) == {"train", "val"}


def test_a_split_that_training_would_refuse_is_told_with_its_reason(folder):
    found = explore(list_images(folder), SplitOptions(val_patients=("a", "zoe")))
    assert found.findings[0].what.startswith("Leak, or a split that does not fit")
    assert "zoe" in found.findings[0].advice


def test_patients_in_several_parts_are_a_leak_whatever_the_split(tmp_path):
    root = write_classes(tmp_path, "train/benign", "train/malignant", "test/benign", "test/malignant")
    for split in (SplitOptions(val=("test",)), SplitOptions()):
        split = SplitOptions(val=split.val, patient_pattern=r"SOB_\d-(\d)")
        assert any(what.startswith("Leak") for what in said(explore(list_labelled(root, split), split)))


def test_a_pair_with_its_colours_the_wrong_way_round_is_told(tmp_path):
    images = np.stack([pink(seed) for seed in range(20)])
    pair = write_pair(tmp_path, 20, X=images[..., ::-1])
    assert "Red is darker than blue" in said(explore(list_images(pair)))
    found = explore(list_images(pair, channels="bgr"))
    assert list(said(found)) == ["No patients, only images"]


def test_the_command_writes_one_page_that_needs_nothing_beside_it(folder, tmp_path, capsys):
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump({"name": "x", "epochs": 3, "split": {"val_patients": ["a", "b"]}}))
    out = tmp_path / "pages" / "out.html"
    assert explore_patches.main([str(folder), "--out", str(out), "--config", str(config)]) == 0
    page = out.read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    for text in (
        "100 images",
        "e_idx5_x1151_y1_class1.png",
        "stands out",
        "Groups across patients",
        "50 x 13",
    ):
        assert text in page
    assert "Groups across patients, alike pixel for pixel: 1" in capsys.readouterr().out


def test_the_command_refuses_what_it_cannot_use(tmp_path, capsys):
    assert explore_patches.main([str(tmp_path / "none")]) == 2
    config = tmp_path / "c.yaml"
    config.write_text("split: {val_patient: [a]}")
    assert explore_patches.main([str(tmp_path), "--config", str(config)]) == 2
    assert "unknown key 'val_patient'" in capsys.readouterr().err


def test_a_set_of_which_nothing_can_be_decoded_is_refused_by_name(tmp_path, capsys):
    write(tmp_path / "set", "a", 0, 0, pink(0)).write_bytes(b"no image")
    assert explore_patches.main([str(tmp_path / "set"), "--out", str(tmp_path / "out.html")]) == 2
    assert "found none of 1 image that can be decoded, the first: " in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("patients", ["a", "ab"])
def test_a_set_of_one_image_a_patient_has_a_page(tmp_path, patients):
    for number, patient in enumerate(patients):
        write(tmp_path / "set", patient, 0, 0, pink(number))
    assert explore_patches.main([str(tmp_path / "set"), "--out", str(tmp_path / "out.html")]) == 0
