"""The options of a training: those of configs/train, from a file and from the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from wsi_pipeline.base.configs import find_config
from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.base.options import Field, options, options_from_dict, parse_yaml, read_yaml_file
from wsi_pipeline.learning.datasets import SplitOptions
from wsi_pipeline.learning.datasets.tiled_slides import SlideReadOptions
from wsi_pipeline.learning.training.augment import AugmentOptions
from wsi_pipeline.learning.training.looks import LookOptions
from wsi_pipeline.models.stain_methods import StainMethod
from wsi_pipeline.slides.names import MAX_NAME_BYTES

# The key under which a config says what `tune-model` may put in a value's place.
TUNE = "tune"


@options
class PlateauOptions:
    """When the learning rate falls because nothing gets better: the schedule 'plateau'."""

    patience: Annotated[int, Field(gt=0)] = 3
    """Epochs without a new best before it falls."""

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """What it is multiplied by."""

    least: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """It never falls below this share of what it was."""


@options
class TrainOptions:
    """All that decides what a training makes of its data."""

    name: str
    """Name of the model and of its files."""

    architecture: str = "residual_cnn"
    """A network of models/architectures/registry.py."""

    architecture_options: dict[str, Any] = Field(default_factory=dict)
    """What it is built with."""

    pretrained: str | tuple[str, ...] | None = None
    """A file of weights to start from, of torchvision or of train-model, that the user has, or the name of a shipped
    model: nothing is ever fetched. A last layer that does not fit our classes is left out. Several files of one
    architecture: the mean of their weights."""

    teachers: tuple[str, ...] = ()
    """Files of trained models of the same scale, whose averaged answers to each augmented patch are learned beside its
    label."""

    teacher_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    """How much of the target is the teachers'."""

    teacher_views: Annotated[int, Field(ge=1, le=8)] = 1
    """In so many of a patch's eight turned and mirrored views the teachers are asked, and their answers averaged."""

    patch_px: Annotated[int, Field(gt=0)] = 50
    """Side of a patch, at `mpp`. Goes on the card; maps are made at this scale."""

    mpp: Annotated[float, Field(gt=0)] = 4.0
    """um per pixel of a patch."""

    normalisation: Literal["data", "imagenet", "none", "pretrained"] = "data"
    """What R, G, B are normalised by: the training patches' own mean and deviation, those of ImageNet (for pretrained
    weights), nothing: values from 0 to 1 (what networks with `clahe` take), or what the card beside `pretrained`
    says."""

    stain_normalisation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far each patient's stain is brought to the training mean (models/stain.py): 0 not at all, 1 all the way. Maps
    do the same with each slide's. Needs data that names patients or slides."""

    stain_method: StainMethod = "gain"
    """By what: gain multiplies each channel's optical density; macenko brings the two stains, reinhard the colours, to
    those of the training patches (models/stain_methods.py)."""

    patches_from: Literal["files", "slides"] = "files"
    """What `--data` is. files: images or arrays of patches, decoded once into a cache. slides: what `tile-slides
    --annotations` left in its --out; patches are read from the slides in each epoch, and nothing is exported."""

    reading: SlideReadOptions = Field(default_factory=SlideReadOptions)
    """How they are read from slides, with `patches_from: slides`."""

    split: SplitOptions = Field(default_factory=SplitOptions)
    """Who is trained on, and who is evaluated on."""

    limit_patches: Annotated[int, Field(gt=1)] | None = None
    """Train on so many patches, drawn by the seed, and evaluate on as many: to try a config out. None: all."""

    augment: AugmentOptions = Field(default_factory=AugmentOptions)
    """How each patch is changed before each step."""

    slides_a_batch: Annotated[int, Field(gt=0)] | None = None
    """Patches of so many patients are in each batch, and all patches of one look alike (`looks`). None: patches are
    drawn one by one. A network with `slide_condition` needs it."""

    looks: LookOptions = Field(default_factory=LookOptions)
    """How each patient's patches are changed together: scanner, focus, file format, stain. With `slides_a_batch`."""

    condition_dropped: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Of a network with `slide_condition`: the share of patients of which it hears nothing, so that it bears that."""

    epochs: Annotated[int, Field(gt=0)] = 30
    """Passes over the training patches."""

    batch_size: Annotated[int, Field(gt=1)] = 128
    """Over all processes together."""

    optimiser: Literal["adamw", "adam", "rmsprop", "sgd", "adagrad"] = "adamw"
    """Torch's class of that name."""

    optimiser_options: dict[str, Any] = Field(default_factory=dict)
    """What else the optimiser takes: momentum, alpha, eps ..."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    """Reached after the warm-up; what it does then, the schedule says."""

    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """cosine: down to zero at the last epoch; constant; plateau: lower each time nothing gets better."""

    plateau: PlateauOptions = Field(default_factory=PlateauOptions)
    """When the learning rate falls under the schedule 'plateau'."""

    restarts: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """After so many epochs the learning rate starts over, and falls to zero again: a way out of where it settled. Those
    past the last epoch, of a shortened training say, have no effect. For 'cosine'."""

    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Epochs over which the learning rate rises to its value."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Pulls on kernels only."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Outlines are coarse: no patch of a region's edge is certain."""

    neighbours_say: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much of a patch's target is the mean label of its neighbours, where the patches' names say their places:
    rims of outlines become soft, all else stays."""

    trusted: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of each batch that is learned, the patches of the smallest losses, once the learning rate has risen:
    others are likelier to be labelled wrong. 1: all."""

    doubted: str = ""
    """A CSV file with the column `name`: patches whose label is doubted, by their path under the folder (on sheets: as
    messages call them). Nothing is learned from them."""

    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Above 0, each patch is blended with another, by shares from a beta distribution of this parameter."""

    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """What is evaluated and saved is the moving average of the weights, which keeps this share a step. 0: the weights
    themselves."""

    patient_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A patient of n patches is drawn as if of n ** (1 - balance): 0 every patch alike, 1 every patient alike."""

    class_balance: Literal["none", "sampling", "weights"] = "none"
    """How the rarer class gets its say: drawn as often as the other (sampling), or weighing more in the loss."""

    best_by: Literal["auroc", "auprc", "f1", "balanced_accuracy", "val_loss", "epoch"] = "auroc"
    """The validation measure that the best epoch, the plateau and early stopping go by. epoch: the last epoch is taken,
    and nothing is chosen on the validation patients but calibration and threshold."""

    evaluate_every: Annotated[int, Field(gt=0)] = 1
    """After so many epochs the validation patients are looked at, and after the last one."""

    early_stopping: Annotated[int, Field(gt=0)] | None = None
    """Stop after so many epochs without a new best. None: never."""

    bf16: bool = True
    """Train in half precision: bfloat16 (about 1.7 times as fast on a CPU that has it), or, on a GPU that has none,
    float16 with a scaled loss."""

    bf16_tolerance: Annotated[float, Field(ge=0)] = 0.01
    """The card allows bfloat16 if it moves no validation probability by more."""

    seed: int = 0
    """Of all that is drawn."""

    data: str = ""
    """For the card: what the patches are and where they come from."""

    licence: str = ""
    """For the card: under which the weights may be used."""

    intended_use: str = ""
    """For the card: for whom and for what."""

    limits: str = ""
    """For the card: what it was not measured on, and where it errs."""

    def __post_init__(self) -> None:
        is_name = bool(self.name) and not self.name.startswith(".") and not {"/", "\0"} & set(self.name)
        if not is_name or len(self.name.encode()) > MAX_NAME_BYTES:
            raise ValueError(
                f"found the name '{self.name}', expected one that a file can have: without / and no dot in front, of "
                f"at most {MAX_NAME_BYTES} bytes"
            )
        if self.normalisation == "pretrained" and not isinstance(self.pretrained, str):
            raise ValueError(
                "found normalisation 'pretrained' and no one file as 'pretrained', of which it would be"
            )
        if self.architecture_options.get("slide_condition") is not None and not self.slides_a_batch:
            raise ValueError(
                "found a network with 'slide_condition', and no 'slides_a_batch'; set it to some 4 to 8, so that "
                "each batch shows what a slide looks like"
            )
        if self.looks != LookOptions() and not self.slides_a_batch:
            raise ValueError(
                "found 'looks', which are those of slides, and no 'slides_a_batch'; set it to 4 to 8"
            )
        if self.patches_from == "files" and self.reading != SlideReadOptions():
            raise ValueError(
                "found 'reading', which is of slides, and 'patches_from: files'; expected 'patches_from: slides'"
            )
        if self.patches_from == "slides" and (self.slides_a_batch or self.neighbours_say):
            raise ValueError(
                "found 'patches_from: slides' with 'slides_a_batch' or 'neighbours_say', which need all patches in "
                "memory; leave these out, or export the patches"
            )
        if self.patches_from == "slides" and self.doubted:
            raise ValueError(
                "found 'doubted', which names patches, and 'patches_from: slides', expected 'patches_from: files'; "
                "leave 'doubted' out, or export the patches"
            )
        if self.mixup and self.slides_a_batch:
            raise ValueError("found 'mixup' and 'slides_a_batch'; expected one: a blend is of no slide")
        if self.architecture_options.get("clahe") is not None and self.normalisation not in (
            "none",
            "pretrained",
        ):
            raise ValueError(
                f"found normalisation '{self.normalisation}' for a network with 'clahe', which takes values "
                "from 0 to 1; set 'normalisation: none'"
            )


