"""Labelled patches as `tile-slides` planned them, read from the slides themselves: nothing is exported.

A folder of run folders, each with its slide.zarr, says which patches there are, their labels, and where the slide
lies. Held in memory are some 30 bytes a patch; pixels are read when they are wanted (slide_epochs.py).
"""

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError, RecipeError, SlideError
from wsi_pipeline.base.geometry import Plane, Size
from wsi_pipeline.base.options import Field, options, options_from_dict
from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.datasets.listing import UNLABELLED, By, Listing, named_by_pattern
from wsi_pipeline.learning.datasets.scale import DataScale
from wsi_pipeline.learning.datasets.split import SplitOptions, split_sides
from wsi_pipeline.models.stain import Normaliser
from wsi_pipeline.results.run_folder import read_summary
from wsi_pipeline.results.store import STORE_NAME, SlideStore
from wsi_pipeline.slides.slide import PlaneReader, Slide, open_slide
from wsi_pipeline.tiling.grid import Grid, GridOptions, patch_means, plan_grid
from wsi_pipeline.tiling.storage_tiles import storage_tiles

log = logging.getLogger(__name__)

LAYOUT = "slides cut by tile-slides"
REJECTED = 2  # of labels/tissue
# What is read at once is at least as wide as so many patches, or too many would lie over its edges.
PATCHES_A_PIECE = 5


@options
class SlideReadOptions:
    """How patches are read from slides while a network is trained, where `patches_from` is 'slides'."""

    pool_patches: Annotated[int, Field(gt=0)] = 32_768
    """Batches are drawn from so many patches at a time, which lie in memory: 250 MB of 50 x 50 px. More mix better."""

    read_px: Annotated[int, Field(ge=256)] = 2048
    """About the side of what is read at once, in pixels of the level read: whole storage tiles, which are decoded
    together and not again in the same epoch. At least five patches wide."""

    slides_at_once: Annotated[int, Field(gt=0)] = 8
    """So many slides are open together, and patches of all of them are mixed; each is opened once an epoch."""

    patches_an_epoch: Annotated[int, Field(gt=0)] | None = None
    """An epoch ends after about so many patches, of places on all slides, others in each epoch. None: after all."""

    val_patches: Annotated[int, Field(gt=1)] = 50_000
    """Of the patches to evaluate on so many are drawn by the seed and kept in memory; of fewer, all."""

    sample_patches: Annotated[int, Field(gt=1)] = 16_384
    """Of the training slides about so many are read first, as many of each: they tell mean, deviation and stain."""


@dataclass(frozen=True, eq=False)
class TiledSlide:
    """One slide as `tile-slides` planned it."""

    name: str
    path: Path
    fingerprint: str
    # um per level-0 pixel, along x and y, and whether the user gave it instead of the file's.
    mpp: tuple[float, float]
    mpp_is_given: bool
    grid: Grid
    patient: str
    # Storage tiles along x and y of what is read at once.
    piece: tuple[int, int]

    @property
    def patch_mpp(self) -> float:
        """um per pixel of its patches."""
        return round(self.grid.plane.downsample_x * self.mpp[0], 6)

    def open(self) -> Slide:
        """The slide, opened. Raises DataError where it is another one now, SlideError where it cannot be opened."""
        return _opened(self.path, self.name, self.fingerprint, self.mpp, self.mpp_is_given)


