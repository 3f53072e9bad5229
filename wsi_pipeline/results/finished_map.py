"""A slide's map, and what was found on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Plane
from wsi_pipeline.base.types import FloatMap
from wsi_pipeline.results.fields import NO_FIELDS, FieldChoice, GradingField
from wsi_pipeline.results.regions import IdcRegion
from wsi_pipeline.results.summary import Uncertainty


@dataclass(frozen=True, eq=False)
class FinishedMap:
    """A slide's map, and what was found on it: all that pictures, report and exports draw and count."""

    heatmap: FloatMap
    """Probability of IDC, 0 to 1, NaN where not scored."""

    plane: Plane
    """Of its cells."""

    kind: str
    """Which map it is, in words."""

    threshold: float
    """Least probability of a cell in a region."""

    regions: Sequence[IdcRegion]
    counts: dict[str, Any]
    """Patches of the plan, and under `cells` those of the map by their status, as `summary.count` gives them."""

    choice: FieldChoice = NO_FIELDS
    """Fields for grading and hot spots, and how they were chosen."""

    deviation: FloatMap | None = None
    """Of an ensemble: standard deviation between its models, 0 to 0.5, NaN where not scored."""

    uncertainty: Uncertainty | None = None
    """What that comes to."""

    status: NDArray[np.uint8] | None = None
    """Of its cells, a `Status` each: what was not scored, and why; None: as if all of that were background."""

    @property
    def fields(self) -> Sequence[GradingField]:
        """Fields for grading, the hottest first."""
        return self.choice.fields

    @property
    def idc_mm2(self) -> float:
        """Area of all regions."""
        return sum(region.area_mm2 for region in self.regions)
