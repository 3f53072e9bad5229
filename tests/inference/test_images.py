"""Pictures are scored at the model's scale or refused, and one bad file spares the others."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from models import brightness_model
from PIL import Image

from wsi_pipeline.base.errors import DataError, ScaleError
from wsi_pipeline.cli import classify_images
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.inference.images import FailedImage, ImageScore, cut_image, score_images


@pytest.fixture
def classifier() -> Classifier:
    return Classifier([brightness_model()], torch.device("cpu"), ClassifyOptions(precision="fp32"))


def write(path: Path, rgb: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(rgb).save(path)
    return path


def only(results) -> ImageScore:
    [score] = results
    assert isinstance(score, ImageScore)
    return score


def test_a_picture_of_patch_size_is_one_patch(classifier, tmp_path):
    rgb = noise(50, 50)
    score = only(score_images([write(tmp_path / "a.png", rgb)], classifier))
    assert score.mean == pytest.approx(rgb.mean() / 255, abs=1e-5)
    assert (score.cut.how, score.mean) == ("patch", score.highest)


def test_a_larger_picture_of_unknown_scale_is_refused(classifier, tmp_path):
    [failed] = score_images([write(tmp_path / "a.png", noise(60, 50))], classifier)
    assert isinstance(failed, FailedImage)
    assert isinstance(failed.error, ScaleError)
    assert "50 x 60 px of unknown scale" in str(failed.error)


@pytest.mark.parametrize(("mpp", "height", "width"), [(4.0, 110, 130), (1.0, 440, 520), (2.5, 176, 208)])
def test_a_picture_at_any_scale_is_covered_with_patches_of_the_same_scores(
    classifier, tmp_path, mpp, height, width
):
    scene = Image.fromarray(noise(440, 520)).resize((width, height), Image.Resampling.BOX)
    score = only(score_images([write(tmp_path / "a.png", np.asarray(scene))], classifier, mpp))
    assert len(score.probabilities) == 9
    covered = np.zeros((height, width), bool)
    for x, y, w, h in score.cut.boxes:
        covered[round(y) : round(y + h), round(x) : round(x + w)] = True
        assert (w, h) == (200 / mpp, 200 / mpp)
    assert covered.all()
    reference = only(score_images([write(tmp_path / "b.png", noise(440, 520))], classifier, 1.0))
    assert np.abs(score.probabilities - reference.probabilities).max() < 0.02
    assert score.share_above == (score.probabilities >= 0.5).mean()


@pytest.mark.parametrize(
    ("mpp", "error", "said"),
    [
        (0.25, DataError, "12 x 12 px at the model's 4 um/px, expected at least 50 x 50"),
        (0.004, ScaleError, "expected 0.05 to 20"),
        (10.0, ScaleError, "enlarged 2.5 times"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(mpp, error, said):
    with pytest.raises(error, match=said):
        cut_image(noise(200, 200), "a.png", 50, 4.0, mpp, False)


def test_squeezing_makes_one_patch_of_all(classifier, tmp_path):
    rgb = noise(512, 256)
    score = only(score_images([write(tmp_path / "a.png", rgb)], classifier, squeeze=True))
    assert score.cut.how == "squeezed"
    assert score.mean == pytest.approx(rgb.mean() / 255, abs=2e-3)


def test_the_command_names_bad_files_scores_the_others_and_writes_both_tables(tmp_path, capsys):
    write(tmp_path / "in/good.png", noise(50, 50))
    write(tmp_path / "in/large.png", noise(80, 80))
    (tmp_path / "in/bad.png").write_bytes(b"")
    (tmp_path / "in/notes.txt").touch()
    out = ["--json", str(tmp_path / "o/out.json"), "--csv", str(tmp_path / "o/out.csv")]
    assert classify_images.main([str(tmp_path / "in"), *out]) == 1
    said = capsys.readouterr()
    assert "good.png" in said.out
    assert "bad.png: cannot be read as an image" in said.err
    assert "2 of 3 pictures failed" in said.err
    info = json.loads((tmp_path / "o/out.json").read_text())
    assert [Path(row["file"]).name for row in info["failed"]] == ["bad.png", "large.png"]
    [row] = info["images"]
    assert row["patch_scores"] == [{"box_px": [0.0, 0.0, 50.0, 50.0], "probability": row["probability"]}]
    with (tmp_path / "o/out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["probability"]) for r in rows if not r["failed"]] == [row["probability"]]
    assert len(rows) == 3


def test_the_commands_exit_codes_say_what_came_of_it(tmp_path, capsys):
    good, large = write(tmp_path / "g.png", noise(50, 50)), write(tmp_path / "l.png", noise(80, 80))
    assert classify_images.main([str(good)]) == 0
    assert classify_images.main([str(large)]) == 2
    assert classify_images.main([str(large), "--mpp", "4"]) == 0
    assert classify_images.main([str(tmp_path / "none.png")]) == 2
    (tmp_path / "empty").mkdir()
    assert classify_images.main([str(tmp_path / "empty")]) == 2
    assert "found no image in this folder" in capsys.readouterr().err


def test_labelled_patches_of_the_public_set_are_told_apart(shared, tmp_path, capsys):
    from wsi_pipeline.learning.datasets.layouts import list_images

    listing = list_images(shared / "data/idc")
    mean = {}
    for label in (0, 1):
        chosen = np.flatnonzero((listing.parts == "val") & (listing.labels == label))
        chosen = chosen[:: len(chosen) // 30]
        for index in chosen:
            pixels = listing.load(int(index))
            if pixels.shape == (50, 50, 3):
                write(tmp_path / str(label) / f"{index}.png", pixels)
        assert classify_images.main([str(tmp_path / str(label)), "--json", str(tmp_path / "out.json")]) == 0
        mean[label] = np.mean(
            [row["probability"] for row in json.loads((tmp_path / "out.json").read_text())["images"]]
        )
    assert mean[1] > mean[0] + 0.3
