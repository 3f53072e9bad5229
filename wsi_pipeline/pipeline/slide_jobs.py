"""What a batch does with each of its slides: the jobs of `tile-slides` and `infer-slide`, for any kind of worker."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_pipeline.base.errors import LockLostError, SlideError
from wsi_pipeline.base.files import OutPath, guarded
from wsi_pipeline.base.types import Progress
from wsi_pipeline.inference.classifier import Classifier
from wsi_pipeline.jobs.events import LOCKS
from wsi_pipeline.jobs.leases import hold_lease
from wsi_pipeline.jobs.locks import hold
from wsi_pipeline.jobs.protocols import Busy
from wsi_pipeline.pipeline.config import InferConfig, TileConfig
from wsi_pipeline.pipeline.infer import infer_slide
from wsi_pipeline.pipeline.maps import grid_for_model
from wsi_pipeline.pipeline.prefetch import PrefetchedSlide
from wsi_pipeline.pipeline.run import RunOptions
from wsi_pipeline.pipeline.tile import tile_slide
from wsi_pipeline.results.exports.formats import check_exports
from wsi_pipeline.results.run_folder import SlideResult, check_outside, is_finished
from wsi_pipeline.slides.catalog import SlideEntry
from wsi_pipeline.slides.local_copies import Stager
from wsi_pipeline.slides.readers.formats import slide_files

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_pipeline.models.model import Model

OneSlide = Callable[[SlideEntry, RunOptions], SlideResult]


@dataclass(frozen=True)
class Staging:
    """Where slides are copied before they are read, and how many bytes of them at once, in each process."""

    folder: Path
    limit_bytes: int


class SlideWork:
    """Works on one slide after another, each under its lock in `out`."""

    def __init__(self, job: "TileJob | InferJob", config: TileConfig | InferConfig, one: OneSlide):
        """`config` is the job's with its grid settled. Raises UsageError when the job's slides cannot be staged."""
        self._out, self._overwrite, self._config, self._one = job.out, job.overwrite, config, one
        self._coming: dict[SlideEntry, PrefetchedSlide] = {}
        self._stager = Stager(job.staging.folder, job.staging.limit_bytes) if job.staging else None

    def __call__(self, entry: SlideEntry, report: Progress) -> SlideResult:
        """The slide's result. Raises Busy while another process works on it, a WsiError when it fails."""
        check_entry(entry, self._out)
        try:
            with self._locked(entry, report) as progress, self._prefetched(entry) as prefetched:
                return self._one(entry, RunOptions(self._overwrite, progress, prefetched=prefetched))
        except LockLostError as error:
            raise Busy(str(error)) from error

    def prefetch(self, entries: Sequence[SlideEntry]) -> None:
        """Copy slides, where they are staged; else open the second and look at it on a thread.

        What an earlier run finished is neither copied nor looked at: likely it is skipped.
        """
        if self._stager:
            for entry in entries:
                if not entry.refused and not self._is_finished(entry):
                    self._stager.begin(entry.path)
        elif len(entries) > 1 and (entry := entries[1]) not in self._coming and not entry.refused:
            config = None if self._is_finished(entry) else self._config
            self._coming[entry] = PrefetchedSlide(entry, config)

    def close(self) -> None:
        """Leave no copies behind."""
        if self._stager:
            self._stager.close()

    @contextmanager
    def _locked(self, entry: SlideEntry, report: Progress) -> Iterator[Progress]:
        """The slide's lock held, or its lease on an object store, and a report of progress that makes sure of it."""
        place = self._out / LOCKS / f"{entry.name}.lock"
        with hold(place) if isinstance(place, Path) else hold_lease(place) as held:

            def progress(done: int, total: int) -> None:
                held.check()
                report(done, total)

            try:
                with guarded(self._out / entry.name, held.check):
                    yield progress
            except Exception:
                # Where another process has taken the slide over, its writes make this one fail: that is no failure.
                held.check()
                raise

    @contextmanager
    def _prefetched(self, entry: SlideEntry) -> Iterator[PrefetchedSlide]:
        """The slide, opened or being opened, and closed at the end."""
        if self._stager is None or self._is_finished(entry):
            coming = self._coming.pop(entry) if entry in self._coming else PrefetchedSlide(entry)
            with closing(coming):
                yield coming
            return
        with (
            self._stager.copy_of(entry.path) as copy,
            closing(PrefetchedSlide(entry, copy=copy)) as prefetched,
        ):
            yield prefetched

    def _is_finished(self, entry: SlideEntry) -> bool:
        return is_finished(self._out / entry.name)


