"""Search the values that a training config marks as tunable: trainings by Optuna, the weak ones cut short."""

import logging
import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState

from wsi_pipeline.base.errors import ConfigError, RecipeError, TrainingError
from wsi_pipeline.base.files import write_bytes
from wsi_pipeline.base.options import Field, options, options_from_dict
from wsi_pipeline.learning.training.history import Row, scores
from wsi_pipeline.learning.training.options import TUNE, TrainOptions, is_marked, put, walk
from wsi_pipeline.learning.training.train import train

log = logging.getLogger(__name__)

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@options
class Choices:
    """A mark in a config: one of these values."""

    choices: Annotated[tuple[Any, ...], Field(min_length=1)]


@options
class Range:
    """A mark in a config: a number from `low` to `high`, both included; whole where both are whole."""

    low: int | float
    high: int | float
    log: bool = False
    """Even in its logarithm: 0.0001 to 0.001 is as likely as 0.001 to 0.01."""

    step: int | float | None = None
    """Only every so far from `low`."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and (self.low <= 0 or self.step):
            raise ValueError("a range with 'log' starts above 0 and has no step")


@dataclass(frozen=True)
class Tried:
    """What became of one trial."""

    name: str
    """Its folder's name."""

    state: str
    """done, cut short (by the pruner), or diverged"""

    reached: float
    """The best epoch's, by the config's `best_by`; infinite where there was none."""

    epochs: int
    seconds: float
    values: dict[str, Any]


@dataclass(frozen=True)
class _Search:
    """What all trials of a search share."""

    config: dict[str, Any]
    overrides: dict[str, Any]
    marks: dict[str, Choices | Range]
    data: Path
    out: Path
    device: torch.device
    study: optuna.Study

    def options(self, values: Mapping[str, Any]) -> TrainOptions:
        """The options of a trial: the config, these values in the marks' places, then the overrides."""
        wanted = {key: value for key, value in self.overrides.items() if value is not None}
        return options_from_dict(TrainOptions, filled(self.config, values) | wanted, "config")


def tune(
    config: dict[str, Any],
    overrides: dict[str, Any],
    data: Path,
    out: Path,
    device: torch.device,
    trials: int,
    seed: int = 0,
) -> list[Tried]:
    """All trials, the best first, after as many as `trials` are finished; `out`/best.yaml is the best's config.

    `config` holds marks (see `find_marks`); `overrides` are values for the trials only, epochs for one. The
    study lies in `out`/study.db: the same call goes on where it was stopped, inside of a trial too.

    Raises ConfigError where nothing is marked or a value is wrong, RecipeError where `out` holds a search of
    another config.
    """
    marks = find_marks(config)
    search = _Search(config, overrides, marks, data, out, device, _open_study(config, overrides, out))
    search.options({key: _example(mark) for key, mark in marks.items()})  # a misspelt key, before any work
    _take_up(search.study)
    while (done := len(_finished(search.study))) < trials:
        # A seed for each trial: a search that was stopped draws what it would have drawn.
        search.study.sampler = optuna.samplers.TPESampler(seed=seed * 100_003 + done, n_startup_trials=8)
        _try_one(search, done, trials)
        _keep_only_the_best(search)
    return _table(search)


def find_marks(config: Mapping[str, Any]) -> dict[str, Choices | Range]:
    """What may be tuned, by dotted key: values of the form `{tune: {low: .., high: ..}}` or `{tune: {choices: ..}}`.

    >>> find_marks({"epochs": 3, "augment": {"scale": {"tune": {"low": 0.0, "high": 0.3}}}})
    {'augment.scale': Range(low=0.0, high=0.3, log=False, step=None)}
    """
    marks: dict[str, Choices | Range] = {}
    for key, value in walk(config):
        if is_marked(value):
            mark = value[TUNE]
            kind: type[Choices | Range] = (
                Choices if isinstance(mark, Mapping) and "choices" in mark else Range
            )
            marks[key] = options_from_dict(kind, mark, f"'{key}', marked to be tuned")
    if not marks:
        raise ConfigError(
            "nothing in the config is marked to be tuned; expected a value such as "
            "learning_rate: {tune: {low: 0.0001, high: 0.01, log: true}}"
        )
    return marks


