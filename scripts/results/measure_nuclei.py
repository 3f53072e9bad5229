"""How well nuclei are counted: against fields of carcinoma in which they were drawn or pointed at.

    python -m scripts.results.measure_nuclei ../shared/data/nuclei --page docs/fields.md

`tnbc/` holds pictures at 0.25 um per pixel with a mask of nuclei each, and a table with the number of its connected
components: nuclei were drawn with a gap between, so that few of them touch. `brecahad/` holds pictures with a disc on
some of the nuclei. Pictures are averaged two by two, as slides at 0.5 um per pixel show them. With `--page` the section
of that page is written, else it is printed.
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from scipy.stats import spearmanr

from scripts.doc_sections import put_section
from wsi_pipeline.base.images import through_jpeg
from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.results.cellularity import COUNT_MPP, NUCLEI, BlobRule, Blobs, find_blobs, least_answer

PICTURE_MPP = 0.25
SECTION = "nuclei"
# Rules to choose from without a patient, to see what the choice is worth on others.
RULES = [
    BlobRule(sigma_um=sigma, clear_answer=clear, least_share=share)
    for sigma, clear, share in itertools.product(
        (1.75, 2.0, 2.25), (0.004, 0.005), np.arange(0.17, 0.28, 0.02)
    )
]
# A nucleus that was pointed at counts as found where one was counted this near.
FOUND_WITHIN_UM = 4.0


@dataclass(frozen=True, eq=False)
class DrawnField:
    """A picture of known nuclei."""

    name: str
    patient: str
    picture: Image.Image
    """At PICTURE_MPP."""

    nuclei: int

    @property
    def rgb(self) -> RgbImage:
        """At COUNT_MPP."""
        return np.asarray(self.picture.reduce(round(COUNT_MPP / PICTURE_MPP)))


@dataclass(frozen=True)
class Agreement:
    """Counts beside the drawn numbers."""

    rank_correlation: float
    """Spearman's, between fields."""

    median_error: float
    """Of a field's count, as a share of the drawn number."""

    total: float
    """All counted over all drawn."""


def main() -> int:
    """Measure, then print or write the section; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with tnbc/ and brecahad/")
    parser.add_argument("--page", type=Path, help="a Markdown page with the section")
    args = parser.parse_args()
    text = section_of(drawn_fields(args.folder / "tnbc"), args.folder / "brecahad")
    if args.page:
        put_section(args.page, SECTION, text)
    else:
        print(text)
    return 0


def drawn_fields(folder: Path) -> list[DrawnField]:
    """The fields that fields.csv lists."""
    with (folder / "fields.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        DrawnField(
            row["field"],
            row["patient"],
            Image.open(folder / f"{row['field']}.webp").convert("RGB"),
            int(row["nuclei_components"]),
        )
        for row in rows
    ]


def agreement(counts: Sequence[int], fields: Sequence[DrawnField]) -> Agreement:
    """How far counts of fields are from what was drawn there."""
    found, drawn = np.array(counts), np.array([field.nuclei for field in fields])
    return Agreement(
        float(spearmanr(found, drawn).statistic),
        float(np.median(np.abs(found - drawn) / drawn)),
        float(found.sum() / drawn.sum()),
    )


def counts_of(
    fields: Sequence[DrawnField], pictures: Sequence[RgbImage], rule: BlobRule = NUCLEI
) -> list[int]:
    """Nuclei found in each; what counts as one is settled on all pictures of a patient, as on a slide."""
    blobs = [find_blobs(rgb, rule) for rgb in pictures]
    least = {
        patient: least_answer(
            np.concatenate([b.answers for f, b in zip(fields, blobs, strict=True) if f.patient == patient]),
            rule,
        )
        for patient in {field.patient for field in fields}
    }
    return [_count(b, least[f.patient]) for f, b in zip(fields, blobs, strict=True)]


def _count(blobs: Blobs, least: float) -> int:
    return int((blobs.answers >= least).sum())


def without_the_patient(fields: Sequence[DrawnField]) -> list[int]:
    """Each field's count by the rule that does best on the fields of the other patients."""
    table = np.array([counts_of(fields, [field.rgb for field in fields], rule) for rule in RULES])
    counts = np.zeros(len(fields), int)
    for patient in {field.patient for field in fields}:
        others = np.array([field.patient != patient for field in fields])
        theirs = [field for field, is_other in zip(fields, others, strict=True) if is_other]
        agreed = [agreement(row[others].tolist(), theirs) for row in table]
        best = min(range(len(RULES)), key=lambda i: agreed[i].median_error + 1 - agreed[i].rank_correlation)
        counts[~others] = table[best][~others]
    return [int(count) for count in counts]


