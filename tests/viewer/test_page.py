"""The page in a real browser: what it shows lies where it should, and what people do on it is kept."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_scn, write_slide
from made_packages import package
from models import brightness_model
from page import (
    AXE,
    BUNDLE,
    REVIEWER,
    browser_or_skip,
    centre_of,
    near,
    served,
    stage_pixels,
    wait_for_change,
    wait_for_tiles,
)
from PIL import Image
from test_infer import section

import wsi_pipeline as wp

pytest.importorskip("fastapi", reason="needs the extra 'viewer'")
playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

TOKEN = "a token of more than sixteen characters"
HTML_NAME = "<img src=x onerror=alert(1)>"
# Centres of the marks in level-0 px of the scanned image, and half their side.
MARKS = ((500.0, 400.0), (1310.0, 730.0), (700.0, 1005.0))
HALF = 20
BOUNDS0 = (800, 400)
REVIEWED = (93, 255, 155)


@dataclass
class Site:
    """A running server, its browser and its folders."""

    address: str
    browser: Any
    out: Path
    slides: Path


def marked(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    for x, y in MARKS:
        image[int(y) - HALF : int(y) + HALF, int(x) - HALF : int(x) + HALF] = 0
    return image


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides with black marks, one of them scanned from (800, 400) on, and OUT with their runs and a broken one."""
    folder = tmp_path_factory.mktemp("page")
    slides = folder / "slides"
    slides.mkdir()
    whole = write_slide(slides / "whole.tiff", marked(section()), mpp=(4.0, 4.0), factors=(1, 4))
    bounded = write_scn(
        slides / "bounded.scn", marked(section(1200, 1600, 50)), *BOUNDS0, canvas=(2600, 1800)
    )
    for path in (whole, bounded):
        wp.infer_slide(path, folder / "out", model=brightness_model(threshold=0.6), device="cpu")
    shutil.copytree(folder / "out/whole", folder / "out" / HTML_NAME)
    shutil.copytree(folder / "out/whole", folder / "out/broken")
    (folder / "out/broken/summary.json").write_text("{ half a fi")
    return folder


@pytest.fixture(scope="module")
def site(made: Path) -> Iterator[Site]:
    with playwright_api.sync_playwright() as playwright:
        browser = browser_or_skip(playwright)
        with served(made / "out", [made / "slides"]) as address:
            yield Site(address, browser, made / "out", made / "slides")
        browser.close()


