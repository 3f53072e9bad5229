"""What of ink, folds and blur is found on tissue, and what tissue is rejected with it; what on glass passes for tissue.

    python -m scripts.results.measure_artefacts SLIDE...

Writes a section of docs/tissue.md. Defects are generated: each is laid, one kind at a time, on the low-power plane of
each slide, so that its place is known. Ink absorbs what is below it once more (as a felt pen does), a fold lays tissue
on its neighbour (tissue_folds.py), blur is a Gaussian, in squares as fields of a scanner are. On glass, away from
tissue, lie the same inks, and what is grey: specks, a fibre, the rim of a bubble and the edge of a coverslip, each with
the colour that a lens gives to rims (red lies an eighth of a pixel, 1 um, beside blue). Where a slide has labels beside
it (SLIDE_labels.png, 1 is carcinoma), it is counted what of the carcinoma is rejected as the slide stands.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from scripts.doc_sections import put_section
from scripts.results import tissue_folds
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.types import Mask, RgbImage
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.artefacts import ArtefactOptions, Artefacts, find_artefacts
from wsi_pipeline.tiling.tissue import Tissue, TissueOptions, find_tissue

# sRGB of a stroke on clear glass of a white lamp.
INKS = {
    "blue ink": (40, 60, 180),
    "green ink": (20, 140, 90),
    "cyan ink": (60, 180, 200),
    "black ink": (25, 25, 25),
    "red ink": (200, 30, 40),
    "orange ink": (235, 120, 30),
    "yellow ink": (240, 220, 60),
}
GLASS = 243.0
BLUR_UM = {f"blur, sigma {sigma} um": float(sigma) for sigma in (4, 6, 8, 12, 16)}
FOLDS = {"fold, two layers": 2, "fold, three layers": 3}
# What keeps out light of all colours: how much of it passes.
GREY = {"dust": 0.35, "fibre": 0.3, "rim of a bubble": 0.45, "edge of a coverslip": 0.6}
# Between what is laid on glass and the nearest tissue.
AWAY_UM = 400.0
# Of red beside blue, in pixels of the plane.
FRINGE_PX = 0.125
STROKES, WIDTH_UM, LENGTH_UM, FIELD_UM, SEED = 6, 240.0, 1_600.0, 800.0, 0


@dataclass(frozen=True, eq=False)
class Seen:
    """A slide's low-power plane, and the tissue on it."""

    rgb: RgbImage
    plane: Plane
    mpp: tuple[float, float]
    tissue: Tissue
    clean: Mask
    """Tissue that is not rejected as the slide stands."""

    spots: dict[str, Mask]
    """What is rejected as the slide stands, by reason."""

    carcinoma: Mask | None
    """Tissue labelled as carcinoma; None where there are no labels."""

    seconds: float
    """Of one core, to find tissue and artefacts."""


