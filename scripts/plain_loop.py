"""The loop that speed is measured against: one patch a read, loaded by worker processes, classified in float32."""

from pathlib import Path

import numpy as np
import openslide
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from wsi_pipeline.model import Model, idc_probability
from wsi_pipeline.stain import Tables

BATCH, WORKERS = 256, 2


class SlidePatches(Dataset[torch.Tensor]):
    """Patches of a slide's level 0, uint8 [S, S, 3], stained anew by `tables` if there are any."""

    def __init__(
        self, path: Path, x0: NDArray[np.int32], y0: NDArray[np.int32], px: int, tables: Tables | None
    ):
        self.path, self.x0, self.y0, self.px, self.tables = path, x0, y0, px, tables
        self._slide: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._slide is None:
            self._slide = openslide.OpenSlide(self.path)  # each worker's own
        corner = int(self.x0[index]), int(self.y0[index])
        patch = np.array(self._slide.read_region(corner, 0, (self.px, self.px)).convert("RGB"))
        if self.tables is not None:
            for channel in range(3):
                patch[..., channel] = self.tables[channel][patch[..., channel]]
        return torch.from_numpy(patch)


def plain_loop(model: Model, patches: SlidePatches) -> NDArray[np.float32]:
    """Probabilities, float32 [n], in the patches' order."""
    loader = DataLoader(patches, BATCH, num_workers=WORKERS)
    with torch.inference_mode():
        return torch.cat([idc_probability(model.network, model.card, batch) for batch in loader]).numpy()
