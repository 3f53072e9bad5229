"""What a run of `tile-slides` and one of `infer-slide` do alike: a new store, the picture of the tissue, the end."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.files import OutPath, write_json
from wsi_pipeline.base.text import printable_values
from wsi_pipeline.results.figures.maps import render_tissue
from wsi_pipeline.results.provenance import (
    store_attributes,
)
from wsi_pipeline.results.run_folder import claim, clear_outputs
from wsi_pipeline.results.store import STORE_NAME, PatchTable, SlideStore, create_store
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.overview import Overview

if TYPE_CHECKING:  # torch takes seconds to import: it waits until something is classified
    pass


log = logging.getLogger(__name__)


def new_store(
    folder: OutPath,
    recipe: dict[str, Any],
    slide: Slide,
    overview: Overview,
    patches: PatchTable,
    status: NDArray[np.uint8] | None,
    with_context: bool = False,
    with_uncertainty: bool = False,
) -> SlideStore:
    """A new store in the run folder, cleared of what lay in it. Raises OutputError."""
    claim(folder)
    return create_store(
        folder / STORE_NAME,
        store_attributes(recipe),
        overview.plan,
        slide.mpp,
        overview.labels,
        overview.tissue.plane,
        patches,
        status,
        with_context,
        with_uncertainty,
        clear=lambda: clear_outputs(folder),
    )


def finish(folder: OutPath, store: SlideStore, summary: dict[str, Any]) -> None:
    """Write the summary, and then say that the run is complete."""
    log.debug("stage finish")
    write_json(folder / "summary.json", printable_values(summary))
    store.finish()


def render_overview(folder: OutPath, overview: Overview) -> None:
    """Write tissue.png. Raises OutputError."""
    tissue, rejected = overview.masks_on_thumbnail()
    render_tissue(folder / "tissue.png", overview.thumbnail.rgb, tissue, rejected, overview.tissue.reason)
