"""How smoothly the page of view-slides moves in a browser, for measure_viewer.py. Needs Chromium and playwright."""

import os
import shutil
from typing import Any

import numpy as np

SIZE = {"width": 1600, "height": 1000}
# Without --no-sandbox Chromium does not start as root. The others ask for drawing by software throughout.
AS_IT_STARTS = ["--no-sandbox"] if os.geteuid() == 0 else []
BY_SOFTWARE = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-accelerated-2d-canvas"]
BROWSERS = {
    "as playwright starts it": AS_IT_STARTS,
    f"with `{' '.join(BY_SOFTWARE)}`": [*AS_IT_STARTS, *BY_SOFTWARE],
}
PANS, MOVES = 4, 45
SMOOTH_MS = 1000 / 30
COUNT = (
    "() => { window.times = []; const tick = t => { times.push(t); requestAnimationFrame(tick); }; tick(0); }"
)
WHOLE = "() => [...document.querySelectorAll('.osd')].every(e => e.dataset.tiles === 'whole')"


def frames_table(found: dict[str, dict[str, str]]) -> list[str]:
    """Lines of a table from what `frames` found in each way of starting Chromium."""
    rows = next(iter(found.values()))
    return [
        "",
        f"| in headless Chromium | {' | '.join(found)} |",
        "| --- |" + " --- |" * len(found),
        *(f"| {what} | {' | '.join(of[what] for of in found.values())} |" for what in rows),
    ]


def frames(address: str, name: str, flags: list[str]) -> dict[str, str]:
    """How long the page takes to show a slide, and its frames while somebody pans, in a Chromium with the flags."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport=SIZE)
        for when in ("the first time", "again"):
            page.goto("about:blank")
            page.goto(f"{address}/slides/{name}")
            page.locator(".osd").wait_for()
            page.wait_for_function(WHOLE)
            took = page.evaluate("() => performance.now()")
            found[f"from the address to slide and map whole, {when}"] = f"{took / 1000:.2f} s"
        for magnification in ("10x", "40x"):
            page.get_by_role("button", name=magnification, exact=True).click()
            page.wait_for_function(WHOLE)
            for what, direction in (("over new tissue", 1), ("back over the same", -1)):
                times = _pan(page, direction)
                found[f"panning at {magnification} {what}"] = (
                    f"{1000 / times.mean():.0f} frames a second, "
                    f"{np.mean(times <= SMOOTH_MS * 1.1):.0%} of them within {SMOOTH_MS:.0f} ms"
                )
        browser.close()
    return found


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
