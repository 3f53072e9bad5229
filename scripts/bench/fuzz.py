"""Give each reader of foreign bytes damaged files without end, and see that it refuses them with a line.

    python -m scripts.bench.fuzz --minutes 10 --json runs/fuzz.json       # each reader, ten minutes
    python -m scripts.bench.fuzz tiff card --tries 500                    # two of them, so many files each

A file is a good one with some of its bytes changed, put in, taken out or repeated, or bytes by chance; hypothesis
makes them. Each reader works in a process of its own, which may take 512 MB more than it had at the start, and 5 s a
file. What ends in anything but a result or an error of ours, or too late, or the process with it, is kept in --work.
Ends with 1 where there is such a file.
"""

import argparse
import hashlib
import io
import json
import logging
import multiprocessing
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import tifffile
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from wsi_pipeline.base.errors import WsiError
from wsi_pipeline.base.geometry import Box, Plane, Size
from wsi_pipeline.base.images import read_image
from wsi_pipeline.jobs.locks import parse_lock
from wsi_pipeline.learning.datasets.layouts import list_images
from wsi_pipeline.learning.datasets.shards import samples_of
from wsi_pipeline.models.model import SHIPPED, load_model
from wsi_pipeline.pipeline.config import TileConfig, load_config
from wsi_pipeline.results.run_folder import read_summary
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions, read_outlines
from wsi_pipeline.slides.annotations.masks import read_mask
from wsi_pipeline.slides.catalog import list_slides
from wsi_pipeline.slides.readers.dicom import SLIDE_CLASS
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.export_info import ExportInfo, export_of
from wsi_pipeline.tiling.export_shards import add_sample
from wsi_pipeline.viewer.grading_sheet import GradingSheet
from wsi_pipeline.viewer.review import Review

MOST_BYTES = 512 * 2**20
MOST_S = 5
# A round of hypothesis; between two of them the clock is looked at.
ROUND = 100
MARKS = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x80",
    b"NaN",
    b"1e999",
    b"-1",
    b"null",
    b"[",
    b"{",
    b'"',
]
WORDS = {
    "geojson": [b"Infinity", b'"type"', b"[[[[", b"Polygon", b"MultiPolygon", b"GeometryCollection", b"[0,0],"],
    "xml": [b"<!DOCTYPE a>", b"&a;", b"<", b">", b"Type=", b'NegativeROA="1"', b"<Region>", b"inf"],
    "csv": [b",", b"\n", b"..", b"/", b"=1", b"slide", b"*", b"\xef\xbb\xbf"],
    "yaml": [b"*a", b"&a ", b"<<: ", b"!!python/object:os.system ", b": ", b"- ", b"? ", b"1e400", b"0x", b"!!binary "],
    "card": [b"1e308", b"[[", b"true", b'"unet"', b"4096", b"-0.0", b'"classes": [],'],
    "export": [b"1e308", b"[[", b"true", b"{}", b"[]"],
    "shard": [b"ustar", b"0000", b"7777777", b"\x80\0\0\0", b"x", b"L", b"S", b".cls", b".png", b"9"],
    "summary": [b"[[[[", b"{}", b"[]"],
    "lock": [b"1e999", b"{}", b"[]"],
    "safetensors": [b"F64", b"BF16", b"[0,", b"-1,", b"99999999999"],
    "tiff": [b"II*\0", b"MM\0+", b"\x44\x01\x04\0", b"\x00\x01\x03\0", b"\x03\x01\x03\0", b"\xff\xd8", b"\xff\xda"],
    "mask": [b"IHDR", b"IDAT", b"II*\0", b"\x1a\x01\x05\0", b"\x00\x01\x03\0", b"\x02", b"PLTE"],
    "dicom": [b"DICM", b"SQ\0\0", b"UI", b"\x28\0\x10\0", b"\xfe\xff\x00\xe0", b"1.2.840."],
    "review": [b"\n", b'"action"', b'"undo"', b'"feature": []', b"null", b"1e999", b"[[[["],
    "grading": [b"1e999", b"null", b"true", b"[[", b'"mitoses"', b"9" * 400, b"\n"],
    "npy": [b"NUMPY", b"'|O'", b"'<f8'", b"True", b"(", b"99999999999", b"-1", b"L, "],
    "picture": [b"IHDR", b"IDAT", b"\xff\xd8", b"\xff\xc0", b"\xff\xda", b"tEXt", b"acTL"],
}  # fmt: skip


