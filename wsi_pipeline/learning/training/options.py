"""What a training is told: the options of configs/train, from a file and from the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from wsi_pipeline.base.configs import find_config
from wsi_pipeline.base.errors import ConfigError
from wsi_pipeline.base.options import Field, options, options_from_dict, parse_yaml, read_yaml_file
from wsi_pipeline.learning.datasets import SplitOptions
from wsi_pipeline.learning.training.augment import AugmentOptions

# The key under which a config says what `tune-model` may put in a value's place.
TUNE = "tune"


@options
class PlateauOptions:
    """When the learning rate falls because nothing gets better: the schedule 'plateau'."""

    # Epochs without a new best before it falls.
    patience: Annotated[int, Field(gt=0)] = 3
    # What it is multiplied by.
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.3
    # It never falls below this share of what it was.
    least: Annotated[float, Field(ge=0, lt=1)] = 0.001


@options
class TrainOptions:
    """All that decides what a training makes of its data."""

    # Name of the model and of its files.
    name: str
    # A network of the zoo and what it is built with.
    architecture: str = "residual_cnn"
    architecture_options: dict[str, Any] = Field(default_factory=dict)
    # A file of weights to start from, of torchvision or of train-model, that the user has: nothing is ever
    # fetched. A last layer that does not fit our classes is left out. Several files of one architecture: the mean
    # of their weights.
    pretrained: str | tuple[str, ...] | None = None
    # Files of trained models of the same scale, whose averaged answers to each augmented patch are learned
    # beside its label; and how much of the target is theirs.
    teachers: tuple[str, ...] = ()
    teacher_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    # In so many of a patch's eight turned and mirrored views the teachers are asked, and their answers averaged.
    teacher_views: Annotated[int, Field(ge=1, le=8)] = 1
    # What the patches are: pixels a side and um/px. Goes on the card; maps are made at this scale.
    patch_px: Annotated[int, Field(gt=0)] = 50
    mpp: Annotated[float, Field(gt=0)] = 4.0
    # What R, G, B are normalised by: the training patches' own mean and deviation, those of ImageNet (for
    # pretrained weights), or nothing: values from 0 to 1 (what networks with `clahe` take).
    normalisation: Literal["data", "imagenet", "none"] = "data"
    # How far each patient's stain is brought to the training mean (stain.py): 0 not at all, 1 all the way. Maps do
    # the same with each slide's. Needs data that names patients or slides.
    stain_normalisation: Annotated[float, Field(ge=0, le=1)] = 0.0
    split: SplitOptions = Field(default_factory=SplitOptions)
    # Train on so many patches, drawn by the seed, and judge on as many: to try a config out. None: all.
    limit_patches: Annotated[int, Field(gt=1)] | None = None
    augment: AugmentOptions = Field(default_factory=AugmentOptions)
    epochs: Annotated[int, Field(gt=0)] = 30
    # Over all processes together.
    batch_size: Annotated[int, Field(gt=1)] = 128
    optimiser: Literal["adamw", "adam", "rmsprop", "sgd", "adagrad"] = "adamw"
    # What else torch's class of that name takes: momentum, alpha, eps ...
    optimiser_options: dict[str, Any] = Field(default_factory=dict)
    # Reached after the warm-up; what it does then, the schedule says.
    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    # cosine: down to zero at the last epoch; constant; plateau: lower each time nothing gets better.
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    plateau: PlateauOptions = Field(default_factory=PlateauOptions)
    # After so many epochs the learning rate starts over, and falls to zero again: a way out of where it
    # settled. Those past the last epoch, of a shortened training say, have no effect. For 'cosine'.
    restarts: tuple[Annotated[int, Field(gt=0)], ...] = ()
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    # Pulls on kernels only.
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    # Outlines are coarse: no patch of a region's edge is certain.
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    # Above 0, each patch is blended with another, by shares from a beta distribution of this parameter.
    mixup: Annotated[float, Field(ge=0)] = 0.0
    # What is judged and saved is the moving average of the weights, which keeps this share a step. 0: the
    # weights themselves.
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    # A patient of n patches is drawn as if of n ** (1 - balance): 0 every patch alike, 1 every patient alike.
    patient_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    # How the rarer class gets its say: drawn as often as the other (sampling), or weighing more in the loss.
    class_balance: Literal["none", "sampling", "weights"] = "none"
    # The validation measure that the best epoch, the plateau and early stopping go by.
    best_by: Literal["auroc", "auprc", "f1", "balanced_accuracy", "val_loss"] = "auroc"
    # Stop after so many epochs without a new best. None: never.
    early_stopping: Annotated[int, Field(gt=0)] | None = None
    # Train in half precision: bfloat16 (about 1.7 times as fast on a CPU that has it), or, on a GPU that has
    # none, float16 with a scaled loss.
    bf16: bool = True
    # The card allows bfloat16 if it moves no validation probability by more.
    bf16_tolerance: Annotated[float, Field(ge=0)] = 0.01
    seed: int = 0
    # Text for the card.
    data: str = ""
    licence: str = ""
    intended_use: str = ""
    limits: str = ""

    def __post_init__(self) -> None:
        if self.architecture_options.get("clahe") is not None and self.normalisation != "none":
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
