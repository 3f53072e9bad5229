"""How far areas were off, as a card says it: of slides that hold enough IDC to say so."""

import numpy as np
import pytest

from wsi_pipeline.learning.training.context import Compared, area_ratios


def compared(cells: dict[str, tuple[int, int]]) -> Compared:
    """Slides by name: how many of 100 cells are labelled IDC, and how many the map calls so."""
    labels = [np.arange(100) < idc for idc, _ in cells.values()]
    called = [np.where(np.arange(100) < found, 0.9, 0.1) for _, found in cells.values()]
    patients = np.repeat(list(cells), 100)
    return Compared({"context": np.concatenate(called)}, np.concatenate(labels).astype(np.uint8), patients)


def test_areas_are_compared_slide_by_slide_where_there_is_enough_to_compare():
    found = area_ratios(compared({"a": (50, 40), "b": (30, 45), "c": (25, 25), "little": (24, 90)}), 0.5, 25)
    assert found == {"slides": 3, "median": 1.0, "lowest": pytest.approx(0.8), "highest": pytest.approx(1.5)}
    assert area_ratios(compared({"little": (24, 90)}), 0.5, 25) is None
