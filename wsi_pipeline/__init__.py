"""Whole breast slides in, maps of invasive ductal carcinoma (IDC) out.

The names below are the public ones, and docs/python.md shows their use; the modules that they come from may move. Each
is imported when it is first used: `import wsi_pipeline` takes no time and loads neither torch nor zarr.
"""

import sys as _sys
import typing as _typing

if _sys.platform == "win32":
    # It locks with fcntl, and brings folders to the disk: neither is there. Better no result than half of one.
    raise ImportError("wsi_pipeline does not run on Windows; use it on Linux, for example in WSL")

if _typing.TYPE_CHECKING:
    from wsi_pipeline.base.errors import ConfigError as ConfigError
    from wsi_pipeline.base.errors import DataError as DataError
    from wsi_pipeline.base.errors import DeviceLostError as DeviceLostError
    from wsi_pipeline.base.errors import JobError as JobError
    from wsi_pipeline.base.errors import ListError as ListError
    from wsi_pipeline.base.errors import LockLostError as LockLostError
    from wsi_pipeline.base.errors import ModelError as ModelError
    from wsi_pipeline.base.errors import OutputError as OutputError
    from wsi_pipeline.base.errors import RecipeError as RecipeError
    from wsi_pipeline.base.errors import RegionReadError as RegionReadError
    from wsi_pipeline.base.errors import ResultError as ResultError
    from wsi_pipeline.base.errors import ScaleError as ScaleError
    from wsi_pipeline.base.errors import SlideChangedError as SlideChangedError
    from wsi_pipeline.base.errors import SlideError as SlideError
    from wsi_pipeline.base.errors import SlideOpenError as SlideOpenError
    from wsi_pipeline.base.errors import SlideReadError as SlideReadError
    from wsi_pipeline.base.errors import SlideTimeoutError as SlideTimeoutError
    from wsi_pipeline.base.errors import TrainingError as TrainingError
    from wsi_pipeline.base.errors import UnreadableSlideError as UnreadableSlideError
    from wsi_pipeline.base.errors import UsageError as UsageError
    from wsi_pipeline.base.errors import WorkerLostError as WorkerLostError
    from wsi_pipeline.base.errors import WsiError as WsiError
    from wsi_pipeline.base.geometry import Box as Box
    from wsi_pipeline.base.geometry import Plane as Plane
    from wsi_pipeline.base.geometry import Size as Size
    from wsi_pipeline.inference.engines.options import ClassifyOptions as ClassifyOptions
    from wsi_pipeline.models.model import Model as Model
    from wsi_pipeline.models.model import load_model as load_model
    from wsi_pipeline.pipeline.config import InferConfig as InferConfig
    from wsi_pipeline.pipeline.config import TileConfig as TileConfig
    from wsi_pipeline.pipeline.config import TileGridOptions as TileGridOptions
    from wsi_pipeline.pipeline.one_slide import infer_slide as infer_slide
    from wsi_pipeline.pipeline.one_slide import tile_slide as tile_slide
    from wsi_pipeline.results.fields import FieldOptions as FieldOptions
    from wsi_pipeline.results.opened import Result as Result
    from wsi_pipeline.results.opened import ResultField as ResultField
    from wsi_pipeline.results.opened import ResultHotSpot as ResultHotSpot
    from wsi_pipeline.results.opened import ResultRegion as ResultRegion
    from wsi_pipeline.results.opened import open_result as open_result
    from wsi_pipeline.results.regions import DelineateOptions as DelineateOptions
    from wsi_pipeline.slides.annotations.geojson import AnnotationOptions as AnnotationOptions
    from wsi_pipeline.slides.slide import Slide as Slide
    from wsi_pipeline.slides.slide import open_slide as open_slide
    from wsi_pipeline.tiling.artefacts import ArtefactOptions as ArtefactOptions
    from wsi_pipeline.tiling.cell_status import Status as Status
    from wsi_pipeline.tiling.export_draw import ExportOptions as ExportOptions
    from wsi_pipeline.tiling.grid import GridOptions as GridOptions
    from wsi_pipeline.tiling.tissue import TissueOptions as TissueOptions

_NAMES = {
    "base.errors": "ConfigError DataError DeviceLostError JobError ListError LockLostError ModelError OutputError "
    "RecipeError RegionReadError ResultError ScaleError SlideChangedError SlideError SlideOpenError SlideReadError "
    "SlideTimeoutError TrainingError UnreadableSlideError UsageError WorkerLostError WsiError",
    "base.geometry": "Box Plane Size",
    "inference.engines.options": "ClassifyOptions",
    "models.model": "Model load_model",
    "pipeline.config": "InferConfig TileConfig TileGridOptions",
    "pipeline.one_slide": "infer_slide tile_slide",
    "results.fields": "FieldOptions",
    "results.opened": "Result ResultField ResultHotSpot ResultRegion open_result",
    "results.regions": "DelineateOptions",
    "slides.annotations.geojson": "AnnotationOptions",
    "slides.slide": "Slide open_slide",
    "tiling.artefacts": "ArtefactOptions",
    "tiling.cell_status": "Status",
    "tiling.export_draw": "ExportOptions",
    "tiling.grid": "GridOptions",
    "tiling.tissue": "TissueOptions",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__version__: str
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """The name's object, imported now."""
    from importlib import import_module

    if name == "__version__":
        value: object = import_module("wsi_pipeline.base.version").VERSION
    elif name in _MODULES:
        value = getattr(import_module(f"wsi_pipeline.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'wsi_pipeline' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]
