"""What measure_gpu.py gives a GPU to do: slides, networks, labelled patches.

Nothing of the package is imported before it is needed: the sections of the bench fail one by one.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_pipeline.models.model import Model

# Width and height of slides, px: a little one that proves that a section runs, a whole one at 40x, one of many.
QUICK_SIDE, WHOLE, SMALLER = (6_000, 5_000), (117_000, 55_000), (50_000, 50_000)


def slide_of_size(size: tuple[int, int], texture: Path, work: Path) -> Path:
    """A slide of that width and height in `work`, of a real slide's tissue repeated; kept once it is made."""
    from scripts.bench.benchmark import generated
    from scripts.bench.tiled_slide import densest_square

    path = work / f"generated_{size[0]}_{size[1]}.tiff"
    return path if path.exists() else generated(work, *size, densest_square(texture))


def untrained(architecture: str, architecture_options: dict[str, Any], patch_px: int, work: Path) -> "Model":
    """A network with random weights, of 0.25 um/px: what is asked is how fast it is."""
    import torch

    from wsi_pipeline.models.model import build_network, load_model, save_model

    torch.manual_seed(0)
    card = load_model("idc_default").card
    card = replace(
        card,
        name=architecture,
        architecture=architecture,
        architecture_options=architecture_options,
        patch_px=patch_px,
        mpp=0.25,
        stain_normalisation=0.0,
        context=None,
    )
    path = work / "models" / f"untrained_{architecture}_{patch_px}.safetensors"
    save_model(path, build_network(architecture, **architecture_options), card)
    return load_model(path)


def write_patches(slide: Path, folder: Path, count: int) -> int:
    """Patches of the slide as a labelled set, dark ones as IDC, of eight made-up patients; how many."""
    import numpy as np
    from PIL import Image

    from scripts.bench.bench_cases import MPP0
    from wsi_pipeline.base.geometry import Box
    from wsi_pipeline.slides.slide import open_slide

    if folder.exists():
        return sum(1 for _ in folder.rglob("*.png"))
    opened = open_slide(slide, MPP0)
    plane, side = opened.plane_at(MPP0), 50
    area = opened.size_on(plane)
    pixels = opened.read(Box(area.width // 3, area.height // 3, 4000, min(4000, area.height // 2)), plane)
    cut = (
        pixels[: len(pixels) // side * side]
        .reshape(-1, side, 4000 // side, side, 3)
        .swapaxes(1, 2)
        .reshape(-1, side, side, 3)
    )
    means = cut.mean(axis=(1, 2, 3))
    for i, patch in enumerate(cut[:count]):
        patient, label = 10000 + i % 8, int(means[i] < np.median(means))
        path = folder / str(patient) / str(label) / f"{patient}_idx5_x{i * 50}_y50_class{label}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patch).save(path)
    return min(count, len(cut))
