"""The fastest engine that says what eager float32 torch says; and why none faster, where there is one.

No engine is trusted: each is compared with eager float32 on patches, if possible of the slide at hand, before its
numbers go anywhere.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.base.errors import DeviceLostError, ModelError
from wsi_pipeline.base.text import counted
from wsi_pipeline.inference.engines.accelerator import device_errors, exact_float32
from wsi_pipeline.inference.engines.batching import BatchRunner, Engine, Precision
from wsi_pipeline.inference.engines.cuda_engine import CudaEngine, batch_size_of
from wsi_pipeline.inference.engines.options import ClassifyOptions
from wsi_pipeline.inference.engines.pixel_ring import ring_of
from wsi_pipeline.inference.engines.torch_engine import EagerEngine
from wsi_pipeline.models.card import ModelCard
from wsi_pipeline.models.cost import network_cost
from wsi_pipeline.models.model import Model, has_bf16
from wsi_pipeline.models.onnx_network import is_onnx
from wsi_pipeline.models.slide_input import UNKNOWN_SLIDE, SlideInput

if TYPE_CHECKING:
    from wsi_pipeline.inference.engines.openvino_engine import Graphs

log = logging.getLogger(__name__)

# Activations of so many patches stay in a CPU's cache.
OPENVINO_BATCH, TORCH_BATCH = 64, 128
# A heavier network takes smaller batches: its activations fill the memory, and nothing would be faster.
HEAVY_MFLOP, HEAVY_BATCH = 1000.0, 16
# Of a network whose layers are not seen, as in most packages of other people's: as much as a ResNet18's.
UNKNOWN_MFLOP_A_PIXEL = 0.07


@dataclass(frozen=True)
class Tolerance:
    """How far probabilities may lie from eager float32's: the furthest patch, and all in the mean."""

    furthest: float
    mean: float


# What a right engine keeps, with some room; a wrong one (another padding, another rounding) does not.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-5, 1e-5),
    "fp16": Tolerance(5e-3, 1e-3),
    "bf16": Tolerance(0.1, 0.01),
    "int8": Tolerance(0.15, 0.01),
}
UNASKED_BF16 = Tolerance(1e-2, 1e-2)


@dataclass(frozen=True)
class Chosen:
    """An engine at work, and how it was found."""

    runner: BatchRunner
    # How far it moved the furthest of `checked` patches from eager float32.
    moved: float
    checked: int
    # Why not a faster one.
    refused: tuple[str, ...] = ()

    @property
    def info(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "engine": self.runner.engine.name,
            "precision": self.runner.engine.precision,
            "batch": self.runner.engine.batch_sizes[0],
            "parallel_batches": self.runner.engine.parallel_batches,
            "checked_patches": self.checked,
            "moved_at_most": round(self.moved, 7),
            "refused": list(self.refused),
        }


@dataclass(frozen=True)
class _Attempt:
    name: str
    precision: Precision
    tolerance: Tolerance
    build: Callable[[], BatchRunner]


