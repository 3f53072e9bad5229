"""A slide opened and surveyed on a thread, while the one before it is worked on.

What comes out, or is raised, is what `open_slide` and `make_overview` give: only the time is another.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from wsi_pipeline.slides.slide import Slide, open_slide
from wsi_pipeline.tiling.grid import GridOptions
from wsi_pipeline.tiling.overview import Overview, OverviewOptions, make_overview


class PrefetchedSlide:
    """A slide on its way; `options` and `grid` as `make_overview` takes them, None where no survey is wanted yet.

    `copy` is a local copy of the slide's file, to read from (staging.py).
    """

    def __init__(
        self,
        path: Path,
        mpp: float | None,
        name: str | None,
        options: OverviewOptions | None,
        grid: GridOptions | None,
        copy: Path | None = None,
        mpp_if_missing: float | None = None,
    ):
        with_overview = options is not None and grid is not None
        pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        opened = pool.submit(open_slide, path, mpp, name, copy, mpp_if_missing)
        self._slide: Future[Slide] = opened
        self._overview: Future[Overview] | None = None
        if with_overview:
            self._overview = pool.submit(lambda: make_overview(opened.result(), options, grid))  # type: ignore[arg-type]
        pool.shutdown(wait=False)

    def slide(self) -> Slide:
        """The slide, or what opening it raised."""
        return self._slide.result()

    def overview(self, options: OverviewOptions, grid: GridOptions) -> Overview:
        """The slide's survey, or what surveying it raised; begun now if it was not begun ahead."""
        if self._overview is None:
            return make_overview(self.slide(), options, grid)
        return self._overview.result()
