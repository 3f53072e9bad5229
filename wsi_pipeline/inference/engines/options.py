"""How a network is computed."""

from typing import Annotated, Literal

from wsi_pipeline.base.options import Field, options


@options
class ClassifyOptions:
    """How patches are put through the network: what may move the map says how far, the rest by less than 1e-5."""

    batch_size: Annotated[int, Field(gt=0)] | None = None
    """Patches a forward pass; none: 64 or 128 on a CPU (16 of a heavy network); on a GPU, where all batches are filled
    up to one size, 4096, of a heavy network fewer, and half as many where its memory does not hold them."""

    reader_threads: Annotated[int, Field(gt=0)] | None = None
    """Threads that decode blocks ahead of the network; none: 2 beside a network on the CPU, which needs the cores
    itself; before a GPU as many as there are cores for this process."""

    engine: Literal["auto", "torch", "openvino"] = "auto"
    """auto: OpenVINO on a CPU where it is installed, a CUDA graph on a GPU, if it says what torch says, else torch."""

    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = "auto"
    """auto: 16 bits where the model card allows them and the device computes them natively: on a GPU fp16, where it
    moves the slide's sample by no more than 5e-3, else bf16, where that moves it by no more than 1e-2; on a CPU bf16;
    else fp32, which is never TF32. fp16: on a GPU only. bf16: wherever it is not plainly wrong. int8: fastest on a CPU,
    moves single patches by some 0.03 (docs/performance.md), and is calibrated on each slide's own sample; never taken
    unless asked for."""

    other_classes: bool = True
    """Of a network of more than two classes, keep the probability of each other one too, as a layer of the store;
    false: that of the mapped class alone. Not of an ensemble. On a GPU it costs the CUDA graph, which gives one."""

    dense: Literal["auto", "off", "require"] = "auto"
    """Overlapping patches by one run over the whole block. auto: where the network's own scores come out, else one by
    one; require: an error where they do not."""
