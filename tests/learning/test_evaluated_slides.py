"""Whole sections: labels fall on the map's cells whatever they are given as, and what is counted is said."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evaluation_page import card, side
from test_infer import classifier, section

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.cli.evaluate_model import main
from wsi_pipeline.learning.evaluation.page import write_evaluation
from wsi_pipeline.learning.evaluation.patches import evaluated_from
from wsi_pipeline.learning.evaluation.slides import (
    EvaluateConfig,
    EvaluatedSlide,
    all_slides_metrics,
    evaluate_slide,
    slide_metrics,
)
from wsi_pipeline.models.model import build_network, save_model
from wsi_pipeline.pipeline.config import InferConfig, load_config
from wsi_pipeline.results.regions import DelineateOptions
from wsi_pipeline.slides.annotations.cell_labels import (
    IDC,
    NOT_IDC,
    UNLABELLED,
    labels_of_picture,
    labels_of_slide,
)
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.slide import open_slide

SIZE0, PLANE, SHAPE = Size(400, 200), Plane(50.0, 50.0), (4, 8)


def saved(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(picture).save(path)
    return path


def cells() -> np.ndarray:
    return np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), SHAPE)


@pytest.mark.parametrize("px_a_cell", [50, 25, 1])
def test_a_picture_of_any_scale_gives_its_cells_back(tmp_path, px_a_cell) -> None:
    picture = np.kron(cells(), np.ones((px_a_cell, px_a_cell), np.uint8))
    assert np.array_equal(labels_of_picture(saved(tmp_path / "l.png", picture), SIZE0, PLANE, SHAPE), cells())


def test_a_cell_cut_by_the_slides_edge_is_labelled_by_what_is_left_of_it(tmp_path) -> None:
    picture = np.zeros((200, 360), np.uint8)
    picture[:, 350:] = IDC
    labels = labels_of_picture(saved(tmp_path / "l.png", picture), Size(360, 200), PLANE, SHAPE)
    assert (labels[:, 7] == IDC).all()
    assert (labels[:, :7] == NOT_IDC).all()


def test_a_cell_is_labelled_and_idc_by_half_of_its_area(tmp_path) -> None:
    picture = np.full((200, 400), UNLABELLED, np.uint8)
    picture[:50, :24] = IDC  # less than half of the first cell
    picture[:50, 50:80] = IDC
    picture[:50, 100:120], picture[:50, 120:150] = IDC, NOT_IDC
    labels = labels_of_picture(saved(tmp_path / "l.png", picture), SIZE0, PLANE, SHAPE)
    assert labels[0, :4].tolist() == [UNLABELLED, IDC, NOT_IDC, UNLABELLED]


@pytest.mark.parametrize(
    ("picture", "complaint"),
    [
        (np.full((200, 400), 7, np.uint8), "found 7"),
        (np.zeros((200, 200), np.uint8), "200 x 200 px, the slide has 400 x 200"),
        (np.zeros((200, 400, 3), np.uint8), "several channels"),
    ],
)
def test_pictures_that_are_no_labels_of_the_slide_are_refused(tmp_path, picture, complaint) -> None:
    with pytest.raises(DataError, match=complaint):
        labels_of_picture(saved(tmp_path / "l.png", picture), SIZE0, PLANE, SHAPE)


def outline(path: Path, box: tuple[int, int, int, int], name: str = "IDC") -> Path:
    x, y, right, bottom = box
    ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_outlines_label_the_tissue_and_whatever_of_idc_they_cover(make_slide, tmp_path) -> None:
    tissue = np.zeros(SHAPE, bool)
    tissue[1:3, 1:7] = True
    slide = open_slide(make_slide("s.tiff", np.full((200, 400, 3), 200, np.uint8)))
    file = outline(tmp_path / "o.geojson", (0, 50, 130, 100))
    throughout = AnnotationOptions(annotated_throughout=True)
    labels = labels_of_slide(file, slide, PLANE, tissue, throughout)
    assert labels[1].tolist() == [IDC, IDC, IDC, 0, 0, 0, 0, UNLABELLED]
    assert labels[2].tolist() == [UNLABELLED, 0, 0, 0, 0, 0, 0, UNLABELLED]
    labels = labels_of_slide(file, slide, PLANE, tissue, AnnotationOptions())
    assert (labels != UNLABELLED).sum() == 3
    stroma = outline(tmp_path / "stroma.geojson", (0, 50, 400, 100), "Stroma")
    assert labels_of_slide(stroma, slide, PLANE, tissue, AnnotationOptions())[1].tolist() == [
        255,
        *[0] * 6,
        255,
    ]
    off = outline(tmp_path / "s.geojson", (0, 0, 9, 9), "Stroma")
    with pytest.raises(DataError, match="found 1 Stroma, which label none of the 12 cells"):
        labels_of_slide(off, slide, PLANE, tissue, AnnotationOptions())


def evaluated(probability: np.ndarray, labels: np.ndarray, name: str = "a") -> EvaluatedSlide:
    values = probability.astype(np.float32)
    return EvaluatedSlide(name, values, labels, 0.04, 0.5, "each patch alone", values, 0.5, 1.0, Path())


def test_idc_that_is_not_scored_counts_as_missed() -> None:
    labels = np.array([[1, 1, 0, 0, 255]], np.uint8)
    values = slide_metrics(evaluated(np.array([[0.9, np.nan, 0.8, 0.1, 0.9]]), labels))
    assert (values["cells"], values["idc_cells"], values["not_scored"], values["idc_not_scored"]) == (
        4,
        2,
        1,
        1,
    )
    assert values["dice"] == pytest.approx(2 * 1 / (2 + 2))
    assert values["labelled_mm2"] == pytest.approx(0.08)
    assert values["area_error_mm2"] == pytest.approx(0.0)


def test_all_slides_together_are_their_cells_together() -> None:
    one = evaluated(np.array([[0.9, 0.9]]), np.array([[1, 0]], np.uint8))
    two = evaluated(np.array([[0.1, 0.2]]), np.array([[1, 0]], np.uint8))
    values = all_slides_metrics([one, two])
    assert values["dice"] == pytest.approx(2 * 1 / (2 + 2))
    assert values["area_error_mm2"] == pytest.approx(0)
    assert values["mean_absolute_area_error_mm2"] == pytest.approx(0.04)


def test_a_slide_is_mapped_and_compared_with_its_label_picture(make_slide, tmp_path) -> None:
    slide = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    # The network calls the brighter half: say so of the tissue that lies wholly on the slide's left.
    labels = np.full((1200, 1600), UNLABELLED, np.uint8)
    labels[100:1100, 100:1500] = NOT_IDC
    labels[100:1100, 100:900] = IDC
    known = saved(tmp_path / "a_labels.png", labels)
    found = evaluate_slide(slide, known, tmp_path / "maps", EvaluateConfig(), classifier())
    values = slide_metrics(found)
    assert values["labelled_mm2"] == pytest.approx(1000 * 800 * 16e-6)
    assert values["dice"] > 0.95
    again = evaluate_slide(slide, known, tmp_path / "maps", EvaluateConfig(), classifier())
    assert np.array_equal(again.probability, found.probability, equal_nan=True)


def test_sections_stand_on_the_page_and_in_the_numbers(tmp_path) -> None:
    patches, logits = side()
    rng = np.random.default_rng(0)
    found = [evaluated(rng.random(SHAPE), cells(), name) for name in ("one <slide>", "two")]
    write_evaluation(tmp_path, evaluated_from(card(), "0" * 64, patches, logits), "val", Path("data"), found)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["slide"] for row in metrics["slides"]] == ["one <slide>", "two"]
    assert metrics["all_slides"]["cells"] == sum(row["cells"] for row in metrics["slides"])
    assert {"dice", "labelled_mm2", "called_mm2", "area_error_mm2", "regions_mm2"} <= set(
        metrics["slides"][0]
    )
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "one &lt;slide&gt;" in page
    assert "one <slide>" not in page


def test_one_failing_slide_does_not_lose_the_others(make_slide, tmp_path, capsys) -> None:
    network = build_network("residual_cnn", classes=2, **card().architecture_options)
    save_model(tmp_path / "m.safetensors", network, card(patch_px=50))
    patches = tmp_path / "patches"
    for patient, label, x in itertools.product("pq", (0, 1), range(4)):
        (patches / patient / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(x).integers(0, 200 - 90 * label, (50, 50, 3), np.uint8)
        saved(patches / f"{patient}/{label}/{patient}_idx5_x{x}_y1_class{label}.png", pixels)
    slides = tmp_path / "slides"
    slides.mkdir()
    make_slide("slides/b.tiff", section(), mpp=(4.0, 4.0))
    outline(slides / "b.geojson", (100, 100, 900, 1100))
    (slides / "a.tiff").write_bytes(b"no slide")
    outline(slides / "a.geojson", (100, 100, 900, 1100))
    arguments = ["--data", patches, "--split", "all", "--slides", slides, "--out", tmp_path / "out"]
    code = main(["--model", str(tmp_path / "m.safetensors"), *map(str, arguments), "--device", "cpu"])
    assert code == 1
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [row["slide"] for row in metrics["slides"]] == ["b"]
    assert [row["slide"] for row in metrics["failed_slides"]] == ["a"]
    assert "a.tiff: no slide format" in (tmp_path / "out/index.html").read_text()
    said = capsys.readouterr().out
    assert "[1/2] a: failed: " in said
    assert "cells IDC, 0 not, " in said


def test_the_config_of_the_slides_says_how_outlines_are_read_and_decides_no_map(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text(
        "annotations: {annotated_throughout: true}\ndelineate: {threshold: 0.3}\n"
    )
    config = load_config(EvaluateConfig, tmp_path / "c.yaml")
    assert config.annotations.annotated_throughout
    expected = InferConfig(delineate=DelineateOptions(threshold=0.3), annotations=config.annotations)
    assert config.infer == expected  # which are in a map's key only where it is made within outlines
