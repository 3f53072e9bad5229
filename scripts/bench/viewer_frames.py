"""How smoothly the page of view-slides moves in a browser, for measure_viewer.py. Needs Chromium and playwright."""

import shutil
from typing import Any

import numpy as np

SIZE = {"width": 1600, "height": 1000}
# No GPU is asked for: what a machine without one shows.
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-accelerated-2d-canvas",
]
PANS, MOVES = 4, 45
SMOOTH_MS = 1000 / 30
COUNT = (
    "() => { window.times = []; const tick = t => { times.push(t); requestAnimationFrame(tick); }; tick(0); }"
)
WHOLE = "() => [...document.querySelectorAll('.osd')].every(e => e.dataset.tiles === 'whole')"


def frames(address: str, name: str) -> list[str]:
    """Lines of a table: how long the page takes to show a slide, and its frames while somebody pans."""
    from playwright.sync_api import sync_playwright

    lines = ["", "| in Chromium, drawing without a GPU | |", "| --- | --- |"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport=SIZE)
        for when in ("the first time", "again"):
            page.goto("about:blank")
            page.goto(f"{address}/slides/{name}")
            page.locator(".osd").wait_for()
            page.wait_for_function(WHOLE)
            took = page.evaluate("() => performance.now()")
            lines.append(f"| from the address to slide and map whole, {when} | {took / 1000:.2f} s |")
        for magnification in ("10x", "40x"):
            page.get_by_role("button", name=magnification, exact=True).click()
            page.wait_for_function(WHOLE)
            for what, direction in (("over new tissue", 1), ("back over the same", -1)):
                times = _pan(page, direction)
                lines.append(
                    f"| panning at {magnification} {what} | {1000 / times.mean():.0f} frames a second, "
                    f"{np.mean(times <= SMOOTH_MS * 1.1):.0%} of them within {SMOOTH_MS:.0f} ms |"
                )
        browser.close()
    return lines


def _pan(page: Any, direction: int) -> np.ndarray:
    """Milliseconds of each frame while the mouse drags the slide several times."""
    box = page.locator(".osd").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.evaluate(COUNT)
    for _ in range(PANS):
        page.mouse.move(x + direction * 300, y)
        page.mouse.down()
        for step in range(MOVES):
            page.mouse.move(x + direction * (300 - 600 * step / MOVES), y + 40 * step / MOVES)
            page.wait_for_timeout(10)
        page.mouse.up()
    times = np.diff(np.asarray(page.evaluate("() => times.slice(2)"), float))
    assert len(times) > 10, "no frames were counted"
    return times