@dataclass
class Engines:
    """The engines of one model on one device, each built when it is first wanted.

    `all_classes`: they give the probability of each class, [n, classes].
    `torch_batch` and `openvino_batch` are the patches that each takes at once.
    """

    model: Model
    device: torch.device
    options: ClassifyOptions
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _built: dict[tuple[str, Precision], "BatchRunner | Exception"] = field(default_factory=dict)
    _graphs: "Graphs | Exception | None" = None

    def __post_init__(self) -> None:
        self.all_classes = self.options.other_classes and len(self.model.card.classes) > 2
        mflop = _mflop(self.model)
        heavy = mflop > HEAVY_MFLOP
        on_cpu = HEAVY_BATCH if heavy else TORCH_BATCH
        on_gpu = self.options.batch_size or batch_size_of(mflop)
        self.torch_batch = on_gpu if self.device.type == "cuda" else self.options.batch_size or on_cpu
        self.openvino_batch = self.options.batch_size or (HEAVY_BATCH if heavy else OPENVINO_BATCH)
        if self.device.type == "cuda":
            exact_float32()

    def choose(self, sample: NDArray[np.uint8] | None = None, slide: SlideInput = UNKNOWN_SLIDE) -> Chosen:
        """The first engine, in the order of their speed, that keeps its tolerance on `sample`.

        `sample`, uint8 [n, S, S, 3], are patches of the slide; without any, the check is
        on made ones, and int8, which is calibrated on the sample, is not to be had.
        """
        if sample is not None and not len(sample):
            sample = None
        patches = made_patches(self.model.card, self.openvino_batch + 3) if sample is None else sample
        with self._lock:
            plain = self._runner("torch, unfolded", "fp32", lambda: self._torch("fp32", fold=False))
            expected = self._computed(plain, patches, slide)
            refused: list[str] = []
            for attempt in self._attempts(sample, slide):
                try:
                    runner = attempt.build()
                    moved = np.abs(runner.start(patches, slide).result() - expected)
                except DeviceLostError:
                    raise
                except Exception as error:
                    # Whatever a library raises, the network is computed by another one.
                    refused.append(
                        f"{attempt.name} {attempt.precision}: {' '.join(str(error).split())[:300]}"
                    )
                    continue
                if problem := _problem(moved, attempt.tolerance):
                    refused.append(f"{attempt.name} {attempt.precision}: {problem}")
                    continue
                return self._logged(Chosen(runner, float(moved.max()), len(patches), tuple(refused)))
            return self._logged(Chosen(plain, 0.0, len(patches), tuple(refused)))

    def in_precision(self, precision: str) -> "Engines":
        """Those of the same model and device, asked for that precision. Raises ModelError where it is unknown."""
        try:
            options = replace(self.options, precision=precision)  # type: ignore[arg-type]
        except ValueError as error:
            raise ModelError(f"precision {precision} is not known here") from error
        return Engines(self.model, self.device, options)

    def _computed(
        self, runner: BatchRunner, patches: NDArray[np.uint8], slide: SlideInput
    ) -> NDArray[np.float32]:
        if self.device.type == "cpu":
            return runner.start(patches, slide).result()
        with device_errors(ring_of(self.device).accelerator):
            return runner.start(patches, slide).result()

    def _logged(self, chosen: Chosen) -> Chosen:
        name = self.model.card.name
        for reason in chosen.refused:
            if "not installed" in reason:
                _hint_at(reason.partition(": ")[2])
            else:
                log.warning("%s: not computed by %s", name, reason)
        engine = chosen.runner.engine
        log.info(
            "%s: computed by %s in %s, %d patches a batch, %d batches at once; moves %d patches by %.1g at most "
            "against eager float32",
            name,
            engine.name,
            engine.precision,
            engine.batch_sizes[0],
            engine.parallel_batches,
            chosen.checked,
            chosen.moved,
        )
        return chosen

    def _attempts(self, sample: NDArray[np.uint8] | None, slide: SlideInput) -> Iterator[_Attempt]:
        """What might do, the fastest first."""
        asked, engine = self.options.precision, self.options.engine
        if is_onnx(self.model.network):
            yield from self._of_onnx()
            return
        for precision in self._precisions():
            tolerance = UNASKED_BF16 if precision == "bf16" != asked else TOLERANCES[precision]
            if precision == "int8" and (engine == "torch" or self.device.type != "cpu"):
                yield _Attempt("torch", "int8", tolerance, _no_int8)
                continue
            if precision == "fp16" and (engine == "torch" or self.device.type == "cpu"):
                yield _Attempt("torch", "fp16", tolerance, _no_fp16)
                continue
            if engine == "openvino" and self.device.type != "cpu":
                yield _Attempt("openvino", precision, tolerance, _only_on_cpu)
            elif engine != "torch" and self.device.type == "cpu":
                yield self._openvino_attempt(precision, tolerance, sample, slide)
            elif engine != "torch" and precision != "int8":
                yield self._cuda_attempt(precision, tolerance)
            if precision in ("fp32", "bf16"):
                yield from self._torch_attempts(precision, tolerance)

    def _of_onnx(self) -> Iterator[_Attempt]:
        """None that does: the plain engine gives patches to OpenVINO by itself. What is asked for in vain is said."""
        for precision in self._precisions():
            if precision != "fp32":
                yield _Attempt("onnx", precision, TOLERANCES[precision], _onnx_in_float32)
        if self.device.type != "cpu":
            yield _Attempt(CudaEngine.name, "fp32", TOLERANCES["fp32"], _onnx_on_cpu)

    def _precisions(self) -> Sequence[Precision]:
        """Those to try, the fastest first: the one asked for, else the 16-bit ones that card and device allow."""
        asked = self.options.precision
        if asked == "fp32":
            return ("fp32",)
        wanted: list[Precision] = [] if asked == "auto" else [asked]
        if self.device.type == "cpu":
            halves: tuple[Precision, ...] = ("bf16",) if has_bf16(self.device) else ()
        else:
            halves = ring_of(self.device).accelerator.halves
        # Asked for one half, the other one is no answer; of int8, it is the nearest.
        if self.model.card.bf16 and asked in ("auto", "int8"):
            wanted += halves
        return (*wanted, "fp32")

    def _cuda_attempt(self, precision: Precision, tolerance: Tolerance) -> _Attempt:
        def build() -> Engine:
            if self.all_classes:
                raise ValueError(
                    "it gives one class alone; classify: {other_classes: false} lets it compute that one"
                )
            return CudaEngine(self.model, ring_of(self.device), precision, self.torch_batch)

        return _Attempt(
            CudaEngine.name, precision, tolerance, lambda: self._runner(CudaEngine.name, precision, build)
        )

    def _openvino_attempt(
        self,
        precision: Precision,
        tolerance: Tolerance,
        sample: NDArray[np.uint8] | None,
        slide: SlideInput,
    ) -> _Attempt:
        def build() -> BatchRunner:
            if precision == "int8":
                return self._calibrated(sample, slide)
            return self._runner("openvino", precision, lambda: self._openvino(precision))

        return _Attempt("openvino", precision, tolerance, build)

    def _torch_attempts(self, precision: Literal["fp32", "bf16"], tolerance: Tolerance) -> Iterator[_Attempt]:
        for fold in (True, False) if self.device.type == "cpu" else (False,):
            name = "torch" if fold else "torch, unfolded"
            if name == "torch, unfolded" and precision == "fp32":
                return  # what all are compared with
            yield _Attempt(
                name,
                precision,
                tolerance,
                lambda name=name, fold=fold: self._runner(  # type: ignore[misc]
                    name, precision, lambda: self._torch(precision, fold)
                ),
            )

    def _runner(self, name: str, precision: Precision, build: Callable[[], Engine]) -> BatchRunner:
        """Built once; what cannot be built is not tried again."""
        key = (name, precision)
        if key not in self._built:
            try:
                self._built[key] = BatchRunner(build())
            except Exception as error:
                self._built[key] = error.with_traceback(None)  # which would hold what was built so far
        found = self._built[key]
        if isinstance(found, Exception):
            raise found
        return found

    def _torch(self, precision: Literal["fp32", "bf16"], fold: bool) -> Engine:
        return EagerEngine(self.model, self.device, precision, self.torch_batch, fold, self.all_classes)

    def _openvino(self, precision: Precision) -> Engine:
        graphs = self._proven_graphs()  # first: it says what is missing where OpenVINO is not installed
        from wsi_pipeline.inference.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(graphs, precision, torch.get_num_threads(), all_classes=self.all_classes)

    def _calibrated(self, sample: NDArray[np.uint8] | None, slide: SlideInput) -> BatchRunner:
        """OpenVINO in int8, its steps of quantisation measured on these patches, of that slide."""
        if sample is None:
            raise ValueError("needs patches of a slide to be calibrated on; found none")
        graphs = self._proven_graphs()
        from wsi_pipeline.inference.engines.openvino_engine import OpenVinoEngine

        return BatchRunner(
            OpenVinoEngine(
                graphs, "int8", torch.get_num_threads(), graphs.ranges(sample, slide), self.all_classes
            )
        )

    def _proven_graphs(self) -> "Graphs":
        """The network's graphs, once computed in float32 as eager torch does; raises why not."""
        if self._graphs is None:
            try:
                self._graphs = self._new_graphs()
            except Exception as error:
                self._graphs = error
        if isinstance(self._graphs, Exception):
            raise self._graphs
        return self._graphs

    def _new_graphs(self) -> "Graphs":
        try:
            from wsi_pipeline.inference.engines.openvino_engine import Graphs, OpenVinoEngine
        except ImportError as error:
            raise ImportError(
                f"not installed ({error}); pip install '.[openvino]' makes CPUs faster"
            ) from error
        graphs = Graphs(self.model, self.openvino_batch)
        patches = made_patches(self.model.card, self.openvino_batch + 3)  # both sizes of batch
        engine = OpenVinoEngine(graphs, "fp32", torch.get_num_threads(), all_classes=self.all_classes)
        found, expected = (
            BatchRunner(e).start(patches, UNKNOWN_SLIDE).result()
            for e in (engine, self._torch("fp32", fold=False))
        )
        if problem := _problem(np.abs(found - expected), TOLERANCES["fp32"]):
            raise ValueError(f"its graph in fp32 is wrong: {problem}")
        self._built["openvino", "fp32"] = BatchRunner(engine)
        return graphs


