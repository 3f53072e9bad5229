"""A slide of any size out of another's storage tiles, for measuring.

    python scripts/large_slide.py ../shared/data/slides/breast_40x.svs large.svs --width 117000 --height 55000

Each level repeats the whole tiles of the source's level of the same index. They are not copied for each place, but
referred to, so that the largest slide takes no more of the disk than the source; reading it decodes every one.
"""

import argparse
import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPage

SHORT, LONG, LONG8, ASCII = 3, 4, 16, 2


def main() -> int:
    """Write the slide; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="an Aperio slide whose JPEG tiles need no shared tables")
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=117_000)
    parser.add_argument("--height", type=int, default=55_000)
    parser.add_argument("--mpp", type=float, default=0.25)
    args = parser.parse_args()
    write_large(args.source, args.out, args.width, args.height, args.mpp)
    return 0


def write_large(source: Path, out: Path, width: int, height: int, mpp: float) -> None:
    """Write a BigTIFF of `width` x `height` level-0 pixels that repeats the source's tiles."""
    with TiffFile(source) as tif, out.open("wb") as file:
        pages = [page for page in tif.pages if isinstance(page, TiffPage) and page.is_tiled]
        file.write(
            b"II" + struct.pack("<HHHQ", 43, 8, 0, 0)
        )  # where the first directory is, is filled in below
        where_next = 8
        for page in pages:
            factor = round(pages[0].imagewidth / page.imagewidth)
            offsets, counts = _placed(page, file.tell(), width // factor, height // factor)
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                tif.filehandle.seek(offset)
                file.write(tif.filehandle.read(count))
            description = f"Aperio Image Library\nrepeated|AppMag = 40|MPP = {mpp}".encode() + b"\0"
            entries = {
                256: (LONG, [width // factor]),
                257: (LONG, [height // factor]),
                258: (SHORT, [8, 8, 8]),
                259: (SHORT, [page.compression]),
                262: (SHORT, [page.photometric]),
                270: (ASCII, description),
                277: (SHORT, [3]),
                284: (SHORT, [1]),
                322: (SHORT, [page.tilewidth]),
                323: (SHORT, [page.tilelength]),
                324: (LONG8, offsets),
                325: (LONG8, counts),
                530: (SHORT, list(page.subsampling or (1, 1))),
            }
            where_next = _write_directory(file, entries, where_next)


def _placed(
    page: TiffPage, start: int, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offset and length of each tile of a page of this size, whose source's tiles are written from `start` on."""
    counts = np.array(page.databytecounts)
    offsets = start + np.r_[0, counts.cumsum()[:-1]]
    across = -(-page.imagewidth // page.tilewidth)
    whole_columns, whole_rows = page.imagewidth // page.tilewidth, page.imagelength // page.tilelength
    columns = np.arange(-(-width // page.tilewidth)) % max(1, whole_columns)
    rows = np.arange(-(-height // page.tilelength)) % max(1, whole_rows)
    index = (rows[:, None] * across + columns).ravel()
    return offsets[index], counts[index]


def _write_directory(file, entries, where_next: int) -> int:  # type: ignore[no-untyped-def]
    """Write one directory at the file's end and its place at `where_next`; gives where the next's place goes."""
    forms = {SHORT: "H", LONG: "I", LONG8: "Q"}
    packed = b""
    for tag, (kind, values) in sorted(entries.items()):
        data = values if kind == ASCII else struct.pack(f"<{len(values)}{forms[kind]}", *values)
        if len(data) <= 8:
            place = data.ljust(8, b"\0")
        else:
            file.write(b"\0" * (-file.tell() % 8))
            place = struct.pack("<Q", file.tell())
            file.write(data)
        packed += struct.pack("<HHQ", tag, kind, len(values)) + place
    file.write(b"\0" * (-file.tell() % 8))
    here = file.tell()
    file.write(struct.pack("<Q", len(entries)) + packed + struct.pack("<Q", 0))
    file.seek(where_next)
    file.write(struct.pack("<Q", here))
    file.seek(0, 2)
    return here + 8 + len(packed)


if __name__ == "__main__":
    sys.exit(main())
