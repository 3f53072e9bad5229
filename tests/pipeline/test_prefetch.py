from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_infer import section

from wsi_pipeline.base.errors import ScaleError, SlideOpenError
from wsi_pipeline.pipeline.config import TileConfig, TileGridOptions
from wsi_pipeline.pipeline.prefetch import PrefetchedSlide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import open_slide
from wsi_pipeline.tiling.overview import make_overview

MakeSlide = Callable[..., Path]
CONFIG = TileConfig(grid=TileGridOptions(mpp=4.0))


@pytest.mark.parametrize("config", [CONFIG, None])
def test_a_prefetched_slide_is_the_slide_and_has_its_overview(
    make_slide: MakeSlide, config: TileConfig | None
) -> None:
    path = make_slide("a.tiff", section(), mpp=(4.0, 4.0))
    prefetched = PrefetchedSlide(SlideEntry(path, "named"), config)
    slide = open_slide(path)
    overview, expected = prefetched.overview(CONFIG), make_overview(slide, CONFIG.overview, CONFIG.grid)
    assert prefetched.slide().name == "named"
    assert prefetched.slide().fingerprint() == slide.fingerprint()
    assert np.array_equal(overview.plan.kept, expected.plan.kept)
    assert np.array_equal(overview.labels, expected.labels)
    assert overview.warnings == expected.warnings


def test_what_goes_wrong_while_prefetching_is_raised_when_the_slide_is_wanted(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    scaleless = make_slide("a.tiff", section(200, 200, 20), mpp=None)
    for path, error in ((tmp_path / "gone.svs", SlideOpenError), (scaleless, ScaleError)):
        entry = SlideEntry(path, "a")
        run = RunOptions(prefetched=PrefetchedSlide(entry, CONFIG))
        with pytest.raises(error, match=path.name):
            tile_slide(entry, tmp_path / "out", CONFIG, run=run)
