"""Every stage's options, gathered: what a config file of `tile-slides` or `infer-slide` may say."""

from pathlib import Path
from typing import Annotated, TypeVar

from wsi_pipeline.base.configs import find_config
from wsi_pipeline.base.options import Field, options, options_from_dict, read_yaml_file
from wsi_pipeline.inference.classify import ClassifyOptions
from wsi_pipeline.results.exports.formats import ExportName
from wsi_pipeline.results.fields import FieldOptions
from wsi_pipeline.results.regions import DelineateOptions
from wsi_pipeline.slides.annotations.geojson import AnnotationOptions
from wsi_pipeline.tiling.artefacts import ArtefactOptions
from wsi_pipeline.tiling.export_draw import ExportOptions
from wsi_pipeline.tiling.grid import GridOptions
from wsi_pipeline.tiling.overview import OverviewOptions
from wsi_pipeline.tiling.tissue import TissueOptions

T = TypeVar("T")


@options
class TileGridOptions(GridOptions):
    """The grid of `tile-slides`, which asks no model for its scale."""

    patch_px: Annotated[int, Field(gt=0)] = 50
    """Side of a patch in pixels at `mpp`; 50 is the public IDC set's."""

    mpp: Annotated[float, Field(gt=0)] = 0.25
    """um per pixel of a patch; 0.25 is 40x."""

    min_tissue: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a patch that must be tissue; half: at 40x a patch is hardly wider than a pixel of the mask."""


@options
class TileConfig:
    """What `tile-slides` does; its defaults are configs/tile_40x.yaml."""

    tissue: TissueOptions = TissueOptions()
    quality: ArtefactOptions = ArtefactOptions()
    grid: TileGridOptions = TileGridOptions()
    annotations: AnnotationOptions = AnnotationOptions()
    export: ExportOptions = ExportOptions()
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.25
    """A slide fails when more than this share of it cannot be decoded; below, it is mapped with gaps."""

    @property
    def overview(self) -> OverviewOptions:
        """What of it says how the slide is looked at."""
        return OverviewOptions(tissue=self.tissue, quality=self.quality, max_unreadable=self.max_unreadable)


@options
class InferConfig:
    """What `infer-slide` does; its defaults are configs/infer.yaml."""

    tissue: TissueOptions = TissueOptions()
    quality: ArtefactOptions = ArtefactOptions()
    grid: GridOptions = GridOptions()
    classify: ClassifyOptions = ClassifyOptions()
    context: bool = True
    """Apply the context step, which sees each patch among its neighbours, where the model's card has one; false: each
    patch alone."""

    delineate: DelineateOptions = DelineateOptions()
    fields: FieldOptions = FieldOptions()
    exports: tuple[ExportName, ...] = ("pdf",)
    """Files for other tools, beside the map, its regions and pictures: ometiff, dicom, asap, pdf. `export-map` writes
    them later, too."""

    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.25
    """A slide fails when more than this share of it cannot be decoded; below, it is mapped with gaps."""

    annotations: AnnotationOptions = AnnotationOptions()
    """What outlines mean: of `evaluate-model` all of it, of `--inside` which classes are regions of interest, which
    are ignored, and where coordinates count from."""

    @property
    def overview(self) -> OverviewOptions:
        """What of it says how the slide is looked at."""
        return OverviewOptions(tissue=self.tissue, quality=self.quality, max_unreadable=self.max_unreadable)


def load_config(cls: type[T], name_or_path: str | Path) -> T:
    """The config of that class in a YAML file, or in the shipped config of that name.

    What the file leaves out keeps its default. Raises ConfigError when there is no such file or name, it is no
    YAML, or a key or value is not what it should be.
    """
    path = find_config(name_or_path)
    return options_from_dict(cls, read_yaml_file(path), str(path))
