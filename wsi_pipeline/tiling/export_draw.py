"""Which of a slide's patches are exported: all, or so many of each label, slide and patient, spread over the slide."""

import zlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.options import Field, options
from wsi_pipeline.base.text import counted
from wsi_pipeline.tiling.grid import Plan
from wsi_pipeline.tiling.patch_labels import NO_LABEL

ExportFormat = Literal["png", "idc", "shards"]
# What the two labels, and none, are called in export.json.
LABEL_NAMES = {1: "idc", 0: "not_idc", NO_LABEL: "unlabelled"}
# The number after "idx" in names of the public IDC set, where a patient has one slide; of further ones it counts on.
FIRST_INDEX = 5


@options
class ExportOptions:
    """What `tile-slides --export` writes of each slide, beside its store."""

    format: ExportFormat = "png"
    """png: one PNG a patch, in folders 0, 1 and unlabelled. idc: the same as the public IDC set names them,
    <patient>/<0|1>/<patient>_idx5_x<x>_y<y>_class<0|1>.png. shards: WebDataset tar files, for millions."""

    unlabelled: bool = True
    """Whether patches without a label are exported too; in the IDC set's layout they have no place."""

    most_of_class: Annotated[int, Field(gt=0)] | None = None
    """Of each slide at most so many patches of each label; none: all."""

    most_of_slide: Annotated[int, Field(gt=0)] | None = None
    """Of each slide at most so many patches, as evenly among its labels as they suffice; none: all."""

    most_of_patient: Annotated[int, Field(gt=0)] | None = None
    """As `most_of_slide`, but of all slides of a patient that the command was given, the same share of each. A slide
    whose patient is not known counts as a patient."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed draws others, spread as evenly over the slide."""

    shard_patches: Annotated[int, Field(gt=0)] = 10_000
    """Patches in a shard: of 50 x 50 px about 90 MB."""

    @property
    def draws(self) -> bool:
        """Whether anything limits the number of patches."""
        return any((self.most_of_class, self.most_of_slide, self.most_of_patient))


@dataclass(frozen=True)
class SlideOfPatient:
    """Whose slide it is, and which of that patient's among those given."""

    # Empty where the patient is not known.
    patient: str = ""
    number: int = 0
    of: int = 1


ONE_SLIDE = SlideOfPatient()


@dataclass(frozen=True, eq=False)
class Draw:
    """The patches of a slide that are exported."""

    # bool [rows, columns] of the grid.
    chosen: NDArray[np.bool_]
    # How many of each label are chosen, and how many are not.
    patches: dict[str, int]
    left_out: dict[str, int]

    @property
    def words(self) -> str:
        """For people; empty where nothing is left out."""
        left, total = sum(self.left_out.values()), sum(self.patches.values())
        if not left:
            return ""
        shares = ", ".join(
            f"{self.patches[name]:,} of {self.patches[name] + self.left_out[name]:,} {name}"
            for name in self.patches
            if self.patches[name] + self.left_out[name]
        )
        return (
            f"export: {total:,} of {counted(total + left, 'patch')} ({shares}); {left:,} left out, as the "
            "config says"
        )


def draw_patches(
    plan: Plan, labels: NDArray[np.int8] | None, opts: ExportOptions, whose: SlideOfPatient, fingerprint: str
) -> Draw:
    """The patches to export, by `opts`; of the same slide, plan and options always the same.

    `labels` are int8 [n] of the kept patches, as `label_patches` gives them; None: none has one. Those chosen of a
    label lie evenly along a curve that fills the slide (Z-order), from a place that seed and slide decide.
    """
    of_cells = np.full(plan.kept.shape, NO_LABEL, np.int8)
    if labels is not None:
        of_cells[plan.kept] = labels
    cells = {
        label: np.argwhere(plan.scored & (of_cells == label)) for label in LABEL_NAMES
    }  # [n, (row, column)]
    wanted = {label: min(len(own), opts.most_of_class or len(own)) for label, own in cells.items()}
    if not opts.unlabelled or opts.format == "idc":
        wanted[NO_LABEL] = 0
    limits = [opts.most_of_slide] if opts.most_of_slide else []
    if opts.most_of_patient:
        limits.append(opts.most_of_patient // whose.of + (whose.number < opts.most_of_patient % whose.of))
    if limits:
        wanted = evenly(wanted, min(limits))
    chosen = np.zeros(plan.kept.shape, np.bool_)
    for label, own in cells.items():
        seed = [opts.seed, zlib.crc32(fingerprint.encode()), label - NO_LABEL]
        rows, columns = own[_spread(own, wanted[label], np.random.default_rng(seed))].T
        chosen[rows, columns] = True
    counts = {name: wanted[label] for label, name in LABEL_NAMES.items()}
    left_out = {name: len(cells[label]) - wanted[label] for label, name in LABEL_NAMES.items()}
    return Draw(chosen, counts, left_out)


def export_recipe(opts: ExportOptions, whose: SlideOfPatient) -> dict[str, Any]:
    """All that decides which patches are exported and how, but the plan and its labels."""
    recipe: dict[str, Any] = {"format": opts.format, "patient": whose.patient, "unlabelled": opts.unlabelled}
    if opts.draws:
        recipe |= {
            "most_of_class": opts.most_of_class,
            "most_of_slide": opts.most_of_slide,
            "most_of_patient": opts.most_of_patient,
            "seed": opts.seed,
        }
    if opts.most_of_patient or opts.format == "idc":
        recipe |= {"slide_of_patient": [whose.number, whose.of]}
    if opts.format == "shards":
        recipe |= {"shard_patches": opts.shard_patches}
    return recipe


def kept_options(recipe: dict[str, Any]) -> dict[str, Any]:
    """The part of `export_recipe` that decides the files of patches: whose PNGs these are stands beside them alone."""
    return {name: value for name, value in recipe.items() if name != "patient" or recipe["format"] != "png"}


def evenly(have: dict[int, int], most: int) -> dict[int, int]:
    """Of each key as many as of any other, or all that it has; `most` together.

    >>> evenly({1: 10, 0: 500, -1: 90}, 100)
    {1: 10, 0: 45, -1: 45}
    """
    given, left = dict.fromkeys(have, 0), most
    for rank, key in enumerate(sorted(have, key=lambda key: have[key])):
        given[key] = min(have[key], left // (len(have) - rank))
        left -= given[key]
    return given


def _spread(cells: NDArray[np.integer], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Indices of `count` of the cells, int [n, 2], at equal steps along the Z-order curve through them."""
    if count == len(cells):
        return np.arange(count)
    along = np.lexsort((cells[:, 1], cells[:, 0], _z_order(cells)))
    steps = (np.arange(count) + rng.random()) * (len(cells) / max(count, 1))
    chosen: NDArray[np.intp] = np.sort(along[steps.astype(np.intp)])
    return chosen


def _z_order(cells: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Each cell's place on the curve: the bits of row and column, by turns."""
    place = np.zeros(len(cells), np.uint64)
    rows, columns = cells.astype(np.uint64).T
    for bit in range(31):
        for values, shift in ((columns, 2 * bit), (rows, 2 * bit + 1)):
            place |= ((values >> np.uint64(bit)) & np.uint64(1)) << np.uint64(shift)
    return place
