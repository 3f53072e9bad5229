"""Divide all patients of the IDC set into folds for cross-validation, alike in patches, IDC and whole mounts.

python -m scripts.results.make_folds ../shared/data/idc scripts/results/folds.csv
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from wsi_pipeline.base.files import write_bytes

FOLDS = 5


def main() -> None:
    """Write the folds: patient, fold."""
    patches: dict[str, list[int]] = defaultdict(list)
    of_split: dict[str, str] = {}
    with (Path(sys.argv[1]) / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            patches[row["patient"]].append(int(row["label"]))
            of_split[row["patient"]] = row["split"]
    folds = divide({patient: (len(labels), sum(labels)) for patient, labels in patches.items()}, of_split)
    lines = ["patient,fold", *(f"{patient},{fold}" for patient, fold in sorted(folds.items()))]
    write_bytes(Path(sys.argv[2]), ("\n".join(lines) + "\n").encode())


def divide(counts: dict[str, tuple[int, int]], of_split: dict[str, str]) -> dict[str, int]:
    """The fold of each patient: the largest first, each to the fold that has least of what it brings.

    `counts` are a patient's patches and IDC patches; patients of each published split are spread over all folds.
    """
    total = np.sum(list(counts.values()), axis=0)
    folds: dict[str, int] = {}
    for split in sorted(set(of_split.values())):
        held, patients = np.zeros((FOLDS, 2)), np.zeros(FOLDS)
        some = [patient for patient in counts if of_split[patient] == split]
        for patient in sorted(some, key=lambda name: (-counts[name][0], name)):
            # No fold has more than one patient more than another.
            free = patients == patients.min()
            load = np.where(free, ((held + counts[patient]) / total).sum(axis=1), np.inf)
            fold = int(load.argmin())
            held[fold] += counts[patient]
            patients[fold] += 1
            folds[patient] = fold
    return folds


if __name__ == "__main__":
    main()