def load_train_options(
    name_or_path: str | Path, settings: Sequence[str] = (), **overrides: Any
) -> TrainOptions:
    """The options of a YAML file, or of the shipped config of that name.

    KEY=VALUE of `settings` come next, then those of `overrides` that are not None. Raises ConfigError when the
    file, a key or a value is not what it should be, or a value is marked to be tuned.
    """
    path = find_config(name_or_path)
    values = read_train_config(path, settings, **overrides)
    if marked := [key for key, value in walk(values) if is_marked(value)]:
        raise ConfigError(
            f"{path}: {', '.join(marked)}: marked to be tuned, expected plain values; "
            f"run tune-model, and train with the config it writes"
        )
    return options_from_dict(TrainOptions, values, str(path))


def read_train_config(
    name_or_path: str | Path, settings: Sequence[str] = (), **overrides: Any
) -> dict[str, Any]:
    """As `load_train_options`, before any check of keys and values: values may be marked to be tuned."""
    values = read_yaml_file(find_config(name_or_path))
    for setting in settings:
        _apply(values, setting)
    return values | {key: value for key, value in overrides.items() if value is not None}


def walk(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every value of nested mappings with its dotted key; a mark of `tune` counts as a value."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and not is_marked(value):
            found += walk(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def is_marked(value: object) -> bool:
    """Whether a config's value is a mark for `tune-model` rather than a value."""
    return isinstance(value, Mapping) and set(value) == {TUNE}


def put(values: dict[str, Any], key: str, value: object) -> None:
    """Set the value of a dotted key in nested dicts, making those that are not there."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"'{key}': '{parent}' holds a value, not keys")
    values[last] = value


def _apply(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, the value in YAML") from error
    if not (key and equals):
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, as in --set learning_rate=0.001")
    put(values, key, value)
