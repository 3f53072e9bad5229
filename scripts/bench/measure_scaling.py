"""How a batch grows with its slides: memory, overhead, manifest. Writes two sections of docs/scaling.md.

    python -m scripts.bench.measure_scaling [--slides 1000] [--rows 100000] [--work FOLDER] [--only slides|rows]

Generates small slides, tiles them on two workers and watches; then records as many rows as a hospital's archive has
slides, without the slides. Needs Linux (/proc) and some 100 MB in FOLDER (default: a temporary one).
"""

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import tifffile

from scripts.doc_sections import put_section
from wsi_pipeline.jobs.events import EVENTS, EventLog, now
from wsi_pipeline.pipeline.manifest import MANIFEST_NAME, Manifest, ManifestRow
from wsi_pipeline.slides.catalog import list_slides

DOC = Path(__file__).resolve().parents[2] / "docs/scaling.md"
WORKERS = 2
CONFIG = "grid: {patch_px: 50, mpp: 4.0}\n"


def make_slides(folder: Path, count: int) -> None:
    """Tissue on glass, 192 px at 3 um/px, each another."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        path = folder / f"slide_{i:06}.tiff"
        if path.exists():
            continue
        rng = np.random.default_rng(i)
        image = np.full((192, 192, 3), 243, np.uint8)
        image[24:-24, 24:-24] = rng.integers(100, 190, (144, 144, 1)) + np.array([30, 0, 20])
        resolution = (1e4 / 3, 1e4 / 3)
        with tifffile.TiffWriter(path) as tif:
            tif.write(
                image,
                tile=(64, 64),
                photometric="rgb",
                metadata=None,
                resolution=resolution,
                resolutionunit="CENTIMETER",
            )


@dataclass(frozen=True)
class Sample:
    """Resident MB of the parent and of its largest worker, after so many slides."""

    slides: int
    parent_mb: float
    worker_mb: float


def watch(process: "subprocess.Popen[bytes]", out: Path, samples: list[Sample]) -> None:
    """Sample memory until the process ends."""
    while process.poll() is None:
        files = list((out / EVENTS).glob("*.jsonl"))
        done = sum(file.read_bytes().count(b'"event": "slide"') for file in files)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            workers = [resident_mb(int(pid)) for pid in children.read_text().split()]
            samples.append(Sample(done, resident_mb(process.pid), max(workers, default=0.0)))
        except OSError:
            break
        time.sleep(1)


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def measure_batch(work: Path, count: int, archive: int) -> str:
    """Tile the slides on two workers; what it cost, in words, and what that makes for an archive's slides."""
    slides, out, config = work / "slides", work / f"out_{time.time():.0f}", work / "idc.yaml"
    make_slides(slides, count)
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "wsi_pipeline.cli.tile_slides", slides, "--out", out]
    command += ["--config", config, "--workers", str(WORKERS)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    samples: list[Sample] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=watch, args=(process, out, samples))
    watcher.start()
    if process.wait():
        raise SystemExit(f"tile-slides ended with {process.returncode}")
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with (out / MANIFEST_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    assert {row["status"] for row in rows} == {"done"}
    own = sum(float(row["seconds"]) for row in rows) / count
    ends = sorted(datetime.fromisoformat(row["finished"]).timestamp() for row in rows)
    tenth = count // 10
    first, last = ends[tenth] - ends[0], ends[-1] - ends[-1 - tenth]
    started = events(out)[0]["time"]
    span = ends[-1] - datetime.fromisoformat(str(started)).timestamp()
    overhead = span * WORKERS / count - own
    warm = [sample for sample in samples if tenth <= sample.slides < count]
    parent, worker = (
        [f"{getattr(sample, name):.0f} MB" for sample in (warm[0], warm[-1])]
        for name in ("parent_mb", "worker_mb")
    )
    files = sum(len(names) for folder, _, names in os.walk(out) if ".batch" not in folder)
    batch_bytes = sum(p.stat().st_size for p in (out / EVENTS).iterdir())
    return f"""
{count:,} generated slides (192 x 192 px, {rows[0]["patches"]} patches) through `tile-slides --workers {WORKERS}` on \
{os.cpu_count()} cores ({platform.machine()}, Python {platform.python_version()}):

| what | measured |
| --- | --- |
| from the first slide to the last | {span:.0f} s; {processor:.0f} s of processor time in all processes |
| a slide's own work (its `seconds`) | {own:.3f} s |
| a worker's time a slide beyond that | **{overhead:.3f} s** |
| the first tenth of the slides, the last tenth | {first:.1f} s, {last:.1f} s |
| memory of the process that gives them out, after a tenth and at the end | {", ".join(parent)} |
| memory of the largest worker, after a tenth and at the end | {", ".join(worker)} |
| files a slide leaves; bytes of events a slide | {files / count:.0f}; {batch_bytes / count:.0f} |

For {archive:,} slides that is {overhead * archive / 3600:.1f} worker-hours beside their work, \
{files / count * archive / 1e6:.1f} million files of `tile-slides`, and \
{batch_bytes / count * archive / 1e6:.0f} MB of events.
"""


def events(out: Path) -> list[dict[str, object]]:
    """All events of the one run in OUT."""
    (file,) = (out / EVENTS).glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def measure_rows(work: Path, counts: list[int]) -> str:
    """Record rows without slides; the costs as a table."""
    lines = [
        "| slides | listing their folder | recording one | writing the manifest | starting again | memory | manifest "
        "| events |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count in counts:
        out = work / f"rows_{count}_{time.time():.0f}"
        folder = out / "slides"
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"slide_{i:06}.svs").touch()
        began = time.process_time()
        entries = list_slides([folder])
        listing = time.process_time() - began
        keys = [(entry.name, str(entry.path)) for entry in entries]
        memory = resident_mb(os.getpid())
        log = EventLog(out)
        manifest = Manifest(out, log, now(), keys)
        began = time.process_time()
        for name, path in keys:
            manifest.record(
                ManifestRow(
                    name, path, "done", "", 1234, 12.3456, 98.7, 1, "worker 1 (pid 12345)", now(), "0.1.0"
                )
            )
        recording = (time.process_time() - began) / count
        began = time.process_time()
        manifest.write()
        writing = time.process_time() - began
        log.close()
        began = time.process_time()
        Manifest(out, EventLog(out), now(), keys)
        loading = time.process_time() - began
        grown = resident_mb(os.getpid()) - memory
        size = (out / MANIFEST_NAME).stat().st_size / 1e6
        logged = sum(p.stat().st_size for p in (out / EVENTS).iterdir()) / 1e6
        lines.append(
            f"| {count:,} | {listing:.1f} s | {1e3 * recording:.2f} ms | {writing:.2f} s | {loading:.1f} s | "
            f"{grown:.0f} MB | {size:.1f} MB | {logged:.1f} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", choices=("slides", "rows"), help="one of the two parts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if args.only != "rows":
            put_section(DOC, "scaling of slides", measure_batch(work, args.slides, args.rows))
        if args.only != "slides":
            rows = measure_rows(work, [args.rows // 100, args.rows // 10, args.rows])
            text = "Without the slides, what a batch of so many costs beside their work, in processor time:"
            put_section(DOC, "scaling of rows", f"{text}\n\n{rows}")


if __name__ == "__main__":
    main()
