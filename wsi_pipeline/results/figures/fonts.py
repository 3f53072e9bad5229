"""Text of any script on pictures: in the first installed font that has each character, else in Latin letters.

DejaVu Sans comes with matplotlib and has Latin, Greek, Cyrillic, Arabic, Hebrew and more. For Chinese, Japanese, Korean
and others a font of the system is taken, where one is installed (Debian: fonts-noto-cjk). Where none is, the text is
written in Latin letters, so that two names that differ do so on the picture; `unknown_script` says so.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

from anyascii import anyascii
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

FONT = "DejaVu Sans"
# It has every character, as a frame with the name of its script.
NO_FONT = "Last Resort"
# Of the system's fonts, those that are made to have many scripts, in this order, before any other.
PREFERRED = (
    "Noto Sans CJK",
    "Noto Sans",
    "Source Han Sans",
    "Droid Sans Fallback",
    "WenQuanYi",
    "Arial Unicode MS",
)


@cache
def font_of(size_px: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    """A font so many pixels high: that of all text, or the one at `path`."""
    return ImageFont.truetype(path or _path(FONT), size_px)


def printable(text: str) -> str:
    """The text as fonts can show it: without control characters, and in Latin letters where no font has it."""
    return "".join(_shown(c) for c in text)


def unknown_script(text: str) -> bool:
    """Whether `printable` writes some of the text in Latin letters."""
    return any(c.isprintable() and _family(c) is None for c in text)


def script_warnings(name: str) -> list[str]:
    """What people must know of a slide's name on pictures: that it stands there in other letters."""
    if not unknown_script(name):
        return []
    return [
        f"on pictures the slide's name is written in Latin letters, {printable(name)}: no installed font has its "
        f"script; install one that has (Debian: fonts-noto-cjk), then remove report.png, and the same command draws it "
        f"again"
    ]


def families(text: str) -> list[str]:
    """The fonts that the text needs, by their names, the first of them for all that it has."""
    found = dict.fromkeys([FONT, *(family for c in printable(text) if (family := _family(c)))])
    return list(found)


def text_style(text: str, style: Mapping[str, Any]) -> dict[str, Any]:
    """The style with the fonts that matplotlib needs for the text; few others than FONT have a bold of their own."""
    needed = families(text)
    plain = {"weight": "normal"} if len(needed) > 1 else {}
    return {**style, **plain, "family": needed}


def text_width(text: str, size_px: int) -> float:
    """How wide the text is, in pixels."""
    return sum(font_of(size_px, path).getlength(part) for part, path in _runs(text))


def draw_text(image: Image.Image, place: tuple[float, float], text: str, size_px: int, fill: str) -> None:
    """Write a line, its upper left corner at `place`."""
    draw, (x, y) = ImageDraw.Draw(image), place
    ascent = font_of(size_px).getmetrics()[0]
    for part, path in _runs(text):
        font = font_of(size_px, path)
        draw.text(
            (x, y + ascent), part, fill=fill, font=font, anchor="ls"
        )  # fonts share a baseline, not a top
        x += font.getlength(part)


def wrapped(text: str, width: float, size: float) -> list[str]:
    """The text in lines no wider than `width`, in the unit of `size`, the height of its letters.

    It is broken at blanks; a word that is wider than a line, anywhere.
    """
    room, blank = 100 * width / size, _width_at_100(" ")
    lines: list[str] = []
    left = -1.0
    for word in printable(text).split():
        if (own := _width_at_100(word)) + blank <= left:
            lines[-1] += f" {word}"
            left -= blank + own
            continue
        while own > room and len(word) > 1:
            end = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _width_at_100(word[:n]) <= room)
            lines.append(word[:end])
            word = word[end:]
            own = _width_at_100(word)
        lines.append(word)
        left = room - own
    return lines


@lru_cache(4096)
def _width_at_100(text: str) -> float:
    """How wide it is in letters 100 high: words come again, and a font takes long to measure them."""
    return text_width(text, 100)


def shorten(text: str, width_in: float, size_pt: float) -> str:
    """The text, its middle left out where it would be wider than `width_in`: names differ at both ends."""
    text = printable(text)

    def fits(candidate: str) -> bool:
        return text_width(candidate, 100) / 100 * size_pt / 72 <= width_in

    keep = len(text)
    shortened = text
    while keep > 2 and not fits(shortened):
        keep -= 1
        shortened = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return shortened


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """Pieces of the text, each with the path of its font."""
    for family, part in itertools.groupby(printable(text), lambda c: _family(c) or FONT):
        yield "".join(part), _path(family)


@cache
def _shown(character: str) -> str:
    if not character.isprintable():
        return "?"
    if _family(character) is not None:
        return character
    # Words of scripts without blanks run together; capitals keep them apart ("李明" is "LiMing").
    return anyascii(character) or "?"


@cache
def _family(character: str) -> str | None:
    """The first font that has it, by its name; None where none has."""
    code = ord(character)
    if code in _characters(FONT):  # as most do: the others need not be looked for
        return FONT
    return next((family for family in _paths() if code in _characters(family)), None)


@cache
def _characters(family: str) -> frozenset[int]:
    try:
        return frozenset(font_manager.get_font(_path(family)).get_charmap())
    except (OSError, RuntimeError):  # a font that FreeType cannot read
        return frozenset()


@cache
def _path(family: str) -> str:
    return str(font_manager.findfont(FONT)) if family == FONT else _paths()[family]


def _add_new_fonts() -> None:
    """Tell matplotlib of fonts that were installed since it last looked, which it does once and for all."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with suppress(OSError, RuntimeError, ValueError):  # a file that is no font, or a broken one
            font_manager.fontManager.addfont(path)


@cache
def _paths() -> dict[str, str]:
    """Installed fonts and their files, in the order in which they are asked: upright, of normal weight."""
    _add_new_fonts()
    entries = [
        entry
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal"
        and str(entry.weight) in ("400", "normal", "regular", "book")
        and not entry.name.startswith(NO_FONT)
    ]

    def rank(name: str) -> tuple[int, str]:
        return next((i for i, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED)), name

    paths: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: (*rank(entry.name), entry.fname)):
        paths.setdefault(entry.name, entry.fname)
    return paths
