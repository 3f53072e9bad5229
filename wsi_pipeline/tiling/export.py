"""A slide's patches written out: as PNGs in folders of their labels, as the IDC set names them, or as shards."""

import logging
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.errors import OutputError
from wsi_pipeline.base.files import (
    OutPath,
    folders,
    names,
    new_file,
    remove,
    sync_tree,
    write_json,
    write_many,
)
from wsi_pipeline.base.images import png_bytes
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.export_draw import FIRST_INDEX
from wsi_pipeline.tiling.export_info import EXPORT_FILE, ExportInfo, read_export
from wsi_pipeline.tiling.export_shards import add_sample, samples_in, shard_name
from wsi_pipeline.tiling.grid import Block, Plan
from wsi_pipeline.tiling.patch_labels import NO_LABEL
from wsi_pipeline.tiling.patches import part_of, patch_positions, read_blocks

log = logging.getLogger(__name__)

# Row and column of a patch on the grid.
Cell: TypeAlias = tuple[int, int]
Progress: TypeAlias = Callable[[int, int], None]

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
    progress: Progress | None,
    chosen: NDArray[np.bool_] | None = None,
) -> int:
    """Write the chosen patches (none: all that are planned) into `folder`, in the format that `info` names.

    Gives the number that could not be decoded. `labels` are int8 [n] of the kept patches, 1, 0, or -1 for none; None:
    none has. As PNGs they lie at <0|1>/<slide>_x<x0>_y<y0>_class<0|1>.png with level-0 pixels, or at
    unlabelled/<slide>_x.._y...png; in the IDC set's layout, `folder` being the patient's, at
    <0|1>/<patient>_idx5_x<x>_y<y>_class<0|1>.png, with pixels of the patches' own scale, counted from 1.
    `info` is written beside them first, as export.json, and its scale into each PNG; of shards again at the end, with
    a list of them. Where `folder` holds an export of other options, it is removed first; what an export of these left
    when it was broken off is kept. Raises OutputError.
    """
    chosen = plan.scored if chosen is None else chosen & plan.scored
    _make_way(folder, info)
    if info.format == "shards":
        return _write_shards(slide, plan, labels, folder, info, progress, chosen)
    write_json(folder / EXPORT_FILE, info.as_json())
    places = _png_places(info, plan, labels)
    there = {f"{label}/{name}" for label in LABEL_FOLDERS for name in names(folder / label)}
    todo = chosen.copy()
    for cell, place in places.items():
        if place in there:
            todo[cell] = False
    unreadable = 0
    for patches in _read(slide, plan, todo, int(chosen.sum()), progress):
        files = {
            places[cell]: png_bytes(Image.fromarray(rgb), info.mpp)
            for cell, rgb in patches
            if rgb is not None
        }
        unreadable += len(patches) - len(files)
        write_many(folder, files)
    sync_tree(folder)
    return unreadable


def _write_shards(
    slide: Slide,
    plan: Plan,
    labels: NDArray[np.int8] | None,
    folder: OutPath,
    info: ExportInfo,
    progress: Progress | None,
    chosen: NDArray[np.bool_],
) -> int:
    write_json(folder / EXPORT_FILE, replace(info, shards=None).as_json())
    shard_of = _numbered(plan, chosen) // int(info.options["shard_patches"])  # [rows, columns]
    every = [int(number) for number in np.unique(shard_of[chosen])]
    there = names(folder)
    done = [number for number in every if shard_name(info.slide, number) in there]
    todo = chosen & ~np.isin(shard_of, done)
    row_of = np.full(plan.kept.shape, -1)
    row_of[plan.kept] = np.arange(plan.kept.sum())
    x0, y0, _ = patch_positions(plan)
    blocks = _read(slide, plan, todo, int(chosen.sum()), progress)
    readable = ((cell, rgb) for patches in blocks for cell, rgb in patches if rgb is not None)
    for number, patches_of in groupby(readable, lambda patch: int(shard_of[patch[0]])):
        with (
            new_file(folder / shard_name(info.slide, number)) as file,
            tarfile.open(fileobj=file, mode="w") as tar,
        ):
            for cell, rgb in patches_of:
                row = row_of[cell]
                label = NO_LABEL if labels is None else int(labels[row])
                add_sample(tar, info, (int(x0[row]), int(y0[row])), label, rgb)
    written = [shard_name(info.slide, number) for number in every]
    there = names(folder)  # a shard none of whose patches could be decoded was never begun
    shards = tuple((name, samples_in(folder / name)) for name in written if name in there)
    write_json(folder / EXPORT_FILE, replace(info, shards=shards).as_json())
    sync_tree(folder)
    return int(chosen.sum()) - sum(count for _, count in shards)


