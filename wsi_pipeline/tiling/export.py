"""Patches written as PNGs, in the IDC set's folders."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.files import OutPath, names, sync_tree, write_json, write_many
from wsi_pipeline.base.images import png_bytes
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.export_info import EXPORT_FILE, ExportInfo
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.patches import patch_positions, read_blocks

log = logging.getLogger(__name__)

# Threads that decode ahead of the PNG writer.
EXPORT_THREADS = 2

# What the folders of exported patches are called.
UNLABELLED = "unlabelled"

LABEL_FOLDERS = (UNLABELLED, "0", "1")


def write_patches(
    slide: Slide,
    plan: Plan,
    labels: NDArray[np.int8] | None,
    folder: OutPath,
    info: ExportInfo,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write each patch as PNG in the IDC set's layout; gives the number that could not be decoded.

    The names are <0|1>/<slide>_x<x0>_y<y0>_class<0|1>.png with level-0 pixels, or unlabelled/<slide>_x.._y...png
    where a patch has no label: `labels` are int8 [n] of the kept patches, 1, 0, or -1 for none; None: none has.
    `info` is written beside them first, as export.json, and its scale into each PNG.
    Blocks whose patches all lie in `folder` already are passed over: they are of a run that was broken off. Raises
    OutputError.
    """
    grid = plan.grid
    write_json(folder / EXPORT_FILE, info.as_json())
    places = _png_places(slide.name, plan, labels)
    todo = plan.scored.copy()  # a patch on the rim of two blocks is written once
    total, unreadable = int(todo.sum()), 0
    there = {f"{label}/{name}" for label in LABEL_FOLDERS for name in names(folder / label)}
    blocks = []
    for block in plan.blocks():
        if all(places[row, column] in there for column, row in block.patches.tolist()):
            todo[block.patches[:, 1], block.patches[:, 0]] = False
        else:
            blocks.append(block)
    if progress:
        progress(total - int(todo.sum()), total)
    for block, cut in read_blocks(blocks, grid, grid.reader(slide), EXPORT_THREADS):
        files: dict[str, bytes] = {}
        for (column, row), rgb, readable in zip(block.patches, cut.rgb, cut.readable, strict=True):
            if not todo[row, column]:
                continue
            todo[row, column] = False
            if readable:
                files[places[row, column]] = png_bytes(Image.fromarray(rgb), info.mpp)
            else:
                unreadable += 1
        log.debug("done block %d, %d", block.cells.x, block.cells.y)
        slide.check_unchanged()
        write_many(folder, files)
        if progress:
            progress(total - int(todo.sum()), total)
    sync_tree(folder)
    return unreadable


def count_exported(folder: OutPath) -> int:
    """The patches that lie in `folder` as PNG."""
    return sum(len(names(folder / label)) for label in LABEL_FOLDERS)


def export_names(
    name: str, plan: Plan, labels: NDArray[np.int8] | None, cells: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """Where the patches of these rows and columns go, <label>/<name>.png, as `write_patches` names them."""
    places = _png_places(name, plan, labels)
    return tuple(places[cell] for cell in cells)


def _png_places(name: str, plan: Plan, labels: NDArray[np.int8] | None) -> dict[tuple[int, int], str]:
    """Where each kept patch's PNG goes, by the patch's row and column."""
    x0, y0, _ = patch_positions(plan)
    places = {}
    for i, (row, column) in enumerate(np.argwhere(plan.kept).tolist()):
        is_labelled = labels is not None and labels[i] >= 0
        label = str(labels[i]) if labels is not None and is_labelled else UNLABELLED
        suffix = f"_class{label}" if is_labelled else ""
        places[row, column] = f"{label}/{name}_x{x0[i]}_y{y0[i]}{suffix}.png"
    return places
