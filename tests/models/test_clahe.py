"""Contrast-limited equalisation does what OpenCV's does, image by image, and keeps hue."""

import pytest
import torch

from wsi_pipeline.models.architectures.clahe import ClaheOptions, clahe, equalised

ROW, COLUMN = torch.arange(10)[:, None], torch.arange(10)[None, :]
IMAGE = ((COLUMN**2 * 3 + ROW**2 * 5 + COLUMN * ROW * 7) % 151 + 40)[None]
# cv2.createCLAHE(clip, (tiles, tiles)).apply(IMAGE) of OpenCV 5.0.0: every third row.
OPENCV = {
    (40.0, 2): [
        [10, 20, 41, 79, 118, 148, 193, 254, 71, 153],
        [118, 158, 209, 242, 64, 142, 233, 65, 174, 52],
        [67, 134, 227, 75, 175, 30, 165, 44, 195, 96],
        [184, 51, 143, 33, 176, 76, 232, 179, 92, 10],
    ],
    # 10 pixels are no multiple of 3 tiles.
    (2.0, 3): [
        [16, 32, 64, 96, 120, 159, 175, 251, 88, 171],
        [139, 183, 219, 244, 64, 143, 231, 70, 179, 66],
        [48, 128, 223, 60, 167, 32, 143, 44, 175, 92],
        [171, 56, 143, 42, 161, 74, 223, 141, 98, 33],
    ],
}


@pytest.mark.parametrize(("clip", "tiles"), list(OPENCV))
def test_values_are_opencvs_but_for_rounding(clip, tiles):
    ours = equalised(IMAGE, ClaheOptions(clip=clip, tiles=tiles))[0, ::3]
    assert (ours - torch.tensor(OPENCV[clip, tiles])).abs().max() <= 1


def test_each_image_is_treated_by_itself():
    images = torch.rand(5, 3, 50, 50, generator=torch.Generator().manual_seed(0))
    together = clahe(images, ClaheOptions())
    assert torch.equal(together[3:4], clahe(images[3:4], ClaheOptions()))


def test_contrast_grows_hue_stays_and_values_stay_in_range():
    generator = torch.Generator().manual_seed(0)
    # A pink of little contrast, R above B above G everywhere.
    pink = torch.tensor([0.7, 0.5, 0.6]).view(1, 3, 1, 1) + 0.03 * torch.randn(
        2, 1, 50, 50, generator=generator
    )
    out = clahe(pink, ClaheOptions())
    assert out.std(dim=(2, 3)).min() > 1.5 * pink.std(dim=(2, 3)).max()
    within = (out[:, 0] < 1) & (out[:, 1] > 0)
    assert within.float().mean() > 0.8
    difference = (out[:, 0] - out[:, 1])[within]
    assert torch.allclose(difference, torch.full_like(difference, 0.2), atol=1e-5)
    noise = clahe(torch.rand(1, 3, 50, 50, generator=generator), ClaheOptions(clip=40.0))
    assert noise.min() >= 0
    assert noise.max() <= 1
