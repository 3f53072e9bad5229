"""Compare cross-validated trainings, patient by patient: a table of what scripts/results/cross_validate.py left.

Only folds that all runs have done are compared, and the table says which. Calibration and threshold of a patient come
from other patients. The patients of the published validation side can be left out, so that choices are
made without them.

Two runs joined by a plus are asked together: the mean of their logits, as a bound for a network that learns from both.

python -m scripts.results.compare_folds runs/folds/today runs/folds/conditioned --data ../shared/data/idc
python -m scripts.results.compare_folds runs/folds/conditioned runs/folds/conditioned+runs/folds/second \\
    --data ../shared/data/idc
python -m scripts.results.compare_folds runs/folds/conditioned runs/folds/unpadded runs/folds/unpadded_taught \\
    --data ../shared/data/idc --section trainings --title "Other trainings" --out docs/results.md
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.doc_sections import put_section
from scripts.results.paired_rows import Measured, cells, heading, measured
from wsi_pipeline.learning.datasets import LabelledPatches
from wsi_pipeline.learning.evaluation import metrics
from wsi_pipeline.learning.evaluation.bootstrap import draw_patients
from wsi_pipeline.learning.training.coarse_labels import labels_with_neighbours

# What joins runs that are asked together.
TOGETHER = "+"
ABOUT = (
    "Every choice between trainings is made on the 230 patients that are at hand, divided into five folds "
    "(`scripts/results/folds.csv`): a network a fold, which never saw the fold's patients, trained from random "
    "weights for 12 epochs, the last of which counts. Calibration and threshold of each patient come from others; a "
    "draw of patients is less even than all of them, so that an ECE may lie below its interval. *today* is "
    "`train/idc_default`, before networks heard of their slide; *conditioned* is `default_model/conditioned`, both in "
    "bfloat16; those of the card are [below](#looks-of-training-slides). The published validation patients are left "
    "out of the table: they are kept for a last look. Written by `python -m scripts.results.compare_folds` from what "
    "`python -m scripts.results.cross_validate` left."
)
OTHERS = (
    "As [above](#by-cross-validation), on those folds that all have done. Two names joined by a plus: the mean "
    "of what both say. Written by `python -m scripts.results.compare_folds`; what was trained, and by which "
    "commands: [coarse outlines, looks, other seeds](history.md#coarse-outlines)."
)
SHOWN = (("plain", ""), ("jpeg80", ", as JPEG 4:2:0 of quality 80"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", help="folders of fold_K.npz, or several joined by +; the first is compared with"
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the IDC set, whose manifest names the sides"
    )
    parser.add_argument("--with-val", action="store_true", help="count the published validation patients too")
    parser.add_argument("--out", type=Path, help="a page of which a section is written anew")
    parser.add_argument("--section", default="folds", help="which (default: folds)")
    parser.add_argument("--title", default="By cross-validation", help="what stands above it")
    parser.add_argument(
        "--rims", action="store_true", help="patches at the rim of an outline, and all others, by themselves"
    )
    options = parser.parse_args()
    with (options.data / "manifest.csv").open(newline="") as file:
        held_back = (
            set()
            if options.with_val
            else {row["patient"] for row in csv.DictReader(file) if row["split"] == "val"}
        )
    folds = sorted(
        set.intersection(
            *(
                {path.stem for path in part.glob("fold_*.npz")}
                for run in options.runs
                for part in parts_of(run)
            )
        )
    )
    if not folds:
        raise SystemExit("no fold is done in all of them")
    text = table(options.runs, folds, held_back, options.rims)
    print(text)
    if options.out:
        about = ABOUT if options.section == "folds" else OTHERS
        put_section(options.out, options.section, f"## {options.title}\n\n{about}\n\n{text}")


def parts_of(run: str) -> list[Path]:
    """The folders of runs that are asked together."""
    return [Path(part) for part in run.split(TOGETHER)]


def table(runs: list[str], folds: list[str], held_back: set[str], rims: bool = False) -> str:
    """The rows of each run, with 95 % intervals over patients, and the differences to the first."""
    lines: list[str] = []
    first: dict[str, Measured] = {}
    all_labels, all_patients, names = (
        joined(runs[0], folds, name, held_back) for name in ("labels", "patients", "names")
    )
    shown = [(*row, np.ones(len(all_labels), np.bool_)) for row in SHOWN]
    if rims:
        at_rim = rim_patches(all_labels, all_patients, names)
        shown = [("plain", ", at rims", at_rim), ("plain", ", elsewhere", ~at_rim)]
    for run in runs:
        for key, changed, counted in shown:
            labels, patients = all_labels[counted], all_patients[counted]
            resampled = draw_patients(patients)
            probability, called = metrics.crossfit(
                joined(run, folds, key, held_back), all_labels, all_patients
            )
            found = measured(probability[counted], called[counted], labels, resampled)
            row = cells(found, first.get(changed), intervals=True)
            first.setdefault(changed, found)
            lines.append(f"| {run_name(run)}{changed} | " + " | ".join(row) + " |")
    head = [
        f"{len(all_labels):,} patches of {len(np.unique(all_patients))} patients, {len(folds)} folds of 5; in brackets "
        f"95 % intervals over patients, after the semicolon the difference to {run_name(runs[0])}, draw by draw.",
        "",
        *heading("training"),
    ]
    return "\n".join([*head, *lines])


def rim_patches(
    labels: NDArray[np.generic], patients: NDArray[np.generic], names: NDArray[np.generic]
) -> NDArray[np.bool_]:
    """Which patches have a neighbour of the other label."""
    side = LabelledPatches(np.empty((len(labels), 0, 0, 3), np.uint8), labels, patients, names=names)  # type: ignore[arg-type]
    return np.asarray(labels_with_neighbours(side, 1.0) != labels)


def run_name(run: str) -> str:
    """What the table calls it."""
    return " + ".join(part.name for part in parts_of(run))


def joined(run: str, folds: list[str], name: str, held_back: set[str]) -> NDArray[np.generic]:
    """The array of that name over all folds, without the patients held back; logits are means over the run's parts."""
    parts = []
    for fold in folds:
        of_runs = []
        for part in parts_of(run):
            with np.load(part / f"{fold}.npz") as answers:
                kept = ~np.isin(answers["patients"], sorted(held_back))
                of_runs.append(answers[name][kept])
        same = of_runs[0].dtype.kind != "f"
        if same and not all(np.array_equal(of_runs[0], values) for values in of_runs):
            raise SystemExit(
                f"{run}: {fold} is of other patches in one run than in another: cross-validate again"
            )
        parts.append(of_runs[0] if same else np.mean(of_runs, axis=0))
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
