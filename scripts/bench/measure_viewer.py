"""How fast view-slides is: tiles for fifty people at once, a map of a million cells, a hundred slides, frames a second.

    python -m scripts.bench.measure_viewer ../shared/data/slides/breast_40x.svs --doc docs/performance.md

A slide of 81,920 px a side, that repeats a part of the one given, is mapped in cells of 20 um by infer-slide (some
minutes, the first time; kept in runs/viewer), and stands in OUT a hundred times. A real server answers over loopback.
Bounded: a few minutes, and as many requests as fifty people make in them.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from scripts.bench.tiled_slide import densest_square, write_tiled_slide
from scripts.bench.viewer_frames import BROWSERS, frames, frames_table
from scripts.bench.viewer_load import Answer, Shown, pan_together, show_once
from scripts.doc_sections import put_section

WORK = Path("runs/viewer")
SIDE_PX, CELL_UM = 81_920, 20
SLIDES, VIEWERS, SHARED_BY = 100, 50, 20
STEPS = 15
SECTION = "view-slides"
# At this level above the finest, a screen shows an eighth of the slide.
WHOLE = 5


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    address: str
    process: int

    def megabytes(self) -> float:
        """Memory that it holds now."""
        status = Path(f"/proc/{self.process}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def get(self, path: str) -> Any:
        """An answer, read as JSON."""
        with urlopen(self.address + path, timeout=60) as answer:
            return json.load(answer)

    def shown(self, slide_id: str) -> Shown:
        """What is to be known of a slide to ask for its tiles."""
        info = self.get(f"/api/slides/{slide_id}")
        assert info["has_slide"], info["why_not"]
        return Shown(slide_id, info["stamp"], info["levels"], info["width0"], info["height0"])


def main() -> int:
    """Print what was measured; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path, help="whose densest part the generated slide repeats")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--viewers", type=int, default=VIEWERS)
    parser.add_argument("--steps", type=int, default=STEPS, help="tiles that each viewer moves")
    parser.add_argument("--no-browser", action="store_true", help="leave the frames out")
    parser.add_argument("--doc", type=Path, help="write what was measured into this page")
    args = parser.parse_args()
    out = make_out(args.slide, args.work)
    busy = os.getloadavg()[0]
    text = (
        f"{introduction(busy, args.viewers)}\n\n{measure(out, args.viewers, args.steps, not args.no_browser)}"
    )
    print(text)
    if args.doc:
        put_section(args.doc, SECTION, text)
    return 0