@pytest.fixture
def page(site: Site) -> Iterator[Any]:
    """A page of a reviewer; whatever it complains of fails the test."""
    # Who wants less motion gets none: nothing needs to be waited for.
    context = site.browser.new_context(
        viewport={"width": 1200, "height": 760}, base_url=site.address, reduced_motion="reduce"
    )
    context.add_init_script(set_reviewer(REVIEWER))
    page = context.new_page()
    page.set_default_timeout(10_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
    yield page
    context.close()
    # A refusal that a test asks for is told in the console, too.
    assert [text for text in complaints if "the server responded with a status of" not in text] == []


def set_reviewer(name: str) -> str:
    """A script; about:blank, between two views, has no storage."""
    return (
        f"location.protocol === 'http:' && localStorage.setItem('wsi-pipeline-reviewer', {json.dumps(name)})"
    )


@pytest.fixture
def fresh(site: Site) -> None:
    """Nobody has reviewed or graded anything yet."""
    for name in ("review.jsonl", "review.geojson", "grading.jsonl"):
        for path in site.out.glob(f"*/{name}"):
            path.unlink()


def go(page: Any, name: str, **view: object) -> None:
    """Open a slide's page at a view, and wait until it is whole."""
    page.goto("about:blank")
    page.goto(f"/slides/{name}#" + "&".join(f"{key}={value}" for key, value in view.items()))
    page.locator(".scale-bar").wait_for()
    wait_for_tiles(page)


def view_of(page: Any) -> dict[str, str]:
    """What the address keeps; it is written when the view has come to rest."""
    page.wait_for_timeout(450)
    return dict(part.split("=", 1) for part in page.evaluate("location.hash.slice(1)").split("&"))


def review(site: Site, page: Any, name: str) -> dict[str, Any]:
    return page.request.get(f"{site.address}/api/slides/{name}/review").json()


def put_outline(site: Site, page: Any, name: str, ring: list[list[float]]) -> None:
    properties = {"id": "here", "class": "IDC", "verdict": "added", "note": "", "source_region": None}
    feature = {
        "type": "Feature",
        "id": "here",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }
    revision = review(site, page, name)["revision"]
    answer = page.request.post(
        f"{site.address}/api/slides/{name}/review",
        data={"revision": revision, "reviewer": REVIEWER, "action": "put", "feature": feature},
        headers={"X-Requested-With": "wsi-pipeline"},
    )
    assert answer.ok, answer.text()


# --- where things lie -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mpp", "origin0"), [("whole", 4.0, (0, 0)), ("bounded", 0.5, BOUNDS0)])
def test_slide_outlines_and_pointer_agree_on_every_micrometre_at_every_zoom(
    site: Site, page: Any, fresh: None, name: str, mpp: float, origin0: tuple[int, int]
) -> None:
    """Law: a mark in the slide, the outline drawn around it and the position under the pointer are one place."""
    mark_x0, mark_y0 = MARKS[1][0] + origin0[0], MARKS[1][1] + origin0[1]
    left, top, right, bottom = mark_x0 - HALF, mark_y0 - HALF, mark_x0 + HALF, mark_y0 + HALF
    put_outline(site, page, name, [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
    for magnification in (1.25, 5, 20, 40):
        points_a_px = mpp * magnification / 10
        if not 4 < HALF * points_a_px < 250:
            continue  # too small or too large to be seen with its outline
        # Not in the middle, where a wrong scale would not show.
        shift = (90 / points_a_px, -70 / points_a_px)
        go(page, name, x=mark_x0 - shift[0], y=mark_y0 - shift[1], at=magnification, map="")
        pixels = stage_pixels(page)
        height, width = pixels.shape[:2]
        expected = width / 2 + 90, height / 2 - 70
        half = HALF * points_a_px
        near_by = np.zeros(pixels.shape[:2], bool)
        reach = int(half + 12)
        rows = slice(max(0, int(expected[1]) - reach), int(expected[1]) + reach)
        near_by[rows, max(0, int(expected[0]) - reach) : int(expected[0]) + reach] = True
        found = centre_of(near(pixels, REVIEWED) & near_by)
        assert found == pytest.approx(expected, abs=1.01), f"the outline at {magnification}x"
        if half > 8:  # else the outline's own casing covers it
            inner = int(half * 0.6)
            middle = pixels[
                int(expected[1]) - inner : int(expected[1]) + inner,
                int(expected[0]) - inner : int(expected[0]) + inner,
            ]
            assert middle.max() < 60, f"the mark at {magnification}x"
            outside = int(half + 6)
            assert pixels[int(expected[1]), int(expected[0]) + outside].max() > 90
        box = page.locator(".osd").bounding_box()
        page.mouse.move(box["x"] + expected[0], box["y"] + expected[1])
        page.get_by_test_id("readout").get_by_text("px").wait_for()
        said = page.get_by_test_id("readout").inner_text()
        x0, y0 = map(int, re.search(r"(\d+), (\d+) px", said).groups())
        assert (x0, y0) == pytest.approx((mark_x0, mark_y0), abs=max(1.0, 0.8 / points_a_px))


@pytest.mark.parametrize(("name", "mpp"), [("whole", 4.0), ("bounded", 0.5)])
def test_cells_of_the_map_lie_on_their_micrometres(site: Site, page: Any, name: str, mpp: float) -> None:
    """Law: where the map's colour changes, a cell ends, at two zooms."""
    values = page.request.get(f"{site.address}/api/slides/{name}/values")
    rows, columns = int(values.headers["x-rows"]), int(values.headers["x-cols"])
    cell_x, cell_y = map(float, values.headers["x-cell-px"].split(","))
    origin_x, origin_y = map(float, values.headers["x-origin"].split(","))
    cells = np.frombuffer(values.body(), "<f4").reshape(rows, columns)
    # The border between the two neighbours that differ most, in the middle of the slide's height.
    row = rows // 2
    differences = np.abs(np.diff(np.nan_to_num(cells[row], nan=-1.0)))
    first = int(differences[1:].argmax()) + 2
    edge_x0, y0 = origin_x + first * cell_x, origin_y + (row + 0.5) * cell_y
    for magnification in (2.5, 10):
        points_a_px = mpp * magnification / 10
        go(page, name, x=edge_x0 + 60 / points_a_px, y=y0, at=magnification, opacity=1, also="")
        page.keyboard.press("o")
        page.keyboard.press("l")
        pixels = stage_pixels(page).astype(int)
        height, width = pixels.shape[:2]
        line = pixels[height // 2]
        step = np.abs(np.diff(line, axis=0)).sum(axis=1)
        window = slice(int(width / 2) - 60 - 12, int(width / 2) - 60 + 12)
        border = window.start + int(step[window].argmax()) + 1
        assert border == pytest.approx(width / 2 - 60, abs=2)


# --- moving and layers ------------------------------------------------------------------------------------------


def test_keys_and_buttons_zoom_and_the_address_keeps_the_view(page: Any) -> None:
    go(page, "bounded")
    page.keyboard.press("4")
    assert float(view_of(page)["at"]) == pytest.approx(10, rel=1e-3)
    assert page.get_by_role("button", name="10x", exact=True).get_attribute("aria-pressed") == "true"
    bar = page.locator(".scale-bar")
    points = bar.locator(".bar").bounding_box()["width"]
    um = float(bar.inner_text().split()[0])
    assert bar.inner_text().split()[1] == "µm"
    assert um / points == pytest.approx(1.0, rel=0.02)
    page.get_by_role("button", name="20x", exact=True).click()
    page.keyboard.press("ArrowRight")
    view = view_of(page)
    assert float(view["at"]) == pytest.approx(20, rel=1e-3)
    page.reload()
    wait_for_tiles(page)
    again = view_of(page)
    assert [float(again[key]) for key in ("x", "y", "at")] == pytest.approx(
        [float(view[key]) for key in ("x", "y", "at")], rel=1e-3
    )


def asked_at_first(page: Any) -> list[str]:
    """What the page asks for until the map's values are there, in its order."""
    asked: list[str] = []

    def note(request: Any) -> None:
        asked.append(request.url)

    page.goto("about:blank")
    page.on("request", note)
    with page.expect_response(re.compile("/values$")):
        page.goto("/slides/bounded#x=1600&y=1000&at=20")
    page.remove_listener("request", note)
    return asked


def slide_levels(asked: list[str]) -> list[int]:
    """The levels of the slide's tiles, without that of the small picture in the corner, the tile of the whole."""
    levels = [int(found[1]) for url in asked if (found := re.search(r"/tiles/(\d+)/", url))]
    return [level for level in levels if level != 9]


def test_the_first_view_asks_for_its_own_tiles_first_and_for_the_maps_values_last(page: Any) -> None:
    # A busy machine may draw a frame before the view is at its place: of three, one must be right.
    loads = [asked_at_first(page) for _ in range(3)]
    assert any(levels[0] == max(levels) == 12 for levels in map(slide_levels, loads))
    for asked in loads:
        tiles = [number for number, url in enumerate(asked) if re.search("/(tiles|layers)/", url)]
        assert next(number for number, url in enumerate(asked) if url.endswith("/values")) > max(tiles)
        assert sum(url.endswith("/api/slides/bounded") for url in asked) == 1


def test_layers_are_shown_and_hidden_by_keys_and_panel(page: Any) -> None:
    go(page, "whole")
    with_map = stage_pixels(page)
    page.keyboard.press("m")
    wait_for_change(page, with_map, share=0.2)
    bare = stage_pixels(page)
    assert view_of(page)["map"] == ""
    page.get_by_label("what became of each cell").check()
    wait_for_change(page, bare, share=0.02)  # glass is dark, and what was rejected has a colour
    legend = page.get_by_role("list", name=re.compile("what became of each cell"))
    assert "background" in legend.inner_text()
    assert "rejected" in legend.inner_text()


def test_the_sliders_are_named(page: Any) -> None:
    go(page, "whole")
    for name in ("Opacity", "IDC from"):
        assert page.get_by_role("slider", name=re.compile(name)).count() == 1


def test_the_key_of_a_layer_that_a_slide_has_not_leaves_the_map(page: Any) -> None:
    go(page, "whole")
    page.keyboard.press("u")
    page.get_by_text("This slide has no such layer").wait_for()
    assert view_of(page)["map"] == "heatmap"


def test_the_probability_of_each_class_is_a_layer_with_its_value_under_the_pointer(
    site: Site, page: Any, tmp_path: Path
) -> None:
    model = package(
        tmp_path / "package", None, ("Stroma", "Tumor", "in situ"), patch_size_pixels=50, spacing_um_px=4.0
    )
    result = wp.infer_slide(site.slides / "whole.tiff", tmp_path / "out", model=str(model), device="cpu")
    row, column = np.argwhere(np.isfinite(result.map))[7]
    with served(tmp_path / "out", [site.slides]) as address:
        page.goto(
            f"{address}/slides/whole#at=2.5&opacity=1&x={result.x_um[column] / 4}&y={result.y_um[row] / 4}"
        )
        page.locator(".scale-bar").wait_for()
        wait_for_tiles(page)
        mapped = stage_pixels(page)
        page.get_by_role("radio", name="probability of in situ").check()
        wait_for_change(page, mapped, share=0.2)
        bar = page.locator(".colour-bar")
        assert "probability of in situ" in bar.inner_text()
        assert bar.locator("i").count() == 0  # the threshold is one of IDC
        assert page.get_by_label("Hide below the threshold").is_disabled()
        box = page.locator(".osd").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        value = float(result.class_map("in situ")[row, column])
        page.get_by_test_id("readout").get_by_text(f"probability of in situ {value:.2f}").wait_for()
        assert view_of(page)["map"] == "class%3Ain_situ"


def test_the_threshold_outlines_anew_and_nothing_is_saved(site: Site, page: Any) -> None:
    before = (site.out / "whole/regions.geojson").read_bytes()
    go(page, "whole")
    # Pressed as people press it: again and again.
    for _ in range(5):
        page.keyboard.press(".")
    asked = page.request.get(f"{site.address}/api/slides/whole/outlines?threshold=0.7").json()
    page.get_by_text(f"At 0.70: {asked['n']} region").wait_for()
    page.get_by_role("tab", name="Regions").click()
    listed = page.locator("ul.places").first.locator("li")
    assert listed.count() == asked["n"]
    assert view_of(page)["threshold"] == "0.7"
    page.get_by_role("tab", name="Map").click()
    page.get_by_role("button", name="Back to 0.60").click()
    page.get_by_text("The run's own threshold: 0.60").wait_for()
    assert (site.out / "whole/regions.geojson").read_bytes() == before


def test_slide_and_map_side_by_side_move_as_one(page: Any) -> None:
    go(page, "whole", x=MARKS[0][0], y=MARKS[0][1], at=5)
    page.keyboard.press("s")
    page.locator(".osd").nth(1).wait_for()
    view = view_of(page)
    assert [float(view[key]) for key in ("x", "y", "at")] == pytest.approx([*MARKS[0], 5], rel=2e-3)
    page.keyboard.press("-")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(200)
    wait_for_tiles(page)
    centres = []
    for which in (0, 1):
        pixels = stage_pixels(page, which)
        dark = pixels.max(axis=2) < 90 if which == 0 else pixels.sum(axis=2) < 330
        height, width = dark.shape
        dark[:, : width // 4] = dark[:, -width // 4 :] = False
        dark[-height // 4 :] = False
        dark[:60] = False
        centres.append(centre_of(dark))
    assert centres[0] == pytest.approx(centres[1], abs=6)
    assert centres[0][1] < pixels.shape[0] / 2


def test_whoever_grades_sees_the_tissue_as_it_is_and_the_map_beside_it(page: Any) -> None:
    view = {"x": 800, "y": 600, "at": 2.5}
    shown = {}
    for tab, layer in (("map", "heatmap"), ("map", ""), ("grading", "heatmap")):
        go(page, "whole", tab=tab, map=layer, **view)
        shown[tab, layer] = stage_pixels(page)
    bare, covered, graded = shown["map", ""], shown["map", "heatmap"], shown["grading", "heatmap"]
    # Below the buttons, and above the scale bar and the place.
    middle = slice(100, 500), slice(100, 700)
    assert np.abs(bare[middle].astype(int) - graded[middle]).max() <= 3
    assert np.abs(bare[middle].astype(int) - covered[middle]).max() > 40
    assert page.locator(".colour-bar").count() == 0
    page.keyboard.press("s")
    page.locator(".osd").nth(1).wait_for()
    wait_for_tiles(page)
    beside = stage_pixels(page, 1)
    assert page.locator(".colour-bar").count() == 1
    assert np.abs(beside[middle[0], 100:350].astype(int) - stage_pixels(page)[middle[0], 100:350]).max() > 40


def test_a_key_flies_to_the_next_region_and_a_click_to_a_field(site: Site, page: Any) -> None:
    facts = page.request.get(f"{site.address}/api/slides/whole").json()
    go(page, "whole")
    page.keyboard.press("n")
    view = view_of(page)
    corners = np.array(facts["regions"]["features"][0]["geometry"]["coordinates"][0])
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    assert [float(view["x"]), float(view["y"])] == pytest.approx(middle.tolist(), abs=2)
    assert view["region"].replace("+", " ") == facts["regions"]["features"][0]["properties"]["name"]
    page.get_by_role("tab", name="Regions").click()
    field = facts["fields"][0]
    page.get_by_role("button", name=re.compile(rf"^{field['id']} ")).click()
    view = view_of(page)
    assert [float(view["x"]), float(view["y"])] == pytest.approx([field["x0"], field["y0"]], abs=2)


# --- review and grading -----------------------------------------------------------------------------------------


def test_an_outline_drawn_with_the_mouse_is_kept_and_labels_patches(
    site: Site, page: Any, fresh: None, tmp_path: Path
) -> None:
    go(page, "whole", x=800, y=600, at=2.5, tab="review")
    page.get_by_role("button", name="Draw a region").click()
    page.get_by_text("Click corner after corner; double click ends.").wait_for()
    page.wait_for_timeout(400)
    box = page.locator(".osd").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    corners = [(-150, -100), (150, -100), (150, 120), (-150, 120)]
    for x, y in corners[:-1]:
        page.mouse.move(middle[0] + x, middle[1] + y, steps=3)
        page.mouse.click(middle[0] + x, middle[1] + y)
        page.wait_for_timeout(350)  # two clicks at once would be a double click
    page.mouse.move(middle[0] + corners[-1][0], middle[1] + corners[-1][1], steps=3)
    page.mouse.dblclick(middle[0] + corners[-1][0], middle[1] + corners[-1][1])
    page.get_by_role("heading", name="Added region").wait_for()
    (feature,) = review(site, page, "whole")["features"]["features"]
    ring = np.array(feature["geometry"]["coordinates"][0])
    expected = [800 - 150, 600 - 100, 800 + 150, 600 + 120]  # at 2.5x a point is a pixel of 4 um
    assert [*ring.min(axis=0), *ring.max(axis=0)] == pytest.approx(expected, abs=1.5)
    assert feature["properties"]["reviewer"] == REVIEWER
    page.get_by_role("combobox", name="Class").select_option("DCIS")
    page.get_by_text("DCIS saved").wait_for()
    page.get_by_label("Note").fill("cribriform <b>")
    page.get_by_role("button", name="Save the note").click()
    page.get_by_text("note saved").wait_for()
    page.reload()
    wait_for_tiles(page)
    page.get_by_role("button", name="Added DCIS added").click()
    assert page.get_by_label("Note").input_value() == "cribriform <b>"
    page.get_by_role("button", name="Edit its outline").click()
    page.get_by_role("button", name="Save the outline").wait_for()
    page.keyboard.press("Escape")
    # What tile-slides takes as labels.
    from wsi_pipeline.cli.tile_slides import main

    slide, out = str(site.slides / "whole.tiff"), str(tmp_path / "tiles")
    assert main([slide, "--out", out, "--config", "tile_idc", "--annotations", str(site.out)]) == 0
    counts = json.loads((tmp_path / "tiles/whole/summary.json").read_text())
    # DCIS is no IDC; six by four of the patches lie in the outline by more than half.
    assert (counts["counts"]["labels"]["idc"], counts["counts"]["labels"]["not_idc"]) == (0, 24)


def test_the_models_regions_are_accepted_and_rejected_and_each_change_can_be_undone(
    site: Site, page: Any, fresh: None
) -> None:
    own = (site.out / "whole/regions.geojson").read_bytes()
    go(page, "whole", tab="review")
    page.keyboard.press("n")
    page.keyboard.press("y")
    page.get_by_text("accepted saved").wait_for()
    page.keyboard.press("r")
    page.get_by_text("rejected saved").wait_for()
    state = review(site, page, "whole")
    assert [f["properties"]["verdict"] for f in state["features"]["features"]] == ["rejected"]
    assert len(state["history"]) == 2
    page.get_by_role("button", name="Undo the last change").click()
    page.get_by_role("button", name="Accept y", pressed=True).wait_for()
    assert [f["properties"]["verdict"] for f in review(site, page, "whole")["features"]["features"]] == [
        "accepted"
    ]
    assert (site.out / "whole/regions.geojson").read_bytes() == own


def test_an_outline_is_drawn_with_the_keys_alone(site: Site, page: Any, fresh: None) -> None:
    go(page, "whole", x=800, y=600, at=5)
    page.keyboard.press("v")  # the panel has the focus, and with it the arrows, until a corner is set
    page.wait_for_function("() => document.activeElement.id === 'tab-review'")
    for key in ("b", "ArrowRight", "b", "ArrowDown", "b"):
        page.keyboard.press(key)
        page.wait_for_timeout(120)
    page.keyboard.press("e")
    page.get_by_text("Outline added").wait_for()
    (feature,) = review(site, page, "whole")["features"]["features"]
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert len(ring) == 4
    box = page.locator(".osd").bounding_box()
    # An arrow moves by a tenth of the view; at 5x a point is half a pixel of 4 um.
    assert np.ptp(ring[:, 0]) == pytest.approx(box["width"] / 20, abs=2)
    assert np.ptp(ring[:, 1]) == pytest.approx(box["height"] / 20, abs=2)


def test_nothing_is_saved_in_nobodys_name(site: Site, page: Any, fresh: None) -> None:
    page.add_init_script(set_reviewer(""))
    go(page, "whole", tab="review")
    page.keyboard.press("n")
    page.keyboard.press("y")
    page.get_by_text("Enter your name first").wait_for()
    page.wait_for_function("() => document.activeElement.classList.contains('reviewer')")
    assert review(site, page, "whole")["revision"] == 0


def test_changes_that_cannot_be_read_are_named_on_their_slide(site: Site, page: Any, fresh: None) -> None:
    (site.out / "whole/review.jsonl").write_text('{"revision": 1, "acti')
    (site.out / "whole/grading.jsonl").write_text('{"revision": 1}\n[]\n')
    go(page, "whole")
    page.get_by_text("1 line of this slide's review.jsonl cannot be read").wait_for()
    page.get_by_text("2 lines of this slide's grading.jsonl cannot be read").wait_for()


def count_in_the_first_field(page: Any) -> tuple[float, float]:
    """Begin to count mitoses there; gives its middle on the screen."""
    go(page, "whole", tab="grading")
    page.keyboard.press("f")
    page.get_by_role("heading", name="Field 1").wait_for()
    page.wait_for_timeout(200)
    page.get_by_role("button", name="Count by clicking").click()
    box = page.locator(".osd").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_grade_is_computed_from_what_is_entered_and_counted(site: Site, page: Any, fresh: None) -> None:
    middle = count_in_the_first_field(page)
    for i, (x, y) in enumerate([(0, 0), (60, 40), (-50, 30)]):
        page.mouse.click(middle[0] + x, middle[1] + y)
        page.get_by_label("Mitoses counted").get_by_text(str(i + 1), exact=True).wait_for()
    page.mouse.click(middle[0] + 61, middle[1] + 40)  # on a mark: taken back
    page.get_by_label("Mitoses counted").get_by_text("2", exact=True).wait_for()
    page.get_by_role("button", name="Stop counting").click()
    whole = page.get_by_role("region", name="The tumour as a whole")
    assert "Still missing" in whole.inner_text()
    whole.get_by_role("button", name="3: below 10 % tubules").click()
    whole.get_by_role("button", name="2: larger, some variation").click()
    page.get_by_text("Still missing: mitoses (one field alone gives no score)").wait_for()
    page.get_by_role("button", name="Next field").first.click()
    page.get_by_label("looked for, none found").check()
    page.wait_for_function("() => !document.querySelector('.computed').innerText.includes('missing')")
    state = page.request.get(f"{site.address}/api/slides/whole/grading").json()
    assert state["computed"]["mitotic_count"] == 2
    assert (state["tubules"], state["nuclei"]) == (3, 2)
    assert f"{state['computed']['total']} of 9" in whole.inner_text()
    field = page.request.get(f"{site.address}/api/slides/whole").json()["fields"][0]
    graded, _ = state["fields"]
    assert graded["mitoses"][0] == pytest.approx([field["x0"], field["y0"]], abs=2)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert "mitotic_count,2" in Path(download.value.path()).read_text()


@pytest.mark.parametrize(("screen", "counted"), [((1200, 760), 2), ((3840, 2160), 0)])
def test_a_mark_is_taken_back_from_further_off_where_marks_are_drawn_larger(
    site: Site, page: Any, fresh: None, screen: tuple[int, int], counted: int
) -> None:
    page.set_viewport_size({"width": screen[0], "height": screen[1]})
    x, y = count_in_the_first_field(page)
    page.mouse.click(x, y)
    page.get_by_label("Mitoses counted").get_by_text("1", exact=True).wait_for()
    page.mouse.click(x + 15, y)
    page.get_by_label("Mitoses counted").get_by_text(str(counted), exact=True).wait_for()


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("focus", ["tab", "combobox", "slider", "checkbox"])
def test_the_keys_are_shown_over_the_slide_whatever_has_the_focus(page: Any, focus: str) -> None:
    go(page, "whole")
    page.get_by_role(focus).first.focus()
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keys")
    keys.get_by_text("next region").wait_for()
    page.keyboard.press("m")  # what lies below hears nothing
    page.keyboard.press("Escape")
    keys.wait_for(state="hidden")
    assert view_of(page)["map"] == "heatmap"
    assert page.evaluate("document.activeElement.getAttribute('role') ?? document.activeElement.type") in (
        focus,
        {"combobox": "select-one", "slider": "range"}.get(focus),
    )


def test_escape_leads_from_a_text_back_to_the_slide(page: Any) -> None:
    go(page, "whole", x=800, y=600, at=5, tab="review")
    page.get_by_label("Your name").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    before = float(view_of(page)["x"])
    page.keyboard.press("ArrowRight")
    assert float(view_of(page)["x"]) > before


# --- the other pages --------------------------------------------------------------------------------------------


def test_a_picture_is_scored_in_its_place_among_validation(page: Any) -> None:
    page.goto("/try")
    picture = io.BytesIO()
    Image.fromarray(section(400, 400, 50)).save(picture, "PNG")
    page.locator("input[type=file]").set_input_files(
        {"name": "field.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    )
    page.get_by_label("Micrometres a pixel").fill("2")
    page.get_by_role("button", name="Ask the model").click()
    result = page.get_by_role("region", name="Result")
    result.wait_for(timeout=30_000)
    assert re.search(r"Probability of IDC \d\.\d\d", result.inner_text())
    assert re.search(r"% of all scored lower, [\d.]+ % higher", result.inner_text())
    card = page.get_by_role("region", name="The model")
    card.get_by_role("heading", name="What it is not for").wait_for()
    # Seen without opening anything.
    assert card.get_by_role("row", name=re.compile("Recall")).first.is_visible()
    page.locator("input[type=file]").set_input_files(
        {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    page.get_by_role("button", name="Ask the model").click()
    page.get_by_role("alert").get_by_text("no.png").or_(page.locator(".trouble")).first.wait_for()
    assert page.get_by_role("region", name="Result").count() == 0


def test_names_from_files_are_text_and_broken_slides_say_why(page: Any) -> None:
    page.goto("/")
    row = page.get_by_role("row", name=re.compile("broken"))
    assert "summary.json cannot be read" in row.inner_text()
    assert page.get_by_role("link", name=HTML_NAME, exact=True).count() == 1
    assert page.locator("img[src=x]").count() == 0
    page.get_by_role("link", name=HTML_NAME, exact=True).click()
    page.locator(".scale-bar").wait_for()
    assert page.locator("h1").inner_text() == HTML_NAME
    page.goto("/slides/broken")
    page.get_by_role("alert").get_by_text("summary.json").wait_for()


def test_the_list_is_searched_filtered_and_sorted_and_the_address_keeps_it(page: Any) -> None:
    page.goto("/")
    rows = page.locator("tr.slide")
    page.get_by_text("4 slides").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("bound")
    page.get_by_text("1 of 4 slides").wait_for()
    assert rows.count() == 1
    page.reload()
    page.get_by_text("1 of 4 slides").wait_for()
    page.get_by_role("searchbox").fill("")
    page.get_by_label("Show").select_option("broken")
    assert rows.locator("th").all_inner_texts()[0].startswith("broken")
    page.get_by_label("Show").select_option("")
    page.get_by_role("button", name="IDC", exact=True).click()
    page.get_by_role("button", name="IDC", exact=True).click()
    assert page.get_by_role("columnheader", name="IDC").get_attribute("aria-sort") == "descending"
    areas = [
        float(text.split()[0])
        for text in rows.locator("td.numeric:nth-of-type(4)").all_inner_texts()
        if "mm" in text
    ]
    assert areas == sorted(areas, reverse=True)


def test_sorted_by_patient_the_list_sums_the_slides_of_each(site: Site, page: Any) -> None:
    rows = {"whole": "Anna", "bounded": "Anna", "broken": "Zoe"}
    events = site.out / ".batch/events"
    events.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "event": "slide",
            "time": "2026-01-01T00:00:00.000+00:00",
            "slide": name,
            "status": "done",
            "patient": patient,
        }
        for name, patient in rows.items()
    ]
    (events / "patients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page.goto("/?sort=patient")
    page.get_by_text("2 slides", exact=True).wait_for()
    heads = page.locator("tr.patient")
    assert [head.get_by_role("rowheader").inner_text() for head in heads.all()] == ["Anna", "Zoe"]
    summaries = [json.loads((site.out / name / "summary.json").read_text()) for name in ("whole", "bounded")]
    total = sum(summary["idc_mm2"] for summary in summaries)
    assert float(heads.first.locator("td.numeric").first.inner_text().split()[0]) == pytest.approx(
        total, abs=0.06
    )
    assert "1 slide, 1 without a map" in heads.last.inner_text()
    page.get_by_role("button", name="Status").click()
    assert heads.count() == 0


def test_the_list_follows_a_batch_that_runs_and_lets_the_server_end(
    site: Site, page: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(site.out / "whole", tmp_path / "out/whole")
    shutil.copytree(site.out / "bounded", tmp_path / "out/bounded")
    (tmp_path / "out/bounded/summary.json").unlink()
    begun = datetime.now(UTC) - timedelta(seconds=1000)
    (tmp_path / "out/.batch/events").mkdir(parents=True)

    def happens(event: str, after: float, **values: object) -> None:
        line = {"time": (begun + timedelta(seconds=after)).isoformat(), "event": event, **values}
        with (tmp_path / "out/.batch/events/1.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    happens("batch_started", 0, slides=4)
    happens("slide", 500, slide="whole", status="done")
    happens("slide_started", 501, slide="bounded")
    happens("slide_progress", 990, slide="bounded", done=30, total=40)
    with served(tmp_path / "out", [site.slides]) as address:
        page.goto(address)
        # In 1,000 s, 1.75 of them.
        page.get_by_text(re.compile("1 of 4 slides ended, about 2[0-4] min left")).wait_for()
        row = page.get_by_role("row", name=re.compile("bounded"))
        assert "running" in row.inner_text()
        assert row.get_by_role("progressbar").evaluate("bar => bar.value") == 0.75
        # The page hears of what happens while it is looked at.
        happens("slide", 995, slide="bounded", status="failed", reason="cut short")
        page.get_by_text("2 of 4 slides ended, 1 failed").wait_for()
        assert "cut short" in row.inner_text()
        happens("batch_ended", 999)
        page.get_by_text("slides ended").wait_for(state="hidden")
        other = page.context.new_page()  # whose complaints, once the server is gone, are no fault
        other.goto(address)
        other.get_by_text("2 slides").wait_for()
        page.goto("about:blank")
    assert "Traceback" not in capfd.readouterr().err


def test_label_and_macro_are_fetched_only_when_asked_for(
    site: Site, page: Any, tmp_path: Path, shared: Path
) -> None:
    slide = shared / "data/slides/cmu_1_small_region.svs"
    wp.infer_slide(slide, tmp_path, model=brightness_model(), device="cpu")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with served(tmp_path, [slide.parent]) as address:
        page.goto(f"{address}/slides/{slide.stem}#tab=about")
        page.get_by_text("They can carry a patient's name").wait_for()
        wait_for_tiles(page)
        assert not any("associated" in url for url in asked)
        with page.expect_response(re.compile("associated/label.jpg")) as found:
            page.get_by_role("button", name="Show the label").click()
        assert found.value.headers["cache-control"] == "no-store"
        assert not any("macro" in url for url in asked)
        page.goto("about:blank")


def test_a_read_only_page_shows_what_was_said_and_takes_nothing(
    site: Site, page: Any, fresh: None, made: Path
) -> None:
    put_outline(site, page, "whole", [[400, 400], [900, 400], [900, 800], [400, 800], [400, 400]])
    with served(made / "out", [made / "slides"], read_only=True) as address:
        page.goto(f"{address}/slides/whole#tab=review")
        page.get_by_text("Read only: the review is shown").wait_for()
        page.get_by_role("button", name=re.compile("Added")).wait_for()
        assert page.get_by_role("button", name=re.compile("Accept|Draw a region|Undo")).count() == 0
        wait_for_tiles(page)
        page.keyboard.press("n")
        page.keyboard.press("y")
        page.get_by_text("Not saved").wait_for()
        page.goto("about:blank")
    assert review(site, page, "whole")["revision"] == 1


def test_no_path_leads_out_of_the_run_folders(site: Site, page: Any) -> None:
    for path in ("..%2F..%2Fetc%2Fpasswd", "whole%2F..%2F..%2Fslides", "..%5C..%5Cslides", "%252e%252e"):
        answer = page.goto(f"/slides/{path}")
        if answer.status == 200:
            page.get_by_role("alert").get_by_text("no slide of that name").wait_for()
        else:
            assert answer.status == 404
        assert "root:" not in page.content()


def test_without_the_token_the_page_asks_for_it(site: Site, made: Path) -> None:
    with served(made / "out", [made / "slides"], token=TOKEN) as address:
        context = site.browser.new_context(base_url=address)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto("/slides/whole")
        page.get_by_role("heading", name="Token needed").wait_for()
        page.get_by_label("Token").fill("not the token, surely")
        page.get_by_role("button", name="Enter").click()
        page.get_by_role("alert").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Enter").click()
        page.locator(".scale-bar").wait_for()
        assert TOKEN not in page.evaluate("location.href + document.cookie + JSON.stringify(localStorage)")
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_breaks_a_rule_of_accessibility(site: Site, page: Any, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("needs axe-core, which make page installs")
    page.emulate_media(color_scheme=scheme)
    source = AXE.read_text(encoding="utf-8")

    def check(where: str) -> None:
        page.evaluate(source)
        # In the dark page only colours are others.
        rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
        found = page.evaluate("rules => axe.run(rules).then(result => result.violations)", rules)
        told = [(v["id"], [node["html"][:200] for node in v["nodes"]][:3]) for v in found]
        assert told == [], where

    page.goto("/")
    page.get_by_text("4 slides").wait_for()
    check("the list")
    go(page, "whole")
    page.keyboard.press("n")
    page.keyboard.press("f")
    for tab in ("Map", "Regions", "Review", "Grading", "Ask", "About"):
        page.get_by_role("tab", name=tab).click()
        check(tab)
    page.keyboard.press("?")
    check("the keys")
    page.goto("/slides/broken")
    page.get_by_role("alert").wait_for()
    check("a broken slide")
    for path in ("/try", "/model", "/help"):
        page.goto(path)
        page.locator("h1").wait_for()
        page.wait_for_timeout(150)
        check(path)


def test_the_chunks_that_the_page_begins_with_are_asked_for_together_with_it() -> None:
    if not BUNDLE.is_file():
        pytest.skip("needs the page, which is not built: make page")
    imported = re.findall(r'(?:from|import)"\./([\w-]+\.js)"', BUNDLE.read_text(encoding="utf-8"))
    index = BUNDLE.with_name("index.html").read_text(encoding="utf-8")
    assert imported
    for name in imported:
        assert f'<link rel="modulepreload" href="/static/{name}">' in index
