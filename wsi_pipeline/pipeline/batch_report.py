"""OUT/batch.csv and OUT/batch.pdf: the slides of a folder of results side by side, by what each run says of itself.

And OUT/patients.csv: sums by patient, where the manifest says whose slides they are.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from PIL import Image

from wsi_pipeline.base.files import OutPath, new_file, read_whole, write_bytes
from wsi_pipeline.base.text import counted, for_spreadsheet, from_spreadsheet, without_surrogates
from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.pipeline.manifest import MANIFEST_NAME
from wsi_pipeline.results.figures.batch_pages import BatchRow, batch_figures
from wsi_pipeline.results.run_folder import is_finished, read_summary

BATCH_CSV, BATCH_PDF, PATIENTS_CSV = "batch.csv", "batch.pdf", "patients.csv"
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
        "patient",
    ),
)
PATIENT_COLUMNS = (
    *("patient", "slides", "done", "failed", "tissue_mm2", "idc_mm2", "idc_share", "foci"),
    *("largest_focus_mm", "slide_of_largest_focus"),
)
# A page of a large batch has rows without pictures: to read one takes as long as all else of its row.
MOST_PICTURES = 200
PICTURE_PX = 340


def write_batch_report(out: OutPath) -> list[OutPath]:
    """Write them for all slides of the manifest; the files written, none where there are fewer than two slides.

    Raises OutputError.
    """
    rows = _rows(out)
    if len(rows) < 2:
        return []
    _write_csv(out / BATCH_CSV, COLUMNS, rows)
    written = [out / BATCH_CSV, out / BATCH_PDF]
    if patients := _by_patient(rows):
        _write_csv(out / PATIENTS_CSV, PATIENT_COLUMNS, patients)
        written.append(out / PATIENTS_CSV)
    done = [row for row in rows if row["status"] == "done"]
    failed = len(rows) - len(done)
    lead = [
        f"{counted(len(done), 'slide')} mapped, {failed} failed; {_sum(done, 'idc_mm2')} mm² of IDC in "
        f"{_sum(done, 'tissue_mm2')} mm² of tissue. wsi_pipeline {VERSION}",
        "Research use only, not a medical device",
    ]
    if patients:
        unknown = sum(not row["patient"] for row in rows)
        also = f"; of {counted(unknown, 'slide')} the patient is not known" if unknown else ""
        lead.insert(1, f"{counted(len(patients), 'patient')}, first their sums, then their slides{also}")
    pictured = len(rows) <= MOST_PICTURES
    with new_file(out / BATCH_PDF) as file, PdfPages(file, metadata={"CreationDate": None}) as content:
        shown = [BatchRow(f"Patient {row['patient']}", _patient_lines(row), None) for row in patients]
        shown += [
            BatchRow(row["slide"], _lines(row), _picture(out, row) if pictured else None) for row in rows
        ]
        for page in batch_figures(f"Maps of IDC: {out.name}", lead, shown):
            page.savefig(content, format="pdf")
    return written


def _write_csv(path: OutPath, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({name: for_spreadsheet(value) for name, value in row.items()} for row in rows)
    write_bytes(path, without_surrogates(text.getvalue()).encode())


def _by_patient(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sums over the slides of each patient, in the order of their first slides; of slides without one, none."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["patient"]:
            found.setdefault(row["patient"], []).append(row)
    return [_sums(patient, own) for patient, own in found.items()]


def _sums(patient: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mapped = [row for row in rows if row["status"] == "done" and "idc_mm2" in row]
    tissue, idc = (sum(row[name] for row in mapped) for name in ("tissue_mm2", "idc_mm2"))
    largest = max(
        (row for row in mapped if row["largest_focus_mm"] not in ("", None)),
        key=lambda row: float(row["largest_focus_mm"]),
        default=None,
    )
    return {
        "patient": patient,
        "slides": len(rows),
        "done": sum(row["status"] == "done" for row in rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "tissue_mm2": tissue if mapped else "",
        "idc_mm2": idc if mapped else "",
        "idc_share": idc / tissue if tissue else "",
        "foci": sum(row["foci"] for row in mapped) if mapped else "",
        "largest_focus_mm": largest["largest_focus_mm"] if largest else "",
        "slide_of_largest_focus": largest["slide"] if largest else "",
    }


def _patient_lines(row: Mapping[str, Any]) -> list[str]:
    slides = f"{row['slides']} {'slide' if row['slides'] == 1 else 'slides'}"
    if row["failed"]:
        slides += f", of which {row['failed']} failed and are not counted"
    if row["idc_mm2"] == "":
        return [slides]
    share = f", {row['idc_share']:.0%} of the tissue" if row["idc_share"] != "" else ""
    lines = [f"IDC {row['idc_mm2']:.2f} mm²{share}; tissue {row['tissue_mm2']:.2f} mm²", slides]
    if row["largest_focus_mm"] != "":
        lines.insert(
            1,
            f"{row['foci']} {'focus' if row['foci'] == 1 else 'foci'}; the largest {row['largest_focus_mm']:.1f} mm, "
            f"in {row['slide_of_largest_focus']}",
        )
    return lines


def _rows(out: OutPath) -> list[dict[str, Any]]:
    """Of each slide in the manifest its row: numbers of its summary, or why it failed."""
    try:
        text = read_whole(out / MANIFEST_NAME).decode()
    except FileNotFoundError:
        return []
    rows = []
    for read in csv.DictReader(io.StringIO(text, newline="")):
        entry = {key: from_spreadsheet(value) for key, value in read.items() if isinstance(value, str)}
        row = {
            "slide": entry["slide"],
            "path": entry["path"],
            "status": entry["status"],
            "reason": entry["reason"],
            "patient": entry.get("patient") or "",
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
        f"{counted(row['foci'], 'focus', 'foci')}{extent}; threshold {row['threshold']:.3g}",
        f"{counted(row['scored'], 'cell')} scored, {row['rejected']:,} rejected, {row['unreadable']:,} unreadable; "
        f"{counted(row['warnings'], 'warning')}",
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
