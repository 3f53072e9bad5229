import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import SHARED, tissue_texture, write_scn
from models import brightness_model, dimmer_model, random_step
from PIL import Image

from wsi_pipeline.base.errors import RecipeError, ScaleError, UnreadableSlideError
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.models.context import apply_context
from wsi_pipeline.pipeline import infer as pipeline
from wsi_pipeline.pipeline import maps
from wsi_pipeline.pipeline.config import InferConfig, TileConfig, TileGridOptions
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.results.regions import DelineateOptions
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.tiling.grid import GridOptions

MakeSlide = Callable[..., Path]
CPU = torch.device("cpu")
OVERWRITE = RunOptions(overwrite=True)
OUTPUTS = {
    ".wsi_pipeline",
    "slide.zarr",
    "tissue.png",
    "heatmap.png",
    "overlay.png",
    "report.png",
    "report.pdf",
    "fields.png",
    "regions.geojson",
    "summary.json",
}


def section(height: int = 1200, width: int = 1600, margin: int = 100) -> np.ndarray:
    """Pink textured tissue on glass, in focus, with a darker half."""
    image = np.full((height, width, 3), 243, np.uint8)
    tissue = tissue_texture(height - 2 * margin, width - 2 * margin)
    tissue[:, width // 2 :] -= 60
    image[margin:-margin, margin:-margin] = tissue
    return image


def classifier(mpp: float = 4.0) -> Classifier:
    return Classifier([brightness_model(mpp=mpp)], CPU, ClassifyOptions())


def heatmap(folder: Path, name: str = "heatmap/0") -> np.ndarray:
    return np.asarray(zarr.open_array(folder / "slide.zarr" / name, mode="r")[...])


def test_a_slide_comes_out_as_a_map_with_everything_beside_it(make_slide: MakeSlide, tmp_path: Path) -> None:
    image = section()
    path = make_slide("a.tiff", image, mpp=(4.0, 4.0), factors=(1, 4))
    result = infer_slide(path, tmp_path / "out", InferConfig(), classifier())
    assert {p.name for p in result.folder.iterdir()} == OUTPUTS
    values = heatmap(result.folder)
    whole = image[: 24 * 50, : 32 * 50].reshape(24, 50, 32, 50, 3).mean(axis=(1, 3, 4)) / 255
    scored = ~np.isnan(values)
    assert np.abs(values - whole)[scored].max() < 1e-3
    assert scored[3:-3, 3:-3].all()
    assert not scored[0].any()
    assert np.array_equal(heatmap(result.folder, "labels/status/0") == 1, scored)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["counts"]["cells"]["scored"] == scored.sum() == result.patches
    assert summary["tissue_mm2"] == pytest.approx(1000 * 1400 * 16e-6, rel=0.03)
    # Cells at the tissue's edge are partly glass, and outlines reach to the edge of the tissue.
    assert summary["idc_mm2"] == pytest.approx((values >= 0.5).sum() * 0.04, rel=0.03)
    for name in ("tissue.png", "heatmap.png", "overlay.png", "report.png"):
        assert min(Image.open(result.folder / name).size) > 100


@pytest.mark.parametrize("stride", [25, 10, 50])
def test_overlapping_patches_make_a_finer_map_of_the_same_slide(
    make_slide: MakeSlide, tmp_path: Path, stride: int
) -> None:
    image = section(700, 900)
    path = make_slide("a.tiff", image, mpp=(4.0, 4.0), factors=(1,))
    config = InferConfig(grid=GridOptions(stride_px=stride, block_px=256))
    values = heatmap(infer_slide(path, tmp_path / "out", config, classifier()).folder)
    rows, columns = -(-(700 - 50) // stride) + 1, -(-(900 - 50) // stride) + 1
    cells = 50 // np.gcd(50, stride)
    assert values.shape == (
        (rows - 1) * cells * stride // 50 + cells,
        (columns - 1) * cells * stride // 50 + cells,
    )
    # The oracle at one cell in the middle: the mean over the patches that cover it.
    px = int(np.gcd(50, stride))
    y, x = values.shape[0] // 2, values.shape[1] // 2
    covering = [
        image[r * stride : r * stride + 50, c * stride : c * stride + 50].mean() / 255
        for r in range(rows)
        for c in range(columns)
        if r * stride <= y * px < r * stride + 50 and c * stride <= x * px < c * stride + 50
    ]
    assert values[y, x] == pytest.approx(np.mean(covering), abs=1e-4)


def test_threads_change_no_bit_of_the_map_and_block_size_no_more_than_batches_do(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    path = make_slide("a.tiff", section(), mpp=(2.0, 2.0))
    maps = []
    for i, (block, threads) in enumerate([(256, 1), (256, 4), (1000, 2), (4096, 2)]):
        config = InferConfig(
            grid=GridOptions(block_px=block, stride_px=25), classify=ClassifyOptions(reader_threads=threads)
        )
        maps.append(heatmap(infer_slide(path, tmp_path / str(i), config, classifier()).folder))
    assert np.array_equal(maps[0], maps[1], equal_nan=True)
    # Another block size makes other batches, whose last few patches a CPU rounds another way.
    for other in maps[2:]:
        np.testing.assert_allclose(other, maps[0], rtol=0, atol=1e-6)


def test_the_same_map_and_report_are_skipped_and_another_map_is_refused(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    path = make_slide("a.tiff", section(margin=130), mpp=(4.0, 4.0))
    first = infer_slide(path, tmp_path / "out", InferConfig(), classifier())
    files = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")}
    again = infer_slide(path, tmp_path / "out", InferConfig(), classifier())
    assert again.skipped
    assert (again.patches, again.idc_mm2) == (first.patches, first.idc_mm2)
    assert {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")} == files
    other = InferConfig(grid=GridOptions(min_tissue=0.5))
    with pytest.raises(RecipeError, match="--overwrite"):
        infer_slide(path, tmp_path / "out", other, classifier())
    with pytest.raises(RecipeError):
        infer_slide(SlideEntry(path, "a", mpp=3.9), tmp_path / "out", InferConfig(), classifier())
    replaced = infer_slide(path, tmp_path / "out", other, classifier(), OVERWRITE)
    assert not replaced.skipped
    assert replaced.patches < first.patches


def test_an_interrupted_map_goes_on_and_ends_bit_equal(
    make_slide: MakeSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    config = InferConfig(grid=GridOptions(block_px=256, stride_px=25))
    whole = infer_slide(path, tmp_path / "whole", config, classifier()).folder
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_slide(path, tmp_path / "part", config, classifier(), RunOptions(progress=stop))
    status = heatmap(tmp_path / "part/a", "labels/status/0")
    assert (status == 4).any()
    assert (status == 1).any()
    first_done: list[int] = []
    listening = RunOptions(progress=lambda done, total: first_done.append(done))
    part = infer_slide(path, tmp_path / "part", config, classifier(), listening).folder
    assert first_done[0] > 0  # what was committed is not done again
    assert np.array_equal(heatmap(whole), heatmap(part), equal_nan=True)
    assert np.array_equal(heatmap(whole, "labels/status/0"), heatmap(part, "labels/status/0"))


def in_context(threshold: float = 0.5) -> Classifier:
    model = replace(brightness_model(), context=random_step(threshold))
    return Classifier([model], CPU, ClassifyOptions())


def test_a_model_with_a_context_step_leaves_both_maps(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    plain = infer_slide(path, tmp_path / "plain", InferConfig(), classifier()).folder
    both = infer_slide(path, tmp_path / "both", InferConfig(), in_context(0.37)).folder
    alone = heatmap(plain)
    assert np.array_equal(heatmap(both, "patch_heatmap/0"), alone, equal_nan=True)
    expected = apply_context(alone, random_step())
    assert np.array_equal(heatmap(both), expected, equal_nan=True)
    assert not np.array_equal(expected, alone, equal_nan=True)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (plain, both)]
    assert [s["map_kind"] for s in summaries] == [maps.PATCH_BY_PATCH, maps.IN_CONTEXT]
    assert [s["threshold"] for s in summaries] == [0.5, 0.37]  # each map's own
    assert summaries[1]["idc_mm2"] == pytest.approx((expected >= 0.37).sum() * 0.04, rel=0.05)


def test_context_false_shows_each_patch_alone_as_a_model_without_a_step_does(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    plain = infer_slide(path, tmp_path / "plain", InferConfig(), classifier()).folder
    off = infer_slide(path, tmp_path / "off", InferConfig(context=False), in_context(0.37)).folder
    assert np.array_equal(heatmap(off), heatmap(plain), equal_nan=True)
    assert not (off / "slide.zarr/patch_heatmap").exists()
    summary = json.loads((off / "summary.json").read_text())
    assert (summary["map_kind"], summary["threshold"]) == (maps.PATCH_BY_PATCH, 0.5)
    with pytest.raises(RecipeError, match="context step: none there, one here"):
        infer_slide(path, tmp_path / "off", InferConfig(), in_context(0.37))


def test_a_run_broken_off_before_and_after_the_context_step_ends_bit_equal(
    make_slide: MakeSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_slide("a.tiff", section(700, 900), mpp=(4.0, 4.0))
    config = InferConfig(grid=GridOptions(block_px=256))
    whole = infer_slide(path, tmp_path / "whole", config, in_context()).folder

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    for stage in ("apply_context", "delineate"):
        with monkeypatch.context() as patched:
            patched.setattr(pipeline, stage, stop)
            with pytest.raises(KeyboardInterrupt):
                infer_slide(path, tmp_path / "part", config, in_context())
        assert np.isnan(heatmap(tmp_path / "part/a")).all() == (stage == "apply_context")
    part = infer_slide(path, tmp_path / "part", config, in_context()).folder
    for name in ("heatmap/0", "patch_heatmap/0", "labels/status/0"):
        assert np.array_equal(heatmap(whole, name), heatmap(part, name), equal_nan=True), name


def test_overlapping_patches_meet_the_step_a_patch_apart_and_gaps_are_refused(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    path = make_slide("a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1,))
    fine = InferConfig(grid=GridOptions(stride_px=25))
    folder = infer_slide(path, tmp_path / "fine", fine, in_context()).folder
    alone, values = heatmap(folder, "patch_heatmap/0"), heatmap(folder)
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        own = apply_context(alone[y::2, x::2], random_step())
        assert np.array_equal(values[y::2, x::2], own, equal_nan=True)
    gaps = InferConfig(grid=GridOptions(stride_px=100))
    result = infer_slide(path, tmp_path / "gaps", gaps, in_context())
    assert any("leaves gaps" in warning for warning in result.warnings)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["map_kind"] == maps.PATCH_BY_PATCH
    assert not (result.folder / "slide.zarr/patch_heatmap").exists()


def two_models() -> Classifier:
    """One says a patch's brightness, the other, which alone has a context step, half of it."""
    return Classifier(
        [brightness_model(), replace(dimmer_model(), context=random_step())], CPU, ClassifyOptions()
    )


@pytest.mark.parametrize("stride", [50, 25])
def test_an_ensemble_maps_the_mean_of_its_models_and_how_far_they_are_apart(
    make_slide: MakeSlide, tmp_path: Path, stride: int
) -> None:
    path = make_slide("a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1,))
    config = InferConfig(grid=GridOptions(stride_px=stride))
    alone = heatmap(infer_slide(path, tmp_path / "one", config, classifier()).folder)
    folder = infer_slide(path, tmp_path / "two", config, two_models()).folder
    assert {p.name for p in folder.iterdir()} == OUTPUTS | {"uncertainty.png"}
    # The models say b and b / 2 of each patch; where patches overlap, means are taken of both.
    np.testing.assert_allclose(heatmap(folder), 0.75 * alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(heatmap(folder, "uncertainty/0"), 0.25 * alone, rtol=0, atol=1e-5)
    assert not (folder / "slide.zarr/patch_heatmap").exists()
    summary = json.loads((folder / "summary.json").read_text())
    models = [{"name": "brightness", "sha256": "0" * 64}, {"name": "dimmer", "sha256": "1" * 64}]
    assert summary["models"] == models
    assert summary["map_kind"] == "each patch alone, mean of 2 models"
    assert summary["threshold"] == pytest.approx(0.4)  # of 0.5 and 0.3
    assert summary["uncertainty"]["models"] == 2
    assert summary["uncertainty"]["mean"] == pytest.approx(0.25 * np.nanmean(alone), abs=1e-5)
    inside = 0.75 * alone >= 0.4  # one region, of all that is bright
    assert len(summary["regions"]) == 1
    assert summary["uncertainty"]["in_regions"] == pytest.approx(0.25 * alone[inside].mean(), abs=0.01)


def test_other_models_are_another_map_and_the_configs_threshold_another_report_of_it(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    path = make_slide("a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1,))
    infer_slide(path, tmp_path, InferConfig(), two_models())
    assert infer_slide(path, tmp_path, InferConfig(), two_models()).skipped
    three = Classifier([*two_models().models, brightness_model(threshold=0.7)], CPU, ClassifyOptions())
    given = InferConfig(delineate=DelineateOptions(threshold=0.6))
    for other in (classifier(), three):
        with pytest.raises(
            RecipeError, match=r"model: brightness .* and dimmer .* there, brightness .* here"
        ):
            infer_slide(path, tmp_path, InferConfig(), other)
    folder = infer_slide(path, tmp_path, given, two_models(), OVERWRITE).folder
    assert json.loads((folder / "summary.json").read_text())["threshold"] == 0.6
    again = infer_slide(path, tmp_path, InferConfig(), classifier(), OVERWRITE).folder
    assert {p.name for p in again.iterdir()} == OUTPUTS  # no uncertainty of another run stays


def test_an_ensembles_run_broken_off_ends_bit_equal(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", section(600, 800), mpp=(4.0, 4.0), factors=(1,))
    config = InferConfig(grid=GridOptions(block_px=256, stride_px=25))
    whole = infer_slide(path, tmp_path / "whole", config, two_models()).folder
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_slide(path, tmp_path / "part", config, two_models(), RunOptions(progress=stop))
    broken = heatmap(tmp_path / "part/a", "uncertainty/0")
    assert 0 < np.isfinite(broken).sum() < np.isfinite(heatmap(whole, "uncertainty/0")).sum()
    part = infer_slide(path, tmp_path / "part", config, two_models()).folder
    for name in ("heatmap/0", "uncertainty/0", "labels/status/0"):
        assert np.array_equal(heatmap(whole, name), heatmap(part, name), equal_nan=True), name


def test_an_ensemble_on_a_slide_without_tissue_has_no_uncertainty_to_tell(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    path = make_slide("empty.tiff", np.full((600, 800, 3), 240, np.uint8), mpp=(4.0, 4.0), factors=(1,))
    folder = infer_slide(path, tmp_path / "out", InferConfig(), two_models()).folder
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["uncertainty"] == {"models": 2, "mean": None, "in_regions": None}
    assert (folder / "uncertainty.png").exists()


def test_the_store_of_one_model_holds_one_map(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", section(700, 900), mpp=(4.0, 4.0), factors=(1,))
    folder = infer_slide(path, tmp_path, InferConfig(), classifier()).folder
    summary = json.loads((folder / "summary.json").read_text())
    assert not {"models", "uncertainty"} & set(summary)
    assert sorted(p.name for p in (folder / "slide.zarr").iterdir() if p.is_dir()) == [
        "display",
        "heatmap",
        "labels",
        "patches",
    ]


def test_a_slide_without_tissue_is_a_result_with_a_reason(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("empty.tiff", np.full((900, 1200, 3), 240, np.uint8), mpp=(4.0, 4.0))
    result = infer_slide(path, tmp_path / "out", InferConfig(), classifier())
    assert {p.name for p in result.folder.iterdir()} == OUTPUTS
    assert result.patches == 0
    assert any("no tissue" in warning for warning in result.warnings)
    assert np.isnan(heatmap(result.folder)).all()
    tiled = tile_slide(path, tmp_path / "tiles", TileConfig(grid=TileGridOptions(patch_px=50, mpp=4.0)))
    assert tiled.patches == 0
    assert (tiled.folder / "tissue.png").exists()


def test_a_corrupt_storage_tile_costs_its_own_patches(shared: Path, tmp_path: Path) -> None:
    config = InferConfig()
    maps = [
        infer_slide(path, tmp_path, config, classifier(mpp=1.0)).folder
        for path in (
            shared / "data/bad/five_tiles_corrupt.svs",
            shared / "data/slides/cmu_1_small_region.svs",
        )
    ]
    (bad, good), (status, _) = ([heatmap(m, name) for m in maps] for name in ("heatmap/0", "labels/status/0"))
    both = ~np.isnan(bad) & ~np.isnan(good)
    assert np.array_equal(bad[both], good[both])
    assert 0 < (status == 3).sum() <= 5 * 16
    summary = json.loads((maps[0] / "summary.json").read_text())
    assert summary["counts"]["cells"]["unreadable"] == (status == 3).sum()
    assert any("could not be decoded" in warning for warning in summary["warnings"])


def test_a_slide_too_much_of_which_is_unreadable_fails(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableSlideError, match=r"unreadable\.svs: 100% of it cannot be decoded"):
        infer_slide(shared / "data/bad/unreadable.svs", tmp_path, InferConfig(), classifier(mpp=1.0))
    config = InferConfig(max_unreadable=0.01)
    with pytest.raises(UnreadableSlideError, match=r"five_tiles_corrupt\.svs.*at most 1%"):
        infer_slide(shared / "data/bad/five_tiles_corrupt.svs", tmp_path, config, classifier(mpp=1.0))


def test_a_config_whose_scale_is_not_the_models_is_refused(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", section(margin=130), mpp=(4.0, 4.0))
    for grid in (GridOptions(patch_px=50, mpp=0.25), GridOptions(patch_px=96)):
        with pytest.raises(ScaleError, match="the model card expects 50 px at 4 um/px"):
            infer_slide(path, tmp_path / "out", InferConfig(grid=grid), classifier())
    assert not (tmp_path / "out").exists()


def test_an_overridden_scale_is_recorded(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", section(), mpp=None)
    result = infer_slide(SlideEntry(path, "a", mpp=4.0), tmp_path / "out", InferConfig(), classifier())
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["mpp"] == [4.0, 4.0]
    assert summary["mpp_overridden"] is True
    assert any("--mpp 4" in warning for warning in summary["warnings"])


def test_tiling_writes_the_planned_patches(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", section(), mpp=(0.5, 0.5))
    config = TileConfig(grid=TileGridOptions(patch_px=50, mpp=0.5, min_tissue=0.5))
    result = tile_slide(path, tmp_path / "out", config, export=True)
    x0, y0, share = (heatmap(result.folder, f"patches/{name}") for name in ("x0", "y0", "tissue"))
    assert len(x0) == result.patches
    assert (x0 % 50 == 0).all()
    assert (share >= 0.5).all()
    expected = {(x, y) for y in range(100, 1100, 50) for x in range(100, 1500, 50)}
    assert set(zip(x0.tolist(), y0.tolist(), strict=True)) == expected
    assert len(list(result.folder.glob("export/a/unlabelled/*.png"))) == result.patches
    assert tile_slide(path, tmp_path / "out", config, export=True).skipped


def test_outlines_label_the_patches(shared: Path, tmp_path: Path) -> None:
    slide = shared / "data/slides/breast_40x.svs"
    config = TileConfig(grid=TileGridOptions(patch_px=50, mpp=4.0))
    result = tile_slide(slide, tmp_path, config, annotations=slide.parent)
    labels = heatmap(result.folder, "patches/label")
    counts = json.loads((result.folder / "summary.json").read_text())["counts"]["labels"]
    assert counts == {
        name: int((labels == value).sum()) for name, value in (("idc", 1), ("not_idc", 0), ("unlabelled", -1))
    }
    assert 20 < counts["idc"] < counts["not_idc"] < counts["unlabelled"]
    assert result.labels == counts
    throughout = replace(config, annotations=AnnotationOptions(annotated_throughout=True))
    whole = tile_slide(slide, tmp_path / "whole", throughout, annotations=slide.parent)
    assert whole.labels == {"idc": counts["idc"], "not_idc": len(labels) - counts["idc"], "unlabelled": 0}


def test_regions_as_written_are_outlines_as_read_on_a_slide_that_its_file_cuts(tmp_path: Path) -> None:
    path = write_scn(tmp_path / "a.scn", section(4000, 6000, 400), 3000, 2400, (12000, 9000))
    result = infer_slide(path, tmp_path / "maps", InferConfig(), classifier())
    (tmp_path / "maps/a/regions.geojson").rename(tmp_path / "a.geojson")
    config = TileConfig(
        grid=TileGridOptions(patch_px=50, mpp=4.0, min_tissue=0.1),
        annotations=AnnotationOptions(annotated_throughout=True),
    )
    tiled = tile_slide(path, tmp_path / "tiles", config, annotations=tmp_path)
    labels = heatmap(tiled.folder, "patches/label")
    threshold = json.loads((result.folder / "summary.json").read_text())["threshold"]
    values = heatmap(result.folder)
    called = values[~np.isnan(values)] >= threshold
    assert len(labels) == len(called)
    assert called.sum() > 40
    assert ((labels == 1) == called).mean() > 0.98
    corner = replace(config, annotations=replace(config.annotations, origin="corner"))
    moved = tile_slide(path, tmp_path / "corner", corner, annotations=tmp_path)
    assert moved.labels is not None
    assert moved.labels["idc"] < called.sum() / 2


@pytest.mark.slow
def test_the_same_scene_at_any_scale_gives_the_same_map(tmp_path: Path) -> None:
    from scripts.sample_slide.make_sample_slide import make_sample_slide
    from wsi_pipeline.models.model import load_model

    shipped = Classifier([load_model("idc_default")], CPU, ClassifyOptions(precision="fp32"))
    maps = {}
    for mpp in (0.25, 0.23, 0.5, (0.25, 0.2625)):
        path = tmp_path / f"{mpp}.tiff"
        make_sample_slide(path, 1.9, 1.3, mpp, seed=3, compression="deflate")
        maps[mpp] = heatmap(infer_slide(path, tmp_path / "out", InferConfig(), shipped).folder)
        assert maps[mpp].shape == maps[0.25].shape
        both = ~np.isnan(maps[mpp]) & ~np.isnan(maps[0.25])
        assert both.sum() > 20
        assert (np.isnan(maps[mpp]) != np.isnan(maps[0.25])).sum() <= 2  # a patch at the edge of min_tissue
        assert np.abs(maps[mpp] - maps[0.25])[both].max() < 0.02, mpp


@pytest.mark.slow
def test_slides_of_nearly_one_scale_give_one_map_also_as_jpeg(tmp_path: Path) -> None:
    """At 16 x 0.25 a level lies at the model's own 4 um/px, at 16 x 0.252 none does."""
    from scripts.sample_slide.make_sample_slide import make_sample_slide
    from wsi_pipeline.models.model import load_model

    shipped = Classifier([load_model("idc_default")], CPU, ClassifyOptions(precision="fp32"))
    maps = {}
    for mpp in (0.25, 0.252):
        make_sample_slide(tmp_path / f"{mpp}.tiff", 1.9, 1.3, mpp, seed=3, compression="jpeg")
        folder = infer_slide(tmp_path / f"{mpp}.tiff", tmp_path / "out", InferConfig(), shipped).folder
        assert json.loads((folder / "summary.json").read_text())["level_read"] == 1
        maps[mpp] = heatmap(folder, "patch_heatmap/0")
    apart = np.abs(maps[0.25] - maps[0.252])
    assert np.isfinite(apart).sum() > 20
    assert np.nanmax(apart) < 0.05  # read from the level at 4 um/px: 0.27
    assert np.nanmean(apart) < 0.005  # 0.042


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_goes_on_from(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which is not here")
    slide = SHARED / "data/slides/breast_40x.svs"
    config = tmp_path / "infer.yaml"
    config.write_text("grid: {stride_px: 25, block_px: 512}\nclassify: {precision: fp32}\n")
    command = [sys.executable, "-m", "wsi_pipeline.cli.infer_slide", str(slide), "--device", "cpu"]
    command += ["--config", str(config), "--out"]
    store = tmp_path / "killed/breast_40x/slide.zarr/labels/status/0"
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    started = time.monotonic()
    while time.monotonic() - started < 300 and len(list(store.glob("c/*/*"))) < 1:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = heatmap(tmp_path / "killed/breast_40x")
    assert subprocess.run([*command, str(tmp_path / "killed")], check=False).returncode == 0
    assert subprocess.run([*command, str(tmp_path / "never")], check=False).returncode == 0
    after, never = (heatmap(tmp_path / name / "breast_40x") for name in ("killed", "never"))
    assert np.isnan(before).sum() > np.isnan(after).sum()
    assert np.array_equal(after, never, equal_nan=True)