def main() -> int:
    """Measure and write; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/tissue.md"))
    options = parser.parse_args()
    slides = [seen(path) for path in options.slides]
    put_section(options.out, "artefacts", section(slides))
    return 0


def seen(path: Path) -> Seen:
    """The slide from afar, as `infer-slide` sees it."""
    with open_slide(path) as slide:
        plane = slide.plane_at(TissueOptions().mpp)
        rgb = slide.read_whole(plane).rgb
        mpp = (plane.downsample_x * slide.mpp[0], plane.downsample_y * slide.mpp[1])
    begun = time.process_time()
    tissue = find_tissue(rgb, plane, mpp, TissueOptions())
    found = find_artefacts(rgb, plane, mpp, tissue.mask, tissue.glass, ArtefactOptions())
    seconds = time.process_time() - begun
    labels, carcinoma = path.with_name(f"{path.stem}_labels.png"), None
    if labels.exists():
        size = (rgb.shape[1], rgb.shape[0])
        of_pixels = np.asarray(Image.open(labels).resize(size, Image.Resampling.NEAREST))
        carcinoma = tissue.mask & (of_pixels == 1)
    return Seen(rgb, plane, mpp, tissue, tissue.mask & ~found.rejected, found.spots, carcinoma, seconds)


def section(slides: list[Seen]) -> str:
    """The table: of each defect the share that is rejected, all slides together and where it is least."""
    rows = []
    for name in (*INKS, *FOLDS, *BLUR_UM):
        found = np.array([counted(one, name) for one in slides])  # [slides, 4]
        defect, rejected, rest, lost = found.sum(axis=0)
        least = (found[:, 1] / np.maximum(found[:, 0], 1)).min()
        rows.append(f"| {name} | {rejected / defect:.1%} | {least:.1%} | {lost / rest:.2%} |")
        print(rows[-1], flush=True)
    slowest = max(one.seconds for one in slides)
    return "\n".join(
        [
            f"Defects laid on {len(slides)} slides (`python -m scripts.results.measure_artefacts SLIDE...`): "
            f"{STROKES} strokes of {WIDTH_UM:g} x {LENGTH_UM:g} um a slide and kind, of blur as many squares of "
            f"{FIELD_UM:g} um, and as many folds, {tissue_folds.WIDTH_UM[0]:g} to {tissue_folds.WIDTH_UM[1]:g} um wide "
            f"and {tissue_folds.LENGTH_UM[0] / 1000:g} to {tissue_folds.LENGTH_UM[1] / 1000:g} mm long. Tissue and "
            f"artefacts took {slowest:.1f} s of one core at most.",
            "",
            *as_they_stand(slides),
            "",
            "| defect on tissue | rejected | on the slide where it is least | other tissue rejected with it |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"The same inks, and what is grey, on glass {AWAY_UM:g} um and more away from tissue, {STROKES} of each on "
            "a slide:",
            "",
            "| on glass | of it taken for tissue | of it scored | on the slide where it is most |",
            "| --- | --- | --- | --- |",
            *(glass_row(name, slides) for name in (*GREY, *INKS)),
        ]
    )


def as_they_stand(slides: list[Seen]) -> list[str]:
    """What is rejected of the slides without any defect laid on them."""
    tissue = sum(int(one.tissue.mask.sum()) for one in slides)
    labelled = [(one, one.carcinoma) for one in slides if one.carcinoma is not None]
    carcinoma = sum(int(where.sum()) for _, where in labelled)
    of_tissue = {name: sum(int(one.spots[name].sum()) for one in slides) for name in slides[0].spots}
    of_carcinoma = {
        name: sum(int((one.spots[name] & where).sum()) for one, where in labelled) for name in of_tissue
    }
    return [
        "As the slides stand, so much is rejected:",
        "",
        "| reason | of the tissue | of the tissue labelled as carcinoma |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {of_tissue[name] / tissue:.3%} | {of_carcinoma[name] / max(1, carcinoma):.4%} |"
            for name in of_tissue
        ),
    ]


def glass_row(name: str, slides: list[Seen]) -> str:
    """A line of the second table."""
    found = np.array([counted_on_glass(one, name) for one in slides])  # [slides, 3]
    found = found[found[:, 0] > 0]  # there are slides without so much glass
    defect, tissue, scored = found.sum(axis=0)
    most = (found[:, 2] / found[:, 0]).max()
    row = f"| {name} | {tissue / defect:.1%} | {scored / defect:.1%} | {most:.1%} |"
    print(row, flush=True)
    return row


def counted_on_glass(one: Seen, name: str) -> tuple[int, int, int]:
    """Pixels of the defect, those of them that are taken for tissue, and those that would be scored."""
    where = on_glass(one, name)
    passes = np.asarray(INKS[name]) / GLASS if name in INKS else np.full(3, GREY[name])
    amount = ndimage.gaussian_filter(where.astype(np.float32), 0.5)
    rgb = one.rgb.astype(np.float32)
    for channel, aside in enumerate((FRINGE_PX, 0, -FRINGE_PX)):
        there = ndimage.shift(amount, (0, aside), order=1, mode="nearest")
        rgb[..., channel] *= 1 - there * (1 - passes[channel])
    changed = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    tissue = find_tissue(changed, one.plane, one.mpp, TissueOptions())
    taken = where & tissue.mask
    if not taken.any():
        return int(where.sum()), 0, 0
    found = find_artefacts(changed, one.plane, one.mpp, tissue.mask, tissue.glass, ArtefactOptions())
    return int(where.sum()), int(taken.sum()), int((taken & ~found.rejected).sum())


def on_glass(one: Seen, name: str) -> Mask:
    """Where the defect lies: nowhere within AWAY_UM of tissue."""
    away = round(AWAY_UM / min(one.mpp))
    free = ~ndimage.maximum_filter(one.tissue.mask, 2 * away + 1)
    where = np.zeros_like(free)
    places = np.argwhere(free)
    if not len(places):
        return where
    chance = np.random.default_rng(SEED)
    rows, columns = np.indices(free.shape, np.float32)
    for row, column in places[chance.integers(0, len(places), STROKES)]:
        angle = chance.uniform(0, np.pi)
        x, y = (columns - column) * one.mpp[0], (rows - row) * one.mpp[1]
        along = np.abs(x * np.cos(angle) + y * np.sin(angle))
        across = np.abs(y * np.cos(angle) - x * np.sin(angle))
        radius = np.hypot(x, y)
        if name == "dust":
            where |= radius <= chance.uniform(10, 60)
        elif name == "fibre":
            where |= (across <= 8) & (along <= 500)
        elif name == "rim of a bubble":
            where |= np.abs(radius - chance.uniform(200, 800)) <= 20
        elif name == "edge of a coverslip":
            where |= across <= 12
        else:
            where |= (along <= LENGTH_UM / 2) & (across <= WIDTH_UM / 2)
    return np.asarray(where & free)


def counted(one: Seen, name: str) -> tuple[int, int, int, int]:
    """Pixels of clean tissue under the defect, those of them that are rejected, and the same of the rest."""
    if name in FOLDS:
        rgb, where = tissue_folds.with_folds(
            one.rgb, one.clean, one.tissue.glass[0].rgb, one.mpp, FOLDS[name]
        )
    else:
        where = strokes(one, *((FIELD_UM, FIELD_UM) if name in BLUR_UM else (WIDTH_UM, LENGTH_UM)))
        rgb = spoilt(one, where, name)
    found = artefacts_of(one, rgb)
    under, rest = one.clean & where, one.clean & ~where
    return (
        int(under.sum()),
        int((under & found.rejected).sum()),
        int(rest.sum()),
        int((rest & found.rejected).sum()),
    )


def artefacts_of(one: Seen, rgb: RgbImage) -> Artefacts:
    """What is rejected of the plane with a defect on it; where tissue lies, and what the glass is, is known."""
    return find_artefacts(rgb, one.plane, one.mpp, one.tissue.mask, one.tissue.glass, ArtefactOptions())


def strokes(one: Seen, width_um: float, length_um: float) -> Mask:
    """Straight strokes in any direction, each through a pixel of clean tissue."""
    chance = np.random.default_rng(SEED)
    places = np.argwhere(one.clean)
    rows, columns = np.indices(one.clean.shape, np.float32)
    where = np.zeros_like(one.clean)
    for row, column in places[chance.integers(0, len(places), STROKES)]:
        angle = chance.uniform(0, np.pi)
        x, y = (columns - column) * one.mpp[0], (rows - row) * one.mpp[1]
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle)
        where |= (np.abs(along) <= length_um / 2) & (np.abs(across) <= width_um / 2)
    return where


def spoilt(one: Seen, where: Mask, name: str) -> RgbImage:
    """The plane with that ink or blur on it."""
    rgb = one.rgb.astype(np.float32)
    if name in INKS:
        changed = rgb * np.asarray(INKS[name], np.float32) / GLASS
    else:
        sigma = (BLUR_UM[name] / one.mpp[1], BLUR_UM[name] / one.mpp[0], 0)
        changed = ndimage.gaussian_filter(rgb, sigma)
    return np.clip(np.rint(np.where(where[..., None], changed, rgb)), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
