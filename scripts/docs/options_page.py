"""Write docs/options.md: every option of every config and command, from where it is declared.

python -m scripts.docs.options_page
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import is_dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from unittest.mock import patch

import yaml
from pydantic.fields import FieldInfo

from wsi_pipeline.base.configs import config_folder, config_names
from wsi_pipeline.base.options import options_to_dict
from wsi_pipeline.learning.training.context import ContextTrainOptions
from wsi_pipeline.learning.training.options import TrainOptions
from wsi_pipeline.learning.training.search import Choices, Range
from wsi_pipeline.models.architectures.cancernet import CancerNet
from wsi_pipeline.models.architectures.clahe import ClaheOptions
from wsi_pipeline.models.architectures.plain_cnn import PlainCnn
from wsi_pipeline.models.architectures.residual import ResidualCnn
from wsi_pipeline.pipeline.config import InferConfig, TileConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/options.md"

INTRODUCTION = """# Options

<!-- Written by `python -m scripts.docs.options_page` from the code: change the text there. -->

`--config` takes a YAML file, or the name of a config that is shipped. What the file leaves out keeps its default. A key
that does not exist, a value of another type and a value out of its range end the command with exit code 2 and the
key's name, before anything is run. [Glossary](glossary.md). Nested keys are written here with a dot: `grid.mpp` is

```yaml
grid:
  mpp: 4.0
```

"""

CONFIGS: dict[str, tuple[type, str]] = {
    "Config of tile-slides": (TileConfig, ""),
    "Config of infer-slide": (
        InferConfig,
        "`evaluate-model --slides` takes the same.",
    ),
    "Config of train-model": (
        TrainOptions,
        "`tune-model` takes the same, with marks in place of values (below); `explore-patches` reads its `split`. "
        "`--set KEY=VALUE` replaces a value: `--set augment.shift_px=2`.",
    ),
    "Config of train-context": (ContextTrainOptions, ""),
}

NETWORKS: dict[str, type] = {"residual_cnn": ResidualCnn, "plain_cnn": PlainCnn, "cancernet": CancerNet}

# Which command takes a shipped config, by the start of its name.
TAKEN_BY = {
    "tile_": "tile-slides",
    "infer": "infer-slide",
    "default_model/context": "train-context",
    "default_model/": "train-model",
    "train/": "train-model",
}


def options_page() -> str:
    """The text of docs/options.md."""
    sections = [INTRODUCTION, _shipped()]
    shown: dict[tuple[type, str], str] = {}
    for title, (cls, note) in CONFIGS.items():
        sections.append(f"## {title}\n\n" + (f"{note}\n\n" if note else "") + _config(cls, title, shown))
    sections.append(_networks())
    sections.append(_marks())
    sections += [_command(name, main) for name, main in _commands()]
    return "".join(sections)


def _shipped() -> str:
    rows = []
    for name in config_names():
        lines = (config_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
        command = next(command for start, command in TAKEN_BY.items() if name.startswith(start))
        rows.append((f"`{name}`", command, re.split(r"(?<=\.)\s", comment)[0]))
    return "## Configs that are shipped\n\n" + _table(("name", "for", "what it is"), rows)


def _config(cls: type, title: str, shown: dict[tuple[type, str], str]) -> str:
    """Tables of the config's keys: its own first, then those of each part. `shown` says which stand where."""
    own, parts = [], []
    for key, info in _fields(cls):
        default = info.get_default(call_default_factory=True)
        if is_dataclass(default):
            parts.append((key, default))
        else:
            own.append((f"`{key}`", *_described(cls, key, info)))
    text = _table(HEADER, own) if own else ""
    for key, part in parts:
        text += f"### {key}: {_first_paragraph(type(part))}\n\n"
        same = (type(part), yaml.safe_dump(options_to_dict(part)))
        if same in shown:
            text += f"The same keys, with the same defaults, as in {shown[same]}.\n\n"
            continue
        shown[same] = f"`{key}` of the {title[0].lower()}{title[1:]}"
        text += _part(type(part), key)
    return text


def _part(cls: type, prefix: str) -> str:
    rows: list[tuple[str, ...]] = []
    for key, info in _fields(cls):
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if is_dataclass(default):
            rows += [
                (f"`{prefix}.{key}.{inner}`", *_described(type(default), inner, inner_info))
                for inner, inner_info in _fields(type(default))
            ]
        else:
            rows.append((f"`{prefix}.{key}`", *_described(cls, key, info)))
    return _table(HEADER, rows)


HEADER = ("key", "value", "default", "what it does, and why this default")


