"""Run one command of a checkout, on the day 2000-01-01: pages then print the same date whenever they are made.

    python scripts/results/pinned_command.py CHECKOUT infer-slide biopsy.svs --out maps
    python scripts/results/pinned_command.py CHECKOUT make_sample_slide.py sample.svs

A name that ends with .py is a script somewhere under CHECKOUT/scripts, any other a command of its setup.cfg.
The time of day stays the real one. Worker processes import this file too, and so see the same day.
"""

import configparser
import datetime
import importlib
import runpy
import sys
from pathlib import Path

PACKAGE = "wsi_pipeline"
_Real = datetime.datetime


class _AnyDatetime(type):
    """Makes values of the real class pass for values of the pinned one."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _Real)


class _PinnedDatetime(_Real, metaclass=_AnyDatetime):
    """`datetime.datetime` whose `now` is always of the same day."""

    __slots__ = ()  # as large as the real one, or compiled modules warn

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "_PinnedDatetime":
        """The time of day on 2000-01-01."""
        return super().now(tz).replace(2000, 1, 1)


datetime.datetime = _PinnedDatetime  # type: ignore[misc]


def main() -> int:
    """The command's exit code."""
    checkout, name = Path(sys.argv[1]).resolve(), sys.argv[2]
    sys.argv = [name, *sys.argv[3:]]
    if name.endswith(".py"):
        script = find_script(checkout, name)
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
        return 0
    module, function = entry_points(checkout)[name]
    package = importlib.import_module(PACKAGE)
    found = Path(str(package.__file__)).resolve()
    if not found.is_relative_to(checkout):
        raise SystemExit(f"{PACKAGE} comes from {found}, expected it under {checkout}")
    return int(getattr(importlib.import_module(module), function)() or 0)


def find_script(checkout: Path, name: str) -> Path:
    """The one script of that name under scripts/, in whatever folder."""
    found = sorted((checkout / "scripts").rglob(name))
    if len(found) != 1:
        raise SystemExit(f"{checkout}/scripts: found {len(found)} files named {name}, expected one")
    return found[0]


def entry_points(checkout: Path) -> dict[str, tuple[str, str]]:
    """Module and function of each command, as setup.cfg says."""
    config = configparser.ConfigParser()
    config.read(checkout / "setup.cfg")
    points = {}
    for line in config["options.entry_points"]["console_scripts"].split("\n"):
        if "=" in line:
            name, _, target = (part.strip() for part in line.partition("="))
            module, _, function = target.partition(":")
            points[name] = (module, function)
    return points


if __name__ == "__main__":
    sys.exit(main())