def make_out(texture: Path, work: Path) -> Path:
    """OUT with the same map of a million cells a hundred times, each with a slide of its own."""
    slide, maps, out = work / "slides/million.tiff", work / "maps", work / "out"
    if not slide.exists():
        slide.parent.mkdir(parents=True, exist_ok=True)
        write_tiled_slide(slide, SIDE_PX, SIDE_PX, densest_square(texture))
    command = ["infer_slide", str(slide), "--cell-um", str(CELL_UM), "--out", str(maps)]
    subprocess.run([sys.executable, "-m", f"wsi_pipeline.cli.{command[0]}", *command[1:]], check=True)
    shutil.rmtree(out, ignore_errors=True)
    for number in range(SLIDES):
        name = f"slide_{number:03}"
        copy = slide.with_name(f"{name}.tiff")
        if not copy.exists():
            copy.hardlink_to(slide)
        shutil.copytree(maps / "million", out / name, copy_function=os.link)
        summary = json.loads((out / name / "summary.json").read_text(encoding="utf-8"))
        (out / name / "summary.json").unlink()
        summary["slide"] = str(copy.resolve())
        (out / name / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return out


@contextmanager
def served(out: Path) -> Iterator[Server]:
    """A server of OUT in a process of its own, until the end."""
    command = [sys.executable, "-m", "wsi_pipeline.cli.view_slides", str(out), "--port", "0", "--read-only"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().split(" at ")[-1].strip().rstrip("/"), process.pid)
        finally:
            process.terminate()


def measure(out: Path, viewers: int, steps: int, in_browser: bool) -> str:
    """The tables, as Markdown."""
    names = [f"slide_{number:03}" for number in range(SLIDES)]
    with served(out) as server:
        at_start = server.megabytes()
        listed_s = _seconds(lambda: server.get("/api/slides"))
        opened_s, tiles_s, cells = _open(server, names[0])
        slides = [server.shown(name) for name in names[:SHARED_BY]]
        cold = asyncio.run(pan_together(server.address, slides, viewers, steps))
        warm = asyncio.run(pan_together(server.address, slides, viewers, steps))
        after_load = server.megabytes()
        few = _look_at(server, names[:SHARED_BY])
        all_of_them = _look_at(server, names)
    rows = [_row("cold", cold), _row("warm", warm)]
    lines = [
        "| tiles | asked for | failed | median | 95 of 100 within | 99 of 100 | MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "| what | |",
        "| --- | --- |",
        f"| a map of {cells:,} cells: what the page needs to know of it | {opened_s:.2f} s |",
        f"| ... and the first screen of slide and map | {tiles_s:.2f} s |",
        f"| the list of {SLIDES} slides, the first time | {listed_s:.2f} s |",
        f"| memory of the server at its start | {at_start:.0f} MB |",
        f"| ... after {viewers} viewers of {SHARED_BY} slides | {after_load:.0f} MB |",
        f"| ... after somebody looked at {SHARED_BY} slides of such maps, three zooms of each | {few:.0f} MB |",
        f"| ... at {SLIDES} | {all_of_them:.0f} MB |",
    ]
    if in_browser:
        found = {}
        for started, flags in BROWSERS.items():
            # A server of its own for each: the first time is one of nothing kept.
            with served(out) as server:
                found[started] = frames(server.address, names[0], flags)
        lines += frames_table(found)
    return "\n".join(lines)


def _open(server: Server, name: str) -> tuple[float, float, int]:
    """Seconds until a page knows a slide, until its first screen is there, and how many cells its map has."""
    began = time.monotonic()
    info = server.get(f"/api/slides/{name}")
    opened_s = time.monotonic() - began
    shown = Shown(name, info["stamp"], info["levels"], info["width0"], info["height0"])
    answers = asyncio.run(show_once(server.address, shown, WHOLE))
    assert all(answer.status == 200 for answer in answers), answers
    (heatmap,) = [layer for layer in info["layers"] if layer["name"] == "heatmap"]
    return opened_s, time.monotonic() - began, heatmap["rows"] * heatmap["columns"]


def _look_at(server: Server, names: list[str]) -> float:
    """MB of the server after somebody looked at these slides, each at three zooms."""
    for name in names:
        shown = server.shown(name)
        for reduced in (WHOLE, 2, 0):
            answers = asyncio.run(show_once(server.address, shown, reduced))
            assert all(answer.status == 200 for answer in answers), answers
    return server.megabytes()


def _row(name: str, answers: list[Answer]) -> str:
    took = np.array([answer.seconds for answer in answers]) * 1000
    failed = sum(answer.status != 200 for answer in answers)
    median, most, nearly_all = np.quantile(took, [0.5, 0.95, 0.99])
    megabytes = sum(answer.size for answer in answers) / 1e6
    return (
        f"| {name} | {len(answers):,} | {failed} | {median:.0f} ms | {most:.0f} ms | {nearly_all:.0f} ms "
        f"| {megabytes:.0f} |"
    )


def _seconds(work: Any) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def introduction(busy: float, viewers: int) -> str:
    """What was done, and where."""
    return (
        f"## The page\n\n{viewers} people, who come to `view-slides` within ten seconds, move over {SHARED_BY} slides "
        f"of {SIDE_PX:,} px a side at 40x to 5x, slide and map, a tile of 512 px a second each (cold); then the same "
        "way again, when every tile is kept (warm). Times count from the moment that a tile is wanted. Server and "
        f"readers share {os.cpu_count()} cores ({platform.machine()}), over loopback; other programs kept {busy:.1f} "
        "cores busy before it began. A slide beyond 32 that are open, a map beyond 32, and tiles beyond 256 MB make "
        "others go. Written by `python -m scripts.bench.measure_viewer SLIDE --doc docs/performance.md`."
    )


if __name__ == "__main__":
    sys.exit(main())