def filled(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The config with these values, by dotted key, in the place of its marks."""
    result = deepcopy(dict(config))
    for key, value in values.items():
        put(result, key, value)
    return result


def _open_study(config: dict[str, Any], overrides: dict[str, Any], out: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    recipe = {"config": config, "overrides": overrides}
    study = optuna.create_study(
        storage=f"sqlite:///{out / 'study.db'}",
        study_name="tune-model",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    if study.user_attrs.setdefault("recipe", recipe) != recipe:
        raise RecipeError(
            f"{out / 'study.db'}: found a search of another config; give another --out, or remove it"
        )
    study.set_user_attr("recipe", recipe)
    return study


def _take_up(study: optuna.Study) -> None:
    """Queue what was being trained when the search was stopped, to go on in the folder it has."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if "folder" in trial.user_attrs:
            study.enqueue_trial(trial.params, user_attrs={"folder": trial.user_attrs["folder"]})


def _try_one(search: _Search, done: int, trials: int) -> None:
    trial = search.study.ask()
    suggested = {key: _suggest(trial, key, mark) for key, mark in search.marks.items()}
    folder = trial.user_attrs.get("folder", f"trial_{trial.number:04d}")
    trial.set_user_attr("folder", folder)
    trial.set_user_attr("values", suggested)
    log.info("%s (%d of %d): %s", folder, done + 1, trials, _said(suggested))
    options = search.options(suggested)
    began = time.monotonic()
    reported: set[int] = set()

    def report(history: list[Row]) -> None:
        for step, score in enumerate(scores(history, options.best_by)):
            if step not in reported:
                trial.report(score, step)
                reported.add(step)
        if trial.should_prune():
            raise optuna.TrialPruned

    state, reached = TrialState.COMPLETE, None
    try:
        train(options, search.data, search.out / folder, search.device, after_epoch=report)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
        log.info("cut short: below the median of earlier trials")
    except TrainingError as error:
        state = TrialState.FAIL
        trial.set_user_attr("diverged", True)
        log.info("%s", error)
    trial.set_user_attr("seconds", time.monotonic() - began)
    if state is TrialState.COMPLETE:
        frozen = search.study.get_trials(deepcopy=False)[trial.number]
        reached = max(frozen.intermediate_values.values())
    search.study.tell(trial, reached, state=state)


def _suggest(trial: optuna.Trial, key: str, mark: Choices | Range) -> Any:
    if isinstance(mark, Choices):
        # By place: Optuna's choices may not be lists, and a config's may.
        return mark.choices[trial.suggest_categorical(key, range(len(mark.choices)))]
    if isinstance(mark.low, int) and isinstance(mark.high, int) and isinstance(mark.step, int | None):
        return trial.suggest_int(key, mark.low, mark.high, step=mark.step or 1, log=mark.log)
    return trial.suggest_float(key, mark.low, mark.high, step=mark.step, log=mark.log)


def _example(mark: Choices | Range) -> Any:
    return mark.choices[0] if isinstance(mark, Choices) else mark.low


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state in _FINISHED or t.user_attrs.get("diverged")]


def _keep_only_the_best(search: _Search) -> None:
    """Write best.yaml; of trials that are over, keep curves and cards, and the best one's weights."""
    complete = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = search.study.best_trial if complete else None
    for trial in _finished(search.study):
        folder = search.out / trial.user_attrs["folder"]
        (folder / "last.pt").unlink(missing_ok=True)
        if best is None or trial.number != best.number:
            for weights in folder.glob("*.safetensors"):
                weights.unlink()
    if best:
        values = filled(search.config, best.user_attrs["values"])
        best_by = search.options(best.user_attrs["values"]).best_by
        text = (
            f"# Written by tune-model: {best.user_attrs['folder']} of {len(_finished(search.study))}, "
            f"validation {best_by} {abs(best.value or 0.0):.4f}.\n" + yaml.safe_dump(values, sort_keys=False)
        )
        write_bytes(search.out / "best.yaml", text.encode())


def _table(search: _Search) -> list[Tried]:
    said = {TrialState.COMPLETE: "done", TrialState.PRUNED: "cut short"}

    def score(trial: FrozenTrial) -> float:
        return max(trial.intermediate_values.values(), default=-math.inf)

    return [
        Tried(
            name=trial.user_attrs["folder"],
            state=said.get(trial.state, "diverged"),
            reached=abs(score(trial)),
            epochs=len(trial.intermediate_values),
            seconds=trial.user_attrs.get("seconds", 0.0),
            values=trial.user_attrs["values"],
        )
        for trial in sorted(
            _finished(search.study), key=lambda t: (t.state is not TrialState.COMPLETE, -score(t))
        )
    ]


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )
