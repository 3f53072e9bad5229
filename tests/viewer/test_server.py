"""The page's server: what it shows lies where it should, what people say is kept, and who may not ask gets nothing."""

import io
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
from conftest import write_scn, write_slide
from made_packages import package
from models import brightness_model
from PIL import Image
from shapely.geometry import shape
from test_infer import section

import wsi_pipeline as wp
from wsi_pipeline.base.geometry import Box
from wsi_pipeline.jobs.events import EVENTS
from wsi_pipeline.results.figures.palette import colour
from wsi_pipeline.slides.annotations.files import outlines_of
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, qupath_origin0, read_outlines
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.viewer.access import Access, hashed, is_loopback
from wsi_pipeline.viewer.deep_zoom import DeepZoom

fastapi_testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra 'viewer'")
from wsi_pipeline.viewer import app as app_module  # noqa: E402
from wsi_pipeline.viewer import pixels as pixels_module  # noqa: E402
from wsi_pipeline.viewer.app import make_app  # noqa: E402
from wsi_pipeline.viewer.append_log import AppendLog, RevisionConflict  # noqa: E402
from wsi_pipeline.viewer.open_results import stamp_of  # noqa: E402
from wsi_pipeline.viewer.pixels import find_slide  # noqa: E402
from wsi_pipeline.viewer.run_folders import RunFolders  # noqa: E402
from wsi_pipeline.viewer.service import Viewer  # noqa: E402

