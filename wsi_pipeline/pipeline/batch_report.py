"""OUT/batch.csv and OUT/batch.pdf: the slides of a folder of results side by side, by what each run says of itself."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from PIL import Image

from wsi_pipeline.base.files import OutPath, new_file, write_bytes
from wsi_pipeline.base.text import without_surrogates
from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.pipeline.manifest import MANIFEST_NAME
from wsi_pipeline.results.figures.batch_pages import BatchRow, batch_figures
from wsi_pipeline.results.run_folder import is_finished, read_summary

BATCH_CSV, BATCH_PDF = "batch.csv", "batch.pdf"
COLUMNS = (
    *("slide", "path", "status", "reason", "tissue_mm2", "idc_mm2", "idc_share", "foci", "extent_mm"),
    *(
        "largest_focus_mm",
        "threshold",
        "scored",
        "rejected",
        "unreadable",
        "warnings",
        "map_key",
        "report_key",
    ),
)
# A page of a large batch has rows without pictures: to read one takes as long as all else of its row.
MOST_PICTURES = 200
PICTURE_PX = 340


def write_batch_report(out: OutPath) -> list[OutPath]:
    """Write both for all slides of the manifest; the files written, none where there are fewer than two slides.

    Raises OutputError.
    """
    rows = _rows(out)
    if len(rows) < 2:
        return []
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(out / BATCH_CSV, without_surrogates(text.getvalue()).encode())
    done = [row for row in rows if row["status"] == "done"]
    failed = len(rows) - len(done)
    lead = [
        f"{len(done)} slides mapped, {failed} failed; {_sum(done, 'idc_mm2')} mm² of IDC in {_sum(done, 'tissue_mm2')} "
        f"mm² of tissue. wsi_pipeline {VERSION}",
        "Research use only, not a medical device",
    ]
    pictured = len(rows) <= MOST_PICTURES
    with new_file(out / BATCH_PDF) as file, PdfPages(file, metadata={"CreationDate": None}) as content:
        shown = [
            BatchRow(row["slide"], _lines(row), _picture(out, row) if pictured else None) for row in rows
        ]
        for page in batch_figures(f"Maps of IDC: {out.name}", lead, shown):
            page.savefig(content, format="pdf")
    return [out / BATCH_CSV, out / BATCH_PDF]


def _rows(out: OutPath) -> list[dict[str, Any]]:
    """Of each slide in the manifest its row: numbers of its summary, or why it failed."""
    try:
        text = (out / MANIFEST_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = []
    for entry in csv.DictReader(io.StringIO(text, newline="")):
        row = {
            "slide": entry["slide"],
            "path": entry["path"],
            "status": entry["status"],
            "reason": entry["reason"],
        }
        folder = out / entry["slide"]
        if entry["status"] != "failed" and is_finished(folder):
            row |= {"status": "done", "reason": ""} | _numbers(read_summary(folder))
        rows.append(row)
    return rows


def _numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    if "idc_mm2" not in summary:
        return {}
    cells, regions = summary["counts"]["cells"], summary["regions"]
    share = summary["idc_mm2"] / summary["tissue_mm2"] if summary["tissue_mm2"] else ""
    return {
        "tissue_mm2": summary["tissue_mm2"],
        "idc_mm2": summary["idc_mm2"],
        "idc_share": summary.get("idc_share", share),
        "foci": summary.get("foci", len(regions)),
        "extent_mm": summary.get("extent_mm", ""),
        "largest_focus_mm": summary.get("largest_focus_mm", ""),
        "threshold": summary["threshold"],
        "scored": cells["scored"],
        "rejected": cells["rejected"],
        "unreadable": cells["unreadable"],
        "warnings": len(summary["warnings"]),
        "map_key": summary["map_key"],
        "report_key": summary["report_key"],
    }


def _lines(row: Mapping[str, Any]) -> list[str]:
    if row["status"] != "done" or "idc_mm2" not in row:
        return [row["status"], row["reason"]]
    share = f", {row['idc_share']:.0%} of the tissue" if row["idc_share"] not in ("", None) else ""
    extent = f", {row['extent_mm']:.1f} mm over all" if row["extent_mm"] != "" else ""
    return [
        f"IDC {row['idc_mm2']:.2f} mm²{share}; tissue {row['tissue_mm2']:.2f} mm²",
        f"{row['foci']} {'focus' if row['foci'] == 1 else 'foci'}{extent}; threshold {row['threshold']:.3g}",
        f"{row['scored']:,} cells scored, {row['rejected']:,} rejected, {row['unreadable']:,} unreadable; "
        f"{row['warnings']} warnings",
        f"report {row['report_key']}",
    ]


def _picture(out: OutPath, row: Mapping[str, Any]) -> RgbImage | None:
    path = out / row["slide"] / "overlay.png"
    if not isinstance(path, Path) or not path.is_file():
        return None
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    return np.asarray(picture)


def _sum(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return f"{sum(row.get(name) or 0.0 for row in rows):.2f}"
