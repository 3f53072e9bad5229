"""OUT/manifest.csv: a row a slide, rewritten whole and renamed, so that it is never half a file."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from typing import Literal

from wsi_pipeline.files import OutPath, write_bytes

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

    def __init__(self, out: OutPath):
        self._file = out / MANIFEST_NAME
        self._rows: dict[str, dict[str, object]] = {}
        if self._file.exists():
            text = io.StringIO(self._file.read_text(encoding="utf-8"), newline="")
            self._rows = {row["path"]: dict(row) for row in csv.DictReader(text)}

    def record(self, row: ManifestRow) -> None:
        """Add or replace the slide's row, on disk too. Raises OutputError."""
        self._rows[row.path] = asdict(row)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [f.name for f in fields(ManifestRow)], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._rows.values())
        write_bytes(self._file, text.getvalue().encode())
