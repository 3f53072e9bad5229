"""Whether a JPEG 2000 codestream is whole, as far as it can be known without decoding it.

Decoders take what they get: of a tile whose second half was lost they make a blurred or a coloured one, and say
nothing. But a codestream says how long it is, three times over: by its marker segments, by the end marker, and by the
headers of its packets, each of which gives the lengths of its code blocks (ISO/IEC 15444-1, annexes A and B). The
last are read only where a run of zeros makes a tile suspect. What nothing can tell is a changed byte inside of a code
block: it decodes to other pixels.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from wsi_pipeline.base.geometry import Size

START, END = b"\xff\x4f", b"\xff\xd9"
SIZ, COD, COC, POC, PPM, PPT, SOT, SOD = (
    bytes((0xFF, code)) for code in (0x51, 0x52, 0x53, 0x5F, 0x60, 0x61, 0x90, 0x93)
)
# No packet holds these: the coder stuffs a bit after 0xff so that they mark nothing but markers.
FALSE_MARKER = re.compile(rb"\xff[\x90-\xff]")
# Of compressed data a run of zeros as long as this is no part: 2^-256, if it were by chance.
ZERO_RUN = bytes(32)
LRCP, RLCP, RPCL, PCRL, CPRL = range(5)


@dataclass(frozen=True)
class _Coding:
    """What the main header says of how packets are laid out."""

    area: tuple[int, int, int, int]  # left, top, right, bottom on the reference grid
    tile: tuple[int, int, int, int]  # width, height, left, top of the tiles
    steps: tuple[tuple[int, int], ...]  # of each component, its pixels' size on the reference grid
    order: int
    layers: int
    levels: int
    block: tuple[int, int]  # log2 of a code block's width and height
    precincts: tuple[tuple[int, int], ...]  # the same of the precincts of each resolution
    with_start_markers: bool
    with_end_markers: bool
    is_plain: bool  # one codeword segment a code block, the same for all components, one tile


def damage_of(data: bytes, tile: Size) -> str | None:
    """What is wrong with the codestream of a storage tile; None where it is whole, as far as that can be known."""
    if not data.startswith(START):
        return None  # in the boxes of a JP2 file, or nothing: the decoder says which
    try:
        _check(data, tile)
    except ValueError as error:
        return str(error)
    return None


def _check(data: bytes, tile: Size) -> None:
    """Raises ValueError where the codestream is not whole."""
    header, parts = _split(data)
    coding = _coding(header)
    left, top, right, bottom = coding.area
    if (right - left, bottom - top) != (tile.width, tile.height):
        raise ValueError(
            f"the codestream is of {right - left} x {bottom - top} pixels, expected {tile.width} x {tile.height}"
        )
    packets = b"".join(parts)
    if not (coding.with_start_markers or coding.with_end_markers) and (found := FALSE_MARKER.search(packets)):
        raise ValueError(f"the codestream has a marker, 0x{found.group().hex()}, where there can be none")
    # Reading packets takes half as long as decoding them. Only empty ones, a zero each, make the zeros of lost data.
    if ZERO_RUN in packets:
        places = _places(coding) if coding.is_plain else None
        if places is not None:
            _check_packets(packets, coding, places)
        elif ZERO_RUN + bytes(_most_packets(coding)) in packets:
            raise ValueError("the codestream has more zeros than it can have packets")


def _split(data: bytes) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """The marker segments of all headers, and the packets of each tile part."""
    segments, parts, at = [], [], 2
    while data[at : at + 2] != END:
        if at + 4 > len(data):
            raise ValueError("the codestream ends without its end marker")
        marker, length = data[at : at + 2], struct.unpack_from(">H", data, at + 2)[0]
        if marker[0] != 0xFF or length < 2:
            raise ValueError(f"the codestream has 0x{marker.hex()} where a marker must be")
        if marker != SOT:
            segments.append((marker, data[at + 4 : at + 2 + length]))
            at += 2 + length
            continue
        part_end = at + struct.unpack_from(">I", data.ljust(at + 12, b"\0"), at + 6)[0]
        part_end = part_end if part_end > at else len(data) - 2  # 0: it reaches to the end marker
        at += 2 + length
        while (marker := data[at : at + 2]) != SOD:
            if at + 4 > min(part_end, len(data)) or marker[:1] != b"\xff":
                raise ValueError("the codestream has a tile part without data")
            length = struct.unpack_from(">H", data, at + 2)[0]
            segments.append((marker, data[at + 4 : at + 2 + length]))
            at += 2 + length
        if part_end > len(data) - 2:
            raise ValueError(
                f"the codestream ends {part_end - len(data) + 2} bytes before the end of its data"
            )
        parts.append(data[at + 2 : part_end])
        at = part_end
    return segments, parts


def _coding(segments: list[tuple[bytes, bytes]]) -> _Coding:
    kinds = dict(reversed(segments))  # the first of each
    try:
        size, style = kinds[SIZ], kinds[COD]
        right, bottom, left, top, width, height, tile_x, tile_y, count = struct.unpack_from(">8IH", size, 2)
        steps = tuple((size[36 + 3 * i + 1], size[36 + 3 * i + 2]) for i in range(count))
        flags, order, layers, _, levels, block_x, block_y, block_style, _ = struct.unpack_from(
            ">BBHBBBBBB", style
        )
        precincts = tuple((b & 15, b >> 4) for b in style[10 : 11 + levels]) if flags & 1 else ()
    except (KeyError, IndexError, struct.error) as error:
        raise ValueError("the codestream's header is not whole") from error
    if (flags & 1 and len(precincts) != levels + 1) or levels > 32 or min(map(min, steps), default=0) < 1:
        raise ValueError("the codestream's header is not whole")
    precincts = precincts or ((15, 15),) * (levels + 1)
    one_tile = tile_x + width >= right and tile_y + height >= bottom
    plain_kinds = not {COC, POC, PPM, PPT} & set(kinds) and sum(kind == COD for kind, _ in segments) == 1
    return _Coding(
        (left, top, right, bottom),
        (width, height, tile_x, tile_y),
        steps,
        order,
        layers,
        levels,
        (block_x + 2, block_y + 2),
        precincts,
        bool(flags & 2),
        bool(flags & 4),
        one_tile and plain_kinds and not block_style & 0b101,
    )


Place = tuple[int, int, int, int]  # layer, resolution, component, precinct


def _places(coding: _Coding) -> Iterator[Place] | None:
    """The place of each packet in their order; None where it depends on where precincts lie."""
    components, resolutions = range(len(coding.steps)), range(coding.levels + 1)
    counts = {(r, c): _precincts(coding, r, c)[2] for r in resolutions for c in components}
    loops = {
        LRCP: ((la, r, c) for la in range(coding.layers) for r in resolutions for c in components),
        RLCP: ((la, r, c) for r in resolutions for la in range(coding.layers) for c in components),
        RPCL: ((la, r, c) for r in resolutions for c in components for la in range(coding.layers)),
        PCRL: ((la, r, c) for c in components for r in resolutions for la in range(coding.layers)),
        CPRL: ((la, r, c) for c in components for r in resolutions for la in range(coding.layers)),
    }
    if coding.order not in loops or (coding.order > RLCP and max(counts.values()) > 1):
        return None
    return ((la, r, c, p) for la, r, c in loops[coding.order] for p in range(counts[r, c]))


def _most_packets(coding: _Coding) -> int:
    """How many packets there are; where the codestream has tiles of its own, no fewer than there can be."""
    counts = [
        _precincts(coding, r, c)[2] for r in range(len(coding.precincts)) for c in range(len(coding.steps))
    ]
    tiles = -(-coding.area[2] // max(1, coding.tile[0])) * -(-coding.area[3] // max(1, coding.tile[1]))
    return coding.layers * (sum(counts) + tiles * len(counts))


def _precincts(coding: _Coding, resolution: int, component: int) -> tuple[int, int, int]:
    """The first precinct's column and row, and how many there are."""
    left, top, right, bottom = _reduced(coding, component, coding.levels - resolution)
    log_x, log_y = coding.precincts[resolution]
    columns = (_ceil(right, log_x) - (left >> log_x)) if right > left else 0
    rows = (_ceil(bottom, log_y) - (top >> log_y)) if bottom > top else 0
    return left >> log_x, top >> log_y, columns * rows


