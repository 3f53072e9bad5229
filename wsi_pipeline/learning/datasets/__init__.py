"""Labelled patches, each with the patient it is of, split so that no patient stands on two sides.

`layouts.py` knows the layouts and lists their images, `listing.py` says what a list is, `split.py` who is on
which side, `decoded.py` decodes them once into a cache, and `load.py` gives training its two sides.
"""

from wsi_pipeline.learning.datasets.layouts import SHEET_COLUMNS as SHEET_COLUMNS
from wsi_pipeline.learning.datasets.load import LabelledPatches as LabelledPatches
from wsi_pipeline.learning.datasets.load import load_side as load_side
from wsi_pipeline.learning.datasets.load import load_split as load_split
from wsi_pipeline.learning.datasets.split import SplitOptions as SplitOptions
from wsi_pipeline.learning.datasets.split import check_no_leak as check_no_leak
