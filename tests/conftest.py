"""Slides that the tests make, and where the shared ones lie."""

import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

from scripts.bench.s3_server import s3_server

# In the background Ctrl-C is ignored, and so it is in all that is started there: tests that press it would hang.
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("laws", deadline=None)  # other work on the machine must not fail a law
settings.load_profile("laws")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
NM_PER_PX = 500


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of decoded patches go where the tests' files go, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real slides and patches; tests that need it skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the shared data folder beside the checkout (../shared), which is not here")
    return SHARED


def write_outlines(slide: Path, areas: Iterable[tuple[shapely.Polygon, str]]) -> None:
    """Areas of the slide, in level-0 pixels, and their classes, beside it as GeoJSON."""
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(area),
            "properties": {"classification": {"name": name}},
        }
        for area, name in areas
    ]
    collection = {"type": "FeatureCollection", "features": features}
    slide.with_suffix(".geojson").write_text(json.dumps(collection))


def write_slide(
    path: Path,
    level0: NDArray[np.uint8],
    mpp: tuple[float, float] | None = (0.5, 0.5),
    factors: tuple[int, ...] = (1, 4),
    tile: int = 256,
    compression: str | None = None,
) -> Path:
    """A tiled pyramid that OpenSlide opens as generic TIFF; `factors` are its levels' downsamples."""
    with tifffile.TiffWriter(path, bigtiff=False) as tif:
        for factor in factors:
            level = level0 if factor == 1 else np.asarray(Image.fromarray(level0).reduce(factor))
            scale = {}
            if mpp is not None:
                scale = {
                    "resolution": (1e4 / (mpp[0] * factor), 1e4 / (mpp[1] * factor)),
                    "resolutionunit": "CENTIMETER",
                }
            tif.write(
                level,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression,
                metadata=None,
                subfiletype=0 if factor == 1 else 1,
                **scale,
            )
    return path


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    """`make_slide(name, level0, **options of write_slide)`: a slide file in the test's own folder."""

    def make(name: str, level0: NDArray[np.uint8], **options: object) -> Path:
        return write_slide(tmp_path / name, level0, **options)  # type: ignore[arg-type]

    return make


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """An image of which no two areas are alike, smooth enough to be reduced."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def tissue_texture(
    height: int, width: int, colour: tuple[int, int, int] = (190, 110, 170)
) -> NDArray[np.int_]:
    """Tissue of some such colour: `noise`, and detail as fine as a pixel, so that it is in focus."""
    grain = np.random.default_rng(0).integers(-9, 10, (height, width, 1))
    return np.asarray(noise(height, width).astype(int) // 8 + np.array(colour) + grain)


def write_scn(path: Path, image: NDArray[np.uint8], x0: int, y0: int, canvas: tuple[int, int]) -> Path:
    """A Leica SCN at 0.5 um/px: `image` lies at (x0, y0) of a larger canvas (width, height) that is not scanned."""

    def part(
        name: str, objective: float, view: tuple[int, int, int, int], sizes: list[tuple[int, int]], ifd: int
    ) -> str:
        width, height, x, y = (v * NM_PER_PX for v in view)
        dimensions = "".join(
            f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{ifd + r}"/>' for r, (w, h) in enumerate(sizes)
        )
        return (
            f'<image name="{name}"><creationDate>2020-01-01T00:00:00Z</creationDate><device model="Leica SCN400"/>'
            f'<pixels sizeX="{sizes[0][0]}" sizeY="{sizes[0][1]}">{dimensions}</pixels>'
            f'<view sizeX="{width}" sizeY="{height}" offsetX="{x}" offsetY="{y}"/>'
            f"<scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>"
            f"<illuminationSettings><numericalAperture>0.1</numericalAperture>"
            f"<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    height, width = image.shape[:2]
    reduced = np.asarray(Image.fromarray(image).reduce(4))
    macro = np.full((canvas[1] // 20, canvas[0] // 20, 3), 240, np.uint8)
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" sizeX="{canvas[0] * NM_PER_PX}" sizeY="{canvas[1] * NM_PER_PX}">'
        + part("macro", 0.6, (*canvas, 0, 0), [macro.shape[1::-1]], 0)
        + part("main", 20, (width, height, x0, y0), [image.shape[1::-1], reduced.shape[1::-1]], 1)
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for i, (level, mpp) in enumerate([(macro, 10), (image, 0.5), (reduced, 2)]):
            tif.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                description=description if i == 0 else None,
                metadata=None,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
            )
    return path


@contextmanager
def s3_server_or_skip(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which clients find a server of the test's own; skips where none is installed."""
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(s3_server(folder))
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield environment


@contextmanager
def read_at_once() -> Iterator[None]:
    """In the block, what is opened before it is read fails, as where another process put it anew between."""
    import s3fs

    def refused(self: object, path: str, mode: str = "rb", **_: object) -> object:
        raise s3fs.utils.FileExpired(16, f"{path} was opened ({mode}), and has changed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_open", refused)
        yield


@pytest.fixture(scope="module")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What says where an object store of the test's own is."""
    with s3_server_or_skip(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def s3(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The store, as this process sees it."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return s3_environment