def _make_way(folder: OutPath, info: ExportInfo) -> None:
    """Remove what is of other options in the slide's folder of exports, of which `folder` is one.

    What no export.json describes is not ours to remove: beside `folder` it stays, in it OutputError is raised, unless
    the export is a plain one, which earlier versions wrote without.
    """
    is_plain = info.format == "png" and info.options.get("unlabelled", True) and "seed" not in info.options
    for name in folders(folder.parent):
        place, is_this = folder.parent / name, name == folder.name
        there = read_export(place)
        if there is None:
            if is_this and not is_plain and (names(place) or folders(place)):
                raise OutputError(
                    f"{place}: found files without an {EXPORT_FILE} that says what they are, expected an export or "
                    "nothing; move them elsewhere"
                )
        elif not is_this or (there.options != info.options and not (is_plain and not there.options)):
            log.warning("%s: an export of other options is removed", place)
            remove(place)


def _read(
    slide: Slide, plan: Plan, todo: NDArray[np.bool_], total: int, progress: Progress | None
) -> Iterator[list[tuple[Cell, NDArray[np.uint8] | None]]]:
    """A block's patches at a time, of the cells in `todo`, each once: uint8 [patch_px, patch_px, 3], or none where
    it cannot be decoded. Always in the same order, whatever is left out."""
    grid = plan.grid
    done = total - int(todo.sum())
    if progress:
        progress(done, total)
    for block, cut in read_blocks(_claimed(plan, todo), grid, grid.reader(slide), EXPORT_THREADS):
        slide.check_unchanged()
        yield [
            ((row, column), rgb if readable else None)
            for (column, row), rgb, readable in zip(
                block.patches.tolist(), cut.rgb, cut.readable, strict=True
            )
        ]
        log.debug("done block %d, %d", block.cells.x, block.cells.y)
        done += len(block.patches)
        if progress:
            progress(done, total)


def _claimed(plan: Plan, wanted: NDArray[np.bool_]) -> Iterator[Block]:
    """The blocks of the wanted patches, with these alone; a patch on the rim of two is of the first."""
    left = wanted.copy()
    for block in plan.blocks():
        columns, rows = block.patches.T
        mine = left[rows, columns]
        left[rows, columns] = False
        if mine.all():
            yield block
        elif mine.any():
            yield part_of(block, mine, plan.grid)


def _numbered(plan: Plan, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 [rows, columns]: when each chosen patch is read, counted from 0; 0 of the others."""
    numbers, count = np.zeros(chosen.shape, np.int64), 0
    for block in _claimed(plan, chosen):
        columns, rows = block.patches.T
        numbers[rows, columns] = np.arange(count, count + len(block.patches))
        count += len(block.patches)
    return numbers


def count_exported(folder: OutPath, info: ExportInfo) -> int:
    """The patches that lie in `folder`, as `info`, its export.json, says they are kept."""
    if info.format != "shards":
        return sum(len(names(folder / label)) for label in LABEL_FOLDERS)
    there = names(folder)
    return sum(count for name, count in info.shards or () if name in there)


def export_names(
    info: ExportInfo, plan: Plan, labels: NDArray[np.int8] | None, cells: Sequence[Cell]
) -> tuple[str, ...]:
    """Where the patches of these cells go, <label>/<name>.png, as `write_patches` names them."""
    places = _png_places(info, plan, labels)
    return tuple(places[cell] for cell in cells)


def _png_places(info: ExportInfo, plan: Plan, labels: NDArray[np.int8] | None) -> Mapping[Cell, str]:
    """Where each kept patch's PNG goes, by the patch's row and column."""
    x0, y0, _ = patch_positions(plan)
    stride, places = plan.grid.stride_px, {}
    for i, (row, column) in enumerate(np.argwhere(plan.kept).tolist()):
        is_labelled = labels is not None and labels[i] >= 0
        label = str(labels[i]) if labels is not None and is_labelled else UNLABELLED
        suffix = f"_class{label}" if is_labelled else ""
        if info.format == "idc":
            index = FIRST_INDEX + info.options["slide_of_patient"][0]
            name = f"{info.patient or info.slide}_idx{index}_x{column * stride + 1}_y{row * stride + 1}"
        else:
            name = f"{info.slide}_x{x0[i]}_y{y0[i]}"
        places[row, column] = f"{label}/{name}{suffix}.png"
    return places
