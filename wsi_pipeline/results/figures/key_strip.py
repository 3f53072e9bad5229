"""The strip below a picture: what its colours and lines mean, a scale bar, and a note."""

import math
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from wsi_pipeline.base.types import FloatMap, RgbImage
from wsi_pipeline.results.figures.fonts import draw_text, printable, text_width
from wsi_pipeline.results.figures.palette import BLACK, WHITE
from wsi_pipeline.results.figures.scale_bar import length_text, round_length


def key_size(picture: RgbImage) -> int:
    """Height of the text below the picture, in pixels."""
    return int(np.clip(max(picture.shape) / 70, 15, 26))


def with_key(picture: RgbImage, key: Sequence[Image.Image], note: str | None) -> Image.Image:
    """The picture, its upper left corner kept, with the key's pieces in rows below, then the note's lines."""
    gap = size = key_size(picture)
    width = max(picture.shape[1], 30 * gap)
    lines = textwrap.wrap(printable(note or ""), max(20, int((width - 2 * gap) / (0.62 * gap))))
    pieces = [*key, *(label(line, size) for line in lines)]
    places, x, y = [], gap, gap // 2
    for i, piece in enumerate(pieces):
        if x > gap and (x + piece.width > width - gap or i >= len(key)):
            x, y = gap, y + 2 * gap
        places.append((x, picture.shape[0] + y))
        x += piece.width + 2 * gap
    canvas = Image.new("RGB", (width, picture.shape[0] + y + 2 * gap), WHITE)
    canvas.paste(Image.fromarray(picture), (0, 0))
    for piece, place in zip(pieces, places, strict=True):
        canvas.paste(piece, place)
    return canvas


def label(text: str, size: int) -> Image.Image:
    """A line of text."""
    piece = Image.new("RGB", (math.ceil(text_width(text, size)) + 1, int(1.5 * size)), WHITE)
    draw_text(piece, (0, 0), text, size, BLACK)
    return piece


def swatch(fill: str, text: str, size: int, hatched: bool = False) -> Image.Image:
    """A patch of colour, whole or in stripes, and what it means."""
    words = label(text, size)
    piece = Image.new("RGB", (2 * size + words.width, words.height), WHITE)
    box = (0, size // 4, int(1.5 * size), size)
    draw = ImageDraw.Draw(piece)
    if hatched:
        patch = Image.new("RGB", (box[2], box[3] - box[1]), WHITE)
        stripes = ImageDraw.Draw(patch)
        for x in range(-box[2], box[2], 5):
            stripes.line((x, patch.height, x + patch.height, 0), fill=fill, width=2)
        piece.paste(patch, box[:2])
        draw.rectangle(box, outline=fill)
    else:
        draw.rectangle(box, fill=fill)
    piece.paste(words, (2 * size, 0))
    return piece


def scale_bar(picture: RgbImage, um_per_pixel: float, size: int) -> Image.Image:
    """A bar of a round length, a fifth of the picture's width at most."""
    longest_mm = max(picture.shape[1], 10) / 5 * um_per_pixel / 1000
    length_mm = round_length(longest_mm)
    length_px = max(1, round(length_mm * 1000 / um_per_pixel))
    words = label(length_text(length_mm), size)
    piece = Image.new("RGB", (length_px + size // 2 + words.width, words.height), WHITE)
    draw = ImageDraw.Draw(piece)
    thickness = max(3, size // 5)
    draw.rectangle((0, size - thickness, length_px - 1, size - 1), fill=BLACK)
    piece.paste(words, (length_px + size // 2, 0))
    return piece


def colour_scale(
    title: str, highest: float, colours: Callable[[FloatMap], RgbImage], size: int
) -> Image.Image:
    """A colour bar from 0 to `highest`."""
    before, after = label(f"{title}  0", size), label(f"{highest:g}", size)
    bar = colours(np.linspace(0, highest, 12 * size, dtype=np.float32)[None])[:, :, :3].repeat(size, axis=0)
    piece = Image.new("RGB", (before.width + 13 * size + after.width, before.height), WHITE)
    piece.paste(before, (0, 0))
    piece.paste(Image.fromarray(bar), (before.width + size // 2, size // 8))
    piece.paste(after, (before.width + 13 * size, 0))
    return piece
