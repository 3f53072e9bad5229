"""From reviewed maps to a new model: the list of slides, the config to cut them by, and the commands, as lines."""

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from wsi_pipeline.base.files import OutPath, write_bytes
from wsi_pipeline.base.text import counted, for_spreadsheet, without_surrogates
from wsi_pipeline.monitoring.runs import MappedSlide
from wsi_pipeline.slides.catalog import COLUMNS

LIST_NAME, TILE_CONFIG = "monitor_reviewed.csv", "monitor_tile.yaml"
TRAIN_CONFIG = "train/own_slides"
# Of a network that hears what a slide looks like: patches of so many slides in each batch.
SLIDES_A_BATCH = 4
MIN_TISSUE = 0.1


@dataclass(frozen=True)
class Retraining:
    """What leads from the reviews to a new model."""

    slides: tuple[MappedSlide, ...]
    """The reviewed ones whose files are there."""

    lines: tuple[str, ...]
    """The commands; none where there is nothing to train on, or they cannot be run as they are."""

    notes: tuple[str, ...]
    """What to know, do or mend before."""


def plan_retraining(out: OutPath, slides: Sequence[MappedSlide]) -> Retraining:
    """By the reviews of all `slides`, going on from the model of the newest reviewed one."""
    reviewed = [slide for slide in slides if slide.review and slide.review.has_labels]
    here = [slide for slide in reviewed if _is_there(slide.path)]
    notes = [
        f"{slide.name}: its slide is not at {slide.path} any more, and is left out; put it back, or run this in the "
        "folder in which it was mapped"
        for slide in reviewed
        if slide not in here
    ]
    if not here:
        return Retraining(
            (), (), (*notes, "No reviewed slide to train on: review some in view-slides first.")
        )
    if not isinstance(out, Path):
        why = f"{out} is an object store: copy it to a folder, since tile-slides reads outlines from a folder"
        return Retraining(tuple(here), (), (*notes, why))
    model = here[-1].model
    notes += _notes(here)
    if model.is_package:
        why = (
            f"{model.words} made the newest reviewed map: a package of other people's cannot be trained on. Train a "
            "network of your own on these slides, with train-model and no --from"
        )
        return Retraining(tuple(here), (), (*notes, why))
    if not model.given:
        return Retraining(
            tuple(here),
            (),
            (*notes, "The newest summary does not say which file its model is: infer-slide again"),
        )
    return Retraining(tuple(here), _lines(out, here[-1]), tuple(notes))


def _notes(here: Sequence[MappedSlide]) -> list[str]:
    notes = []
    model = here[-1].model
    patients = {slide.patient or slide.name for slide in here}
    needed = 3 if model.hears_slide else 2
    if len(patients) < needed:
        why = (
            ", two to train on, since its network hears what a slide looks like," if model.hears_slide else ""
        )
        notes.append(
            f"Reviewed slides of {counted(len(patients), 'patient')}: train-model needs {needed} at the least{why} "
            "and one to evaluate on. Review more, else it refuses"
        )
    idc = sum(slide.review.idc_outlines for slide in here if slide.review)
    not_idc = sum(slide.review.not_idc_outlines for slide in here if slide.review)
    if not idc or not not_idc:
        notes.append(
            f"The reviews hold {counted(idc, 'outline')} of IDC and {not_idc} of what is not: a network is trained on "
            "both. Reject wrong regions, and outline some benign tissue as Normal"
        )
    if unknown := sum(not slide.patient for slide in here):
        notes.append(
            f"Of {counted(unknown, 'reviewed slide')} the patient is not known: each counts as a patient of its own"
        )
    if len(model.given) > 1:
        notes.append(
            f"An ensemble made the newest map: the training goes on from its first model, {model.given[0]}"
        )
    if len({slide.model.key for slide in here}) > 1:
        notes.append(
            f"Several models made the reviewed maps: the training goes on from {model.words}, that of the newest"
        )
    return notes


def _lines(out: Path, newest: MappedSlide) -> tuple[str, ...]:
    model = newest.model
    start, work = model.given[0], out.with_name(f"{out.absolute().name}_retrained")
    tiles, trained = work / "tiles", work / "model"
    tile = ["tile-slides", out / LIST_NAME, "--out", tiles, "--config", out / TILE_CONFIG]
    tile += ["--annotations", out, "--export"]
    train = ["train-model", "--from", start, "--config", TRAIN_CONFIG, "--data", tiles, "--out", trained]
    if model.hears_slide:
        train += ["--set", f"slides_a_batch={SLIDES_A_BATCH}"]
    new = trained / f"{Path(TRAIN_CONFIG).name}.safetensors"
    evaluate = ["evaluate-model", "--model", new, "--against", start, "--data", tiles]
    evaluate += ["--out", work / "evaluation"]
    return tuple(shlex.join(map(str, line)) for line in (tile, train, evaluate))


def write_retraining(out: OutPath, plan: Retraining) -> list[OutPath]:
    """The list and the config that the lines name; gives what was written. Raises OutputError."""
    if not plan.lines:
        return []
    model = plan.slides[-1].model
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for slide in plan.slides:
        # A list's paths count from its own folder.
        texts = (str(Path(slide.path).absolute()), slide.name, slide.mpp_given or "", slide.patient)
        writer.writerow(map(for_spreadsheet, texts))
    write_bytes(out / LIST_NAME, without_surrogates(text.getvalue()).encode())
    grid = {"patch_px": model.patch_px, "mpp": model.mpp, "min_tissue": MIN_TISSUE}
    write_bytes(out / TILE_CONFIG, yaml.safe_dump({"grid": grid}, sort_keys=False).encode())
    return [out / LIST_NAME, out / TILE_CONFIG]


def _is_there(path: str) -> bool:
    """Whether the slide's file can be found; a name that no file system takes, or a folder without rights, is not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False
