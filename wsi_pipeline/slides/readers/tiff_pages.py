"""Which pages of a TIFF can be a slide's level: 8-bit colours, upright, in the order that OpenSlide takes them for.

OpenSlide opens much that it then shows wrongly: it cuts 16-bit values to their upper half, takes grey for colours,
turns each tile in place where the file says that the picture is turned, and knows no page before the first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsi_pipeline.base.geometry import Size

if TYPE_CHECKING:
    from tifffile import TiffPage

UPRIGHT = 1  # of the Orientation tag: rows from the top, columns from the left
RGB, PALETTE, YCBCR = 2, 3, 6  # of PhotometricInterpretation
ALPHA = (1, 2)  # of ExtraSamples: transparency, multiplied into the colours or not
IN_THE_ORDER_OF_PAGES = ("generic-tiff", "aperio")  # vendors whose first page is level 0 to OpenSlide


def faults_of_levels(pages: Sequence["TiffPage"], sizes: Sequence[Size], vendor: str) -> dict[int, str]:
    """Why levels of these sizes cannot be used, by number; those of which nothing is known to be wrong are left out."""
    found: dict[int, TiffPage] = {}
    for level, size in enumerate(sizes):
        same = [page for page in pages if (page.imagewidth, page.imagelength) == (size.width, size.height)]
        if same:
            found[level] = next((page for page in same if page.is_tiled), same[0])
    faults = {level: fault for level, page in found.items() if (fault := _fault_of_page(page))}
    if fault := _fault_of_order(pages, found, sizes[0]) if vendor in IN_THE_ORDER_OF_PAGES else None:
        faults.setdefault(0, fault)
    return faults


def _fault_of_page(page: "TiffPage") -> str | None:
    kind, channels, bits = int(page.photometric), page.samplesperpixel, page.bitspersample
    extra = tuple(int(value) for value in page.extrasamples)
    is_colour = (
        (kind in (RGB, YCBCR) and channels == 3)
        or (kind == RGB and channels == 4 and len(extra) == 1 and extra[0] in ALPHA)
        or (kind == PALETTE and channels == 1)
    )
    if bits != 8 or int(page.sampleformat) != 1 or not is_colour:
        name = getattr(page.photometric, "name", str(kind)).lower()
        values = "floating-point values" if int(page.sampleformat) == 3 else "bits"
        extra_text = (
            ", the last without a meaning" if channels == 4 and kind == RGB and is_colour is False else ""
        )
        return (
            f"found {channels} {'channel' if channels == 1 else 'channels'} of {bits} {values} ({name}{extra_text}), "
            f"expected 3 of 8 bits (rgb); write it as 8-bit RGB"
        )
    orientation = page.tags.valueof(274, UPRIGHT)
    if orientation != UPRIGHT:
        return f"its orientation tag says {orientation}: turned or mirrored, expected 1; write it upright"
    return None


def _fault_of_order(pages: Sequence["TiffPage"], found: dict[int, "TiffPage"], size0: Size) -> str | None:
    """Why what OpenSlide takes for level 0 is not the picture of which the other pages are reductions."""
    larger = [
        page
        for page in pages
        if page.is_tiled
        and page.imagewidth * page.imagelength > size0.area
        and page.imagewidth >= size0.width
        and not _fault_of_page(page)
    ]
    if larger:
        page = max(larger, key=lambda page: page.imagewidth * page.imagelength)
        return (
            f"found a page of {page.imagewidth} x {page.imagelength} pixels after the first of {size0.width} x "
            f"{size0.height}, which is taken for the slide; write it with its largest page first"
        )
    first = found.get(0)
    if first is not None and first.is_reduced and any(not page.is_reduced for page in found.values()):
        return (
            f"its largest page ({size0.width} x {size0.height} pixels) is said to be a reduction of a smaller one: a "
            f"label or an overview? Write the pyramid alone"
        )
    return None