def _networks() -> str:
    text = (
        "## Networks: architecture_options\n\n"
        "Any `architecture` takes `input_px` (patches are resized to this side first), `one_output` (one sigmoid "
        "instead of two logits) and `clahe` (contrast is evened first, with the keys below). `resnet18`, `resnet50` "
        "(which also take `activation`: `relu` or `elu`), `densenet121` and `vgg16` take what torchvision's functions "
        "of that name take.\n\n"
    )
    text += _part(ClaheOptions, "architecture_options.clahe")
    for name, cls in NETWORKS.items():
        text += f"### {name}\n\n{_first_paragraph(cls)}\n\n"
        parameters = list(inspect.signature(cls).parameters.values())
        rows = [
            (f"`architecture_options.{p.name}`", _kind(p.annotation), _default_of(p))
            for p in parameters
            if p.name != "classes"
        ]
        text += _table(("key", "value", "default"), rows)
    return text


def _default_of(parameter: inspect.Parameter) -> str:
    return "required" if parameter.default is parameter.empty else _plain(parameter.default)


def _marks() -> str:
    text = "## Marks for tune-model\n\nIn a training config, in the place of a value: `{tune: {...}}`.\n\n"
    for cls in (Choices, Range):
        text += f"{_first_paragraph(cls)}\n\n{_part(cls, 'tune')}"
    return text


class _Parser(Exception):
    """Carries a command's parser out of it."""


def _commands() -> Iterator[tuple[str, Callable[[list[str]], int]]]:
    """Name and function of each command that setup.cfg declares."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    for line in settings["options.entry_points"]["console_scripts"].split("\n"):
        if line:
            name, place = line.split(" = ")
            module, _, function = place.partition(":")
            yield name, getattr(import_module(module), function)


def _command(command: str, main: Callable[[list[str]], int]) -> str:
    """The table of a command's arguments. Its parser is taken where it would begin to parse."""

    def leave(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Parser(parser)

    try:
        with patch.object(argparse.ArgumentParser, "parse_args", leave):
            main([])
        raise RuntimeError(f"{command} parses no arguments")
    except _Parser as caught:
        parser: argparse.ArgumentParser = caught.args[0]
    formatter = argparse.HelpFormatter(command)
    rows = []
    for action in parser._actions:
        value = "" if action.nargs == 0 else str(action.metavar or _choices(action) or action.dest.upper())
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{value}`"
        value = f"`{value}`" if value and action.option_strings else ""
        text = formatter._expand_help(action) if action.help else ""
        rows.append(
            (names, value, text + (" (required)" if action.required and action.option_strings else ""))
        )
    return f"## {command}\n\n{parser.description}\n\n{_table(('argument', 'value', 'what it does'), rows)}"


def _choices(action: argparse.Action) -> str:
    return "|".join(map(str, action.choices or ()))


def _fields(cls: Any) -> Iterator[tuple[str, FieldInfo]]:
    yield from cls.__pydantic_fields__.items()


def _described(cls: type, key: str, info: FieldInfo) -> tuple[str, str, str]:
    """Value, default and text of a field."""
    default = "required" if info.is_required() else _plain(info.get_default(call_default_factory=True))
    return _kind(info.annotation, info.metadata), default, _field_texts(cls).get(key, "")


def _plain(value: Any) -> str:
    """The value as YAML writes it."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return f"`{text}`"


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """The type and range in words."""
    words = {
        int: "whole number",
        float: "number",
        bool: "true or false",
        str: "text",
        NoneType: "null",
        Any: "any",
    }
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in words:
        text = words[annotation]
    elif origin is Annotated:
        bounds = [bound for extra in arguments[1:] for bound in getattr(extra, "metadata", [extra])]
        text = _kind(arguments[0], bounds)
    elif origin in (Union, UnionType):
        kinds = [_kind(argument) for argument in arguments]
        text = (", or " if any("," in kind for kind in kinds) else " or ").join(kinds)
    elif origin is Literal:
        text = ", ".join(f"`{argument}`" for argument in arguments)
    elif origin is dict:
        text = "keys and values"
    elif origin is not None and arguments:  # tuple[X, ...], Sequence[X]
        text = f"list of: {_kind(arguments[0])}"
    else:
        raise TypeError(f"no words for the type {annotation}: add them here")
    signs = {
        "gt": "above",
        "ge": "at least",
        "lt": "below",
        "le": "at most",
        "min_length": "at least so many:",
    }
    limits = [
        f"{word} {getattr(bound, sign)}"
        for bound in metadata
        for sign, word in signs.items()
        if hasattr(bound, sign)
    ]
    return ", ".join([text, *limits])


def _field_texts(cls: type) -> dict[str, str]:
    """For each field the docstring under it, else the comment above it; those of base classes too."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("wsi_pipeline"):
            texts |= _own_texts(base)
    return texts


def _own_texts(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = str(following.value.value)
        else:
            above = []
            for line in reversed(lines[: statement.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.append(line.strip().removeprefix("#").strip())
            text = " ".join(reversed(above))
        if text:
            texts[statement.target.id] = " ".join(text.split())
    return texts


def _first_paragraph(cls: type) -> str:
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Text for a table; pages of docs/ become links."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"\bdocs/(\w+)\.md", r"[\1](\1.md)", text)


def main() -> int:
    """Write the page; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    PAGE.write_text(options_page(), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
