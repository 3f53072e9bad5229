"""Every error a user can meet, as one tree.

    WsiError                    anything this package refuses or could not do; its text is for people
    ├── UsageError              nothing was run: the exit code is 2
    │   ├── ConfigError         a config file or value is not what the options say
    │   ├── ScaleError          unknown or implausible mpp, or one that model and tiling disagree on
    │   ├── ModelError          weights or card missing, damaged, or not of the kind expected
    │   ├── DataError           labelled data that cannot be trained or evaluated on
    │   ├── RecipeError         the run folder holds another result: of another slide, model, scale or options
    │   ├── ResultError         a result that is not there, not finished, damaged, or without what is asked of it
    │   └── ListError           no slides, or a list of slides that is not one
    ├── TrainingError           a training that cannot go on: the exit code is 1
    ├── OutputError             results cannot be written (full disk, read-only): the exit code is 1
    ├── JobError                a batch, or a piece of it, that cannot go on: the exit code is 1
    │   ├── LockLostError       another process took over what this one was working on
    │   └── DeviceLostError     the GPU does no more work for this process: another process may go on
    └── SlideError              one slide failed, the others go on: the exit code is 1
        ├── SlideOpenError      the file cannot be opened as a slide
        ├── RegionReadError     a region of an open slide cannot be decoded: the file is damaged there
        ├── SlideReadError      the system could not read the file, in every attempt: trouble, not damage
        ├── SlideChangedError   the file was replaced, changed or removed while it was read
        ├── UnreadableSlideError  more of the slide is unreadable than `max_unreadable` allows
        ├── WorkerLostError     the process that worked on it died, in every attempt
        └── SlideTimeoutError   it took longer than it was given

A message names the slide or file, what was found, what was expected and what to do, on one line.
"""

from wsi_pipeline.base.text import on_one_line


class WsiError(Exception):
    """Anything this package refuses or could not do."""

    def __str__(self) -> str:
        """The message on one line: what it quotes of a file may hold line breaks, and codes that steer a terminal."""
        return on_one_line(super().__str__())


class UsageError(WsiError):
    """Nothing was run: bad arguments, config, scale or model."""


class ConfigError(UsageError):
    """A config file or value is not what the options say."""


class ScaleError(UsageError):
    """The slide's scale is unknown, implausible, or not the one wanted."""


class ModelError(UsageError):
    """Weights or model card missing, damaged, or not of the kind expected."""


class DataError(UsageError):
    """Labelled data that cannot be trained or evaluated on."""


class RecipeError(UsageError):
    """The run folder holds another result: of another slide, model, scale or options."""


class ResultError(UsageError):
    """A result that is not there, not finished, damaged, or without what is asked of it."""


class ListError(UsageError):
    """No slides, or a list of slides that is not one."""


class JobError(WsiError):
    """A batch, or a piece of it, that cannot go on; what it finished stays, and the same command goes on."""


class LockLostError(JobError):
    """Another process took over what this one was working on."""


class DeviceLostError(JobError):
    """The GPU does no more work for this process, whatever it is asked for; another process may go on."""


class TrainingError(WsiError):
    """A training that cannot go on; what it wrote so far stays."""


class OutputError(WsiError):
    """Results cannot be written; what was written so far is whole, and the same command goes on from there."""


class SlideError(WsiError):
    """One slide failed; the others go on."""


class SlideOpenError(SlideError):
    """The file cannot be opened as a slide."""


class RegionReadError(SlideError):
    """A region of an open slide cannot be decoded: the file is damaged there."""


class SlideReadError(SlideError):
    """The system could not read the file, in every attempt: a disk, a mount or a limit, and no damage of the file."""


class SlideChangedError(SlideError):
    """The file was replaced, changed or removed while it was read."""


class UnreadableSlideError(SlideError):
    """More of the slide is unreadable than `max_unreadable` allows."""


class WorkerLostError(SlideError):
    """The process that worked on the slide died, in every attempt."""


class SlideTimeoutError(SlideError):
    """The slide took longer than it was given (`--slide-timeout`); its worker was ended."""