@dataclass(frozen=True, eq=False)
class SlidePatches:
    """Labelled patches of several slides, without their pixels; arrays are as long as there are patches."""

    slides: tuple[TiledSlide, ...]
    # int32, of which of `slides`; ascending.
    slide: NDArray[np.int32]
    # int32 [N, 2], column and row on the slide's grid.
    places: NDArray[np.int32]
    # int32 [N, 4], first and last storage tile along x, then along y.
    tiles: NDArray[np.int32]
    # uint8, 1 IDC, 0 not.
    labels: NDArray[np.uint8]
    by: By
    scale: DataScale
    reading: SlideReadOptions = field(default_factory=SlideReadOptions)
    skip_unreadable: bool = False
    # By the slide's place in `slides`: how its stain is normalised once it is read.
    tables: tuple[Normaliser | None, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def patients(self) -> NDArray[np.str_]:
        """[N], names of patients, or of slides where nobody knows patients."""
        return np.array([slide.patient for slide in self.slides])[self.slide]

    def names(self) -> NDArray[np.str_]:
        """[N], what each patch is called: its slide and the level-0 pixel of its corner, as exports have it."""
        x0, y0 = np.empty(len(self), np.int64), np.empty(len(self), np.int64)
        for index, slide in enumerate(self.slides):
            rows, plane, stride = self.slide == index, slide.grid.plane, slide.grid.stride_px
            for into, axis, origin, step in (
                (x0, 0, plane.origin_x0, plane.downsample_x),
                (y0, 1, plane.origin_y0, plane.downsample_y),
            ):
                into[rows] = np.floor(origin + self.places[rows, axis] * stride * step + 1e-6)
        slides = [self.slides[index].name for index in self.slide.tolist()]
        return np.array(
            [
                f"{name}_x{x}_y{y}_class{label}"
                for name, x, y, label in zip(
                    slides, x0.tolist(), y0.tolist(), self.labels.tolist(), strict=True
                )
            ]
        )

    def taken(self, rows: NDArray[np.integer]) -> "SlidePatches":
        """The patches at the ascending indices `rows`."""
        return replace(
            self,
            slide=self.slide[rows],
            places=self.places[rows],
            tiles=self.tiles[rows],
            labels=self.labels[rows],
        )


def is_tiled(folder: Path) -> bool:
    """Whether the folder holds run folders of slides, whatever else lies there."""
    return any(folder.glob(f"*/{STORE_NAME}/zarr.json"))


def split_slides(
    folder: Path, split: SplitOptions, reading: SlideReadOptions
) -> tuple[SlidePatches, SlidePatches]:
    """The patches to train on, and those to evaluate on, of the slides that were cut into `folder`.

    Slides without a labelled patch are passed over, and the log says which. Raises DataError where none is left, a
    store is damaged or of an earlier plan, a patient would stand on two sides, or a side lacks a class; SlideError
    where a slide cannot be opened.
    """
    listing = _list(folder, split)
    sides = split_sides(listing, split)
    train, val = (_patches_of(folder, listing, side, split, reading) for side in sides)
    for name, patches in (("train", train), ("val", val)):
        if set(np.unique(patches.labels).tolist()) != {0, 1}:
            raise DataError(
                f"{folder}: found {counted(len(patches), f'{name} patch')}, expected some of both labels; correct "
                "the split in the config, or outline more"
            )
    return train, val


def all_slides(folder: Path, split: SplitOptions, reading: SlideReadOptions) -> SlidePatches:
    """The labelled patches of all slides that were cut into `folder`; raises as `split_slides`."""
    listing = _list(folder, split)
    return _patches_of(folder, listing, np.flatnonzero(listing.labels != UNLABELLED), split, reading)


def _list(folder: Path, split: SplitOptions) -> Listing:
    """The slides as a listing: each one an image of it, named by its run folder; unlabelled where no patch is."""
    stores = sorted(folder.glob(f"*/{STORE_NAME}")) if folder.is_dir() else []
    if not stores:
        raise DataError(
            f"{folder}: found no <slide>/{STORE_NAME}; expected what tile-slides --annotations left in its --out"
        )
    names, labelled = tuple(store.parent.name for store in stores), []
    for store in stores:
        labels = _store(store).patches().label
        labelled.append(labels is not None and bool((labels != UNLABELLED).any()))
    if without := [name for name, found in zip(names, labelled, strict=True) if not found]:
        log.warning(
            "%s: %s without a labelled patch passed over: %s",
            *(
                folder,
                counted(len(without), "slide"),
                ", ".join(without[:5]) + (" ..." if len(without) > 5 else ""),
            ),
        )
    if len(without) == len(names):
        raise DataError(f"{folder}: found no labelled patch; cut the slides with tile-slides --annotations")
    labels = np.where(labelled, 0, UNLABELLED).astype(np.int8)

    def load(index: int) -> NDArray[np.uint8]:
        raise DataError(f"{names[index]}: a slide, no image")

    none = np.full(len(names), "")
    listing = Listing(LAYOUT, folder, names, labels, np.array(names), "slide", none, load)
    return named_by_pattern(listing, split.patient_pattern) if split.patient_pattern else listing


def _store(path: Path) -> SlideStore:
    try:
        store = SlideStore(path, read_only=True)
    except RecipeError as error:
        raise DataError(str(error)) from error
    recipe = store.map_recipe or {}
    if recipe.get("command") != "tile-slides":
        raise DataError(
            f"{path}: found a store of {recipe.get('command', 'an earlier version')}, expected one of tile-slides"
        )
    return store


def _patches_of(
    folder: Path,
    listing: Listing,
    which: NDArray[np.int64],
    split: SplitOptions,
    reading: SlideReadOptions,
) -> SlidePatches:
    slides: list[TiledSlide] = []
    parts: list[tuple[NDArray[Any], ...]] = []
    for index in which.tolist():
        slide, places, tiles, labels = _read_run(
            folder / listing.names[index], str(listing.patients[index]), reading
        )
        known = labels != UNLABELLED
        slides.append(slide)
        parts.append(
            (np.full(int(known.sum()), len(parts), np.int32), places[known], tiles[known], labels[known])
        )
    if not slides:
        raise DataError(f"{folder}: found no slide on one side of the split; correct it in the config")
    of, places, tiles, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    patches = SlidePatches(
        tuple(slides),
        of,
        places,
        tiles,
        labels.astype(np.uint8),
        listing.by,
        _one_scale(folder, slides, len(of)),
        reading,
        split.skip_unreadable,
    )
    log.info(
        "%s of %s, read from the slides",
        counted(len(patches), "labelled patch"),
        counted(len(slides), "slide"),
    )
    return patches


def _one_scale(folder: Path, slides: list[TiledSlide], patches: int) -> DataScale:
    found = {(slide.grid.patch_px, slide.patch_mpp): slide.name for slide in slides}
    if len(found) > 1:
        several = "; ".join(f"{px} px at {mpp:g} um/px ({name})" for (px, mpp), name in found.items())
        raise DataError(
            f"{folder}: found patches of several kinds, {several}; expected one; cut all slides alike"
        )
    patch_px, mpp = next(iter(found))
    return DataScale(mpp, patch_px, "the stores of tile-slides", patches, patches)


def _read_run(
    folder: Path, patient: str, reading: SlideReadOptions
) -> tuple[TiledSlide, NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
    """The slide of a run folder; of each patch that is no artefact its place, its storage tiles and its label."""
    store = _store(folder / STORE_NAME)
    recipe, summary, table = store.map_recipe or {}, read_summary(folder), store.patches()
    try:
        known, options_there = recipe["slide"], recipe["options"]["grid"]
        path, is_given = Path(summary["slide"]), bool(summary["mpp_overridden"])
        wanted = options_from_dict(GridOptions, options_there, str(folder / STORE_NAME))
        name, fingerprint = str(known["name"]), str(known["fingerprint"])
        mpp = (float(known["mpp"][0]), float(known["mpp"][1]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder}: does not say of which slide it is ({error!r}): its run was broken off, or it is damaged; run "
            "the same tile-slides again"
        ) from error
    if not path.exists():
        raise DataError(
            f"{folder}: its slide, {path}, is not there; put it back, or cut it where it is now, with --overwrite"
        )
    try:
        with _opened(path, name, fingerprint, mpp, is_given) as opened:
            grid = plan_grid(opened, wanted)
            places = _places_of(table.x0, table.y0, grid)
            kept = ~_is_artefact(store, grid, places, mpp, wanted, recipe)
            places = places[kept]
            reader = grid.reader(opened)
            tiles = storage_tiles(grid, reader, places[:, 0], places[:, 1])
            piece = _tiles_a_piece(grid, reader, opened.tile_sizes[reader.level], reading.read_px)
    except SlideError as error:
        raise DataError(f"{folder}: its slide cannot be read: {error}") from error
    labels = np.full(len(kept), UNLABELLED, np.int8) if table.label is None else table.label
    slide = TiledSlide(name, path, fingerprint, mpp, is_given, grid, patient, piece)
    return slide, places, tiles, labels[kept]


def _opened(path: Path, name: str, fingerprint: str, mpp: tuple[float, float], is_given: bool) -> Slide:
    """The slide, opened at the scale at which it was cut; raises DataError where it is another one now."""
    slide = open_slide(path, mpp=mpp[0] if is_given else None, name=name)
    if slide.fingerprint() == fingerprint and slide.mpp == mpp:
        return slide
    slide.close()
    raise DataError(
        f"{path}: its content or scale is not that of the slide that tile-slides cut as '{name}'; put that one back, "
        "or cut this one, with --overwrite"
    )


def _tiles_a_piece(grid: Grid, reader: PlaneReader, tile: Size, read_px: int) -> tuple[int, int]:
    """Storage tiles along x and y of about `read_px` pixels of the level, or of PATCHES_A_PIECE patches."""
    least_x, least_y = (math.ceil(PATCHES_A_PIECE * grid.patch_px * step) for step in reader.step)
    return max(1, round(max(read_px, least_x) / tile.width)), max(
        1, round(max(read_px, least_y) / tile.height)
    )


def _places_of(x0: NDArray[np.int32], y0: NDArray[np.int32], grid: Grid) -> NDArray[np.int32]:
    """int32 [n, 2], columns and rows of patches whose level-0 corners, floored, are these."""
    plane, stride = grid.plane, grid.stride_px
    columns = (x0 + 0.5 - plane.origin_x0) / (stride * plane.downsample_x)
    rows = (y0 + 0.5 - plane.origin_y0) / (stride * plane.downsample_y)
    return np.stack([np.round(columns), np.round(rows)], axis=1).astype(np.int32)


def _is_artefact(
    store: SlideStore,
    grid: Grid,
    places: NDArray[np.int32],
    mpp: tuple[float, float],
    options: GridOptions,
    recipe: dict[str, Any],
) -> NDArray[np.bool_]:
    """bool [n]: which of the kept patches are mostly artefact, so that no map scores them and no export has them."""
    if recipe["plan"]["patches"] == recipe["plan"]["kept"]:
        return np.zeros(len(places), np.bool_)
    (width, height), (x, y) = store.cells_um("labels/tissue")
    plane = Plane(width / mpp[0], height / mpp[1], (x - width / 2) / mpp[0], (y - height / 2) / mpp[1])
    share = patch_means(grid, store.array("labels/tissue/0") == REJECTED, plane)
    return np.asarray(share[places[:, 1], places[:, 0]] > options.max_rejected)
