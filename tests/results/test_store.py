import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel

from wsi_pipeline.base.errors import OutputError, RecipeError, SlideChangedError
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.results.commit import commit_blocks
from wsi_pipeline.results.store import MAP_TITLES, PatchTable, SlideStore, StoreLayout, create_store
from wsi_pipeline.tiling.cell_status import Status, initial_status
from wsi_pipeline.tiling.grid import Grid, Plan, ScoredBlock

MPP0 = (0.25, 0.26)


def made(
    path: Path, columns: int = 150, rows: int = 90, also: tuple[str, ...] = ()
) -> tuple[SlideStore, Plan]:
    grid = Grid(Plane(16, 16, 100, 50), 50, 50, columns, rows)
    kept = np.ones((rows, columns), np.bool_)
    plan = Plan(grid, kept.astype(np.float32), kept, ~kept, 32)
    patches = PatchTable(
        np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32), np.ones(5, np.float32), None
    )
    tissue = np.ones((40, 60), np.uint8)
    layout = StoreLayout(plan, MPP0, tissue, Plane(32, 32), patches, ("heatmap", *also))
    return create_store(path, {"map_recipe": {"command": "infer-slide"}}, layout), plan


def filled(path: Path) -> tuple[SlideStore, np.ndarray]:
    store, plan = made(path)
    values = np.random.default_rng(0).random((90, 150)).astype(np.float32)
    values[10:20, 30:60] = np.nan
    for block in plan.blocks():
        c = block.cells
        part = values[c.y : c.bottom, c.x : c.right]
        store.write_block(c, part, np.where(np.isnan(part), 3, 1).astype(np.uint8))
    store.write_pyramid()
    store.finish({}, initial_status(plan))
    return store, values


def test_the_metadata_is_valid_ome_zarr_0_5(tmp_path: Path) -> None:
    filled(tmp_path / "slide.zarr")
    root = zarr.open_group(tmp_path / "slide.zarr", mode="r")
    for name in ("", "heatmap"):
        image = Image.from_zarr(root[name] if name else root)
        axes = image.attributes.ome.multiscales[0].axes
        assert [axis.unit for axis in axes if axis.type == "space"] == ["micrometer"] * 2
    for name in ("status", "tissue"):
        label = ImageLabel.from_zarr(root[f"labels/{name}"])
        assert label.attributes.ome.image_label is not None
    assert root["labels"].attrs["ome"]["labels"] == ["status", "tissue"]


def test_a_store_without_maps_is_an_image_of_its_tissue(tmp_path: Path) -> None:
    grid = Grid(Plane(16, 16), 50, 50, 3, 3)
    kept = np.ones((3, 3), np.bool_)
    plan = Plan(grid, kept.astype(np.float32), kept, ~kept, 8)
    none = PatchTable(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), None)
    tissue = np.random.default_rng(0).integers(0, 3, (200, 150)).astype(np.uint8)
    store = create_store(tmp_path / "slide.zarr", {}, StoreLayout(plan, MPP0, tissue, Plane(30, 30), none))
    root = zarr.open_group(store.path, mode="r")
    image, label = (
        Image.from_zarr(root).attributes.ome,
        ImageLabel.from_zarr(root["labels/tissue"]).attributes.ome,
    )
    paths = [dataset.path for dataset in image.multiscales[0].datasets]
    assert np.array_equal(np.asarray(root[paths[0]]), tissue)
    assert image.omero["channels"][0]["window"]["end"] == 2
    assert len(paths) == len(label.multiscales[0].datasets) == 3


