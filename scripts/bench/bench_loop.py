"""The loop that most people write: a DataLoader of one read_region a patch, and the network in float32."""

import numpy as np
import openslide
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from scripts.bench.bench_cases import Case
from wsi_pipeline.models.model import load_model
from wsi_pipeline.slides.slide import open_slide

BATCH, WORKERS = 256, 2


class PatchesOfSlide(Dataset[torch.Tensor]):
    """Patches at level-0 corners [n, 2], read one by one, normalised: float32 [3, S, S]."""

    def __init__(self, case: Case, corners: NDArray[np.int64], level: int):
        self._path, self._corners, self._level = str(case.path), corners, level
        card = case.model.card
        self._px = card.patch_px
        self._mean = torch.tensor(card.mean).view(3, 1, 1)
        self._std = torch.tensor(card.std).view(3, 1, 1)
        self._slide: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._slide is None:  # each worker has its own
            self._slide = openslide.OpenSlide(self._path)
        x, y = self._corners[index]
        region = self._slide.read_region((int(x), int(y)), self._level, (self._px, self._px)).convert("RGB")
        pixels = torch.from_numpy(np.array(region)).permute(2, 0, 1).float() / 255
        return (pixels - self._mean) / self._std


def corners_of(case: Case, most: int) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Of the first patches: column and row [n, 2], level-0 corner [n, 2], and the level they are pixels of."""
    places = np.concatenate([block.patches for block in case.plan.blocks()])[:most]
    plane = case.plan.grid.plane
    step = case.plan.grid.stride_px * np.array([plane.downsample_x, plane.downsample_y])
    return places, np.round(places * step).astype(np.int64), open_slide(case.path).level_for(plane)


def plain_loop(
    case: Case, corners: NDArray[np.int64], level: int, device: torch.device
) -> NDArray[np.float32]:
    """The probability of each patch, float32 [n]."""
    network = _plain_network(case).to(device)
    loader = DataLoader(PatchesOfSlide(case, corners, level), batch_size=BATCH, num_workers=WORKERS)
    card, scores = case.model.card, []
    with torch.inference_mode():
        for batch in loader:
            logits = network(batch.to(device)) / card.temperature  # [n, 2]
            scores.append(torch.sigmoid(logits[:, 1] - logits[:, 0] + card.log_odds_shift).cpu())  # [n]
    return torch.cat(scores).numpy()


_networks: dict[str, nn.Module] = {}


def _plain_network(case: Case) -> nn.Module:
    """The same weights, in torch's usual layout."""
    if case.model.sha256 not in _networks:
        network = load_model("idc_default").network
        _networks[case.model.sha256] = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return _networks[case.model.sha256]
