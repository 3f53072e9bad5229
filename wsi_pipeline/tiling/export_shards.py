"""Shards of patches: tar files as WebDataset has them, each sample some files of one name that follow each other.

    <slide>-000000.tar:  <slide>_x1200_y350.png    the patch, lossless, with its scale inside
                         <slide>_x1200_y350.cls    its label, 1 IDC or 0 not; absent where it has none
                         <slide>_x1200_y350.json   slide, patient, x0, y0 (level-0 pixels), mpp

A dot ends a sample's name there, so that one in a slide's name is written %2E (and % as %25): no two slides share
names, also where shards are unpacked into one folder. The JSON has the name as it is. The same patches give the same
bytes: members have no time and no owner.
"""

import io
import json
import tarfile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.base.images import png_bytes
from wsi_pipeline.tiling.export_info import ExportInfo

SHARD_SUFFIX = ".tar"


def shard_name(slide: str, number: int) -> str:
    """The name of a slide's shard, counted from 0.

    >>> shard_name("biopsy.2", 7)
    'biopsy.2-000007.tar'
    """
    return f"{slide}-{number:06d}{SHARD_SUFFIX}"


def sample_prefix(slide: str) -> str:
    """What the names of a slide's samples begin with, another for each slide.

    >>> sample_prefix("biopsy.2"), sample_prefix("biopsy%2E2")
    ('biopsy%2E2', 'biopsy%252E2')
    """
    return slide.replace("%", "%25").replace(".", "%2E")


def add_sample(
    tar: tarfile.TarFile, info: ExportInfo, corner: tuple[int, int], label: int, rgb: NDArray[np.uint8]
) -> None:
    """Add a patch, uint8 [patch_px, patch_px, 3], whose upper left corner is that level-0 pixel; label -1: none."""
    x0, y0 = corner
    key = f"{sample_prefix(info.slide)}_x{x0}_y{y0}"
    facts = {"slide": info.slide, "patient": info.patient, "x0": x0, "y0": y0, "mpp": info.mpp}
    _add(tar, f"{key}.png", png_bytes(Image.fromarray(rgb), info.mpp))
    if label >= 0:
        _add(tar, f"{key}.cls", str(label).encode())
    _add(tar, f"{key}.json", json.dumps(facts).encode())


def samples_in(path: OutPath) -> int:
    """How many patches a shard holds; raises OSError or tarfile.TarError where it is none."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        return sum(member.name.endswith(".png") for member in tar)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