@pytest.mark.parametrize("also", [(), ("patch_heatmap",)])
@pytest.mark.parametrize("lost", ["chunk", "status", "strange"])
def test_what_is_not_whole_is_not_complete_and_goes_on(
    tmp_path: Path, lost: str, also: tuple[str, ...]
) -> None:
    store, plan = made(tmp_path / "slide.zarr", also=also)
    for block in plan.blocks():
        shape = (block.cells.height, block.cells.width)
        store.write_block(block.cells, np.full(shape, 0.5, np.float32), np.ones(shape, np.uint8))
    if also:
        store.write_heatmap(np.full((90, 150), 0.25, np.float32))
    planned = initial_status(plan)
    if lost == "chunk":
        (tmp_path / "slide.zarr" / store.scores / "0/c/1/2").unlink()
    elif lost == "status":
        (tmp_path / "slide.zarr/labels/status/0/c/1/2").unlink()
    else:
        planned[32:64, 64:96] = Status.REJECTED
    with pytest.raises(
        OutputError, match=r"found (0|832|1,024) cells without a score and (0|832|1,024) that no"
    ):
        store.finish({}, planned)
    again = SlideStore(tmp_path / "slide.zarr")
    assert not again.is_complete
    undone = again.unfinished(list(plan.blocks()))
    assert [(block.cells.x, block.cells.y) for block in undone] == ([] if lost == "strange" else [(64, 32)])
    for block in undone:
        shape = (block.cells.height, block.cells.width)
        again.write_block(block.cells, np.full(shape, 0.5, np.float32), np.ones(shape, np.uint8))
    again.finish({}, planned)
    assert SlideStore(tmp_path / "slide.zarr").is_complete


def test_an_independent_reader_finds_the_same_values(tmp_path: Path) -> None:
    _, values = filled(tmp_path / "slide.zarr")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "slide.zarr/heatmap/0")}}
    array = tensorstore.open(spec, open=True, read=True).result()
    assert np.array_equal(array.read().result(), values, equal_nan=True)
    assert array.domain.labels == ("y", "x")


def test_transforms_put_each_cell_centre_at_its_micrometres(tmp_path: Path) -> None:
    store, plan = made(tmp_path / "slide.zarr")
    levels = zarr.open_group(store.path, mode="r")["heatmap"].attrs["ome"]["multiscales"][0]["datasets"]
    for index, level in enumerate(levels):
        scale, translation = (t[t["type"]] for t in level["coordinateTransformations"])
        plane = plan.grid.map_plane.coarser(2**index, 2**index)
        x0, y0 = plane.point_to_level0(3.5, 7.5)  # the centre of row 7, column 3
        assert 7 * scale[0] + translation[0] == pytest.approx(y0 * MPP0[1])
        assert 3 * scale[1] + translation[1] == pytest.approx(x0 * MPP0[0])


def test_with_a_context_step_blocks_fill_the_patch_heatmap_and_the_map_comes_after(tmp_path: Path) -> None:
    store, plan = made(tmp_path / "slide.zarr", also=("patch_heatmap",))
    block = next(iter(plan.blocks())).cells
    values = np.random.default_rng(0).random((block.height, block.width)).astype(np.float32)
    store.write_block(block, values, np.ones(values.shape, np.uint8))
    assert (store.status(block) == Status.SCORED).all()
    y, x = slice(block.y, block.bottom), slice(block.x, block.right)
    assert np.array_equal(store.array("patch_heatmap/0")[y, x], values)
    assert np.isnan(store.array("heatmap/0")).all()
    after = np.full((90, 150), 0.25, np.float32)
    reopened = SlideStore(tmp_path / "slide.zarr")
    reopened.write_heatmap(after)
    reopened.write_pyramid()
    assert np.array_equal(reopened.array("heatmap/0"), after)
    assert np.array_equal(reopened.array("patch_heatmap/0")[y, x], values)
    assert reopened.array("heatmap/1")[0, 0] == 0.25
    assert reopened.array("patch_heatmap/1")[0, 0] == pytest.approx(values[:2, :2].mean(), rel=1e-6)
    group = zarr.open_group(store.path, mode="r")
    for name in ("", "heatmap", "patch_heatmap"):
        assert Image.from_zarr(group[name] if name else group).attributes.ome.multiscales


