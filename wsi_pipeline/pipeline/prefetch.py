"""A slide opened and looked at on a thread, while the one before it is worked on.

What comes out, or is raised, is what `open_slide` and `make_overview` give: only the time is another.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from wsi_pipeline.base.errors import WsiError
from wsi_pipeline.pipeline.config import InferConfig, TileConfig
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.overview import Overview, make_overview


class PrefetchedSlide:
    """A slide that is being opened."""

    def __init__(
        self, entry: SlideEntry, config: TileConfig | InferConfig | None = None, copy: Path | None = None
    ):
        """With a `config`, whose grid is settled, its overview is made next; without, once it is asked for.

        `copy` is a local copy of the slide's file, to read from (slides/local_copies.py).
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        opened = pool.submit(open_slide, entry.path, entry.mpp, entry.name, copy, entry.mpp_if_missing)
        self._slide: Future[Slide] = opened
        self._overview: Future[Overview] | None = None
        if config:
            self._overview = pool.submit(lambda: make_overview(opened.result(), config.overview, config.grid))
        pool.shutdown(wait=False)

    def slide(self) -> Slide:
        """The slide, or what opening it raised."""
        return self._slide.result()

    def close(self) -> None:
        """Close the slide, if it could be opened; an overview that nobody waits for ends."""
        with suppress(WsiError):  # whoever asked for the slide has heard it
            self.slide().close()

    def overview(self, config: TileConfig | InferConfig) -> Overview:
        """The slide's overview, or what making it raised; `config` as it was prefetched with, if with any."""
        if self._overview is None:
            return make_overview(self.slide(), config.overview, config.grid)
        return self._overview.result()
