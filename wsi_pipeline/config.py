"""Every stage's options, gathered: what a config file of `tile-slides` or `infer-slide` may say."""

from pathlib import Path
from typing import Annotated, TypeVar

import yaml

from wsi_pipeline.annotations import AnnotationOptions
from wsi_pipeline.classify import ClassifyOptions
from wsi_pipeline.delineate import DelineateOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.grid import GridOptions
from wsi_pipeline.options import Field, options, options_from_dict, options_to_dict
from wsi_pipeline.quality import QualityOptions
from wsi_pipeline.tissue import TissueOptions

T = TypeVar("T")


@options
class TileConfig:
    """What `tile-slides` does; its defaults are configs/tile_40x.yaml."""

    tissue: TissueOptions = TissueOptions()
    quality: QualityOptions = QualityOptions()
    grid: GridOptions = GridOptions(patch_px=50, mpp=0.25)
    annotations: AnnotationOptions = AnnotationOptions()
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.25
    """A slide fails when more than this share of it cannot be decoded; below, it is mapped with gaps."""


@options
class InferConfig:
    """What `infer-slide` does; its defaults are configs/infer.yaml."""

    tissue: TissueOptions = TissueOptions()
    quality: QualityOptions = QualityOptions()
    grid: GridOptions = GridOptions()
    classify: ClassifyOptions = ClassifyOptions()
    delineate: DelineateOptions = DelineateOptions()
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.25
    """A slide fails when more than this share of it cannot be decoded; below, it is mapped with gaps."""


def load_config(cls: type[T], path: Path) -> T:
    """The config of that class in a YAML file; what the file leaves out keeps its default.

    Raises ConfigError when there is no such file, it is no YAML, or a key or value is not what it should be.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    return options_from_dict(cls, {} if values is None else values, str(path))


def dump_config(config: object) -> str:
    """The config as YAML that `load_config` reads back."""
    return yaml.safe_dump(options_to_dict(config), sort_keys=False)
