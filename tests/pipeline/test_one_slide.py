"""One slide from Python: what the commands do, by a call."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import brightness_model, dimmer_model
from test_closing import needs_proc, open_files
from test_infer import section

import wsi_pipeline as wp
from wsi_pipeline.cli import infer_slide as command
from wsi_pipeline.jobs.events import LOCKS
from wsi_pipeline.jobs.locks import hold
from wsi_pipeline.models.model import save_model

MakeSlide = Callable[..., Path]


@pytest.fixture
def slide(make_slide: MakeSlide) -> Path:
    return make_slide("a.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))


def test_a_slide_is_mapped_by_its_path_and_a_place_alone(slide: Path, tmp_path: Path) -> None:
    """The defaults are the command's: the same recipe, so that each takes the other's result as done."""
    out = tmp_path / "out"
    assert command.main([str(slide), "--out", str(out)]) == 0
    made = (out / "a/summary.json").stat().st_mtime_ns
    result = wp.infer_slide(str(slide), str(out))
    assert (out / "a/summary.json").stat().st_mtime_ns == made
    assert result.summary["map_recipe"]["models"][0]["name"] == "idc_default"
    assert result.folder == out / "a"


@pytest.mark.slow
def test_a_model_comes_by_name_by_file_or_loaded(slide: Path, tmp_path: Path) -> None:
    loaded = wp.load_model("idc_default")
    save_model(tmp_path / "mine.safetensors", loaded.network, loaded.card, loaded.context)
    models: list[object] = ["idc_default", loaded, tmp_path / "mine.safetensors", [loaded]]
    maps = [wp.infer_slide(slide, tmp_path / str(i), model=m).map for i, m in enumerate(models)]  # type: ignore[arg-type]
    assert all(np.array_equal(maps[0], other, equal_nan=True) for other in maps[1:])


def test_several_loaded_models_are_checked_as_named_ones_are(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(wp.UsageError, match="same weights"):
        wp.infer_slide(slide, tmp_path, model=[brightness_model(), brightness_model()])
    coarse = brightness_model(mpp=8.0)
    other = replace(coarse, card=replace(coarse.card, weights_sha256="2" * 64))
    with pytest.raises(wp.ScaleError, match="dimmer"):
        wp.infer_slide(slide, tmp_path, model=[dimmer_model(), other])
    with pytest.raises(wp.UsageError, match="found none"):
        wp.infer_slide(slide, tmp_path, model=[])


@pytest.mark.slow
def test_a_config_comes_as_options_by_file_or_by_name(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "fine.yaml").write_text("grid: {stride_px: 25}\n")
    configs = [wp.InferConfig(grid=wp.GridOptions(stride_px=25)), str(tmp_path / "fine.yaml"), "infer"]
    shapes = [
        wp.infer_slide(slide, tmp_path / str(i), model=brightness_model(), config=config).map.shape  # type: ignore[arg-type]
        for i, config in enumerate(configs)
    ]
    assert shapes == [(48, 64), (48, 64), (24, 32)]
    with pytest.raises(wp.ConfigError, match="found TileConfig, expected InferConfig"):
        wp.infer_slide(slide, tmp_path / "x", config=wp.TileConfig())  # type: ignore[arg-type]
    with pytest.raises(wp.ConfigError, match="tile_idc"):
        wp.tile_slide(slide, tmp_path / "x", config="tile_idcc")


def test_another_result_is_refused_unless_it_may_be_overwritten(slide: Path, tmp_path: Path) -> None:
    wp.infer_slide(slide, tmp_path, model=brightness_model())
    with pytest.raises(wp.RecipeError):
        wp.infer_slide(slide, tmp_path, model=dimmer_model())
    assert wp.infer_slide(slide, tmp_path, model=dimmer_model(), overwrite=True).is_complete


def test_the_scale_may_be_given_and_is_never_guessed(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", section(), mpp=None)
    with pytest.raises(wp.ScaleError):
        wp.infer_slide(path, tmp_path, model=brightness_model())
    result = wp.infer_slide(path, tmp_path, model=brightness_model(), mpp=4.0)
    assert result.summary["mpp_overridden"]
    assert result.map.shape == (24, 32)


def test_progress_is_heard(slide: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    wp.infer_slide(slide, tmp_path, model=brightness_model(), progress=lambda *counts: heard.append(counts))
    assert heard[-1][0] == heard[-1][1] > 0


def test_a_slide_that_another_process_works_on_is_left_alone(slide: Path, tmp_path: Path) -> None:
    with hold(tmp_path / LOCKS / "a.lock"), pytest.raises(wp.JobError, match="works on it"):
        wp.infer_slide(slide, tmp_path, model=brightness_model())


def test_one_call_is_for_one_slide(slide: Path, tmp_path: Path) -> None:
    (slide.parent / "b.tiff").write_bytes(slide.read_bytes())
    with pytest.raises(wp.ListError, match="found 2 slides, expected one"):
        wp.tile_slide(slide.parent, tmp_path / "out")
    with pytest.raises(wp.SlideOpenError, match="no such file"):
        wp.tile_slide(tmp_path / "none.svs", tmp_path / "out")


def test_patches_are_labelled_and_exported(slide: Path, tmp_path: Path) -> None:
    ring = [[200, 200], [700, 200], [700, 1000], [200, 1000], [200, 200]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "IDC"}},
    }
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    result = wp.tile_slide(slide, tmp_path / "out", config="tile_idc", annotations=str(tmp_path), export=True)
    assert result.patches.label is not None
    assert set(result.patches.label.tolist()) == {1, -1}  # IDC, and what lies in no outline
    assert len(list((result.folder / "export").rglob("*.png"))) == len(result.patches.x0)
    with pytest.raises(wp.UsageError, match="no such folder"):
        wp.tile_slide(slide, tmp_path / "out", annotations=tmp_path / "none")


@needs_proc
def test_no_file_of_the_slide_stays_open(slide: Path, tmp_path: Path) -> None:
    result = wp.infer_slide(slide, tmp_path, model=brightness_model())
    again = wp.infer_slide(slide, tmp_path, model=brightness_model())  # taken as it is
    tiles = wp.tile_slide(slide, tmp_path / "tiles", config="tile_idc")
    with pytest.raises(wp.RecipeError) as caught:
        wp.infer_slide(slide, tmp_path, model=dimmer_model())
    assert result.is_complete
    assert again.is_complete
    assert tiles.is_complete
    assert open_files(slide) == 0, caught
