"""Whose a run folder is: nothing is removed that is not ours, and no slide lies where results are replaced."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import noise, write_slide

from wsi_pipeline.base.errors import OutputError, RecipeError, SlideError
from wsi_pipeline.pipeline.config import TileConfig, TileGridOptions
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.results.run_folder import MARKER, Standing, check_outside, find_run, standing_of
from wsi_pipeline.results.store import SlideStore
from wsi_pipeline.tiling.export_draw import ExportOptions

OVERWRITE = RunOptions(overwrite=True)
CONFIG = TileConfig(grid=TileGridOptions(patch_px=50, mpp=4.0))
OTHER = TileConfig(grid=TileGridOptions(patch_px=60, mpp=4.0))


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "a.tiff", noise(600, 600), mpp=(4.0, 4.0))


@pytest.mark.parametrize("foreign", ["export/mine.txt", "thesis.part", "slide.zarr/zarr.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_ours_stays_as_it_is(
    slide: Path, tmp_path: Path, foreign: str, overwrite: bool
) -> None:
    file = tmp_path / "out/a" / foreign
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(RecipeError, match=r"not of this package|not a slide store of this package"):
        tile_slide(slide, tmp_path / "out", CONFIG, run=RunOptions(overwrite=overwrite))
    assert [path for path in (tmp_path / "out/a").rglob("*") if path.is_file()] == [file]


def test_of_a_link_the_link_is_removed_and_not_what_lies_behind_it(slide: Path, tmp_path: Path) -> None:
    folder, kept = tile_slide(slide, tmp_path / "out", CONFIG).folder, tmp_path / "kept"
    (kept / "0").mkdir(parents=True)
    (kept / "0/mine.png").touch()
    (folder / "export").symlink_to(kept)
    before = sorted(kept.rglob("*"))
    tile_slide(slide, tmp_path / "out", OTHER, run=OVERWRITE)
    assert not (folder / "export").exists()
    assert sorted(kept.rglob("*")) == before


def test_a_folder_of_an_earlier_version_is_known_by_its_store(slide: Path, tmp_path: Path) -> None:
    folder = tile_slide(slide, tmp_path / "out", CONFIG).folder
    (folder / MARKER).unlink()
    assert tile_slide(slide, tmp_path / "out", CONFIG).skipped
    assert not tile_slide(slide, tmp_path / "out", OTHER, run=OVERWRITE).skipped
    assert (folder / MARKER).is_file()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_store_that_the_system_cannot_read_just_now_is_not_replaced(
    slide: Path, tmp_path: Path, overwrite: bool
) -> None:
    folder = tile_slide(slide, tmp_path / "out", CONFIG).folder
    root = folder / "slide.zarr/zarr.json"
    root.rename(tmp_path / "kept.json")
    root.symlink_to(root)  # too many links: an error of the system, as EIO is
    before = sorted(folder.rglob("*"))
    with pytest.raises(OutputError, match=r"slide\.zarr: cannot be read: Too many levels of symbolic links"):
        tile_slide(slide, tmp_path / "out", CONFIG, run=RunOptions(overwrite=overwrite))
    assert sorted(folder.rglob("*")) == before
    (tmp_path / "kept.json").replace(root)
    assert tile_slide(slide, tmp_path / "out", CONFIG).skipped


def test_nor_is_an_export(slide: Path, tmp_path: Path) -> None:
    folder = tile_slide(slide, tmp_path / "out", CONFIG, export=True).folder
    (folder / "summary.json").unlink()
    info = folder / "export/a/export.json"
    info.unlink()
    info.symlink_to(info)
    (folder / "export/a/0").mkdir(exist_ok=True)
    (folder / "export/a/0/kept.png").touch()
    shards = replace(CONFIG, export=ExportOptions(format="shards"))
    with pytest.raises(OutputError, match=r"export\.json: cannot be read: Too many levels"):
        tile_slide(slide, tmp_path / "out", shards, export=True)
    assert (folder / "export/a/0/kept.png").exists()


def test_a_damaged_store_of_ours_may_be_replaced(slide: Path, tmp_path: Path) -> None:
    folder = tile_slide(slide, tmp_path / "out", CONFIG).folder
    (folder / "slide.zarr/zarr.json").write_text("{}")
    with pytest.raises(RecipeError, match="not a slide store"):
        find_run(folder, lambda _: [], overwrite=False)
    assert not tile_slide(slide, tmp_path / "out", CONFIG, run=OVERWRITE).skipped


def test_what_a_run_would_find_is_known_before_it(slide: Path, tmp_path: Path) -> None:
    def other(_: SlideStore) -> list[str]:
        return ["grid.mpp: 4.0 there, 2.0 here"]

    def same(_: SlideStore) -> list[str]:
        return []

    assert standing_of(tmp_path / "out/a", other, overwrite=False) is Standing.NEW
    folder = tile_slide(slide, tmp_path / "out", CONFIG).folder
    assert standing_of(folder, same, overwrite=False) is Standing.DONE
    with pytest.raises(RecipeError, match=r"grid\.mpp: 4\.0 there, 2\.0 here"):
        standing_of(folder, other, overwrite=False)
    assert standing_of(folder, other, overwrite=True) is Standing.NEW
    (folder / "summary.json").unlink()
    assert standing_of(folder, same, overwrite=False) is Standing.BEGUN


@pytest.mark.parametrize("place", ["out/a", "out/a/a.tiff", "out/b/export/x.tiff", "link/a/a.tiff"])
def test_slides_in_a_folder_of_results_are_refused(slide: Path, tmp_path: Path, place: str) -> None:
    write_slide(tmp_path / "b.tiff", noise(600, 600), mpp=(4.0, 4.0))
    tile_slide(tmp_path / "b.tiff", tmp_path / "out", CONFIG)
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(SlideError, match="lies in a folder of results"):
        check_outside([tmp_path / place], tmp_path / "out", "a")
    check_outside([slide, tmp_path / "out/x.tiff"], tmp_path / "out", "a")
    check_outside([slide], tmp_path, "b")
