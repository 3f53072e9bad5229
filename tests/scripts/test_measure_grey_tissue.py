"""What the measurement of grey tissue says of each piece."""

import numpy as np

from scripts.results.measure_grey_tissue import pieces
from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.tiling.tissue import TissueOptions, find_tissue


def test_stained_tissue_is_found_and_what_is_grey_is_not_and_specks_are_left_out():
    rgb = np.full((200, 300, 3), 243, np.uint8)
    rgb[40:100, 40:140] = (220, 150, 190)
    rgb[40:80, 200:240] = (180, 180, 180)
    rgb[150:153, 150:153] = (180, 180, 180)
    found = find_tissue(rgb, Plane(32, 32), (8.0, 8.0), TissueOptions())
    stained, grey = pieces(rgb, found, (8.0, 8.0))
    assert "at 0.7, 0.6 mm: 100% is tissue" in stained
    assert "at 1.8, 0.5 mm: 0% is tissue" in grey
    assert grey.endswith("spread 0.000, their ratio 0.00")
