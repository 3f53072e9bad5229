"""How every stage declares its options: once, in a frozen dataclass, beside the function that uses them.

A key that no option has, a value of the wrong type and a value out of its range are errors with the key's
name in them, whether they come from a YAML file or from Python.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, dataclass_transform, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import Field as Field
from pydantic.dataclasses import dataclass as _pydantic_dataclass

from wsi_pipeline.base.errors import ConfigError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def options(cls: type[T]) -> type[T]:
    """The class as a frozen, keyword-only dataclass that checks its values and refuses unknown keys.

    Bounds stand in the annotation: ``stride_px: Annotated[int, Field(gt=0)] = 50``.
    """
    # strict: "50" is no number and 1 is no bool; a YAML file says what it means. No option is infinite or not a number.
    config = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
    return _pydantic_dataclass(cls, frozen=True, kw_only=True, config=config)  # type: ignore[return-value]


# Values of a YAML file; the largest config that is shipped has some hundred.
MOST_NODES = 100_000


def read_yaml_file(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file; none of an empty one.

    Raises ConfigError when it cannot be read, is no YAML, gives a key twice, or holds something else.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except _KeyGivenTwice as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: no YAML: {' '.join(str(error).split())[:300]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: 'the whole file': found {type(values).__name__}, expected keys and values"
        )
    return values


def parse_yaml(text: str) -> Any:
    """The plain value that the text says. Raises YAMLError and what Python raises at what is too deep or too long.

    A few lines can name each other so often that the value they say fills no memory, and everything that goes over
    it takes for ever: what is larger than any config is no config.
    """
    node = yaml.compose(text, _Yaml)
    if node is None:
        return None
    if (size := _written_out(node, {})) > MOST_NODES:
        raise yaml.YAMLError(
            f"found {size:,} values once its aliases are written out, at most {MOST_NODES:,} are read"
        )
    return yaml.load(text, _Yaml)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds, those that aliases name counted each time. Raises YAMLError for one in itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError(f"the value in line {node.start_mark.line + 1} holds itself")
        return known[id(node)]
    if isinstance(node, yaml.ScalarNode):
        return 1
    known[id(node)] = 0
    parts = (
        [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    )
    size = 1 + sum(_written_out(part, known) for part in parts)
    known[id(node)] = size
    return size


class _KeyGivenTwice(yaml.YAMLError):
    """A mapping that says a key twice; YAML's own loader keeps the last one without a word."""


class _Yaml(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as in YAML 1.2; to YAML 1.1 it is text. A key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises _KeyGivenTwice."""
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                value, line = self.construct_object(key), key.start_mark.line + 1
                if value in lines:
                    raise _KeyGivenTwice(
                        f"'{value}' is given twice, in lines {lines[value]} and {line}, of which only one would count; "
                        f"put what belongs to it together under one"
                    )
                lines[value] = line
        return super().construct_mapping(node, deep)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def options_from_dict(cls: type[T], values: Any, where: str) -> T:
    """The options that `values` (nested mappings of plain values) say; what it leaves out keeps its default.

    `where` names the source in messages, a file's path for one. Raises ConfigError naming every wrong key.
    """
    try:
        # Through JSON, where strict checks take a mapping for a dataclass and a list for a tuple.
        return TypeAdapter(cls).validate_json(json.dumps(values))
    except TypeError as error:  # a YAML date, say: no option holds one
        raise ConfigError(f"{where}: holds a value that no option can have: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_problem(e, cls) for e in error.errors())
        raise ConfigError(f"{where}: {problems}") from error


def options_to_dict(value: Any) -> Any:
    """Plain nested values (dict, list, str, int, float, bool, None) that `options_from_dict` reads back."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def _problem(error: Any, cls: type) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "the whole file"
    if error["type"] == "unexpected_keyword_argument":
        known = _known_keys(cls, error["loc"][:-1])
        return f"unknown key '{key}'" + (f" (known here: {', '.join(known)})" if known else "")
    if error["type"] == "value_error":  # raised by the options themselves, which say what they found
        said = str(error["ctx"]["error"])
        return f"'{key}': {said}" if error["loc"] else said
    problem = f"'{key}': found {error['input']!r}, expected: {error['msg']}"
    if isinstance(error["input"], bool) and error["type"] in ("literal_error", "string_type"):
        no, yes = ("off, no and false", "'off'"), ("on, yes and true", "'on'")
        words, quoted = yes if error["input"] else no
        problem += f"; YAML takes {words} for {str(error['input']).lower()}: put the word in quotes, {quoted}"
    return problem


def _known_keys(kind: Any, place: Sequence[str | int]) -> list[str]:
    """The keys of the options at that place of options of this kind; none where the place holds no options."""
    for part in place:
        kind = _without_none(kind)
        if is_dataclass(kind):
            kind = next((f.type for f in fields(kind) if f.name == part), None)
        else:  # of a list or tuple its items, of a mapping its values
            kind = next((each for each in reversed(get_args(kind)) if each is not Ellipsis), None)
    kind = _without_none(kind)
    return [f.name for f in fields(kind)] if is_dataclass(kind) else []


def _without_none(kind: Any) -> Any:
    """The type without None beside it, and without what is noted of it."""
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    return kind