TestClient = fastapi_testclient.TestClient
OURS = {"X-Requested-With": "wsi-pipeline"}
SQUARE = ((1000, 600), (1400, 600), (1400, 1000), (1000, 1000), (1000, 600))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two slides, one scanned from (800, 400) on, and OUT with their runs."""
    folder = tmp_path_factory.mktemp("made")
    slides = folder / "slides"
    slides.mkdir()
    a = write_slide(slides / "a.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))
    b = write_scn(
        slides / "b.scn",
        np.repeat(np.repeat(section(600, 800, 50), 4, 0), 4, 1),
        800,
        400,
        (5000, 3500),
    )
    for path in (a, b):
        wp.infer_slide(path, folder / "out", model=brightness_model(threshold=0.6), device="cpu")
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of OUT to write in."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def client_of(out: Path, slides: list[Path] | None = None, access: Access | None = None) -> TestClient:
    return TestClient(make_app(Viewer(out, slides or [], device="cpu"), access or Access()))


@pytest.fixture
def client(out: Path) -> Iterator[TestClient]:
    with client_of(out) as client:
        yield client


def pixels(response) -> np.ndarray:
    assert response.status_code == 200, response.text
    with Image.open(io.BytesIO(response.content)) as image:
        return np.asarray(image.convert("RGBA") if image.mode == "P" else image)


# --- where things lie -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [(1, 1), (512, 512), (513, 200), (24000, 9600), (65536, 3)])
def test_deep_zoom_ends_at_one_pixel_and_its_tiles_cover_every_level_once(side):
    zoom = DeepZoom(wp.Size(*side))
    assert zoom.levels == math.ceil(math.log2(max(side))) + 1
    assert (zoom.size(0).width, zoom.size(0).height) == (1, 1)
    assert zoom.size(zoom.levels - 1) == wp.Size(*side)
    for level in range(max(0, zoom.levels - 3), zoom.levels):
        size, covered = zoom.size(level), 0
        for column in range(-(-size.width // 512)):
            for row in range(-(-size.height // 512)):
                covered += zoom.box(level, column, row).width * zoom.box(level, column, row).height
        assert covered == size.area
    assert zoom.box(zoom.levels, 0, 0) is None
    assert zoom.box(zoom.levels - 1, 10**6, 0) is None


@pytest.mark.parametrize("name", ["a.tiff", "b.scn"])
def test_a_tile_of_the_slide_shows_the_pixels_of_its_place(made, client, name):
    info = client.get(f"/api/slides/{Path(name).stem}").json()
    zoom = DeepZoom(wp.Size(info["width0"], info["height0"]))
    assert info["levels"] == zoom.levels
    with open_slide(made / "slides" / name) as slide:
        for level, column in ((zoom.levels - 1, 1), (zoom.levels - 3, 0)):
            shown = pixels(client.get(f"/api/slides/{info['id']}/tiles/{level}/{column}_0.jpg"))
            box = zoom.box(level, column, 0)
            expected = slide.read(box, zoom.plane(level))
            assert shown.shape == expected.shape
            # JPEG's loss, and the level read for looking.
            assert np.abs(shown.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("name", ["a", "b"])
def test_every_pixel_of_a_layer_has_the_colour_of_the_cell_under_its_centre(client, made, name):
    result = wp.open_result(made / "out" / name)
    info = client.get(f"/api/slides/{name}").json()
    zoom = DeepZoom(wp.Size(info["width0"], info["height0"]))
    left, right, bottom, top = result.extent_um
    mpp = info["mpp_x"], info["mpp_y"]
    rows, columns = result.map.shape
    for level in (zoom.levels - 1, zoom.levels - 2):
        plane, box = zoom.plane(level), zoom.box(level, 0, 0)
        shown = pixels(client.get(f"/api/slides/{name}/layers/heatmap/{level}/0_0.png"))
        assert shown.shape == (box.height, box.width, 4)
        rng = np.random.default_rng(0)
        for x, y in rng.integers(0, (box.width, box.height), (300, 2)):
            x_um, y_um = (x + 0.5) * plane.downsample_x * mpp[0], (y + 0.5) * plane.downsample_y * mpp[1]
            column = math.floor((x_um - left) / ((right - left) / columns))
            row = math.floor((y_um - top) / ((bottom - top) / rows))
            inside = 0 <= column < columns and 0 <= row < rows
            value = result.map[row, column] if inside else np.nan
            expected = colour(np.array([[value]], np.float32))[0, 0]
            assert shown[y, x, 3] == expected[3]
            if expected[3]:
                assert np.abs(shown[y, x].astype(int) - expected).max() <= 3


def test_a_faint_layer_covers_the_more_the_higher_the_probability_and_keeps_its_colours(client, made):
    values = wp.open_result(made / "out/a").map
    path = "/api/slides/a/layers/heatmap/10/0_0.png"
    plain, faint = (pixels(client.get(path, params={"faint": value})) for value in (0, 1))
    scored = plain[..., 3] > 0
    assert np.array_equal(faint[..., :3][scored], plain[..., :3][scored])
    assert not faint[~scored, 3].any()
    low, high = np.nanmin(values), np.nanmax(values)
    assert faint[scored, 3].min() == pytest.approx(255 * (0.2 + 0.8 * low), abs=2)
    assert faint[scored, 3].max() == pytest.approx(255 * (0.2 + 0.8 * high), abs=2)


def test_the_point_under_the_pointer_says_what_the_map_says(client, made):
    result = wp.open_result(made / "out/b")
    row, column = np.argwhere(np.isfinite(result.map))[0]
    mpp = result.summary["mpp"]
    at = {"x0": result.x_um[column] / mpp[0], "y0": result.y_um[row] / mpp[1]}
    found = client.get("/api/slides/b/at", params=at).json()
    assert found["probability"] == pytest.approx(float(result.map[row, column]))
    assert found["status"] == "scored"
    assert client.get("/api/slides/b/at", params={"x0": -5, "y0": 0}).json()["status"] == "outside"
    answer = client.get("/api/slides/b/values")
    values = np.frombuffer(answer.content, "<f4").reshape(
        int(answer.headers["x-rows"]), int(answer.headers["x-cols"])
    )
    np.testing.assert_array_equal(values, result.map)
    origin, cell = ([float(v) for v in answer.headers[k].split(",")] for k in ("x-origin", "x-cell-px"))
    assert (origin[0] + (column + 0.5) * cell[0]) == pytest.approx(at["x0"])


def test_the_layers_of_other_classes_are_listed_by_what_they_are_and_coloured_as_their_cells(made, tmp_path):
    model = package(
        tmp_path / "model", None, ("status", "Tumor", "in situ"), patch_size_pixels=50, spacing_um_px=4.0
    )
    result = wp.infer_slide(made / "slides/a.tiff", tmp_path / "out", model=str(model), device="cpu")
    with client_of(tmp_path / "out") as client:
        info = client.get("/api/slides/a").json()
        listed = {layer["name"]: (layer["title"], layer["kind"]) for layer in info["layers"]}
        assert listed["class:status"] == ("probability of status", "of_class")
        assert listed["class:in_situ"] == ("probability of in situ", "of_class")
        assert listed["status"][1] == "classes"
        shown = pixels(client.get(f"/api/slides/a/layers/class:status/{info['levels'] - 1}/1_1.png"))
        row = column = 700 // 50
        value = result.class_map("status")[row, column]
        assert (
            np.abs(
                shown[700 - 512, 700 - 512].astype(int) - colour(np.array([[value]], np.float32))[0, 0]
            ).max()
            <= 3
        )
        place = {"x0": 700, "y0": 700, "shown": "class:status"}
        assert client.get("/api/slides/a/at", params=place).json()["of_class"] == pytest.approx(float(value))
        assert client.get("/api/slides/a/layers/class:none/9/0_0.png").status_code == 422


def test_another_threshold_outlines_anew_and_leaves_the_run_as_it_is(client, out):
    before = (out / "a/regions.geojson").read_bytes()
    info = client.get("/api/slides/a").json()
    same = client.get("/api/slides/a/outlines", params={"threshold": info["threshold"]}).json()
    shapes = [[shape(f["geometry"]) for f in each["regions"]["features"]] for each in (same, info)]
    assert all(one.hausdorff_distance(other) < 0.002 for one, other in zip(*shapes, strict=True))
    assert same["idc_mm2"] == pytest.approx(info["numbers"]["idc_mm2"], abs=0.01)
    other = client.get("/api/slides/a/outlines", params={"threshold": 0.3}).json()
    assert other["idc_mm2"] > same["idc_mm2"]
    assert client.get("/api/slides/a/outlines", params={"threshold": 0}).status_code == 422
    assert (out / "a/regions.geojson").read_bytes() == before


def test_tiles_are_kept_by_their_address_and_tag(client):
    first = client.get("/api/slides/a/layers/heatmap/9/0_0.png?v=1")
    assert "immutable" in first.headers["cache-control"]
    again = client.get(
        "/api/slides/a/layers/heatmap/9/0_0.png", headers={"If-None-Match": first.headers["etag"]}
    )
    assert again.status_code == 304
    assert not again.content
    assert again.headers["cache-control"] == "no-cache"


# --- the list ---------------------------------------------------------------------------------------------------


def test_the_list_says_of_each_slide_how_it_stands_and_why(client, out):
    (out / "a/summary.json").write_text("{")
    shutil.copytree(out / "b", out / "<img src=x>&'")
    (out / "<img src=x>&'/summary.json").unlink()
    (out / "notes").mkdir()
    events = out / ".batch/events"
    events.mkdir(parents=True, exist_ok=True)
    lines = [
        {"time": "2026-01-01T00:00:00+00:00", "event": "batch_started", "slides": 2},
        {"time": "2026-01-01T00:00:01+00:00", "event": "slide_started", "slide": "lost"},
        {
            **{"time": "2026-01-01T00:00:02+00:00", "event": "slide", "slide": "lost", "status": "failed"},
            **{"reason": "cannot be opened", "path": "/x/lost.svs", "finished": "2026-01-01T00:00:02+00:00"},
        },
    ]
    (events / "1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {row["name"]: row for row in client.get("/api/slides").json()["slides"]}
    assert set(found) == {"a", "b", "<img src=x>&'", "lost"}
    assert found["a"]["status"] == "broken"
    assert "cannot be read" in found["a"]["reason"]
    assert found["b"]["status"] == "done"
    assert found["b"]["idc_mm2"] > 0
    assert 0 < found["b"]["share"] <= 1.5
    assert found["<img src=x>&'"]["status"] == "unfinished"
    assert found["lost"] == found["lost"] | {"status": "failed", "reason": "cannot be opened"}
    # A name of markup travels as text, and leads to its slide.
    assert "<" not in found["<img src=x>&'"]["id"]
    assert client.get(f"/api/slides/{found['b']['id']}").json()["name"] == "b"
    assert pixels(client.get(found["b"]["thumbnail"])).ndim == 3


def test_a_finished_slide_whose_map_is_damaged_or_gone_is_listed_as_broken(client, out):
    (out / "a/slide.zarr/zarr.json").write_text("{")
    shutil.rmtree(out / "b/slide.zarr")
    found = {row["name"]: row for row in client.get("/api/slides").json()["slides"]}
    assert [found[name]["status"] for name in "ab"] == ["broken", "broken"]
    assert "slide.zarr cannot be read" in found["a"]["reason"]
    assert "slide.zarr is gone" in found["b"]["reason"]


def test_the_slide_of_a_run_that_did_not_end_is_shown_from_where_it_was_begun(client, out, made):
    for name in "ab":
        (out / name / "summary.json").unlink()
    assert "its run did not end" in client.get("/api/slides/b").json()["why_not"]
    events = out / ".batch/events"
    events.mkdir(parents=True, exist_ok=True)
    begun = {
        **{"time": "2026-01-01T00:00:01+00:00", "event": "slide_started", "slide": "a"},
        "path": str(made / "slides/a.tiff"),
    }
    (events / "1.jsonl").write_text(json.dumps(begun) + "\n")
    info = client.get("/api/slides/a").json()
    assert info["has_slide"], info["why_not"]
    assert not info["complete"]
    # With folders to look in, the name that it began with is looked for there, and nowhere else.
    with client_of(out, [made / "slides"]) as found, client_of(out, [made / "out"]) as missed:
        assert found.get("/api/slides/a").json()["has_slide"]
        assert not missed.get("/api/slides/a").json()["has_slide"]


def test_the_list_changes_when_a_slide_does(out):
    viewer = Viewer(out, [])
    before = viewer.state()
    assert viewer.state() == before
    (out / "a/summary.json").write_text("{}")
    assert viewer.state() != before


def test_a_slide_that_is_gone_is_shown_by_its_pictures(made, out):
    with client_of(out, [made / "out"]) as client:
        info = client.get("/api/slides/a").json()
        assert not info["has_slide"]
        assert "was not found in" in info["why_not"]
        assert client.get("/api/slides/a/tiles/9/0_0.jpg").status_code == 422
        assert pixels(client.get(info["pictures"]["overlay"])).size > 10_000
    with client_of(out, [made / "slides"]) as client:
        assert client.get("/api/slides/a").json()["has_slide"]


@pytest.mark.parametrize("image", [section(300, 400, 20), section()[::-1]], ids=["smaller", "as large"])
def test_another_slide_in_its_place_is_not_shown_under_the_map(made, out, tmp_path, image):
    other = tmp_path / "moved"
    other.mkdir()
    write_slide(
        other / "a.tiff", np.ascontiguousarray(image), mpp=(4.0, 4.0), factors=(1, 4), compression="zlib"
    )
    with client_of(out, [other]) as client:
        assert "another slide" in client.get("/api/slides/a").json()["why_not"]
        assert client.get("/api/slides/a/tiles/9/0_0.jpg").status_code == 422


def test_of_a_slide_whose_file_does_not_answer_all_else_is_shown(out, monkeypatch):
    # Stands for a file on a mount that hangs: opening it does not return.
    mends = Event()

    def open_or_hang(path, mpp=None):
        if path.name == "a.tiff":
            assert mends.wait(60)
        return open_slide(path, mpp=mpp)

    monkeypatch.setattr(pixels_module, "open_slide", open_or_hang)
    with client_of(out) as client, ThreadPoolExecutor(60) as pool:
        waiting = [
            pool.submit(client.get, f"/api/slides/a/tiles/10/0_0.jpg?v={number}") for number in range(50)
        ]
        for path in (
            "/api/slides",
            "/api/slides/b",
            "/api/slides/b/tiles/10/0_0.jpg",
            "/api/slides/a/layers/heatmap/10/0_0.png",
            "/api/slides/a/pictures/overlay.png",
        ):
            assert pool.submit(client.get, path).result(20).status_code == 200, path
        assert not any(future.done() for future in waiting)
        mends.set()
        assert {future.result(20).status_code for future in waiting} == {200}


def test_a_slide_is_found_by_its_name_whatever_letters_it_has(tmp_path):
    inside = tmp_path / "slides/2026"
    inside.mkdir(parents=True)
    (inside / "S1 [b]*.svs").write_bytes(b"x")
    (inside / "S1 b.svs").write_bytes(b"x")
    assert find_slide("/gone/S1 [b]*.svs", [tmp_path / "slides"]) == inside / "S1 [b]*.svs"


def test_what_a_result_is_kept_by_is_the_same_after_a_restart_and_changes_with_it(out):
    code = "import sys; from pathlib import Path; from wsi_pipeline.viewer.open_results import stamp_of; "
    code += "print(stamp_of(Path(sys.argv[1])))"
    stamps = {
        subprocess.run(
            [sys.executable, "-c", code, str(out / "a")], capture_output=True, text=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert stamps == {stamp_of(out / "a")}
    (out / "a/summary.json").write_text("{}")
    assert stamps != {stamp_of(out / "a")}


# --- what people say --------------------------------------------------------------------------------------------


def review(client: TestClient, name: str, revision: int, **values: object):
    return client.post(
        f"/api/slides/{name}/review", json={"revision": revision, "reviewer": "Dr. A"} | values, headers=OURS
    )


def outline(right: int = 0, **properties: object) -> dict[str, object]:
    corners = [[x + right, y] for x, y in SQUARE]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"class": "IDC", "verdict": "added"} | properties,
    }


def test_of_several_who_change_the_same_state_at_one_moment_one_is_heard(tmp_path):
    rounds, writers = 30, 8
    begin = Barrier(writers)

    def add(number: int) -> int:
        heard = 0
        for revision in range(rounds):
            log = AppendLog(tmp_path / "review.jsonl")  # as each request opens it
            begin.wait()
            try:
                log.add(revision, f"Dr. {number}", {"action": "undo"})
                heard += 1
            except RevisionConflict:
                pass
        return heard

    with ThreadPoolExecutor(writers) as pool:
        assert sum(pool.map(add, range(writers))) == rounds
    entries = AppendLog(tmp_path / "review.jsonl").read().entries
    assert [entry["revision"] for entry in entries] == list(range(1, rounds + 1))


def test_a_review_is_kept_as_geojson_that_labels_patches_and_every_change_stays(client, out, made):
    first = review(client, "b", 0, action="put", feature=outline(id="one")).json()
    assert first["revision"] == 1
    second = review(
        client, "b", 1, action="put", feature=outline(1000, id="two", verdict="rejected", note="fat")
    )
    assert second.status_code == 200
    # Read back as any other file of outlines: at its place on a slide with bounds, in the classes meant.
    with open_slide(made / "slides/b.scn") as slide:
        found = outlines_of(out, slide.path, slide.name)
        outlines = read_outlines(
            found, AnnotationOptions(), slide.size0, qupath_origin0(slide.properties, slide.size0)
        )
    assert outlines.idc.bounds == pytest.approx((1000, 600, 1400, 1000))
    assert outlines.not_idc.bounds == pytest.approx((2000, 600, 2400, 1000))
    undone = review(client, "b", 2, action="undo").json()
    assert [f["id"] for f in undone["features"]["features"]] == ["one"]
    assert [entry["action"] for entry in undone["history"]] == ["put", "put", "undo"]
    gone = review(client, "b", 3, action="delete", feature_id="one").json()
    assert gone["features"]["features"] == []
    assert len((out / "b/review.jsonl").read_text().splitlines()) == 4
    # A server started anew knows the same.
    with client_of(out) as again:
        assert again.get("/api/slides/b/review").json() == gone


def test_who_did_not_see_the_newest_state_is_told_and_changes_nothing(client, out):
    review(client, "a", 0, action="put", feature=outline())
    late = review(client, "a", 0, action="put", feature=outline())
    assert late.status_code == 409
    assert "somebody else" in late.json()["error"]
    assert client.get("/api/slides/a/review").json()["revision"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"action": "shout"},
        {
            "action": "put",
            "feature": {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}},
        },
        {"action": "put", "feature": outline() | {"geometry": None}},
        {"action": "put", "feature": outline(note="x" * 5000)},
        {"action": "put", "feature": outline(id="../../x\n")},
        {"action": "put", "feature": outline(verdict="maybe")},
        {"action": "delete", "feature_id": "none"},
        {"action": "put", "feature": outline(), "reviewer": ""},
        {
            "action": "put",
            "feature": outline()
            | {"geometry": {"type": "Polygon", "coordinates": [[[-9, -9], [-8, -9], [-8, -8], [-9, -9]]]}},
        },
    ],
)
def test_a_change_that_is_none_is_refused_with_what_was_expected(client, out, change):
    answer = review(client, "a", 0, **change)
    assert answer.status_code == 422
    assert answer.json()["error"]
    assert not (out / "a/review.jsonl").exists()


def test_a_line_that_a_power_cut_left_half_is_passed_over_and_named(client, out, caplog):
    review(client, "a", 0, action="put", feature=outline(id="one"))
    with (out / "a/review.jsonl").open("ab") as file:
        file.write(b'{"revision": 2, "acti')
    known = {"file": "review.jsonl", "lines": 1, "first": 2}
    assert client.get("/api/slides/a/review").json()["passed_over"] == known
    changed = review(client, "a", 1, action="put", feature=outline(id="two")).json()
    assert (changed["revision"], changed["passed_over"]) == (2, known)
    assert client.get("/api/slides/a/review").json() == changed
    (warning,) = [line for line in caplog.messages if "review.jsonl" in line]
    assert "passed over: 1, the first is line 2" in warning


@pytest.mark.parametrize(
    "feature",
    [
        "a",
        {"properties": 3},
        {"properties": {"verdict": "accepted"}},
        {"properties": {"id": "two"}},
        outline(id="two", note="", source_region=None) | {"id": "two", "geometry": {"type": "Polygon"}},
    ],
)
def test_a_change_without_a_whole_feature_is_passed_over(client, out, feature):
    review(client, "a", 0, action="put", feature=outline(id="one"))
    with (out / "a/review.jsonl").open("a") as file:
        file.write(json.dumps({"revision": 2, "action": "put", "feature": feature}) + "\n")
    state = client.get("/api/slides/a/review").json()
    assert [one["id"] for one in state["features"]["features"]] == ["one"]
    assert len(state["history"]) == 2
    assert state["passed_over"] == {"file": "review.jsonl", "lines": 1, "first": 2}
    assert review(client, "a", 2, action="undo").json()["features"]["features"] == []


@pytest.mark.parametrize("place", [[1, 10**400], [True, 2], [1.0], "ab"])
def test_a_mitosis_lies_on_a_slide(client, place):
    name = next(iter(client.get("/api/slides/a/grading").json()["areas_mm2"]))
    fields = [{"id": name, "counted": True, "mitoses": [place]}]
    answer = client.put(
        "/api/slides/a/grading", json={"revision": 0, "reviewer": "Dr. A", "fields": fields}, headers=OURS
    )
    assert answer.status_code == 422
    assert "mitoses" in answer.json()["error"]


@pytest.mark.parametrize(
    "fields", [None, [3], [{"id": "Field 1"}], [{"id": 3, "counted": True, "mitoses": []}]]
)
def test_a_sheet_that_is_not_whole_is_passed_over(client, out, fields):
    body = {"revision": 0, "reviewer": "Dr. A", "tubules": 3, "nuclei": 2, "fields": []}
    client.put("/api/slides/a/grading", json=body, headers=OURS)
    with (out / "a/grading.jsonl").open("a") as file:
        file.write(json.dumps({"revision": 2, "reviewer": "Dr. B", "fields": fields}) + "\n")
    state = client.get("/api/slides/a/grading").json()
    assert (state["revision"], state["reviewer"], state["tubules"]) == (2, "Dr. A", 3)
    assert state["passed_over"] == {"file": "grading.jsonl", "lines": 1, "first": 2}
    assert "lines_passed_over,1" in client.get("/api/slides/a/grading.csv").text


def test_a_grade_follows_from_what_was_entered_and_from_nothing_else(client):
    state = client.get("/api/slides/a/grading").json()
    names = list(state["areas_mm2"])
    assert names, "the made slide has fields"
    assert state["computed"]["grade"] is None
    assert set(state["computed"]["missing"]) == {"tubules", "nuclei", "mitoses"}
    fields = [{"id": name, "counted": True, "mitoses": [[100.0, 100.0]] * 40} for name in names]
    body = {"revision": 0, "reviewer": "Dr. A", "tubules": 3, "nuclei": 2, "fields": fields}
    found = client.put("/api/slides/a/grading", json=body, headers=OURS).json()["computed"]
    assert found["mitotic_count"] == 40 * len(names)
    assert found["mitotic_score"] == 3
    assert (found["total"], found["grade"], found["missing"]) == (8, 3, [])
    # Of one field alone there is no score, whatever was counted.
    body |= {"revision": 1, "fields": [fields[0]]}
    found = client.put("/api/slides/a/grading", json=body, headers=OURS).json()["computed"]
    assert (found["mitotic_count"], found["mitotic_score"], found["grade"]) == (40, None, None)
    assert (found["thresholds"], found["missing"]) == (None, ["mitoses (one field alone gives no score)"])
    # Two without a mitosis, looked at: a score of 1 for their own area.
    body |= {"revision": 2, "fields": [{"id": name, "counted": True, "mitoses": []} for name in names[:2]]}
    found = client.put("/api/slides/a/grading", json=body, headers=OURS).json()["computed"]
    assert (found["mitotic_count"], found["mitotic_score"], found["grade"]) == (0, 1, 2)
    assert "grade,2" in client.get("/api/slides/a/grading.csv").text
    formula = body | {"revision": 3, "reviewer": "=HYPERLINK(A1)"}
    assert client.put("/api/slides/a/grading", json=formula, headers=OURS).status_code == 200
    assert ",'=HYPERLINK(A1)" in client.get("/api/slides/a/grading.csv").text
    assert client.get("/api/slides/a/grading.json").json()["grading"]["revision"] == 4
    for wrong in ({"tubules": 4}, {"fields": [{"id": "Field 99"}]}, {"nuclei": True}):
        refused = client.put("/api/slides/a/grading", json=body | {"revision": 4} | wrong, headers=OURS)
        assert refused.status_code == 422


# --- pictures ---------------------------------------------------------------------------------------------------


def test_a_picture_is_scored_beside_what_validation_found_at_that_score(client):
    content = io.BytesIO()
    Image.fromarray(section()[:150, :150]).save(content, format="PNG")
    answer = client.post("/api/predict?mpp=4&name=x.png", content=content.getvalue(), headers=OURS).json()
    assert answer["patches"] == 9
    assert 0 <= answer["probability"] <= 1
    standing = answer["standing"]
    assert standing["bin_low"] <= answer["probability"] <= standing["bin_high"]
    assert standing["n"] > 0
    total = sum(row["patches"] for row in standing["scores"])
    lower = sum(row["patches"] for row in standing["scores"] if row["to"] <= standing["bin_low"])
    assert standing["lower_share"] == pytest.approx(lower / total)
    assert standing["lower_share"] + standing["n"] / total + standing["higher_share"] == pytest.approx(1)
    text = client.get("/metrics").text
    assert 'wsi_pipeline_predictions_total{model="idc_default"} 1.0' in text
    place = client.post("/api/slides/a/predict", json={"x0": 500, "y0": 500}, headers=OURS).json()
    assert 0 <= place["probability"] <= 1
    assert "hears nothing" in place["warnings"][0]  # the run was of another model
    for wrong, status in (
        ((b"no picture", "mpp=4"), 422),
        ((content.getvalue(), "mpp=0"), 422),
        ((content.getvalue(), "mpp=40"), 422),
        ((b"x" * (21 * 2**20), "mpp=4"), 413),
    ):
        refused = client.post(f"/api/predict?{wrong[1]}", content=wrong[0], headers=OURS)
        assert refused.status_code == status, refused.text
    huge = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(huge, format="PNG")
    refused = client.post("/api/predict?mpp=4", content=huge.getvalue(), headers=OURS)
    assert "too large" in refused.json()["error"]


def test_a_picture_that_takes_too_long_is_given_up(client, monkeypatch):
    monkeypatch.setattr(app_module, "PREDICTION_SECONDS", 0)
    content = io.BytesIO()
    Image.fromarray(section()[:150, :150]).save(content, format="PNG")
    answer = client.post("/api/predict?mpp=4", content=content.getvalue(), headers=OURS)
    assert answer.status_code == 408
    assert "give a smaller picture" in answer.json()["error"]


def test_a_place_says_what_the_map_says_of_its_patch(made, tmp_path):
    slide = write_slide(tmp_path / "c.tiff", section(), mpp=(4.0, 4.0), factors=(1, 4))
    result = wp.infer_slide(slide, tmp_path / "out", device="cpu")
    row, column = np.argwhere(np.isfinite(result.map))[7]
    with client_of(tmp_path / "out") as client:
        body = {"x0": result.x_um[column] / 4, "y0": result.y_um[row] / 4}
        found = client.post("/api/slides/c/predict", json=body, headers=OURS).json()
        assert found["warnings"] == []
        assert found["probability"] == pytest.approx(float(result.patch_map[row, column]), abs=0.01)
        card = client.get("/api/model").json()
        assert card["trained_on"]
        assert card["not_for"]


# --- who may ask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/api/slides/..%2f..%2fetc",
        "/api/slides/%2e%2e",
        "/api/slides/a/pictures/..%2fsummary.json",
        "/api/slides/a/pictures/summary.json",
        "/static/..%2f..%2fservice.py",
        "/static/../app.py",
        "/api/slides/.batch",
        "/api/slides/a/layers/..%2fheatmap/9/0_0.png",
        "/api/slides/link",
    ],
)
def test_nothing_outside_of_the_run_folders_is_reached(client, out, made, path):
    (out / "link").symlink_to(made / "out/a", target_is_directory=True)
    answer = client.get(path)
    assert answer.status_code in (404, 422), answer.text
    assert "link" not in [row["name"] for row in client.get("/api/slides").json()["slides"]]


def test_a_slide_that_a_link_leads_out_to_is_not_opened(out, made, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.tiff").symlink_to(made / "slides/a.tiff")
    with client_of(out, [inside]) as client:
        assert not client.get("/api/slides/a").json()["has_slide"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        OURS | {"Origin": "http://evil.example"},
        OURS | {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_change_from_another_site_is_refused(client, out, headers):
    body = {"revision": 0, "reviewer": "x", "action": "put", "feature": outline()}
    answer = client.post("/api/slides/a/review", json=body, headers=headers)
    assert answer.status_code == 403
    assert not (out / "a/review.jsonl").exists()


def test_a_read_only_page_shows_all_and_takes_nothing(out):
    with client_of(out, access=Access(read_only=True)) as client:
        assert client.get("/api/slides").json()["read_only"]
        assert review(client, "a", 0, action="put", feature=outline()).status_code == 403
        assert client.post("/api/predict?mpp=4", content=b"x", headers=OURS).status_code == 403


def test_without_the_token_nothing_is_answered_and_with_it_once_a_cookie_is_enough(out):
    access = Access(hashed("correct horse battery"))
    with client_of(out, access=access) as client:
        assert client.get("/api/slides").status_code == 401
        assert client.get("/api/slides?token=wrong").status_code == 401
        assert client.get("/healthz").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.post("/api/login", json={"token": "wrong"}, headers=OURS).status_code == 401
        first = client.get("/api/slides?token=correct+horse+battery")
        assert first.status_code == 200
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert "correct" not in cookie
        assert client.get("/api/slides").status_code == 200
    with client_of(out, access=access) as client:
        assert (
            client.post("/api/login", json={"token": "correct horse battery"}, headers=OURS).status_code
            == 200
        )
        assert client.get("/api/slides").status_code == 200


def test_a_page_under_a_foreign_name_is_not_served(out):
    app = make_app(Viewer(out, []), Access(), frozenset({"localhost", "127.0.0.1", "testserver"}))
    with TestClient(app) as client:
        assert client.get("/api/slides").status_code == 200
        assert client.get("/api/slides", headers={"Host": "evil.example:80"}).status_code == 403


def test_a_browser_keeps_the_script_and_asks_for_the_slide_while_it_comes(client):
    first = client.get("/static/icon.svg")
    again = client.get("/static/icon.svg", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code) == (200, 304)
    link = client.get("/slides/a%20b%3Cimg%3E").headers["link"]
    assert link == "</api/slides/a%20b%3Cimg%3E>; rel=preload; as=fetch; crossorigin=anonymous"


def test_what_a_page_asks_for_first_is_made_while_its_script_comes(out):
    viewer = Viewer(out, [], device="cpu")
    with TestClient(make_app(viewer, Access())) as client:
        client.get("/slides/b")
        end = time.monotonic() + 30
        while not viewer.tiles.used_bytes and time.monotonic() < end:
            time.sleep(0.01)
        viewer.prepare("b")
        made = viewer.tiles.used_bytes
        assert made > 0
        assert client.get("/api/slides/b/tiles/9/0_0.jpg?v=1").status_code == 200
        as_the_page = "colormap=green_yellow&faint=1"
        assert client.get(f"/api/slides/b/layers/heatmap/9/0_0.png?v=1&{as_the_page}").status_code == 200
        assert viewer.tiles.used_bytes == made
        assert client.get("/slides/none").status_code == 200  # which says itself that there is none


def test_every_answer_says_what_a_browser_may_do_with_it(client):
    for path in ("/", "/api/slides", "/api/nothing", "/static/nothing.js"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self'; style-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_addresses_of_this_machine_alone_are_known():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.5", "::", "example.org")))


def test_boxes_and_planes_meet_at_the_slides_edge():
    zoom = DeepZoom(wp.Size(1000, 700))
    last = zoom.levels - 1
    assert zoom.box(last, 1, 1) == Box(512, 512, 488, 188)


def test_a_second_slide_of_a_name_that_was_refused_gives_the_map_no_patient(tmp_path: Path) -> None:
    done = {"event": "slide", "slide": "a", "status": "done", "patient": "P1", "time": "2026-01-05T01:00:00"}
    refused = done | {"status": "failed", "refused": True, "patient": "P2", "time": "2026-01-06T01:00:00"}
    (tmp_path / EVENTS).mkdir(parents=True)
    (tmp_path / EVENTS / "one.jsonl").write_text(f"{json.dumps(done)}\n{json.dumps(refused)}\n")
    (row,) = RunFolders(tmp_path).listing()["slides"]
    assert row["patient"] == "P1"
