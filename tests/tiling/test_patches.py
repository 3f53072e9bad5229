import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import noise
from PIL import Image

from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.slides.slide import Pixels, open_slide
from wsi_pipeline.tiling.export import write_patches
from wsi_pipeline.tiling.export_info import ExportInfo, export_of, scale_in
from wsi_pipeline.tiling.grid import GridOptions, plan_patches
from wsi_pipeline.tiling.patches import patch_positions, read_blocks

MakeSlide = Callable[..., Path]
INFO = ExportInfo("a", "f", 50, 50, 0.5, (0.2, 0.3, 0.1), 64)


def everything(path: Path, **grid: object):
    slide = open_slide(path)
    mask = np.ones((-(-slide.size0.height // 16), -(-slide.size0.width // 16)), np.bool_)
    options = GridOptions(patch_px=50, mpp=0.5, **grid)  # type: ignore[arg-type]
    return slide, plan_patches(slide, mask, ~mask, Plane(16, 16), options)


@pytest.mark.parametrize("stride", [50, 25, 20, 70])
def test_cut_patches_are_the_slide_there(make_slide: MakeSlide, stride: int) -> None:
    image = noise(430, 610)
    slide, plan = everything(make_slide("a.tiff", image, factors=(1,)), stride_px=stride, block_px=256)
    padded = np.pad(image, ((0, 100), (0, 100), (0, 0)), constant_values=255)
    seen = np.zeros(plan.kept.shape, np.bool_)
    for block, cut in read_blocks(
        plan.blocks(), plan.grid, lambda b: slide.read_readable(b, plan.grid.plane), 2
    ):
        for (column, row), rgb in zip(block.patches, cut.rgb, strict=True):
            seen[row, column] = True
            y, x = row * stride, column * stride
            assert np.array_equal(rgb, padded[y : y + 50, x : x + 50])
    assert np.array_equal(seen, plan.scored)


@pytest.mark.parametrize("stride", [50, 20])
def test_patches_far_apart_in_a_block_are_read_without_what_lies_between(
    make_slide: MakeSlide, stride: int
) -> None:
    image = noise(1000, 1000)
    slide = open_slide(make_slide("a.tiff", image, factors=(1,)))
    mask = np.zeros((100, 100), np.bool_)
    mask[:20, :20] = mask[70:, 80:] = True
    options = GridOptions(patch_px=50, mpp=0.5, stride_px=stride, min_tissue=1, block_px=4096)
    plan = plan_patches(slide, mask, np.zeros_like(mask), Plane(10, 10), options)
    boxes: list[Box] = []

    def read(box: Box) -> Pixels:
        boxes.append(box)
        return slide.read_readable(box, plan.grid.plane)

    ((block, cut),) = read_blocks(plan.blocks(), plan.grid, read, 2)
    assert sum(box.width * box.height for box in boxes) < 0.12 * 1000 * 1000
    for (column, row), rgb in zip(block.patches * stride, cut.rgb, strict=True):
        assert np.array_equal(rgb, image[row : row + 50, column : column + 50])


@pytest.mark.parametrize("threads", [1, 3])
def test_only_so_many_blocks_are_in_memory(make_slide: MakeSlide, threads: int) -> None:
    slide, plan = everything(make_slide("a.tiff", noise(600, 900)), block_px=256)
    started, taken, most = [0], [0], [0]
    lock = threading.Lock()

    def read(box: Box) -> Pixels:
        with lock:
            started[0] += 1
            most[0] = max(most[0], started[0] - taken[0])
        return slide.read_readable(box, plan.grid.plane)

    for _ in read_blocks(plan.blocks(), plan.grid, read, threads):
        taken[0] += 1
    assert taken[0] > 6
    assert most[0] <= threads + 2


def test_an_error_in_a_reader_reaches_the_caller(make_slide: MakeSlide) -> None:
    _, plan = everything(make_slide("a.tiff", noise(300, 300)))

    def read(box: Box) -> Pixels:
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(read_blocks(plan.blocks(), plan.grid, read, 2))


@pytest.mark.parametrize("stride", [50, 30])
def test_exported_patches_lie_in_the_idc_layout_each_once(
    make_slide: MakeSlide, tmp_path: Path, stride: int
) -> None:
    image = noise(300, 400)
    slide, plan = everything(make_slide("a.tiff", image, factors=(1,)), stride_px=stride, block_px=256)
    x0, y0, _ = patch_positions(plan)
    labels = (x0 >= 200).astype(np.int8)
    assert write_patches(slide, plan, labels, tmp_path / "export", INFO, None) == 0
    files = list((tmp_path / "export").rglob("*.png"))
    assert len(files) == plan.scored.sum()
    for x, y, label in zip(x0, y0, labels, strict=True):
        file = tmp_path / "export" / str(label) / f"a_x{x}_y{y}_class{label}.png"
        part = image[y : y + 50, x : x + 50]
        assert scale_in(file) == (0.5, 50)
        assert export_of(file.parent) == INFO
        assert np.array_equal(np.asarray(Image.open(file))[: part.shape[0], : part.shape[1]], part)


def test_patches_that_cannot_be_decoded_are_counted_not_written(shared: Path, tmp_path: Path) -> None:
    slide = open_slide(shared / "data/bad/five_tiles_corrupt.svs")
    mask = np.ones((186, 139), np.bool_)
    plan = plan_patches(slide, mask, ~mask, Plane(16, 16), GridOptions(patch_px=120, mpp=0.499))
    lost = write_patches(slide, plan, None, tmp_path / "out", INFO, None)
    assert lost == 20  # five storage tiles of 240 px, four patches of 120 px in each
    assert len(list((tmp_path / "out" / "unlabelled").glob("*.png"))) == plan.scored.sum() - lost
