"""`tile-slides` and `infer-slide` for one slide, from Python: the same work, the same lock, the same run folder."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Union

from wsi_pipeline.base.errors import ConfigError, JobError, ListError, UsageError
from wsi_pipeline.base.files import OutPath, check_writable, out_path
from wsi_pipeline.base.types import Progress
from wsi_pipeline.jobs.protocols import Busy
from wsi_pipeline.pipeline.config import InferConfig, TileConfig, load_config
from wsi_pipeline.pipeline.slide_jobs import InferJob, TileJob
from wsi_pipeline.results.opened import Result, open_result
from wsi_pipeline.slides.catalog import list_slides

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.model import Model

Config = TypeVar("Config", TileConfig, InferConfig)
OneModel: TypeAlias = Union[str, Path, "Model"]


# Its keywords are the command's options, hence so many.
def infer_slide(
    slide: str | Path,
    out: str | OutPath,
    *,
    model: OneModel | Sequence[OneModel] = "idc_default",
    device: str = "auto",
    config: InferConfig | str | Path | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Map the slide's IDC, as `infer-slide` does; gives the result, which lies in its run folder, OUT/<slide name>.

    An earlier result of the same slide, model and options is taken as it is, an interrupted one goes on from its last
    chunk. The manifest of a batch is not written.

    slide: the slide's file, or the folder of its DICOM files.
    out: a folder, made if need be, or a place on an object store ("s3://bucket/maps").
    model: a shipped model by its name, a .safetensors file with its card beside it, or what `load_model` gave; load it
        once for many slides. Several make an ensemble: their mean, and how far they are apart.
    device: 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:1'.
    config: options, a YAML file of them, or the name of a shipped config; None: the defaults.
    mpp: micrometres per level-0 pixel, where the file does not say or is wrong.
    overwrite: replace the result of another slide, model or options there, which is refused else.
    progress: called with the patches done so far, and those in all.

    Raises a WsiError: UsageError where nothing was begun (its kinds ConfigError, ScaleError, ModelError, RecipeError
    and ListError say why), SlideError where the slide failed, OutputError where the result cannot be written, JobError
    while another process works on the slide.

    Example::

        result = wp.infer_slide("demo/sample.tiff", "maps")
        print(f"{result.summary['idc_mm2']:.2f} mm2 of IDC")
    """
    models = tuple(model) if isinstance(model, Sequence) and not isinstance(model, str) else (model,)
    if not models:
        raise UsageError(
            "model: found none, expected a name, a .safetensors file, a loaded model, or several"
        )
    names_or_models = tuple(str(given) if isinstance(given, Path) else given for given in models)
    job = InferJob(_place(out), _config(InferConfig, config), names_or_models, device, overwrite)
    return _run(job, slide, mpp, progress)


# Its keywords are the command's options, hence so many.
def tile_slide(
    slide: str | Path,
    out: str | OutPath,
    *,
    config: TileConfig | str | Path | None = None,
    annotations: str | Path | None = None,
    export: bool = False,
    mpp: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Plan the slide's patches that hold tissue, as `tile-slides` does; gives the result, in OUT/<slide name>.

    annotations: a folder of GeoJSON outlines, <slide name>.geojson, that label the patches.
    export: write patches too, as `export` of the config says, under `export` in the run folder; by default each as PNG.

    The rest is as of `infer_slide`; the default config is tile_40x, patches of 50 x 50 px at 0.25 um/px. `progress` is
    called while patches are exported.

    Example::

        result = wp.tile_slide("demo/sample.tiff", "tiles", config="tile_idc")
        print(len(result.patches.x0), "patches of 50 x 50 px at 4 um/px")
    """
    folder = Path(annotations) if annotations is not None else None
    if folder and not folder.is_dir():
        raise UsageError(f"annotations {folder}: no such folder")
    job = TileJob(_place(out), _config(TileConfig, config), folder, export, overwrite)
    return _run(job, slide, mpp, progress)


def _run(job: TileJob | InferJob, slide: str | Path, mpp: float | None, progress: Progress | None) -> Result:
    entries = list_slides([slide], mpp)
    if len(entries) != 1:
        raise ListError(f"{slide}: found {len(entries)} slides, expected one: call it for each of them")
    check_writable(job.out)
    with closing(job.open(0)) as work:
        try:
            return open_result(work(entries[0], progress or _unheard).folder)
        except Busy as busy:
            raise JobError(f"{slide}: {busy}; wait for it, then call it again") from busy


def _place(out: str | OutPath) -> OutPath:
    return out_path(out) if isinstance(out, str) else out


def _config(cls: type[Config], given: Config | str | Path | None) -> Config:
    if given is None:
        return cls()
    if isinstance(given, cls):
        return given
    if isinstance(given, str | Path):
        return load_config(cls, given)
    raise ConfigError(
        f"config: found {type(given).__name__}, expected {cls.__name__}, a YAML file or the name of a shipped config"
    )


def _unheard(done: int, total: int) -> None:
    """Progress that nobody asked for."""
