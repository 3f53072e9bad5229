"""Write docs/viewer.png: the page of view-slides on the sample slide that `make demo` maps. Needs Chromium."""

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from wsi_pipeline.results.figures.palette import COLOURS, write_png

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"width": 1200, "height": 675}


def main() -> int:
    """Serve the maps, open the slide, keep what is seen."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=Path, default=ROOT / "demo/maps")
    parser.add_argument("--slide", default="sample")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/viewer.png")
    parser.add_argument("--view", default="tab=map&beside=&x=14200&y=10600&at=0.68", help="after the #")
    args = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "wsi_pipeline.cli.view_slides",
        str(args.maps),
        "--port",
        "0",
        "--read-only",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split(" at ")[-1].strip()
        try:
            with sync_playwright() as playwright:
                chromium = shutil.which("chromium")
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
                page.goto(f"{address}slides/{args.slide}#{args.view}")
                page.locator(".osd[data-tiles=whole]").last.wait_for()
                page.wait_for_timeout(1500)
                shown = page.screenshot()
                browser.close()
        finally:
            server.terminate()
    with Image.open(io.BytesIO(shown)) as image:
        write_png(args.out, image.convert("RGB"), COLOURS, steps=32)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