# What is done to a file: where in it, with which bytes, or to how many.
Edits = list[tuple[str, float, bytes, int]]


@dataclass
class Found:
    """What became of the files that one reader was given."""

    tries: int = 0
    taken: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    # What ended otherwise, and the file that did it.
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """A reader of files of one kind, and good files of it."""

    read: Callable[[Path], object]
    name: str
    good: Callable[[], list[bytes]]


def main() -> int:
    """The exit code: 1 if a file was found that is not refused as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=0.0, help="for each reader")
    parser.add_argument("--tries", type=int, default=ROUND, help="at least, for each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"), help="where such files are kept")
    parser.add_argument("--json", type=Path, help="write what was found here")
    args = parser.parse_args()
    if unknown := set(args.readers) - set(READERS):
        parser.error(f"found {', '.join(sorted(unknown))}, expected some of {', '.join(READERS)}")
    args.work.mkdir(parents=True, exist_ok=True)
    report = {}
    for name in args.readers or READERS:
        found = fuzz(name, args.minutes * 60, args.tries, args.seed, args.work)
        report[name] = asdict(found)
        print(
            f"{name}: {found.tries:,} files, {found.taken:,} read, {found.refused:,} refused, "
            f"the slowest in {found.slowest_s:.2f} s, {len(found.faults)} faults",
            flush=True,
        )
        for fault, path in found.faults.items():
            print(f"  {fault}: {path}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if any(found["faults"] for found in report.values()) else 0


def fuzz(name: str, seconds: float, tries: int, first_seed: int, work: Path) -> Found:
    """What was found of one reader, in so many seconds and files at least."""
    total, end, number = Found(), time.monotonic() + seconds, first_seed
    while total.tries < tries or time.monotonic() < end:
        receiving, sending = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(name, number, max(0.0, end - time.monotonic()), tries - total.tries, work, sending)
        )  # fmt: skip
        process.start()
        sending.close()
        found = Found()
        try:
            while True:
                found = receiving.recv()
        except EOFError:
            process.join()
        total.tries, total.taken = total.tries + found.tries, total.taken + found.taken
        total.refused, total.slowest_s = total.refused + found.refused, max(total.slowest_s, found.slowest_s)
        total.faults |= found.faults
        if process.exitcode:
            total.tries += 1  # if it dies at its first file, too, this comes to an end
            last, kept = work / f"{name}.last", work / f"{name}.ended.{number}"
            kept.write_bytes(last.read_bytes())
            what = (
                "no end" if process.exitcode == -signal.SIGALRM else f"the process ended ({process.exitcode})"
            )
            total.faults[f"{what} {number}"] = str(kept)
        number += 1
    return total


def _work(name: str, number: int, seconds: float, tries: int, work: Path, sending: Connection) -> None:
    """In a process of its own: files by chance, until both so many and so long."""
    reader, found, end = READERS[name], Found(), time.monotonic() + seconds
    goods = reader.good()
    logging.disable()  # readers and libraries speak of each file
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / reader.name
        path.write_bytes(goods[0])
        reader.read(path)  # what is loaded once does not count
        taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (taken + MOST_BYTES, taken + MOST_BYTES))
        while found.tries < tries or time.monotonic() < end:
            number += 1_000

            @seed(number)
            @settings(
                max_examples=ROUND, database=None, deadline=None, suppress_health_check=list(HealthCheck)
            )
            @given(_files(len(goods), MARKS + WORDS[name]))
            def attempt(made: tuple[int, Edits] | bytes) -> None:
                # Only edits are drawn: hypothesis keeps what it draws, and a good file may have some MB.
                data = made if isinstance(made, bytes) else _edited(goods[made[0]], made[1])
                (work / f"{name}.last").write_bytes(data)
                _try(reader.read, path, data, found, work / name)

            attempt()
            sending.send(found)


def _files(goods: int, words: list[bytes]) -> st.SearchStrategy[tuple[int, Edits] | bytes]:
    """Which good file with which edits, most of them near the front, where headers are; and bytes by chance."""
    part = st.binary(max_size=12) | st.sampled_from(words)
    place = st.floats(0, 1)
    edit = st.tuples(st.sampled_from(("set", "put", "cut", "again")), place, part, st.integers(1, 64))
    edited = st.tuples(st.integers(0, goods - 1), st.lists(edit, min_size=1, max_size=6))
    return st.one_of(edited, edited, edited, st.binary(max_size=200))


def _edited(data: bytes, edits: Edits) -> bytes:
    for kind, place, part, count in edits:
        at = int(place**3 * len(data))
        if kind == "set":
            data = data[:at] + part + data[at + len(part) :]
        elif kind == "put":
            data = data[:at] + part + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + count :]
        else:
            data = data[:at] + data[at : at + count] * count + data[at + count :]
    return data


def _try(read: Callable[[Path], object], path: Path, data: bytes, found: Found, kept: Path) -> None:
    path.write_bytes(data)
    found.tries += 1
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, MOST_S * 4)  # ends the process
    fault = ""
    try:
        read(path)
        found.taken += 1
    except WsiError as error:
        found.refused += 1
        if not str(error) or "\n" in str(error):
            fault = "a message of other than one line"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
    signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.monotonic() - began
    found.slowest_s = max(found.slowest_s, took)
    if took > MOST_S:
        fault = f"took {took:.1f} s"
    if fault and fault not in found.faults:
        name = hashlib.sha256(data).hexdigest()[:12]
        found.faults[fault] = str(kept.with_suffix(f".{name}"))
        kept.with_suffix(f".{name}").write_bytes(data)


def _read_slide(path: Path) -> None:
    with open_slide(path, mpp_if_missing=0.5) as slide:
        box = Box(0, 0, 64, 64)
        slide.read_readable(box, Plane(1.0, 1.0))
        coarse = slide.plane_at(8.0)
        size = slide.size_on(coarse)
        if size.width * size.height < 2**22:
            slide.read_whole(coarse)


def _read_weights(path: Path) -> None:
    """Weights under a card that says their checksum: it is their own reader that is asked."""
    card = json.loads((SHIPPED / "idc_default.json").read_text(encoding="utf-8"))
    card["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
    load_model(path)


def _read_card(path: Path) -> None:
    weights = path.with_suffix(".safetensors")
    if not weights.exists():
        weights.symlink_to(SHIPPED / "idc_default.safetensors")
    load_model(weights)


def _read_outlines(path: Path) -> object:
    return read_outlines(path, AnnotationOptions(), Size(1000, 1000))


def _read_label_mask(path: Path) -> object:
    return read_mask(path, AnnotationOptions(), Size(1000, 1000), (0.5, 0.5))


def _read_review(path: Path) -> object:
    return Review(path.parent, Size(1000, 1000), (0.0, 0.0), None).state()


def _read_grading(path: Path) -> object:
    return GradingSheet(path.parent, {"Field 1": 0.24}).csv()


def _read_pair(path: Path) -> object:
    """The images of an array pair, beside labels that are as they should be."""
    np.save(path.with_name("Y.npy"), np.zeros(8, np.uint8))
    return list_images(path.parent)


def _read_shard(path: Path) -> None:
    info = replace(SHARD_INFO, shards=((path.name, 3),))
    for sample in samples_of(path.parent, info):
        sample.read()


def _shards() -> list[bytes]:
    file, rgb = io.BytesIO(), np.asarray(Image.effect_noise((50, 50), 80).convert("RGB"))
    with tarfile.open(fileobj=file, mode="w") as tar:
        for label in (0, 1, -1):
            add_sample(tar, SHARD_INFO, (50 * label, 0), label, rgb)
    return [file.getvalue()]


def _arrays() -> list[bytes]:
    file = io.BytesIO()
    np.save(file, np.zeros((8, 50, 50, 3), np.uint8))
    return [file.getvalue()]


def _masks() -> list[bytes]:
    values = np.zeros((100, 100), np.uint8)
    values[20:50, 30:80] = 1
    png, tiff = io.BytesIO(), io.BytesIO()
    Image.fromarray(values).save(png, "PNG")
    tifffile.imwrite(
        tiff, values, resolution=(2000, 2000), resolutionunit="CENTIMETER", compression="deflate"
    )
    return [png.getvalue(), tiff.getvalue()]


def _dicom_files() -> list[bytes]:
    """A level of a slide without its pixels: what names its series and places it is in its header."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SLIDE_CLASS
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.SeriesInstanceUID, data.Modality = "1.2.3", "SM"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.TotalPixelMatrixColumns = data.TotalPixelMatrixRows = 1000
    data.ImageOrientationSlide = [0.0, -1.0, 0.0, -1.0, 0.0, 0.0]
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return [file.getvalue()]


