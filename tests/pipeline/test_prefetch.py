from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_infer import section

from wsi_pipeline.base.errors import ScaleError, SlideOpenError
from wsi_pipeline.pipeline.config import TileConfig, TileGridOptions
from wsi_pipeline.pipeline.prefetch import PrefetchedSlide
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import make_overview

MakeSlide = Callable[..., Path]
CONFIG = TileConfig(grid=TileGridOptions(mpp=4.0))


@pytest.mark.parametrize("surveyed", [True, False])
def test_a_slide_read_ahead_is_the_slide_and_has_its_survey(make_slide: MakeSlide, surveyed: bool) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    ahead = PrefetchedSlide(path, None, "named", CONFIG if surveyed else None, CONFIG.grid)
    slide = open_slide(path)
    overview, expected = (
        ahead.overview(CONFIG.overview, CONFIG.grid),
        make_overview(slide, CONFIG.overview, CONFIG.grid),
    )
    assert ahead.slide().name == "named"
    assert ahead.slide().fingerprint() == slide.fingerprint()
    assert np.array_equal(overview.plan.kept, expected.plan.kept)
    assert np.array_equal(overview.labels, expected.labels)
    assert overview.warnings == expected.warnings


def test_what_goes_wrong_ahead_is_raised_when_the_slide_is_wanted(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    scaleless = make_slide("a.tiff", section(200, 200, 20), mpp=None)
    for path, error in ((tmp_path / "gone.svs", SlideOpenError), (scaleless, ScaleError)):
        ahead = PrefetchedSlide(path, None, None, CONFIG, CONFIG.grid)
        with pytest.raises(error, match=path.name):
            tile_slide(path, tmp_path / "out", CONFIG, ahead=ahead)