def _reduced(
    coding: _Coding, component: int, levels: int, high: tuple[int, int] = (0, 0)
) -> tuple[int, int, int, int]:
    """The component's edges after so many halvings; `high` of the last one's high-pass half along x and y."""
    step_x, step_y = coding.steps[component]
    left, top, right, bottom = coding.area
    halves = [h << (levels - 1) if levels else 0 for h in high]
    return (
        _ceil(-(-left // step_x) - halves[0], levels),
        _ceil(-(-top // step_y) - halves[1], levels),
        _ceil(-(-right // step_x) - halves[0], levels),
        _ceil(-(-bottom // step_y) - halves[1], levels),
    )


def _ceil(value: int, log: int) -> int:
    return -((-value) >> log)


def _check_packets(data: bytes, coding: _Coding, places: Iterator[Place]) -> None:
    """Read every packet's header; raises ValueError where they do not end where the data ends."""
    bands: dict[tuple[int, int, int], list[_Band]] = {}
    at = 0
    for layer, resolution, component, precinct in places:
        if at >= len(data):
            raise ValueError("the codestream's packets end before the last of them")
        where = (resolution, component, precinct)
        if where not in bands:
            bands[where] = _bands(coding, *where)
        at = _read_packet(data, at, coding, layer, bands[where])
    if at != len(data):
        raise ValueError(f"the codestream's packets end at byte {at:,}, its data at {len(data):,}")


def _read_packet(data: bytes, at: int, coding: _Coding, layer: int, bands: "list[_Band]") -> int:
    """Where the packet ends that begins at `at`."""
    if coding.with_start_markers and data[at : at + 2] == b"\xff\x91":
        at += 6
    bits = _Bits(data, at)
    lengths = [length for band in bands for length in band.read(bits, layer)] if bits.take() else []
    at = bits.end()
    if coding.with_end_markers and data[at : at + 2] == b"\xff\x92":
        at += 2
    body = data[at : at + sum(lengths)]
    if len(body) < sum(lengths):
        raise ValueError("the codestream's data end inside of a packet")
    if ZERO_RUN in body:
        raise ValueError(f"the codestream has {len(ZERO_RUN)} zeros or more in its compressed data")
    return at + len(body)


class _Bits:
    """Bits of packet headers: after a byte 0xff, the next one's first bit is stuffed."""

    def __init__(self, data: bytes, at: int):
        self._data, self._at, self._byte, self._left = data, at, 0, 0

    def take(self) -> int:
        """The next bit."""
        if not self._left:
            if self._at >= len(self._data):
                raise ValueError("the codestream ends inside of a packet's header")
            self._left = 7 if self._byte == 0xFF else 8
            self._byte = self._data[self._at]
            self._at += 1
        self._left -= 1
        return self._byte >> self._left & 1

    def number(self, bits: int) -> int:
        """The next bits as a number, the first the highest."""
        value = 0
        for _ in range(bits):
            value = value << 1 | self.take()
        return value

    def end(self) -> int:
        """Where the header's bytes end."""
        return self._at + (self._byte == 0xFF)


class _TagTree:
    """Numbers of code blocks, read bit by bit (annex B.10.2)."""

    def __init__(self, width: int, height: int):
        self._widths = [width]
        sizes = [(width, height)]
        while sizes[-1] != (1, 1):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        self._widths = [w for w, _ in sizes]
        self._low = [[0] * (w * h) for w, h in sizes]
        self._known = [[False] * (w * h) for w, h in sizes]

    def is_below(self, bits: _Bits, x: int, y: int, limit: int) -> bool:
        """Whether the number of the code block is less than the limit."""
        low = 0
        for level in reversed(range(len(self._widths))):
            index = (y >> level) * self._widths[level] + (x >> level)
            low = max(low, self._low[level][index])
            while low < limit and not self._known[level][index]:
                if bits.take():
                    self._known[level][index] = True
                else:
                    low += 1
            self._low[level][index] = low
        return self._known[0][y * self._widths[0] + x] and low < limit


class _Band:
    """The code blocks of one sub-band in one precinct."""

    def __init__(self, width: int, height: int):
        self._width, self._height = width, height
        self._included, self._planes = _TagTree(width, height), _TagTree(width, height)
        self._length_bits = [0] * (width * height)  # 0: not yet included

    def read(self, bits: _Bits, layer: int) -> Iterator[int]:
        """The lengths of the layer's code blocks."""
        for y in range(self._height):
            for x in range(self._width):
                index = y * self._width + x
                if self._length_bits[index]:
                    if not bits.take():
                        continue
                elif not self._included.is_below(bits, x, y, layer + 1):
                    continue
                else:
                    planes = 1
                    while not self._planes.is_below(bits, x, y, planes):
                        planes += 1
                        if planes > 80:
                            raise ValueError("the codestream says that a code block has no bits")
                    self._length_bits[index] = 3
                passes = _passes(bits)
                while bits.take():
                    self._length_bits[index] += 1
                yield bits.number(self._length_bits[index] + passes.bit_length() - 1)


def _bands(coding: _Coding, resolution: int, component: int, precinct: int) -> list[_Band]:
    """The precinct's sub-bands that have any code blocks."""
    first_x, first_y, _ = _precincts(coding, resolution, component)
    left, _, right, _ = _reduced(coding, component, coding.levels - resolution)
    log_x, log_y = coding.precincts[resolution]
    columns = _ceil(right, log_x) - (left >> log_x)
    column, row = first_x + precinct % columns, first_y + precinct // columns
    lower = 1 if resolution else 0
    log_x, log_y = log_x - lower, log_y - lower
    block_x, block_y = min(coding.block[0], log_x), min(coding.block[1], log_y)
    bands = []
    for high in ((1, 0), (0, 1), (1, 1)) if resolution else ((0, 0),):
        edges = _reduced(coding, component, coding.levels - resolution + lower, high)
        x0, x1 = max(edges[0], column << log_x), min(edges[2], (column + 1) << log_x)
        y0, y1 = max(edges[1], row << log_y), min(edges[3], (row + 1) << log_y)
        if x1 > x0 and y1 > y0:
            bands.append(_Band(_ceil(x1, block_x) - (x0 >> block_x), _ceil(y1, block_y) - (y0 >> block_y)))
    return bands


def _passes(bits: _Bits) -> int:
    """The number of coding passes (table B.4)."""
    if not bits.take():
        return 1
    if not bits.take():
        return 2
    for width, most, base in ((2, 3, 3), (5, 31, 6)):
        if (value := bits.number(width)) < most:
            return base + value
    return 37 + bits.number(7)
