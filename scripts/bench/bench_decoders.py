"""How fast JPEG tiles decode, by libjpeg-turbo on all cores and in batches on a GPU, and what else that changes.

Decoders differ in how they enlarge chroma that was stored at half the size: libjpeg-turbo, and with it OpenSlide and
this package, interpolates; others repeat. So what each decodes is scored too, beside what libjpeg-turbo decodes.
And some give a damaged tile as if it were whole: scores would then be of what nobody stained.
"""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from simplejpeg import decode_jpeg
from tifffile import TiffFile, TiffPage

from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.models.model import load_model
from wsi_pipeline.slides.readers.tiff_tiles import JPEG, jpeg_stream, tiles_of

# A tile of tissue has at least this share of the bytes of the fullest one.
HELD = 0.3
TILES = 1000
# Tiles whose scan is cut in half, to see who says so.
DAMAGED = 100
# The level whose patches are scored, by how many times it is smaller: 4 um/px, the shipped model's scale.
SCORED_AT = 16


@dataclass(frozen=True)
class Decoded:
    """What was found of one decoder."""

    tiles_per_s: float
    # The furthest pixel from libjpeg-turbo's, of 255; the furthest score; the share of patches across the threshold.
    pixels: float
    moved: float
    across: float
    # Patches scored.
    patches: int
    # Of tiles whose second half is missing, the share that it gave as if they were whole.
    unnoticed: float


@dataclass(frozen=True)
class Decoder:
    """A way to decode many whole JPEG streams, complete when it returns."""

    name: str
    # Keeps nothing: memory that is touched for the first time takes as long as decoding.
    run: Callable[[Sequence[bytes]], object]
    # uint8 [n, H, W, 3].
    pixels: Callable[[Sequence[bytes]], NDArray[np.uint8]]
    # Whether it gives pixels for a stream.
    accepts: Callable[[bytes], bool]


def measure_decoders(path: Path, device: torch.device, repeats: int) -> dict[str, dict[str, float]]:
    """Of each decoder, by its name, the fields of `Decoded`.

    The speed is that on tiles of level 0 in memory; pixels and scores are those of a level of the model's scale. Raises
    ValueError where the slide has no JPEG tiles.
    """
    fine, coarse = tile_streams(path, 1), tile_streams(path, SCORED_AT)
    damaged = [_halved(stream) for stream in fine[:DAMAGED]]
    scored = Classifier([load_model("idc_default")], device, ClassifyOptions(precision="fp32"))
    threshold, side = scored.card.threshold, scored.card.patch_px
    found = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        decoders = list(_decoders(device, pool))
        seconds: dict[str, list[float]] = {decoder.name: [] for decoder in decoders}
        for _ in range(repeats + 1):
            for decoder in decoders:
                start = time.perf_counter()
                decoder.run(fine)
                seconds[decoder.name].append(time.perf_counter() - start)
        ours = decoders[0].pixels(coarse)
        our_scores = scored.scores(_patches(ours, side))
        for decoder in decoders:
            pixels = decoder.pixels(coarse)
            scores = scored.scores(_patches(pixels, side))
            found[decoder.name] = Decoded(
                len(fine) / statistics.median(seconds[decoder.name][1:]),  # the first one warms up
                float(np.abs(pixels.astype(np.int16) - ours).max()),
                float(np.abs(scores - our_scores).max()),
                float(((scores >= threshold) != (our_scores >= threshold)).mean()),
                len(scores),
                float(np.mean([decoder.accepts(stream) for stream in damaged])),
            )
    return {name: asdict(decoded) for name, decoded in found.items()}


