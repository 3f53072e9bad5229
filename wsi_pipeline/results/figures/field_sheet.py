"""fields.png: every field for grading at 20x on one sheet, and what they were chosen by.

Above, the slide around the regions with the nuclei that were counted, the fields and the hot spots; below, the fields
in their order, each with its numbers and a scale bar.
"""

import math
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import shapely
from PIL import Image, ImageDraw

from wsi_pipeline.base.files import OutPath, write_bytes
from wsi_pipeline.base.geometry import Box, Plane
from wsi_pipeline.base.images import png_bytes
from wsi_pipeline.base.types import RgbImage
from wsi_pipeline.results.fields import FieldChoice, GradingField, HotSpot
from wsi_pipeline.results.figures.fonts import draw_text, printable
from wsi_pipeline.results.figures.palette import BLACK, BLUE, GREY, ORANGE, WHITE, sample
from wsi_pipeline.results.finished_map import FinishedMap
from wsi_pipeline.results.grading import SOURCE, mitotic_thresholds
from wsi_pipeline.results.nuclei import Cellularity
from wsi_pipeline.slides.slide import Slide
from wsi_pipeline.tiling.overview import Thumbnail

# um per pixel of the fields: 20x. Wider fields are shown coarser, smaller pictures larger, so that a sheet stays one.
SHEET_MPP = 0.5
LARGEST_PX, SMALLEST_PX = 1_600, 440
COLUMNS, LEAST_COLUMNS = 5, 3
# What a field's square shows around its circle, as a share of its diameter.
AROUND = 0.06
BAR_UM = (50, 100, 200, 500, 1_000)
# Of nuclei: no blue, orange or haematoxylin.
NUCLEI_COLOURS = matplotlib.colormaps["YlGn"]
# A stain has few colours: so many, chosen for the sheet, look the same and take half the bytes.
MOST_COLOURS = 240
DRAWN = (BLACK, WHITE, GREY, BLUE, ORANGE)


