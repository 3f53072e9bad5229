"""Exports beside a map: with its run, and later without one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import brightness_model
from test_infer import section

from wsi_pipeline.base.errors import ResultError, UsageError
from wsi_pipeline.cli.export_map import main
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.pipeline.config import InferConfig
from wsi_pipeline.pipeline.export import export_map, exported_map
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.results.exports.pdf import report_info_of
from wsi_pipeline.results.opened import open_result
from wsi_pipeline.results.regions import DelineateOptions

MakeSlide = Callable[..., Path]


def classifier() -> Classifier:
    return Classifier([brightness_model(mpp=4.0)], torch.device("cpu"), ClassifyOptions())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a slide that lies two folders above it, with what is exported unasked."""
    from conftest import write_slide

    top = tmp_path_factory.mktemp("export")
    path = write_slide(top / "a.tiff", section(700, 900), (4.0, 4.0), (1,))
    return infer_slide(path, top / "out", InferConfig(), classifier()).folder


def test_exports_are_written_later_from_a_map_that_is_there(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom", reason="of the extra `exports`")
    before = (run / "report.pdf").read_bytes()
    assert main([str(run.parent), "--exports", "ometiff,dicom,asap,pdf"]) == 0
    names = ["map.ome.tiff", "regions.dcm", "map.dcm", "regions.asap.xml", "report.pdf"]
    assert capsys.readouterr().out.split() == [str(run / name) for name in names]
    # The run drew its own from a thumbnail of the tissue's plane; numbers and outlines are the same.
    assert abs(len((run / "report.pdf").read_bytes()) / len(before) - 1) < 0.5


def test_the_pdf_says_of_the_model_what_the_report_says(run: Path) -> None:
    info = report_info_of(exported_map(open_result(run), []))
    card = classifier().models[0].card
    assert info.limits == card.limits
    assert info.models == [(card.name, classifier().models[0].sha256)]
    assert info.warnings == open_result(run).summary["warnings"]


def test_exports_that_lie_there_follow_a_report_that_is_drawn_again(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "out/a")
    slide = Path(json.loads((run / "summary.json").read_text())["slide"])
    export_map(folder, ["asap"])
    before = (folder / "regions.asap.xml").read_bytes()
    config = InferConfig(delineate=DelineateOptions(threshold=0.3))
    assert infer_slide(slide, tmp_path / "out", config, classifier()).drawn_again
    assert (folder / "regions.asap.xml").read_bytes() != before


def test_a_wanted_export_that_is_missing_is_made_again(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "out/a")
    slide = Path(json.loads((run / "summary.json").read_text())["slide"])
    (folder / "report.pdf").unlink()
    result = infer_slide(slide, tmp_path / "out", InferConfig(), classifier())
    assert result.drawn_again == "missing: report.pdf"
    assert (folder / "report.pdf").exists()


def test_a_slide_that_has_gone_is_asked_for(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    slide = summary["slide"]
    (folder / "summary.json").write_text(json.dumps(summary | {"slide": str(tmp_path / "gone.tiff")}))
    export_map(folder, ["ometiff", "asap"])
    with pytest.raises(ResultError, match="--slide"):
        export_map(folder, ["pdf"])
    export_map(folder, ["pdf"], slide)
    with pytest.raises(UsageError, match="no such file"):
        export_map(folder, ["pdf"], tmp_path / "nowhere.tiff")
    other = shutil.copy(slide, tmp_path / "b.tiff")
    with Path(other).open("ab") as file:
        file.write(b"another")
    with pytest.raises(ResultError, match="not that of the slide that was mapped"):
        export_map(folder, ["pdf"], other)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="no such folder"):
        export_map(tmp_path / "out", ["asap"])
    assert main([str(tmp_path / "out"), "--exports", "asap"]) == 2
    assert main([str(tmp_path), "--exports", "tiff"]) == 2