@cache  # once a process, not at each slide, model and precision
def _hint_at(missing: str) -> None:
    log.info("OpenVINO: %s", missing)


def made_patches(card: ModelCard, count: int) -> NDArray[np.uint8]:
    """Patches as bright and grained as tissue, where no slide is at hand, uint8 [count, S, S, 3]; always the same."""
    random, px = np.random.default_rng(0), card.patch_px
    spots = random.normal(0, 1, (count, px // 5 + 1, px // 5 + 1, 3)).repeat(5, 1).repeat(5, 2)[:, :px, :px]
    grain, whole = random.normal(0, 0.5, (count, px, px, 3)), random.normal(0, 0.7, (count, 1, 1, 3))
    colours = np.array(card.mean) + np.array(card.std) * (spots + grain + whole)
    return (255 * colours).clip(0, 255).astype(np.uint8)


def _problem(moved: NDArray[np.float32], tolerance: Tolerance) -> str:
    """Why such differences from eager float32 are too large; empty where they are not."""
    furthest, mean = float(moved.max()), float(moved.mean())
    if furthest <= tolerance.furthest and mean <= tolerance.mean:  # never true of NaN
        return ""
    return (
        f"moves {counted(len(moved), 'patch')} by {furthest:.2g} at most and {mean:.2g} in the mean against eager "
        f"float32; expected {tolerance.furthest:g} and {tolerance.mean:g}"
    )


def _mflop(model: Model) -> float:
    has_weights = next(model.network.parameters(), None) is not None
    counted = network_cost(model.network, model.card.patch_px).mflop if has_weights else 0.0
    return counted or UNKNOWN_MFLOP_A_PIXEL * model.card.patch_px**2


def _onnx_in_float32() -> BatchRunner:
    raise ValueError("the network of an ONNX file is computed in fp32 alone")


def _onnx_on_cpu() -> BatchRunner:
    raise ValueError("the network of an ONNX file is computed on the CPU, whatever the device")


def _no_int8() -> BatchRunner:
    raise ValueError("only OpenVINO computes int8, on a CPU")


def _no_fp16() -> BatchRunner:
    raise ValueError(
        "16-bit floats of this kind are computed on a GPU, as a graph; bf16 is the half for CPUs"
    )


def _only_on_cpu() -> BatchRunner:
    raise ValueError("it is used on a CPU only")