def check_entry(entry: SlideEntry, out: OutPath) -> None:
    """Raises SlideError where the slide cannot be worked on with results in `out`, by its name and place alone."""
    if entry.refused:
        raise SlideError(entry.refused)
    try:
        files = [entry.path] if entry.path.is_dir() else slide_files(entry.path)
        check_outside(files, out, entry.name)
    except (OSError, RuntimeError):  # links in a circle, say: who opens it says why
        return


@dataclass(frozen=True)
class TileJob:
    """`tile-slides`: its fields are the command's arguments."""

    out: OutPath
    config: TileConfig
    annotations: Path | None = None
    export: bool = False
    overwrite: bool = False
    staging: Staging | None = None

    def everywhere(self) -> "TileJob":
        """The same on every machine that has these files at these places."""
        return replace(
            self,
            out=self.out.absolute(),
            annotations=self.annotations.absolute() if self.annotations else None,
        )

    def open(self, worker: int) -> SlideWork:
        """Nothing to load."""

        def one(entry: SlideEntry, run: RunOptions) -> SlideResult:
            return tile_slide(entry, self.out, self.config, self.annotations, self.export, run)

        return SlideWork(self, self.config, one)


def _is_place_of_model(name: str) -> bool:
    """Whether it names a file of weights or a package (its folder or a file in it, or either with #CLASS)."""
    place = Path(name.partition("#")[0])
    return Path(name).is_file() or place.is_file() or (place / "config.json").is_file()


@dataclass(frozen=True)
class InferJob:
    """`infer-slide`: its fields are the command's arguments."""

    out: OutPath
    config: InferConfig
    models: "tuple[str | Model, ...]"
    """By name, by file, or loaded already: that for work in this process alone."""

    device: str = "auto"
    overwrite: bool = False
    staging: Staging | None = None
    inside: Path | None = None
    """A folder of outlines, within which alone slides are mapped."""
    trust: bool = False
    """That models may be loaded which can run any program then."""

    def everywhere(self) -> "InferJob":
        """The same on every machine that has these files at these places."""
        models = tuple(
            str(Path(name).absolute()) if isinstance(name, str) and _is_place_of_model(name) else name
            for name in self.models
        )
        inside = self.inside.absolute() if self.inside else None
        return replace(self, out=self.out.absolute(), models=models, inside=inside)

    def open(self, worker: int) -> SlideWork:
        """Load the models, onto the worker's own GPU where the machine has several.

        Raises ModelError, ScaleError and UsageError: model, config or device are not what they should be.
        """
        config, classifier = self.load(worker)

        def one(entry: SlideEntry, run: RunOptions) -> SlideResult:
            return infer_slide(entry, self.out, config, classifier, replace(run, inside=self.inside))

        return SlideWork(self, config, one)

    def load(self, worker: int) -> tuple[InferConfig, Classifier]:
        """The config at the model's scale, and the models on their device. Raises as `open`."""
        from wsi_pipeline.inference.classifier import Classifier  # torch: seconds, once it is needed
        from wsi_pipeline.inference.device import choose_device
        from wsi_pipeline.models.model import load_models

        check_exports(self.config.exports)
        models = load_models(list(self.models), self.trust)
        card = models[0].card
        config = replace(self.config, grid=grid_for_model(self.config.grid, card.patch_px, card.mpp))
        classifier = Classifier(models, choose_device(self.device, worker), config.classify)
        return config, classifier