def _slides() -> list[bytes]:
    image = np.asarray(Image.effect_noise((160, 160), 80).convert("RGB"))
    goods = []
    for compression, big in ((None, False), ("jpeg", False), ("deflate", True), ("lzw", False)):
        file = io.BytesIO()
        with tifffile.TiffWriter(file, bigtiff=big) as tif:
            for step in (1, 4):
                tif.write(
                    np.ascontiguousarray(image[::step, ::step]),
                    tile=(64, 64),
                    photometric="rgb",
                    compression=compression,
                    metadata=None,
                    resolution=(20000 / step, 20000 / step),
                    resolutionunit="CENTIMETER",
                    subfiletype=int(step > 1),
                )
        goods.append(file.getvalue())
    return goods


def _pictures() -> list[bytes]:
    goods = []
    for form in ("PNG", "JPEG", "TIFF", "BMP"):
        file = io.BytesIO()
        Image.effect_noise((50, 50), 80).convert("RGB").save(file, form)
        goods.append(file.getvalue())
    return goods


def _geojson() -> list[bytes]:
    ring = [[0, 0], [200, 0], [200, 200], [0, 200], [0, 0]]
    polygon = {"type": "Polygon", "coordinates": [ring, [[50, 50], [90, 50], [90, 90], [50, 50]]]}
    several = {
        "type": "GeometryCollection",
        "geometries": [polygon, {"type": "Point", "coordinates": [1, 1]}],
    }
    properties = {"classification": {"names": ["Tumor", "IDC"]}, "objectType": "annotation"}
    shapes = (polygon, several, {"type": "MultiPolygon", "coordinates": [[ring], [ring]]})
    features = [{"type": "Feature", "geometry": shape, "properties": properties} for shape in shapes]
    values = ({"type": "FeatureCollection", "features": features}, features)
    return [*(json.dumps(value).encode() for value in values), DEEP]


