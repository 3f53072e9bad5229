"""A server with its browser, for the tests of the page; and what a screenshot shows."""

import io
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "wsi_pipeline/viewer/static/app.js"
AXE = ROOT / "wsi_pipeline/viewer/web/node_modules/axe-core/axe.min.js"
REVIEWER = "Dr. Ada Test"


def browser_or_skip(playwright: Any) -> Any:
    """Headless Chromium; the test skips, with the reason, where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium, which is not installed (Debian: apt-get install chromium)")
    if not BUNDLE.is_file():
        pytest.skip("needs the page, which is not built: make page")
    # A container's root has no sandbox; a machine without a GPU draws by software.
    drawing = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-accelerated-2d-canvas"]
    flags = ["--no-sandbox", "--font-render-hinting=none", *drawing]
    return playwright.chromium.launch(executable_path=chromium, args=flags)


@contextmanager
def served(out: Path, slides: list[Path], token: str | None = None, read_only: bool = False) -> Iterator[str]:
    """The address of a server of OUT, until the end."""
    import uvicorn

    from wsi_pipeline.viewer.access import Access, hashed
    from wsi_pipeline.viewer.app import make_app
    from wsi_pipeline.viewer.service import Viewer
    from wsi_pipeline.viewer.serving import PageServer

    access = Access(hashed(token) if token else None, read_only)
    app = make_app(Viewer(out, slides, device="cpu"), access)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1)
    server = PageServer(app, config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(5)


def wait_for_tiles(page: Any) -> None:
    """Until every tile of the view is there."""
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.osd')];"
        " return all.length > 0 && all.every(e => e.dataset.tiles === 'whole'); }"
    )
    # The picture is drawn at the next frames.
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


def stage_pixels(page: Any, which: int = 0) -> NDArray[np.uint8]:
    """What a stage shows, as RGB [row, column], a pixel a CSS pixel."""
    box = page.locator(".osd").nth(which).bounding_box()
    with Image.open(io.BytesIO(page.screenshot(clip=box))) as image:
        return np.asarray(image.convert("RGB"))


def centre_of(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """The middle (x, y) of the box around what is marked; pixels are counted by their centres."""
    rows, columns = np.nonzero(mask)
    assert rows.size, "nothing of it is seen"
    return (float(columns.min() + columns.max() + 1) / 2, float(rows.min() + rows.max() + 1) / 2)


def near(pixels: NDArray[np.uint8], colour: tuple[int, int, int], within: int = 40) -> NDArray[np.bool_]:
    """Where a picture has about that colour."""
    return (np.abs(pixels.astype(int) - np.array(colour)).max(axis=2)) <= within


def wait_for_change(page: Any, before: NDArray[np.uint8], share: float) -> None:
    """Until so much of the first stage looks otherwise."""
    changed = 0.0
    for _ in range(60):
        changed = float((np.abs(stage_pixels(page).astype(int) - before).sum(axis=2) > 30).mean())
        if changed > share:
            return
        page.wait_for_timeout(150)
    raise AssertionError(f"{changed:.3f} of the stage changed, expected more than {share}")