@pytest.mark.parametrize("also", [(), ("patch_heatmap",), ("patch_heatmap", "uncertainty")])
def test_the_roots_image_is_every_map_in_small_pixels_where_its_cells_are(
    tmp_path: Path, also: tuple[str, ...]
) -> None:
    store, plan = made(tmp_path / "slide.zarr", 31, 20, also)
    maps, shape = ["heatmap", *also], (20, 31)
    rng = np.random.default_rng(1)
    for name in maps:
        zarr.open_array(store.path / name / "0", mode="r+")[...] = rng.random(shape).astype(np.float32)
    zarr.open_array(store.path / "labels/status/0", mode="r+")[...] = rng.integers(0, 4, shape)
    store.write_pyramid()
    store.write_display()
    root = zarr.open_group(store.path, mode="r")
    image, labels = root.attrs["ome"], root["labels/status"].attrs["ome"]
    levels = image["multiscales"][0]["datasets"]
    assert [axis["name"] for axis in image["multiscales"][0]["axes"]] == ["c", "y", "x"]
    # A viewer that leaves translations out, and one that draws from corners, err by half a pixel.
    assert max(levels[0]["coordinateTransformations"][0]["scale"][1:]) < 12
    windows = [(channel["label"], channel["window"]["end"]) for channel in image["omero"]["channels"]]
    assert windows == [(MAP_TITLES[name], 0.5 if name == "uncertainty" else 1.0) for name in maps]
    assert [channel["active"] for channel in image["omero"]["channels"]] == [True] + [False] * len(also)
    for name in ("status", "tissue"):
        datasets = root[f"labels/{name}"].attrs["ome"]["multiscales"][0]["datasets"]
        assert len(datasets) == len(levels)
    plane = plan.grid.map_plane
    for level, label in zip(levels, labels["multiscales"][0]["datasets"], strict=True):
        scale, translation = (t[t["type"]][1:] for t in level["coordinateTransformations"])
        pixels, status = (
            np.asarray(root[name]) for name in (level["path"], f"labels/status/{label['path']}")
        )
        assert pixels.shape == (len(maps), *status.shape)
        if scale[0] > plane.downsample_y * MPP0[1] * 1.001:
            continue
        # Which cell holds the centre of each pixel, by micrometres alone.
        y0, x0 = (
            (np.arange(n) * scale[i] + translation[i]) / MPP0[1 - i] for i, n in enumerate(status.shape)
        )
        columns, rows = (np.floor(xy).astype(int) for xy in plane.point_from_level0(x0, y0))
        for channel, name in enumerate(maps):
            assert np.array_equal(pixels[channel], np.asarray(root[f"{name}/0"])[np.ix_(rows, columns)])
        assert np.array_equal(status, np.asarray(root["labels/status/0"])[np.ix_(rows, columns)])
    assert max(np.asarray(root[levels[-1]["path"]]).shape[1:]) <= 64


def test_what_is_unfinished_is_the_same_of_a_new_store_and_of_one_opened_again(tmp_path: Path) -> None:
    store, plan = made(tmp_path / "slide.zarr")
    blocks = list(plan.blocks())
    for written in (0, 1):
        for block in blocks[:written]:
            shape = (block.cells.height, block.cells.width)
            store.write_block(block.cells, np.zeros(shape, np.float32), np.ones(shape, np.uint8))
        left = [block.cells for block in blocks[written:]]
        for found in (store, SlideStore(store.path)):
            assert [block.cells for block in found.unfinished(blocks)] == left


def test_blocks_are_brought_into_the_store_side_by_side_and_told_in_their_order(tmp_path: Path) -> None:
    store, plan = made(tmp_path / "slide.zarr")
    blocks = list(plan.blocks())
    scores = [np.full(len(block.patches), i / 16, np.float32) for i, block in enumerate(blocks)]
    scored = [ScoredBlock(block, values) for block, values in zip(blocks, scores, strict=True)]
    assert list(commit_blocks(scored, plan, store, lambda: None)) == blocks
    assert SlideStore(store.path).unfinished(blocks) == []
    heatmap = SlideStore(store.path).array("heatmap/0")
    for block, values in zip(blocks, scores, strict=True):
        cells = heatmap[block.cells.y : block.cells.bottom, block.cells.x : block.cells.right]
        assert (cells == values[0]).all()


