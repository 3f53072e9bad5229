"""fields.png: every field for grading at 20x on one sheet, and what they were chosen by.

Above, the slide around the regions with the nuclei that were counted, the fields and the hot spots; below, the fields
in their order, each with its numbers and a scale bar.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from wsi_pipeline.base.files import OutPath, write_bytes
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.base.images import png_bytes
from wsi_pipeline.base.text import counted
from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.results.cellularity import COARSEST_MPP
from wsi_pipeline.results.fields import FieldChoice, GradingField
from wsi_pipeline.results.figures.field_overview import (
    NUCLEI_STEPS,
    draw_circle,
    draw_field_overview,
    most_nuclei,
    nuclei_bar,
    scale_bar,
)
from wsi_pipeline.results.figures.fonts import draw_text, printable, wrapped
from wsi_pipeline.results.figures.palette import BLACK, BLUE, GREY, ORANGE, WHITE
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.grading import SOURCE, mitoses_words
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.overview import Thumbnail

# um per pixel of the fields: 20x. Wider fields are shown coarser, smaller pictures larger, so that a sheet stays one.
SHEET_MPP = 0.5
LARGEST_PX, SMALLEST_PX = 1_600, 440
COLUMNS, LEAST_COLUMNS = 5, 2
# Of a field's side, the height of its text; and at most so many times that of the words beside the overview.
TEXT_SHARE, MOST_ENLARGED = 1 / 26, 1.5
# What a field's square shows around its circle, as a share of its diameter.
AROUND = 0.06
BAR_MM = (0.05, 0.1, 0.2, 0.5, 1.0)
# A stain has few colours: so many, chosen for the sheet, look the same and take half the bytes.
MOST_COLOURS = 224
DRAWN = (BLACK, WHITE, GREY, BLUE, ORANGE)


@dataclass(frozen=True)
class _Paragraph:
    """Words beside the overview, and which of its lines or colours they explain."""

    text: str
    sign: Literal["", "field", "hot spot", "region", "nuclei"] = ""
    colour: str = BLACK
    larger: float = 1.0


def write_field_sheet(
    path: OutPath, slide: Slide, thumbnail: Thumbnail, finished: FinishedMap, field_mm: float
) -> None:
    """Write the sheet; without fields, what there is to say. Raises OutputError, SlideError."""
    choice = finished.choice
    mpp = sheet_mpp(slide, field_mm)
    side = round(field_mm * 1000 * (1 + AROUND) / mpp)
    line = max(16, round(side * TEXT_SHARE))
    rows = -(-len(choice.fields) // COLUMNS)
    columns = max(LEAST_COLUMNS, -(-len(choice.fields) // max(1, rows)))
    overview = draw_field_overview(thumbnail, finished, slide.mpp, ((columns - 1) * side, side), line)
    words = _words(slide, finished, field_mm, mpp)
    beside = columns * side - overview.width - 2 * line
    size = _largest_size(words, beside, side, line)
    labels = [_label(field) for field in choice.fields]
    head = max(side + 3 * line, _height(words, beside, size)) + line // 2
    label = round((1.35 * max(map(len, labels), default=0) + 0.5) * line)
    sheet = Image.new("RGB", (columns * side, head + rows * (side + label)), WHITE)
    sheet.paste(overview, (0, 0))
    _write(sheet, (overview.width + line, 0), words, beside, size)
    for number, field in enumerate(choice.fields):
        left, top = number % columns * side, head + number // columns * (side + label)
        sheet.paste(_tile(read_field(slide, field, mpp), mpp, line), (left, top + label))
        for i, text in enumerate(labels[number]):
            _text(sheet, (left + line // 2, top + round((0.2 + 1.35 * i) * line)), text, line)
    write_bytes(path, png_bytes(_in_few_colours(sheet), mpp))


def _in_few_colours(sheet: Image.Image) -> Image.Image:
    """The sheet in a palette of its own stains, and of what is drawn on it."""
    drawn = [value for name in DRAWN for value in bytes.fromhex(name[1:])]
    drawn += np.asarray(nuclei_bar(NUCLEI_STEPS, 1)).ravel().tolist()
    stains = sheet.reduce(4).quantize(MOST_COLOURS, Image.Quantize.MEDIANCUT).getpalette() or []
    colours = Image.new("P", (1, 1))
    colours.putpalette([*drawn, *stains[: 3 * MOST_COLOURS]])
    return sheet.quantize(palette=colours, dither=Image.Dither.NONE)


def write_crops(folder: OutPath, slide: Slide, fields: Sequence[GradingField], mpp: float) -> None:
    """Write a PNG of each field, nothing drawn on it, at `mpp` um per pixel. Raises OutputError, SlideError."""
    for number, field in enumerate(fields, start=1):
        image = Image.fromarray(read_field(slide, field, mpp))
        write_bytes(folder / f"field_{number:02d}.png", png_bytes(image, mpp))


def read_field(slide: Slide, field: GradingField, mpp: float) -> RgbImage:
    """The square around a field, with a little more, uint8 [row, column, 3] at `mpp`; white beyond the slide."""
    plane = Plane(mpp / slide.mpp[0], mpp / slide.mpp[1])
    x, y = plane.point_from_level0(field.x0, field.y0)
    side = round(2 * field.radius_x0 / plane.downsample_x * (1 + AROUND))
    return slide.read_readable(Box(round(x - side / 2), round(y - side / 2), side, side), plane).rgb


def sheet_mpp(slide: Slide, field_mm: float) -> float:
    """um per pixel at which fields are shown: 20x, unless the slide has less, or they would be too large or small."""
    whole_um = field_mm * 1000 * (1 + AROUND)
    mpp = max(SHEET_MPP, *slide.mpp, whole_um / LARGEST_PX)
    return min(mpp, whole_um / SMALLEST_PX)


def _tile(rgb: RgbImage, mpp: float, line: int) -> Image.Image:
    """A field with its circle and a scale bar."""
    image = Image.fromarray(rgb)
    draw, side = ImageDraw.Draw(image), image.width
    inset = side * AROUND / (1 + AROUND) / 2
    draw_circle(draw, (inset, inset, side - 1 - inset, side - 1 - inset), BLUE, max(2, line // 8))
    fitting = [mm for mm in BAR_MM if mm * 1000 / mpp <= side / 4]
    scale_bar(image, max(fitting, default=BAR_MM[0]), 1 / mpp, line)
    draw.rectangle((0, 0, side - 1, side - 1), outline=WHITE, width=2)
    return image


def _label(field: GradingField) -> list[str]:
    """What stands above a field, a line each."""
    lines = [
        f"{field.name} ({field.region_name})",
        f"{field.usable_mm2:.3f} mm² tissue, front {field.front_share:.0%}, p {field.mean_probability:.2f}",
    ]
    if field.nuclei_per_mm2 is not None:
        lines.append(f"{field.nuclei_per_mm2:,.0f} carcinoma nuclei/mm²")
    return lines


def _words(slide: Slide, finished: FinishedMap, field_mm: float, mpp: float) -> list[_Paragraph]:
    """What stands beside the overview: the key to it among the numbers."""
    choice = finished.choice
    words = [
        _Paragraph(slide.name, larger=1.3),
        _Paragraph("Fields to grade in. Research use only, not a medical device", colour=GREY),
        _fields_words(choice, field_mm),
    ]
    for spot in choice.hot_spots:
        text = f"{spot.name}: {spot.usable_mm2:.2f} mm2 of tissue, {spot.idc_mm2:.2f} mm2 of it in regions"
        words.append(_Paragraph(_with_units(text), "hot spot"))
    if finished.regions:
        words.append(_Paragraph("Outline of an IDC region", "region"))
    if choice.cellularity is not None:
        most = most_nuclei(choice.cellularity, slide.mpp)
        words.append(_Paragraph(f"0 to {most:,.0f} nuclei per mm², of carcinoma or not", "nuclei"))
    if choice.fields:
        words.append(_Paragraph(f"Mitoses: {mitoses_words(field_mm, len(choice.fields))}. {SOURCE}"))
    words += [_Paragraph(_with_units(warning[:1].upper() + warning[1:])) for warning in choice.warnings]
    if choice.fields:
        words += [
            _Paragraph(
                "Front: of what lies in regions, the share within 0.5 mm of other tissue. p: mean probability of IDC"
            ),
            _Paragraph(_shown_words(max(slide.mpp), mpp)),
        ]
    return words


def _fields_words(choice: FieldChoice, field_mm: float) -> _Paragraph:
    if not choice.fields:
        return _Paragraph("No field: no region was found" if not choice.rule else "No field found room")
    found = f"{counted(len(choice.fields), 'field')}, {field_mm:g} mm across, chosen by {choice.rule}"
    return _Paragraph(_with_units(found), "field")


def _shown_words(slide_mpp: float, mpp: float) -> str:
    """At which scale fields are shown, and what that is good for."""
    if slide_mpp > COARSEST_MPP:
        return f"The slide has {slide_mpp:.3g} µm per pixel: no mitosis can be told on it, count them on the glass"
    magnification = f" ({10 / mpp:.3g}x)"
    return (
        f"Shown at {mpp:.3g} µm per pixel{magnification}. Mitoses were not sought: look, and move the fields where "
        "they are"
    )


def _with_units(text: str) -> str:
    """The text with units as they are written where every character can be."""
    return text.replace("mm2", "mm²").replace(" um ", " µm ")


def _largest_size(words: Sequence[_Paragraph], width: int, height: int, least: int) -> int:
    """The height of letters, between `least` and some more, with which the words fill what room there is."""
    most = int(least * MOST_ENLARGED)
    fitting = bisect_right(range(least, most + 1), height, key=lambda size: _height(words, width, size))
    return max(least, least + fitting - 1)


def _height(words: Sequence[_Paragraph], width: int, size: int) -> int:
    """Of the paragraphs, in pixels."""
    return round(sum(_step(word, size) * (len(_lines(word, width, size)) + 0.45) for word in words))


def _step(word: _Paragraph, size: int) -> float:
    return 1.3 * word.larger * size


def _lines(word: _Paragraph, width: int, size: int) -> list[str]:
    return wrapped(word.text, width - (2 * size if word.sign else 0), word.larger * size)


def _write(
    sheet: Image.Image, place: tuple[int, int], words: Sequence[_Paragraph], width: int, size: int
) -> None:
    """Paragraphs, wrapped to so many pixels, each with its sign before it."""
    x, y = place[0], float(place[1])
    for word in words:
        if word.sign:
            _draw_sign(sheet, (x, round(y)), word.sign, size)
        for text in _lines(word, width, size):
            indent = 2 * size if word.sign else 0
            _text(sheet, (x + indent, round(y)), text, round(word.larger * size), word.colour)
            y += _step(word, size)
        y += 0.45 * _step(word, size)


def _draw_sign(sheet: Image.Image, place: tuple[int, int], sign: str, size: int) -> None:
    """A line of the overview, or its colours, as large as a letter or two."""
    draw, (x, y) = ImageDraw.Draw(sheet), place
    thick = max(2, size // 8)
    if sign == "nuclei":
        sheet.paste(nuclei_bar(round(1.6 * size), size), (x, y + size // 8))
    elif sign == "region":
        draw.rectangle((x, y + size // 4, x + 1.5 * size, y + size), outline=BLACK, width=thick)
    else:
        box = (x + size // 4, y + size // 8, x + size // 4 + size, y + size // 8 + size)
        draw.ellipse(box, outline=BLUE if sign == "field" else ORANGE, width=thick)


def _text(image: Image.Image, place: tuple[int, int], text: str, size_px: int, fill: str = BLACK) -> None:
    draw_text(image, place, printable(text), size_px, fill)