ASAP = b"""<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor">
<Coordinates><Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="90" Y="0"/><Coordinate Order="2" X="90" Y="9"/>
</Coordinates></Annotation></Annotations><AnnotationGroups><Group Name="Tumor" PartOfGroup="None"/></AnnotationGroups>
</ASAP_Annotations>"""
IMAGESCOPE = b"""<Annotations><Annotation Name="Tumor"><Regions><Region Type="0" NegativeROA="0" Text="IDC"><Vertices>
<Vertex X="0" Y="0"/><Vertex X="90" Y="0"/><Vertex X="90" Y="90"/></Vertices></Region><Region Type="0" NegativeROA="1">
<Vertices><Vertex X="50" Y="9"/><Vertex X="80" Y="9"/><Vertex X="80" Y="30"/></Vertices></Region></Regions></Annotation>
</Annotations>"""
LIST = b'slide,name,mpp,patient\r\na.svs,one,0.25,P1\r\n"b,c.svs",two,,P2\r\n'
CONFIG = b"grid: {patch_px: &a 50, mpp: 4.0, stride_px: *a}\ntissue: {smooth_um: 9.0}\nmax_unreadable: 1e-1\n"
EXPORT = (
    b'{"kind": "patches of tile-slides", "format": 1, "slide": {"name": "a", "fingerprint": "b"}, "patch_px": 50, '
    b'"stride_px": 50, "mpp": 4.0, "stain": {"od_mean": [0.1, 0.2, 0.1], "patches": 7, "sample": ["0/a.png"]}}'
)
SHARD_INFO = ExportInfo("a", "b", 50, 50, 4.0, None, 0)
LOCK = b'{"host": "a", "pid": 1, "boot": "b", "started": 1, "beat": 3}'
REVIEW = b"".join(
    json.dumps({"revision": n + 1, "time": "2026-01-01T00:00:00+00:00", "reviewer": "a", **change}).encode()
    + b"\n"
    for n, change in enumerate(
        [
            {
                "action": "put",
                "map_key": None,
                "feature": {
                    "type": "Feature",
                    "id": "a",
                    "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [90, 0], [90, 90], [0, 0]]]},
                    "properties": {
                        "id": "a",
                        "class": "IDC",
                        "verdict": "added",
                        "note": "",
                        "source_region": None,
                    },
                },
            },
            {"action": "delete", "map_key": None, "feature_id": "a"},
            {"action": "undo", "map_key": None},
        ]
    )
)
GRADING = (
    b'{"revision": 1, "time": "2026-01-01T00:00:00+00:00", "reviewer": "a", "tubules": 2, "nuclei": null, "fields": '
    b'[{"id": "Field 1", "tubules": 3, "nuclei": 1, "counted": true, "mitoses": [[1.5, 2.0], [7.0, 9.0]]}]}\n'
)
DEEP = b"[" * 100_000
READERS = {
    "geojson": Reader(_read_outlines, "a.geojson", _geojson),
    "xml": Reader(_read_outlines, "a.xml", lambda: [ASAP, IMAGESCOPE]),
    "csv": Reader(lambda path: list_slides([str(path)]), "a.csv", lambda: [LIST]),
    "yaml": Reader(lambda path: load_config(TileConfig, path), "a.yaml", lambda: [CONFIG]),
    "card": Reader(_read_card, "a.json", lambda: [(SHIPPED / "idc_default.json").read_bytes()]),
    "safetensors": Reader(_read_weights, "a.safetensors", lambda: [(SHIPPED / "idc_default.safetensors").read_bytes()]),
    "export": Reader(lambda path: export_of(path.parent), "export.json", lambda: [EXPORT, DEEP]),
    "shard": Reader(_read_shard, "a-000000.tar", _shards),
    "summary": Reader(lambda path: read_summary(path.parent), "summary.json", lambda: [EXPORT, DEEP]),
    "lock": Reader(lambda path: parse_lock(path.read_text("utf-8", "replace")), "a.lock", lambda: [LOCK, DEEP]),
    "tiff": Reader(_read_slide, "a.tiff", _slides),
    "mask": Reader(_read_label_mask, "a.png", _masks),
    "dicom": Reader(lambda path: list_slides([str(path.parent)]), "a.dcm", _dicom_files),
    "review": Reader(_read_review, "review.jsonl", lambda: [REVIEW]),
    "grading": Reader(_read_grading, "grading.jsonl", lambda: [GRADING, DEEP]),
    "npy": Reader(_read_pair, "X.npy", _arrays),
    "picture": Reader(lambda path: read_image(path, 40_000_000), "a.png", _pictures),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