def test_of_blocks_that_cannot_be_committed_the_others_are_whole(tmp_path: Path) -> None:
    store, plan = made(tmp_path / "slide.zarr")
    blocks = list(plan.blocks())
    assert len(blocks) > 2
    calls = itertools.count()

    def changed() -> None:
        if next(calls) == 1:
            raise SlideChangedError("another file")

    scored = (ScoredBlock(block, np.zeros(len(block.patches), np.float32)) for block in blocks)
    committed = commit_blocks(scored, plan, store, changed)
    with pytest.raises(SlideChangedError, match="another file"):
        list(committed)
    left = SlideStore(store.path).unfinished(blocks)
    assert 1 <= len(left) < len(blocks)
    status = store.array("labels/status/0")
    for block in blocks:
        cells = status[block.cells.y : block.cells.bottom, block.cells.x : block.cells.right]
        assert (cells == (Status.PLANNED if block in left else Status.SCORED)).all()


def test_a_chunk_is_the_bytes_that_zarr_writes(tmp_path: Path) -> None:
    ours, plan = made(tmp_path / "ours.zarr")
    theirs, _ = made(tmp_path / "theirs.zarr")
    heatmap = zarr.open_array(theirs.path / "heatmap/0", mode="r+")
    rng = np.random.default_rng(0)
    for block in plan.blocks():
        box = block.cells
        values = rng.random((box.height, box.width)).astype(np.float32)
        values[0, 0] = np.nan
        ours.write_block(box, values, np.ones(values.shape, np.uint8))
        heatmap[box.y : box.bottom, box.x : box.right] = values
    files = sorted(p.relative_to(theirs.path) for p in (theirs.path / "heatmap/0").rglob("*") if p.is_file())
    assert len(files) == len(list(plan.blocks())) + 1
    for name in files:
        assert (ours.path / name).read_bytes() == (theirs.path / name).read_bytes(), name


def test_an_ensembles_store_holds_its_uncertainty_beside_the_map(tmp_path: Path) -> None:
    store, plan = made(tmp_path / "slide.zarr", also=("uncertainty",))
    block = next(iter(plan.blocks())).cells
    values, spread = np.random.default_rng(0).random((2, block.height, block.width)).astype(np.float32) / 2
    spread[1, 2] = np.nan
    store.write_block(block, values, np.ones(values.shape, np.uint8), spread)
    assert (store.status(block) == Status.SCORED).all()
    store.write_pyramid()
    y, x = slice(block.y, block.bottom), slice(block.x, block.right)
    reopened = SlideStore(tmp_path / "slide.zarr")
    assert np.array_equal(reopened.array("heatmap/0")[y, x], values)
    assert np.array_equal(reopened.array("uncertainty/0")[y, x], spread, equal_nan=True)
    assert np.isnan(reopened.array("uncertainty/0")).sum() == 90 * 150 - spread.size + 1
    assert reopened.array("uncertainty/1")[0, 0] == pytest.approx(spread[:2, :2].mean(), rel=1e-6)
    group = zarr.open_group(store.path, mode="r")
    levels = [group[name].attrs["ome"]["multiscales"][0]["datasets"] for name in ("heatmap", "uncertainty")]
    assert levels[0] == levels[1]  # both lie at the same place
    for name in ("", "heatmap", "uncertainty"):
        assert Image.from_zarr(group[name] if name else group).attributes.ome.multiscales
    made(tmp_path / "other.zarr")
    assert not (tmp_path / "other.zarr/uncertainty").exists()


