"""What exported patches are: a small file beside them, which says their scale, their slide and its stain.

Without it a folder of PNGs is of any scale, and nobody notices when a model takes it for its own.
"""

import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.files import OutPath, read_trouble, read_whole
from wsi_pipeline.base.images import png_scale
from wsi_pipeline.base.text import counted
from wsi_pipeline.slides.scale import PLAUSIBLE_MPP

EXPORT_FILE = "export.json"
# Other programs have files of that name too.
KIND = "patches of tile-slides"
FORMAT = 1
# Patches lie in a folder of their label, beside which the file lies; one level more, for those sorted further.
LEVELS_UP = 3
# Scales nearer to each other than this are one: scanners of one kind differ by less.
SAME_SCALE = 0.01
# What says more is none of ours; a slide is sampled at 64 patches.
MOST_BYTES, MOST_PX, MOST_SAMPLE, MOST_DENSITY = 16 * 2**20, 100_000, 1_000, 10
_PLACE = re.compile(r"[^/\0]{1,60}/[^/\0]{1,255}\.png")


@dataclass(frozen=True)
class ExportInfo:
    """The patches exported from one slide."""

    # The slide's name, and what tells its content from any other's.
    slide: str
    fingerprint: str
    # Side of a patch and distance of two, in pixels of `mpp` um.
    patch_px: int
    stride_px: int
    mpp: float
    # Mean optical density R, G, B of patches spread over the slide, as infer-slide measures it; none of no patches.
    od_mean: tuple[float, float, float] | None
    # How many patches that is of.
    od_patches: int
    # Which these are, <label>/<name>.png beside this file; paths of them, once it is read.
    sample: tuple[str, ...] = ()
    # Whose slide it is; empty where that is not known.
    patient: str = ""
    # How the patches were chosen and are kept (export_draw.export_recipe); nothing in files of earlier versions.
    options: dict[str, Any] = field(default_factory=dict)
    # How many of each label were chosen (those that cannot be decoded are not written), and how many left out.
    patches: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    # Of shards: name and number of patches of each; none before all are there, and of other formats.
    shards: tuple[tuple[str, int], ...] | None = None

    @property
    def format(self) -> str:
        """How the patches are kept: png, idc or shards."""
        return str(self.options.get("format", "png"))

    def as_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "slide": {"name": self.slide, "fingerprint": self.fingerprint},
            "patch_px": self.patch_px,
            "stride_px": self.stride_px,
            "mpp": self.mpp,
            "stain": {"od_mean": self.od_mean, "patches": self.od_patches, "sample": list(self.sample)},
            "patient": self.patient,
            "options": self.options,
            "patches": self.patches,
            "left_out": self.left_out,
            "shards": None if self.shards is None else [list(shard) for shard in self.shards],
        }


def export_of(folder: Path) -> ExportInfo | None:
    """The export that pictures in `folder` are of: of the nearest file there or up to two levels above; or none.

    Raises DataError where the file is damaged, or of a later format.
    """
    for place in [folder, *folder.absolute().parents][:LEVELS_UP]:
        if (path := place / EXPORT_FILE).is_file() and (info := _read(path)):
            return info
    return None


def read_export(folder: OutPath) -> ExportInfo | None:
    """What the export.json in that very folder says; none where there is none, or it is damaged: to be made again.

    Raises OutputError where the system cannot read it.
    """
    path = folder / EXPORT_FILE
    try:
        return _read(path)
    except DataError as error:
        if isinstance(error.__cause__, OSError) and (trouble := read_trouble(path, error.__cause__)):
            raise trouble from error
        return None


def scale_in(picture: Path) -> tuple[float, int] | None:
    """Um per pixel that a PNG itself says, where a scan can have it, and its width; none where it says none."""
    found = png_scale(picture) if picture.suffix.lower() == ".png" else None
    low, high = PLAUSIBLE_MPP
    return found if found and low <= found[0] <= high else None


def same_scale(mpp: float, other: float) -> bool:
    """Whether two scales, um per pixel, are one within 1 %.

    >>> same_scale(0.2527, 0.25), same_scale(0.2505, 0.25)
    (False, True)
    """
    return abs(mpp / other - 1) <= SAME_SCALE


def _read(path: OutPath) -> ExportInfo | None:
    """What the file says; none where it is another program's, or not there."""
    try:
        if isinstance(path, Path):
            _check_file(path)
        values = json.loads(read_whole(path).decode())
        if not isinstance(values, dict) or values.get("kind") != KIND:
            return None
        if values["format"] != FORMAT:
            raise ValueError(f"found format {values['format']}, expected {FORMAT}")
        mean = values["stain"]["od_mean"]
        red, green, blue = (float(value) for value in mean or (0, 0, 0))
        info = ExportInfo(
            str(values["slide"]["name"]),
            str(values["slide"]["fingerprint"]),
            int(values["patch_px"]),
            int(values["stride_px"]),
            float(values["mpp"]),
            (red, green, blue) if mean else None,
            int(values["stain"]["patches"]),
            tuple(str(path.parent / _beside(name)) for name in values["stain"].get("sample", ())),
            str(values.get("patient", "")),
            dict(values.get("options", {})),
            {str(name): int(count) for name, count in values.get("patches", {}).items()},
            {str(name): int(count) for name, count in values.get("left_out", {}).items()},
            None if values.get("shards") is None else tuple((str(n), int(k)) for n, k in values["shards"]),
        )
        _check_numbers(info)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path}: does not say what the patches beside it are ({error!r}); export them again with "
            "tile-slides --export, by this version"
        ) from error
    return info


def _check_file(path: Path) -> None:
    """Raises OSError where there is none, ValueError for what is no file of ours, before any of it is read."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
        raise ValueError(f"expected a file of {MOST_BYTES:,} bytes at most")


def _beside(name: object) -> str:
    """The place of a patch, <label>/<name>.png; raises ValueError for any other, which may lead anywhere."""
    if not isinstance(name, str) or not _PLACE.fullmatch(name) or name.startswith("."):
        raise ValueError(
            f"found {str(name)[:100]!r} among the patches of its sample, expected <label>/<name>.png"
        )
    return name


def _check_numbers(info: ExportInfo) -> None:
    if not (0 < info.patch_px <= MOST_PX and 0 < info.stride_px <= MOST_PX and 0.001 <= info.mpp <= 1000):
        raise ValueError(
            f"found patches of {info.patch_px} px, {info.stride_px} px apart, at {info.mpp:g} um/px, expected what a "
            "scan has"
        )
    if not all(0 <= value <= MOST_DENSITY for value in info.od_mean or ()):
        raise ValueError(f"found the optical density {info.od_mean}, expected 0 to {MOST_DENSITY}")
    if len(info.sample) > MOST_SAMPLE or not 0 <= info.od_patches <= MOST_SAMPLE:
        raise ValueError(
            f"found a sample of {counted(info.od_patches, 'patch')}, {len(info.sample)} of them named, expected "
            f"{MOST_SAMPLE} at most"
        )
