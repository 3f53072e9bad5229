"""Shards of `tile-slides --export-format shards`: where each patch lies in its tar file, without decoding any."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DataError
from wsi_pipeline.base.images import decode_image
from wsi_pipeline.base.text import counted
from wsi_pipeline.learning.datasets.listing import UNLABELLED
from wsi_pipeline.models.card import MOST_PATCH_PX
from wsi_pipeline.tiling.export_info import EXPORT_FILE, ExportInfo

LAYOUT = "shards of tile-slides"
# No PNG of a patch is larger than twice its pixels.
MOST_BYTES = 6 * MOST_PATCH_PX**2


@dataclass(frozen=True)
class Sample:
    """One patch of a shard."""

    shard: Path
    # The name that its files share.
    key: str
    label: int
    # Where its PNG lies in the shard, bytes.
    offset: int
    size: int

    def read(self) -> NDArray[np.uint8]:
        """The patch, uint8 [patch_px, patch_px, 3]. Raises DataError."""
        name = f"{self.shard}: {self.key}.png"
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise DataError(
                f"{name}: cannot be read by the system ({error.strerror}); see to the file, its disk or mount"
            ) from error
        return decode_image(data, name, MOST_PATCH_PX**2)


def samples_of(folder: Path, info: ExportInfo) -> list[Sample]:
    """The patches of one slide's shards in `folder`, in their order. Raises DataError where they are not all there."""
    if info.shards is None:
        raise DataError(
            f"{folder}: its export was broken off ({EXPORT_FILE} lists no shards); run the same tile-slides again"
        )
    samples: list[Sample] = []
    for name, count in info.shards:
        if Path(name).name != name:  # no file of another folder
            raise DataError(
                f"{folder / EXPORT_FILE}: found the shard '{name}', expected the name of a file beside it; export again"
            )
        found = _samples_in(folder / name)
        if len(found) != count:
            raise DataError(
                f"{folder / name}: found {counted(len(found), 'patch')}, expected {count} as {EXPORT_FILE} says; "
                "copy it again, or remove it and run the same tile-slides again"
            )
        samples += found
    return samples


def _samples_in(shard: Path) -> list[Sample]:
    found: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind == "png":
                    if member.size > MOST_BYTES:
                        raise ValueError(
                            f"{member.name}: found {member.size:,} bytes, expected {MOST_BYTES:,} at most"
                        )
                    found[key] = member.offset_data, member.size
                elif kind == "cls":
                    labels[key] = _label(tar, member)
                # Headers of members that were read are kept by tarfile: of millions, gigabytes.
                tar.members = []  # type: ignore[attr-defined]
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(
            f"{shard}: cannot be read as a shard ({error}); copy it again, or remove it and run the same tile-slides "
            "again"
        ) from error
    return [Sample(shard, key, labels.get(key, UNLABELLED), *place) for key, place in found.items()]


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(8).decode() if file else ""
    if text not in ("0", "1"):
        raise ValueError(f"{member.name}: found the label {text!r}, expected 0 or 1")
    return int(text)