def write_field_sheet(
    path: OutPath, slide: Slide, thumbnail: Thumbnail, finished: FinishedMap, field_mm: float
) -> None:
    """Write the sheet; without fields, what there is to say. Raises OutputError, SlideError."""
    choice = finished.choice
    mpp = sheet_mpp(slide, field_mm)
    side = round(field_mm * 1000 * (1 + AROUND) / mpp)
    columns = min(COLUMNS, max(LEAST_COLUMNS, len(choice.fields)))
    line = max(16, side // 34)
    rows = -(-len(choice.fields) // columns)
    head, label = side, 3 * line
    sheet = Image.new("RGB", (columns * side, head + rows * (side + label)), WHITE)
    overview = _overview(thumbnail, finished, slide.mpp, ((columns - 1) * side, head - line))
    sheet.paste(overview, (0, 0))
    _write_words(sheet, (overview.width + line, line // 2), _words(slide.name, choice, field_mm), line)
    for number, field in enumerate(choice.fields):
        left, top = number % columns * side, head + number // columns * (side + label)
        sheet.paste(_tile(read_field(slide, field, mpp), field, mpp, line), (left, top + label))
        for i, text in enumerate(_label(field)):
            _text(sheet, (left + line // 2, top + round((0.2 + 1.3 * i) * line)), text, line)
    write_bytes(path, png_bytes(_in_few_colours(sheet), mpp))


def _in_few_colours(sheet: Image.Image) -> Image.Image:
    """The sheet in a palette of its own stains, and of what is drawn on it."""
    drawn = [value for name in DRAWN for value in bytes.fromhex(name[1:])]
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


def _tile(rgb: RgbImage, field: GradingField, mpp: float, line: int) -> Image.Image:
    """A field with its circle and a scale bar."""
    image = Image.fromarray(rgb)
    draw, side = ImageDraw.Draw(image), image.width
    inset = side * AROUND / (1 + AROUND) / 2
    width = max(2, line // 10)
    draw.ellipse((inset, inset, side - 1 - inset, side - 1 - inset), outline=BLUE, width=width)
    bar_um = max(um for um in BAR_UM if um == BAR_UM[0] or um / mpp <= side / 4)
    length, y = bar_um / mpp, side - 1.2 * line
    draw.rectangle((line - 4, y - 1.7 * line, line + length + 4, y + 0.5 * line), fill=WHITE)
    draw.rectangle((line, y, line + length - 1, y + line / 4), fill=BLACK)
    _text(image, (line, round(y - 1.5 * line)), f"{bar_um} µm", line)
    draw.rectangle((0, 0, side - 1, side - 1), outline=WHITE, width=2)
    return image


def _label(field: GradingField) -> tuple[str, str]:
    nuclei = "" if field.nuclei_per_mm2 is None else f"{field.nuclei_per_mm2:,.0f} carcinoma nuclei/mm², "
    return (
        f"{field.name} ({field.region_name}), {field.usable_mm2:.3f} mm² tissue",
        f"{nuclei}front {field.front_share:.0%}, p {field.mean_probability:.2f}",
    )


def _words(name: str, choice: FieldChoice, field_mm: float) -> list[str]:
    """What stands beside the overview, a paragraph each."""
    thresholds = mitotic_thresholds(field_mm)
    scores = f"{thresholds.area_mm2:.2f} mm²: {thresholds.text}. {SOURCE}"
    return [
        name,
        "Fields to grade in. Research use only, not a medical device",
        f"{len(choice.fields)} circles of {field_mm:g} mm, chosen by {choice.rule or 'nothing: no region was found'}",
        f"Mitoses in {thresholds.fields} whole fields, {scores}",
        *(
            f"{spot.name.replace('mm2', 'mm²')}: {spot.usable_mm2:.2f} mm² tissue"
            for spot in choice.hot_spots
        ),
        *choice.warnings,
        "Front: share of what lies in regions within 0.5 mm of other tissue. p: mean probability of IDC",
        "Mitoses were not sought: look, and move the fields where they are",
    ]


def _overview(
    thumbnail: Thumbnail, finished: FinishedMap, mpp0: tuple[float, float], size: tuple[int, int]
) -> Image.Image:
    """The slide around regions and hot spots, with what was counted, as large as fits into `size`."""
    choice, plane = finished.choice, thumbnail.plane
    circles: list[GradingField | HotSpot] = [*choice.hot_spots, *choice.fields]
    left, top, right, bottom = _part(thumbnail, finished, circles)
    um = (plane.downsample_x * mpp0[0], plane.downsample_y * mpp0[1])
    scale = min(size[0] / ((right - left) * um[0]), size[1] / ((bottom - top) * um[1]))  # pixels a um
    width, height = (max(1, int(n * u * scale)) for n, u in ((right - left, um[0]), (bottom - top, um[1])))
    picture = Image.fromarray(thumbnail.rgb).resize(
        (width, height), Image.Resampling.BICUBIC, (left, top, right, bottom)
    )
    target = Plane(
        plane.downsample_x * (right - left) / width,
        plane.downsample_y * (bottom - top) / height,
        *plane.point_to_level0(left, top),
    )
    if choice.cellularity is not None:
        picture = _with_nuclei(picture, choice.cellularity, target, mpp0)
    draw, font_px = ImageDraw.Draw(picture), max(16, size[1] // 34)
    line = max(2, font_px // 8)
    for region in finished.regions:
        for ring in shapely.get_rings(shapely.get_parts(region.polygon)):
            points = [target.point_from_level0(x0, y0) for x0, y0 in shapely.get_coordinates(ring)]
            draw.line(points, fill=BLACK, width=line, joint="curve")
    for circle in circles:
        first = target.point_from_level0(circle.x0 - circle.radius_x0, circle.y0 - circle.radius_y0)
        last = target.point_from_level0(circle.x0 + circle.radius_x0, circle.y0 + circle.radius_y0)
        is_field = isinstance(circle, GradingField)
        draw.ellipse((*first, *last), outline=BLUE if is_field else ORANGE, width=line + 1)
        if is_field:
            x, y = target.point_from_level0(circle.x0, circle.y0)
            text = circle.name.removeprefix("Field ")
            _text(picture, (round(x - font_px / 3), round(y - font_px / 2)), text, font_px, BLUE)
    if choice.cellularity is not None:
        _draw_scale(picture, _highest(choice.cellularity, mpp0), font_px)
    return picture


def _part(
    thumbnail: Thumbnail, finished: FinishedMap, circles: Sequence[GradingField | HotSpot]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what the overview shows, in the thumbnail's pixels."""
    height, width = thumbnail.shape
    if not finished.regions:
        return 0.0, 0.0, float(width), float(height)
    bounds = [region.polygon.bounds for region in finished.regions]
    bounds += [
        (c.x0 - c.radius_x0, c.y0 - c.radius_y0, c.x0 + c.radius_x0, c.y0 + c.radius_y0) for c in circles
    ]
    lefts, tops, rights, bottoms = zip(*bounds, strict=True)
    left, top = thumbnail.plane.point_from_level0(min(lefts), min(tops))
    right, bottom = thumbnail.plane.point_from_level0(max(rights), max(bottoms))
    around = 0.03 * max(right - left, bottom - top)
    left, top = max(0.0, left - around), max(0.0, top - around)
    right, bottom = min(float(width), right + around), min(float(height), bottom + around)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _with_nuclei(
    picture: Image.Image, cellularity: Cellularity, target: Plane, mpp0: tuple[float, float]
) -> Image.Image:
    """Nuclei per mm2 over the picture, where they were counted."""
    highest = _highest(cellularity, mpp0)
    shown = sample(cellularity.per_mm2(mpp0), cellularity.plane, target, (picture.height, picture.width))
    colours = (NUCLEI_COLOURS(np.nan_to_num(np.clip(shown / highest, 0, 1)))[..., :3] * 255).astype(
        np.float32
    )
    rgb = np.asarray(picture, np.float32)
    blended = np.where(np.isfinite(shown)[..., None], 0.45 * rgb + 0.55 * colours, rgb)
    return Image.fromarray(blended.astype(np.uint8))


def _highest(cellularity: Cellularity, mpp0: tuple[float, float]) -> float:
    """The end of the colour scale: a round number that few cells exceed."""
    counted = cellularity.per_mm2(mpp0)[cellularity.counted]
    high = float(np.percentile(counted, 99)) if counted.size else 0.0
    return max(1_000.0, 1_000.0 * math.ceil(high / 1_000))


def _draw_scale(picture: Image.Image, highest: float, font_px: int) -> None:
    """A colour bar of nuclei per mm2 in the lower left corner."""
    width, y = 8 * font_px, picture.height - 3 * font_px
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, y - font_px // 2, width + 2 * font_px, picture.height), fill=WHITE)
    bar = (NUCLEI_COLOURS(np.linspace(0, 1, width))[None, :, :3] * 255).astype(np.uint8)
    picture.paste(Image.fromarray(bar.repeat(font_px // 2, axis=0)), (font_px // 2, y))
    _text(picture, (font_px // 2, y + font_px), f"0 to {highest:,.0f} nuclei/mm²", font_px)


def _write_words(sheet: Image.Image, place: tuple[int, int], paragraphs: Sequence[str], line: int) -> None:
    """Paragraphs, wrapped to the sheet's right edge; the first one large. What finds no room is left to the summary."""
    x, y = place[0], float(place[1])
    letters = int(np.clip((sheet.width - x - line // 2) / (0.6 * line), 10, 80))
    for i, paragraph in enumerate(paragraphs):
        for text in textwrap.wrap(paragraph, letters, max_lines=6, placeholder=" …"):
            if y + 1.4 * line > 34 * line:
                return
            _text(sheet, (x, round(y)), text, line, BLACK if i != 1 else GREY)
            y += 1.3 * line
        y += 0.6 * line


def _text(image: Image.Image, place: tuple[int, int], text: str, size_px: int, fill: str = BLACK) -> None:
    draw_text(image, place, printable(text), size_px, fill)
