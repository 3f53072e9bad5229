"""Many people who pan over slides at once, as browsers do it: what measure_viewer.py loads a server with.

Each viewer shows a screen of tiles of a slide and of its map, then moves by a tile every `PACE_S` seconds and asks for
the tiles that come into view, all at once, on as many connections as a browser opens. A tile's time is counted from the
moment that it is wanted until its last byte is there, so that waiting for a free connection counts.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECTIONS = 6  # of a browser to one server, with HTTP/1.1
PACE_S = 1.0
COLUMNS, ROWS = 4, 3  # of tiles of 512 px on a screen of 1,600 x 1,000
# All come within so many seconds, and no two of them move in the same instant.
ARRIVAL_S = 10.0
GOLDEN = 0.618034
ANSWER_S = 60.0
# Levels above the finest that viewers look at, in turn: 40x, 20x, 10x, 5x of a slide of 0.25 um per pixel. The page
# asks for no finer tiles of a map than those of FINEST_UM per pixel.
REDUCED = (0, 1, 2, 3)
FINEST_OF_MAP = 2


@dataclass(frozen=True)
class Answer:
    """One tile that was asked for."""

    kind: str
    """Of the slide or of the map."""

    seconds: float
    status: int
    """0: none came."""

    size: int


@dataclass(frozen=True)
class Shown:
    """What a server says of a slide."""

    slide_id: str
    stamp: str
    levels: int
    width0: int
    height0: int


class Connection:
    """One connection that stays open."""

    def __init__(self, address: str):
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError, TimeoutError, ValueError."""
        if self._streams is not None:
            try:
                return await self._ask(path)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass  # closed meanwhile, being idle: browsers, too, then open another
        self._streams = await asyncio.open_connection(self._host, self._port)
        return await self._ask(path)

    async def _ask(self, path: str) -> tuple[int, bytes]:
        assert self._streams is not None
        reader, writer = self._streams
        try:
            async with asyncio.timeout(ANSWER_S):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length:")[2].partition("\r\n")[0])
                return int(head.split(" ", 2)[1]), await reader.readexactly(length)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def pan_together(address: str, slides: list[Shown], viewers: int, steps: int) -> list[Answer]:
    """What so many viewers, spread over the slides, got while each moved so many tiles."""
    found: list[Answer] = []
    waits = [ARRIVAL_S * (number * GOLDEN % 1) for number in range(viewers)]
    await asyncio.gather(
        *(
            _pan(address, slides[number % len(slides)], number, steps, wait_s, found)
            for number, wait_s in enumerate(waits)
        )
    )
    return found


async def show_once(address: str, shown: Shown, reduced: int) -> list[Answer]:
    """What one viewer gets who opens the middle of a slide at that level."""
    found: list[Answer] = []
    side = 512 * 2**reduced
    column = max(0, shown.width0 // side // 2 - COLUMNS // 2)
    row = max(0, shown.height0 // side // 2 - ROWS // 2)
    screen = [(column + right, row + down) for right in range(COLUMNS) for down in range(ROWS)]
    await _fetch_all(address, list(_paths(shown, reduced, screen)), found)
    return found


async def _pan(
    address: str, shown: Shown, number: int, steps: int, wait_s: float, found: list[Answer]
) -> None:
    await asyncio.sleep(wait_s)
    reduced = REDUCED[number % len(REDUCED)]
    side = 512 * 2**reduced
    columns, rows = -(-shown.width0 // side), -(-shown.height0 // side)
    # Each in a row of tiles of one's own, across the middle of the slide, where there is tissue.
    first_row = (rows // 4 + number * ROWS) % max(1, rows // 2) + rows // 4 if rows > 4 * ROWS else 0
    first_column = max(0, (columns - COLUMNS - steps) // 2)
    asked: set[str] = set()
    pool = [Connection(address) for _ in range(CONNECTIONS)]
    began = time.monotonic()
    try:
        for step in range(steps + 1):
            new = range(COLUMNS) if step == 0 else [COLUMNS - 1 + step]
            screen = [(first_column + right, first_row + down) for right in new for down in range(ROWS)]
            screen = [(x, y) for x, y in screen if x < columns and y < rows]
            wanted = [(kind, path) for kind, path in _paths(shown, reduced, screen) if path not in asked]
            asked.update(path for _, path in wanted)
            await _fetch(pool, wanted, found)
            await asyncio.sleep(max(0.0, began + (step + 1) * PACE_S - time.monotonic()))
    finally:
        for connection in pool:
            connection.close()


def _paths(shown: Shown, reduced: int, screen: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """Addresses of the tiles of a slide and of its map under these tiles, each once, as the page writes them."""
    base, level = f"/api/slides/{shown.slide_id}", shown.levels - 1 - reduced
    for column, row in screen:
        yield "slide", f"{base}/tiles/{level}/{column}_{row}.jpg?v={shown.stamp}"
    coarser = max(0, FINEST_OF_MAP - reduced)
    for column, row in dict.fromkeys((x >> coarser, y >> coarser) for x, y in screen):
        yield "map", f"{base}/layers/heatmap/{level - coarser}/{column}_{row}.png?v={shown.stamp}"


async def _fetch_all(address: str, wanted: list[tuple[str, str]], found: list[Answer]) -> None:
    pool = [Connection(address) for _ in range(CONNECTIONS)]
    try:
        await _fetch(pool, wanted, found)
    finally:
        for connection in pool:
            connection.close()


async def _fetch(pool: list[Connection], wanted: list[tuple[str, str]], found: list[Answer]) -> None:
    """Ask for all at once, on the connections that there are."""
    waiting, began = list(reversed(wanted)), time.monotonic()

    async def work(connection: Connection) -> None:
        while waiting:
            kind, path = waiting.pop()
            try:
                status, body = await connection.get(path)
            except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                status, body = 0, b""
            found.append(Answer(kind, time.monotonic() - began, status, len(body)))

    await asyncio.gather(*map(work, pool))
