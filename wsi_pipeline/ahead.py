"""A slide opened and surveyed on a thread, while the one before it is worked on.

What comes out, or is raised, is what `open_slide` and `survey_slide` give: only the time is another.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from wsi_pipeline.config import InferConfig, TileConfig
from wsi_pipeline.grid import GridOptions
from wsi_pipeline.slide import Slide, open_slide
from wsi_pipeline.survey import Survey, survey_slide


class SlideAhead:
    """A slide on its way; `config` and `grid` as `survey_slide` takes them, None where no survey is wanted yet.

    `copy` is a local copy of the slide's file, to read from (staging.py).
    """

    def __init__(
        self,
        path: Path,
        mpp: float | None,
        name: str | None,
        config: TileConfig | InferConfig | None,
        grid: GridOptions | None,
        copy: Path | None = None,
    ):
        with_survey = config is not None and grid is not None
        pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        opened = pool.submit(open_slide, path, mpp, name, copy)
        self._slide: Future[Slide] = opened
        self._survey: Future[Survey] | None = None
        if with_survey:
            self._survey = pool.submit(lambda: survey_slide(opened.result(), config, grid))  # type: ignore[arg-type]
        pool.shutdown(wait=False)

    def slide(self) -> Slide:
        """The slide, or what opening it raised."""
        return self._slide.result()

    def survey(self, config: TileConfig | InferConfig, grid: GridOptions) -> Survey:
        """The slide's survey, or what surveying it raised; begun now if it was not begun ahead."""
        if self._survey is None:
            return survey_slide(self.slide(), config, grid)
        return self._survey.result()