def tile_streams(path: Path, reduction: int, most: int = TILES) -> list[bytes]:
    """Whole JPEG streams of tiles of the level so many times smaller that hold something, evenly over the slide."""
    with TiffFile(path) as tif:
        pages = [page for page in tif.pages if isinstance(page, TiffPage)]
        pages = [page for page in pages if page.compression == JPEG and tiles_of(page)]
        if not pages:
            raise ValueError(f"{path}: found no JPEG tiles of 8-bit RGB, expected a slide that has some")
        wanted = max(page.imagewidth for page in pages) / reduction
        page = min(pages, key=lambda p: abs(np.log(p.imagewidth / wanted)))
        tiles, whole = tiles_of(page), jpeg_stream(page)
    assert tiles is not None
    counts = tiles.byte_counts
    full = np.flatnonzero(counts >= HELD * counts.max())
    chosen = full[np.linspace(0, len(full) - 1, min(most, len(full))).astype(int)]
    with path.open("rb") as file:
        return [whole(os.pread(file.fileno(), int(counts[i]), int(tiles.offsets[i]))) for i in chosen]


def _decoders(device: torch.device, pool: ThreadPoolExecutor) -> Iterator[Decoder]:
    """libjpeg-turbo as slides are read, the same without interpolation, and what the GPU has."""
    yield _on_cores("libjpeg-turbo, all cores", decode_jpeg, pool)
    yield _on_cores(
        "libjpeg-turbo, all cores, chroma repeated", partial(decode_jpeg, fastupsample=True), pool
    )
    if device.type != "cuda":
        return
    from wsi_pipeline.models.architectures.torchvision_guard import torchvision

    def by_torchvision(streams: Sequence[bytes]) -> list[torch.Tensor]:
        tensors = [torch.frombuffer(bytearray(stream), dtype=torch.uint8) for stream in streams]
        decoded: list[torch.Tensor] = torchvision.io.decode_jpeg(tensors, device=device)
        torch.cuda.synchronize(device)
        return decoded

    yield Decoder(
        "torchvision, on the GPU",
        by_torchvision,
        lambda streams: torch.stack(by_torchvision(streams)).permute(0, 2, 3, 1).cpu().numpy(),
        lambda stream: _does(by_torchvision, [stream]),
    )
    try:
        from nvidia import nvimgcodec
    except ImportError:
        print("left out: nvImageCodec is not installed (nvidia-nvimgcodec-cu13[nvjpeg])")
        return
    # The hardware's decoder interpolates as libjpeg-turbo does; the hybrid one is off by up to 3.
    hardware = [nvimgcodec.Backend(nvimgcodec.BackendKind.HW_GPU_ONLY)]
    decoder = nvimgcodec.Decoder(
        device_id=device.index or 0, backends=hardware, options=":fancy_upsampling=1"
    )

    def by_nvimgcodec(streams: Sequence[bytes]) -> list[Any]:
        decoded: list[Any] = decoder.decode([nvimgcodec.CodeStream(stream) for stream in streams])
        torch.cuda.synchronize(device)
        return decoded

    yield Decoder(
        "nvImageCodec, the GPU's JPEG hardware, chroma interpolated",
        by_nvimgcodec,
        lambda streams: np.stack(
            [torch.as_tensor(image, device=device).cpu().numpy() for image in by_nvimgcodec(streams)]
        ),
        lambda stream: by_nvimgcodec([stream])[0] is not None,
    )


def _on_cores(name: str, decode: Callable[[bytes], NDArray[np.uint8]], pool: ThreadPoolExecutor) -> Decoder:
    def run(streams: Sequence[bytes]) -> None:
        deque(pool.map(lambda stream: decode(stream).size, streams), maxlen=0)

    return Decoder(
        name,
        run,
        lambda streams: np.stack(list(pool.map(decode, streams))),
        lambda stream: _does(decode, stream),
    )


def _does(decode: Callable[[Any], object], given: object) -> bool:
    """Whether it decodes that without an error."""
    try:
        decode(given)
    except Exception:  # decoders raise what they like
        return False
    return True


def _halved(stream: bytes) -> bytes:
    """The stream without the second half of its scan."""
    start = stream.rindex(b"\xff\xda")
    return stream[: start + (len(stream) - start) // 2]


def _patches(tiles: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The patches side by side in tiles [n, H, W, 3]: uint8 [m, side, side, 3]."""
    n, height, width, _ = tiles.shape
    rows, columns = height // side, width // side
    cut = tiles[:, : rows * side, : columns * side].reshape(n, rows, side, columns, side, 3)
    return np.ascontiguousarray(cut.swapaxes(2, 3).reshape(-1, side, side, 3))
