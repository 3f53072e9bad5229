"""A batch side by side, from what its runs left."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_pipeline.pipeline.batch_report import MOST_PICTURES, write_batch_report


def finished_slide(out: Path, name: str, idc_mm2: float) -> list[str]:
    folder = out / name
    folder.mkdir(parents=True)
    summary = {
        "tissue_mm2": 10.0,
        "idc_mm2": idc_mm2,
        "regions": [{"name": "IDC 1"}],
        "largest_focus_mm": 2 * idc_mm2,
        "threshold": 0.3,
        "counts": {"cells": {"scored": 250, "rejected": 3, "unreadable": 1}},
        "warnings": ["one"],
        "map_key": "a" * 16,
        "report_key": "b" * 16,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(folder / "overlay.png")
    return [name, f"/slides/{name}.svs", "done", ""]


def write_manifest(out: Path, rows: list[list[str]], *more: str) -> None:
    with (out / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["slide", "path", "status", "reason", *more], *rows])


def test_every_slide_of_a_batch_has_its_row_and_pages_follow(tmp_path: Path) -> None:
    rows = [finished_slide(tmp_path, f"李 {number}", number / 10) for number in range(12)]
    rows.append(["broken", "/slides/broken.svs", "failed", "it is empty"])
    write_manifest(tmp_path, rows)
    assert [path.name for path in write_batch_report(tmp_path)] == ["batch.csv", "batch.pdf"]
    with (tmp_path / "batch.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [row["slide"] for row in found] == [row[0] for row in rows]
    assert [float(row["idc_mm2"]) for row in found[:-1]] == [number / 10 for number in range(12)]
    assert float(found[5]["idc_share"]) == 0.05
    assert (found[-1]["status"], found[-1]["reason"], found[-1]["idc_mm2"]) == ("failed", "it is empty", "")
    content = (tmp_path / "batch.pdf").read_bytes()
    assert content.count(b"/Type /Page ") + content.count(b"/Type /Page\n") == 2
    before = content
    write_batch_report(tmp_path)
    assert (tmp_path / "batch.pdf").read_bytes() == before
    assert len(rows) < MOST_PICTURES


def test_slides_of_a_patient_are_summed(tmp_path: Path) -> None:
    rows = [
        finished_slide(tmp_path, name, mm2) for name, mm2 in zip("abcd", (1.0, 3.0, 2.0, 0.5), strict=True)
    ]
    rows.append(["e", "/slides/e.svs", "failed", "it is empty"])
    patients = ("P1", "P2", "P1", "", "P1")
    write_manifest(tmp_path, [[*row, who] for row, who in zip(rows, patients, strict=True)], "patient")
    assert [path.name for path in write_batch_report(tmp_path)] == ["batch.csv", "batch.pdf", "patients.csv"]
    with (tmp_path / "patients.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "patient": "P1",
        "slides": "3",
        "done": "2",
        "failed": "1",
        "tissue_mm2": "20.0",
        "idc_mm2": "3.0",
        "idc_share": "0.15",
        "foci": "2",
        "largest_focus_mm": "4.0",
        "slide_of_largest_focus": "c",
    }
    assert (second["patient"], second["slides"], second["idc_mm2"]) == ("P2", "1", "3.0")
    with (tmp_path / "batch.csv").open(newline="", encoding="utf-8") as file:
        assert tuple(row["patient"] for row in csv.DictReader(file)) == patients


def test_one_slide_is_no_batch(tmp_path: Path) -> None:
    assert write_batch_report(tmp_path) == []
    write_manifest(tmp_path, [finished_slide(tmp_path, "a", 1.0)])
    assert write_batch_report(tmp_path) == []
    assert not (tmp_path / "batch.csv").exists()