def test_a_chunk_of_an_ensemble_is_not_done_before_its_uncertainty_is(
    tmp_path: Path,
) -> None:
    store, plan = made(tmp_path / "slide.zarr", also=("uncertainty",))
    block = next(iter(plan.blocks())).cells
    values = np.zeros((block.height, block.width), np.float32)
    with pytest.raises(ValueError):  # noqa: PT011
        # A spread that cannot be written: of another shape.
        store.write_block(block, values, np.ones(values.shape, np.uint8), np.zeros((3, 5), np.float32))
    assert (store.status(block) == Status.PLANNED).all()


def test_coarser_levels_are_means_of_what_is_scored(tmp_path: Path) -> None:
    store, values = filled(tmp_path / "slide.zarr")
    level1, level2 = store.array("heatmap/1"), store.array("heatmap/2")
    assert level1.shape == (45, 75)
    assert level1[0, 0] == pytest.approx(values[:2, :2].mean(), rel=1e-6)
    assert np.isnan(level1[5:10, 15:30]).all()
    assert level2.shape == (23, 38)
    assert store.array("labels/status/1").shape == level1.shape


def test_a_chunk_that_is_written_is_scored_and_the_others_are_planned(tmp_path: Path) -> None:
    store, plan = made(tmp_path / "slide.zarr")
    first, second = list(plan.blocks())[:2]
    assert (store.status(first.cells) == Status.PLANNED).all()
    shape = (first.cells.height, first.cells.width)
    store.write_block(first.cells, np.zeros(shape, np.float32), np.ones(shape, np.uint8))
    again = SlideStore(tmp_path / "slide.zarr")
    assert (again.status(first.cells) == Status.SCORED).all()
    assert (again.status(second.cells) == Status.PLANNED).all()
    assert not again.is_complete


def test_writing_a_chunk_touches_no_other_file(tmp_path: Path) -> None:
    store, plan = made(tmp_path / "slide.zarr")
    block = list(plan.blocks())[4]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    shape = (block.cells.height, block.cells.width)
    store.write_block(block.cells, np.zeros(shape, np.float32), np.ones(shape, np.uint8))
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    written = [p.relative_to(store.path) for p in after if before.get(p) != after[p]]
    assert sorted(p.parts[:2] for p in written) == [("heatmap", "0"), ("labels", "status")]
    assert {p.parts[-2:] for p in written} == {("0", "4")}


def test_a_new_store_replaces_the_old_one_whole(tmp_path: Path) -> None:
    filled(tmp_path / "slide.zarr")
    store, _ = made(tmp_path / "slide.zarr", columns=10, rows=10)
    assert np.isnan(store.array("heatmap/0")).all()
    assert store.array("heatmap/0").shape == (10, 10)
    assert [p.name for p in tmp_path.iterdir()] == ["slide.zarr"]


def test_what_is_no_store_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slide.zarr").mkdir()
    with pytest.raises(RecipeError, match="not a slide store"):
        SlideStore(tmp_path / "slide.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(RecipeError, match="--overwrite"):
        SlideStore(tmp_path / "other.zarr")


def test_no_patches_at_all_can_be_stored(tmp_path: Path) -> None:
    grid = Grid(Plane(16, 16), 50, 50, 3, 3)
    none = np.zeros((3, 3), np.bool_)
    plan = Plan(grid, none.astype(np.float32), none, none, 8)
    empty = PatchTable(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), None)
    mask = np.zeros((5, 5), np.uint8)
    layout = StoreLayout(plan, MPP0, mask, Plane(30, 30), empty, ("heatmap",))
    store = create_store(tmp_path / "slide.zarr", {}, layout)
    store.write_pyramid()
    assert store.array("patches/x0").shape == (0,)


def test_cells_read_back_as_written(tmp_path: Path) -> None:
    store, _ = made(tmp_path / "slide.zarr")
    assert (store.status(Box(3, 4, 20, 10)) == 4).all()
    assert store.map_recipe == {"command": "infer-slide"}
