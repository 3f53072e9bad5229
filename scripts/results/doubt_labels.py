"""Name the patches whose label networks doubt that never saw their patient, for `doubted` of a training.

A patch is doubted where its label has a calibrated probability below --least by the network of its own fold: the
pruning of confident learning (Northcutt et al., JAIR 2021), by one bound.

python -m scripts.results.doubt_labels runs/folds/conditioned --out runs/folds/doubted.csv
train-model --config default_model/by_slide --set doubted=runs/folds/doubted.csv --data PATCHES --out runs/mine
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.results.cross_validate import read_folds
from wsi_pipeline.learning.evaluation import metrics


def main() -> None:
    """Write their names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of fold_K.npz of all folds")
    parser.add_argument("--least", type=float, default=0.2, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="where the names go")
    options = parser.parse_args()
    doubted, labels, of_label, names = doubted_rows(options.run, options.least)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "label", "probability of the label"])
        writer.writerows([names[row], labels[row], f"{of_label[row]:.4f}"] for row in doubted)
    print(
        f"{options.out}: {len(doubted)} of {len(labels)} patches are doubted, {labels[doubted].sum()} of them IDC"
    )


def doubted_rows(
    run: Path, least: float
) -> tuple[NDArray[np.intp], NDArray[np.integer], NDArray[np.floating], NDArray[np.str_]]:
    """Which rows of a run's patches are doubted; of all patches labels, the labels' probabilities, and names."""
    parts = [np.load(path) for path in sorted(run.glob("fold_*.npz"))]
    if len(parts) < (count := len(set(read_folds().values()))):
        raise SystemExit(
            f"{run}: found {len(parts)} folds, expected {count}: of others nothing would be doubted"
        )
    names, patients, labels, logits = (
        np.concatenate([part[name] for part in parts]) for name in ("names", "patients", "labels", "plain")
    )
    probability, _ = metrics.crossfit(logits, labels, patients)
    of_label = np.where(labels == 1, probability, 1 - probability)
    return np.flatnonzero(of_label < least), labels, of_label, names


if __name__ == "__main__":
    main()