def changed(fields: Sequence[DrawnField]) -> dict[str, list[RgbImage]]:
    """The fields as other scanners and laboratories would show them."""

    def stained(rgb: RgbImage, strength: float) -> RgbImage:
        return np.asarray(np.rint(255 * (rgb / 255.0) ** strength), np.uint8)

    def enlarged(picture: Image.Image) -> RgbImage:
        small = picture.reduce(round(1 / PICTURE_MPP))
        return np.asarray(small.resize((2 * small.width, 2 * small.height), Image.Resampling.BILINEAR))

    blurred = [np.asarray(f.picture.filter(ImageFilter.GaussianBlur(4)).reduce(2)) for f in fields]
    return {
        "as they are": [field.rgb for field in fields],
        "scanned at 1 um per pixel, enlarged": [enlarged(field.picture) for field in fields],
        "JPEG of quality 50": [through_jpeg(field.rgb, 50) for field in fields],
        "out of focus by 1 um (sigma)": blurred,
        "stained 0.7 times as strongly": [stained(field.rgb, 0.7) for field in fields],
        "stained 1.4 times as strongly": [stained(field.rgb, 1.4) for field in fields],
    }


def pointed_at(folder: Path) -> tuple[int, int, int]:
    """Nuclei with a disc on them: how many, how many found, and how many would be found a disc's width beside."""
    pointed = found = by_chance = 0
    for path in sorted(folder.glob("*_mask.jpg")):
        mask = np.asarray(Image.open(path).convert("L")) > 127
        labels, count = ndimage.label(mask)
        sizes = np.bincount(labels.ravel())[1:]
        usual = float(np.median(sizes[sizes > 100]))
        single = [i + 1 for i in range(count) if 0.7 * usual < sizes[i] < 1.3 * usual]
        centres = np.array(ndimage.center_of_mass(mask, labels, single)) * PICTURE_MPP
        picture = Image.open(path.with_name(path.name.replace("_mask", ""))).convert("RGB")
        blobs = find_blobs(np.asarray(picture.reduce(2)))
        nuclei = blobs.xy[blobs.answers >= least_answer(blobs.answers)][:, ::-1] * COUNT_MPP
        pointed += len(single)
        found += _within(centres, nuclei)
        moved = centres + np.array([0, 2 * np.sqrt(usual / np.pi) * PICTURE_MPP])
        by_chance += _within(moved, nuclei)
    return pointed, found, by_chance


def _within(places: NDArray[np.float64], nuclei: NDArray[np.float64]) -> int:
    distances = np.linalg.norm(places[:, None] - nuclei[None], axis=2).min(axis=1)
    return int((distances <= FOUND_WITHIN_UM).sum())


def section_of(fields: Sequence[DrawnField], brecahad: Path) -> str:
    """What the page says of it."""
    drawn = sum(field.nuclei for field in fields)
    patients = len({field.patient for field in fields})
    rows = {name: agreement(counts_of(fields, rgbs), fields) for name, rgbs in changed(fields).items()}
    rows["as they are, the rule chosen on the other patients"] = agreement(
        without_the_patient(fields), fields
    )
    lines = [
        f"Counted on {len(fields)} fields of 128 x 128 um of {patients} triple-negative carcinomas in which "
        f"{drawn:,} nuclei were drawn (Naylor 2018):",
        "",
        "| fields | rank correlation between fields | median error of a field's count | all counted / all drawn |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {row.rank_correlation:.2f} | {row.median_error:.0%} | {row.total:.2f} |"
            for name, row in rows.items()
        ),
    ]
    counts = counts_of(fields, [field.rgb for field in fields])
    worst = sorted(
        zip(fields, counts, strict=True), key=lambda pair: -abs(pair[1] - pair[0].nuclei) / pair[0].nuclei
    )
    said = ", ".join(f"{count} for {field.nuclei}" for field, count in worst[:4])
    lines += ["", f"The furthest off, as a share: {said}."]
    if brecahad.is_dir():
        pointed, found, by_chance = pointed_at(brecahad)
        lines += [
            "",
            f"On 8 fields of other carcinomas (Aksac 2019), {pointed} nuclei had a disc on them that touched no "
            f"other: {found / pointed:.0%} of them were found within {FOUND_WITHIN_UM:g} um of its centre, and "
            f"{by_chance / pointed:.0%} where the discs are moved by their own width.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
