"""`--inside`: a map only within people's outlines, and everything says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import zarr
from conftest import tissue_texture
from models import brightness_model

from wsi_pipeline.base.errors import DataError, RecipeError
from wsi_pipeline.base.geometry import Size
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.inference.device import choose_device
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.results.exports import pdf
from wsi_pipeline.results.figures import slide_figures
from wsi_pipeline.results.figures.report_words import info_rows, inside_text
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, read_inside

MakeSlide = Callable[..., Path]
# Level-0 pixels, along the grid's lines of 50.
LEFT = shapely.box(100, 100, 700, 900)
HOLE = shapely.box(300, 300, 500, 500)


def draw(folder: Path, *outlines: tuple[shapely.Geometry, str], name: str = "a") -> Path:
    folder.mkdir(exist_ok=True)
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(polygon),
            "properties": {"classification": {"name": kind}},
        }
        for polygon, kind in outlines
    ]
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return folder


def classifier() -> Classifier:
    return Classifier([brightness_model(mpp=4.0)], choose_device("cpu"), ClassifyOptions())


def run(path: Path, out: Path, inside: Path | None, **how: Any) -> Any:
    return infer_slide(path, out, InferConfig(), classifier(), RunOptions(inside=inside, **how))


def heatmap(result: Any) -> np.ndarray:
    return np.asarray(zarr.open_array(result.folder / "slide.zarr/heatmap/0", mode="r")[...])


@pytest.fixture
def slide(make_slide: MakeSlide) -> Path:
    image = np.full((1200, 1600, 3), 243, np.uint8)
    image[50:-50, 50:-50] = tissue_texture(1100, 1500)
    return make_slide("a.tiff", image, mpp=(4.0, 4.0), factors=(1, 4))


def test_only_patches_within_the_outlines_are_scored_and_each_as_on_a_whole_map(
    slide: Path, tmp_path: Path
) -> None:
    whole = run(slide, tmp_path / "whole", None)
    part = run(slide, tmp_path / "part", draw(tmp_path / "o", (LEFT.difference(HOLE), "Tumor")))
    expected = np.zeros((24, 32), bool)
    expected[2:18, 2:14] = True
    expected[6:10, 6:10] = False
    found = heatmap(part)
    assert np.array_equal(~np.isnan(found), expected)
    assert np.array_equal(found[expected], heatmap(whole)[expected])
    summary = json.loads((part.folder / "summary.json").read_text())
    assert summary["inside"] == {"file": "a.geojson", "outlines": 1, "mm2": 7.04}
    assert summary["tissue_mm2"] == pytest.approx(7.04, rel=0.02)
    assert any("mapped within the 1 outline of a.geojson alone" in each for each in summary["warnings"])
    assert json.loads((whole.folder / "summary.json").read_text())["inside"] is None


def test_other_outlines_are_another_map_which_is_refused_over_the_first(slide: Path, tmp_path: Path) -> None:
    first = run(slide, tmp_path / "out", draw(tmp_path / "o", (LEFT, "Tumor")))
    assert run(slide, tmp_path / "out", tmp_path / "o").skipped
    with pytest.raises(RecipeError, match="inside: one there, none here"):
        run(slide, tmp_path / "out", None)
    draw(tmp_path / "o", (HOLE, "Tumor"))
    with pytest.raises(RecipeError, match="inside: the file of outlines is another"):
        run(slide, tmp_path / "out", tmp_path / "o")
    second = run(slide, tmp_path / "out", tmp_path / "o", overwrite=True)
    assert second.patches < first.patches


def test_a_slide_without_outlines_is_refused_and_not_mapped_whole(slide: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "o", (LEFT, "Tumor"), name="other")
    with pytest.raises(DataError, match=r"found neither a.geojson nor a.xml"):
        run(slide, tmp_path / "out", folder)
    assert not (tmp_path / "out" / "a").exists()


def test_outlines_that_hold_no_tissue_leave_an_empty_map_that_says_so(slide: Path, tmp_path: Path) -> None:
    result = run(slide, tmp_path / "out", draw(tmp_path / "o", (shapely.box(0, 0, 45, 45), "Tumor")))
    assert np.isnan(heatmap(result)).all()
    warnings = json.loads((result.folder / "summary.json").read_text())["warnings"]
    assert "no patch lies within the outlines" in warnings


def test_what_outlines_nothing_is_passed_over_with_a_line(tmp_path: Path) -> None:
    file = draw(tmp_path / "o", (LEFT, "Tumor"), (shapely.Point(5, 5), "Region*")) / "a.geojson"
    inside = read_inside(file, AnnotationOptions(), Size(1600, 1200))
    assert inside.warnings == ("a.geojson: 1 point passed over: they outline nothing",)


@pytest.mark.parametrize(
    ("outlines", "area"),
    [
        ([(LEFT, "Tumor"), (HOLE, "Region*")], HOLE),
        ([(LEFT, "Some class of ours")], LEFT),
        ([(LEFT, "Stroma"), (HOLE, "Ignore*")], LEFT.difference(HOLE)),
        ([(LEFT, "Tumor"), (HOLE, "Stroma")], LEFT),
        ([(shapely.box(-500, 0, 400, 300), "Tumor")], shapely.box(0, 0, 400, 300)),
    ],
)
def test_regions_of_interest_count_else_all_that_is_outlined_less_what_is_ignored(
    tmp_path: Path, outlines: Any, area: shapely.Polygon
) -> None:
    file = draw(tmp_path / "o", *outlines) / "a.geojson"
    assert read_inside(file, AnnotationOptions(), Size(1600, 1200)).area.equals(area)


def test_outlines_off_the_slide_are_refused(tmp_path: Path) -> None:
    file = draw(tmp_path / "o", (shapely.box(5000, 0, 6000, 100), "Tumor")) / "a.geojson"
    with pytest.raises(DataError, match="leave no area on the slide"):
        read_inside(file, AnnotationOptions(), Size(1600, 1200))


def test_the_report_and_its_pdf_say_within_what_was_mapped(slide: Path, tmp_path: Path) -> None:
    rows: list[tuple[str, str]] = []
    real, real_page, on_page = slide_figures.render_report, pdf.report_figure, []

    def seen(path: Any, thumbnail: Any, finished: Any, info: Any) -> None:
        rows.extend(info_rows(info, finished))
        real(path, thumbnail, finished, info)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slide_figures, "render_report", seen)
        patch.setattr(pdf, "report_figure", lambda *given: on_page.append(given[2]) or real_page(*given))
        run(slide, tmp_path / "out", draw(tmp_path / "o", (LEFT, "Tumor"), (HOLE, "Stroma")))
    assert [info.inside for info in on_page] == ["within 2 outlines of a.geojson alone, 7.68 mm²"]
    assert ("Mapped", "within 2 outlines of a.geojson alone, 7.68 mm²") in rows
    assert inside_text(None) == ""
