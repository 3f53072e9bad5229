"""OUT/manifest.csv: a row a slide, rewritten whole and renamed, so that it is never half a file."""

import csv
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

MANIFEST_NAME = "manifest.csv"


@dataclass(frozen=True)
class ManifestRow:
    """What became of one slide in the last run that met it."""

    slide: str
    path: str
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    patches: int | str = ""
    idc_mm2: float | str = ""
    seconds: float | str = ""
    version: str = ""


class Manifest:
    """The rows of an output folder, by the slide's path."""

    def __init__(self, out: Path):
        self._file = out / MANIFEST_NAME
        self._rows: dict[str, dict[str, object]] = {}
        if self._file.is_file():
            with self._file.open(newline="", encoding="utf-8") as file:
                self._rows = {row["path"]: dict(row) for row in csv.DictReader(file)}

    def record(self, row: ManifestRow) -> None:
        """Add or replace the slide's row, on disk too."""
        self._rows[row.path] = asdict(row)
        part = self._file.with_name(f"{MANIFEST_NAME}.{os.getpid()}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(ManifestRow)], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self._rows.values())
        part.replace(self._file)
