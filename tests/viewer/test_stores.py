"""Where results lie on an object store, and where several servers write beside one OUT."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import read_at_once, write_slide
from models import brightness_model
from test_infer import section

import wsi_pipeline as wp
from wsi_pipeline.base.files import OutPath, out_path, read_whole, write_bytes

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra 'viewer'")
from wsi_pipeline.viewer.access import Access  # noqa: E402
from wsi_pipeline.viewer.app import make_app  # noqa: E402
from wsi_pipeline.viewer.append_log import AppendLog  # noqa: E402
from wsi_pipeline.viewer.service import Viewer  # noqa: E402

OURS = {"X-Requested-With": "wsi-pipeline"}
SQUARE = [[1000, 600], [1400, 600], [1400, 1000], [1000, 1000], [1000, 600]]
FEATURE = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [SQUARE]},
    "properties": {"class": "IDC", "verdict": "added"},
}
# Adds so many entries, each upon the newest state, as a server of its own does; prints those that it added.
WRITER = """
import sys
from wsi_pipeline.base.files import out_path
from wsi_pipeline.viewer.append_log import AppendLog, RevisionConflict
log, name, count, added = AppendLog(out_path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), []
while len(added) < count:
    revision = log.read().revision
    try:
        log.add(revision, name, {"number": len(added)})
        added.append(revision + 1)
    except RevisionConflict:
        pass
print(*added)
"""


def client_of(out: OutPath) -> testclient.TestClient:
    return testclient.TestClient(make_app(Viewer(out, [], device="cpu"), Access()))


def test_results_on_s3_are_shown_reviewed_and_graded_as_those_in_a_folder(s3, tmp_path):
    slide = write_slide(tmp_path / "a.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))
    there = out_path("s3://maps/viewed")
    for out in (there, tmp_path / "out"):
        wp.infer_slide(
            slide,
            out if isinstance(out, Path) else str(out),
            model=brightness_model(threshold=0.6),
            device="cpu",
        )
    with client_of(there) as far, client_of(tmp_path / "out") as near, read_at_once():
        listed = [client.get("/api/slides").json()["slides"] for client in (far, near)]
        assert [row["status"] for row in listed[0]] == ["done"]
        assert listed[0][0]["idc_mm2"] == listed[1][0]["idc_mm2"]
        level = near.get("/api/slides/a").json()["levels"] - 1
        for path in (
            "thumbnail",
            f"tiles/{level}/0_0.jpg",
            f"layers/heatmap/{level}/0_0.png",
            f"layers/status/{level - 1}/0_0.png",
            "values",
            "outlines?threshold=0.4",
            "pictures/report.png",
            "review",
            "grading",
            "at?x0=500&y0=500",
        ):
            answers = [client.get(f"/api/slides/a/{path}") for client in (far, near)]
            assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
            # A report says when it was made.
            assert path.startswith("pictures") or answers[0].content == answers[1].content, path
        body = {"revision": 0, "reviewer": "Dr. A", "action": "put", "feature": FEATURE}
        assert far.post("/api/slides/a/review", json=body, headers=OURS).json()["revision"] == 1
        assert far.post("/api/slides/a/review", json=body, headers=OURS).status_code == 409
        sheet = {"revision": 0, "reviewer": "Dr. A", "tubules": 2, "nuclei": 2, "fields": []}
        assert far.put("/api/slides/a/grading", json=sheet, headers=OURS).status_code == 200
        assert "tubules,2" in far.get("/api/slides/a/grading.csv").text
        assert far.get("/api/slides/a/review.geojson").json()["features"]
    with client_of(there) as again:
        assert again.get("/api/slides/a/review").json()["revision"] == 1
    assert json.loads((there / "a/review.geojson").read_text())["features"][0]["properties"]["name"]


def test_a_view_of_a_result_on_s3_is_answered_from_memory(s3, tmp_path):
    slide = write_slide(tmp_path / "a.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))
    wp.infer_slide(slide, "s3://maps/quick", model=brightness_model(threshold=0.6), device="cpu")
    with client_of(out_path("s3://maps/quick")) as client:
        path = "/api/slides/a/layers/heatmap/10/0_0.png"
        client.get(path)
        began = time.monotonic()
        for _ in range(50):
            assert client.get(path).status_code == 200
        assert (time.monotonic() - began) / 50 < 0.02


def test_what_another_puts_anew_meanwhile_is_read_whole(s3, tmp_path):
    path = out_path(f"s3://maps/{tmp_path.name}/log")
    write_bytes(path, b"0" * 100)
    enough = threading.Event()

    def put_anew() -> None:
        for number in itertools.count():
            if enough.is_set():
                return
            write_bytes(path, b"%d" % (number % 10) * (100 + number % 7))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(put_anew)
        try:
            found = [read_whole(path) for _ in range(200)]
        finally:
            enough.set()
        writing.result()
    assert all(len(set(content)) == 1 and 100 <= len(content) < 107 for content in found)
    assert len(set(found)) > 1, "it was put anew meanwhile"


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_of_several_servers_each_adds_to_what_the_others_did(place, tmp_path, request):
    if place == "s3":
        request.getfixturevalue("s3")
    path = str(tmp_path / "review.jsonl") if place == "folder" else f"s3://maps/{tmp_path.name}/review.jsonl"
    servers, count = (4, 25) if place == "folder" else (2, 4)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, f"Dr. {number}", str(count)],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        for number in range(servers)
    ]
    added = [list(map(int, process.communicate(timeout=120)[0].split())) for process in running]
    assert [process.returncode for process in running] == [0] * servers
    entries = AppendLog(out_path(path)).read().entries
    assert [entry["revision"] for entry in entries] == list(range(1, servers * count + 1))
    for number, revisions in enumerate(added):
        mine = [entry["revision"] for entry in entries if entry["reviewer"] == f"Dr. {number}"]
        assert mine == revisions
        assert len(mine) == count
