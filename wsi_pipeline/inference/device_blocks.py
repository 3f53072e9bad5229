"""Blocks through a GPU: read by threads into page-locked memory, copied, cut there, computed in batches across blocks.

One thread, the caller's, launches everything; threads only decode. Of files whose tiles can be decoded many in a call,
some blocks that lie side by side are read as one, by a few readers with several threads each: what Python does for a
block is then done for four, and few threads wait for its lock. Pixels go to the device as they are, and patches are
cut there. A batch takes patches of several blocks, since blocks of real slides hold far fewer than a GPU wants; a
patch's bits do not depend on its batch (engines/cuda_engine.py). Blocks come out in their order, each as soon as it and
those before it are done.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.base.geometry import Box
from wsi_pipeline.inference.engines.accelerator import Event, device_errors
from wsi_pipeline.inference.engines.batching import all_numbers
from wsi_pipeline.inference.engines.cuda_engine import CudaEngine
from wsi_pipeline.inference.engines.patch_kernels import Resampling
from wsi_pipeline.inference.engines.pixel_ring import SPARE_BYTES, Piece
from wsi_pipeline.models.slide_input import SlideInput
from wsi_pipeline.slides.resample import axis_taps, taps_of
from wsi_pipeline.slides.slide import Pixels, PlaneReader, SourcePixels
from wsi_pipeline.tiling.block_groups import MOST_TOGETHER, Group, group_blocks
from wsi_pipeline.tiling.grid import Block, Grid
from wsi_pipeline.tiling.patches import readable_patches, split_block

log = logging.getLogger(__name__)

# Batches begun and not yet over: while one is computed, the next one waits on the device.
IN_FLIGHT = 3
# So many blocks, read and not yet begun, begin without waiting for a full batch: after a kill they would be lost.
MOST_WAITING = 8
# The host's memory holds at most so much of what is read ahead, the device's of what is computed; or one block.
HOST_BYTES, DEVICE_BYTES = 512 * 2**20, 384 * 2**20
# Threads of one reader that decodes many tiles in a call; there is one reader more than they need, since while it works
# in Python its threads do nothing.
THREADS_A_READER = 4
# Tables of numbers begin at a whole number of these bytes.
_WORD = 16
# While the device computes and nothing is read, it is asked this often whether it is done.
POLL_S = 0.0005

Reads = Callable[[Box], Pixels] | PlaneReader


@dataclass(eq=False)
class _Reading:
    """Blocks on their way into the host's memory."""

    group: Group
    piece: Piece
    loaded: "Future[_Loaded]"


@dataclass(frozen=True, eq=False)
class _Loaded:
    """Where a block's patches lie in its piece of memory."""

    corners: NDArray[np.int64]
    """[n] bytes from the piece's start to each patch's upper left corner."""

    pitches: NDArray[np.int64]
    """[n] bytes from one row of pixels to the next."""

    readable: NDArray[np.bool_]
    """[n]."""

    count: int
    """Bytes of the piece that go to the device."""

    device_count: int
    """Bytes that the block needs there."""

    resamplings: tuple[Resampling, ...] = ()
    """What the device makes of them, behind them; corners then lie there."""


@dataclass(eq=False)
class _Block:
    """Blocks on the device, as one."""

    group: Group
    scores: NDArray[np.float32]
    """[members, n], NaN until they are there."""

    places: NDArray[np.intp]
    """Of the readable patches among all."""

    piece: Piece | None
    copied: Event | None
    left: int = 0
    """Scores that are still to come, of all members."""


@dataclass(eq=False)
class _Batch:
    """Patches that are computed together by one member."""

    places: torch.Tensor
    """int64 [2, B], page-locked: what the engine is given."""

    scores: torch.Tensor
    """float32 [B], page-locked: what it gives."""

    taken: list[tuple[_Block, int, int]] = field(default_factory=list)
    """Block, its first readable patch here, how many."""

    filled: int = 0
    over: Event | None = None


class _Member:
    """One engine, and its batches."""

    def __init__(self, number: int, engine: CudaEngine):
        self.number, self.engine = number, engine
        pinned, b = engine.accelerator.pinned, engine.batch_size
        self.free = [
            _Batch(pinned(2 * b, torch.int64).view(2, b).zero_(), pinned(b, torch.float32))
            for _ in range(IN_FLIGHT + 1)
        ]
        self.open = self.free.pop()
        self.running: deque[_Batch] = deque()
        self.patches = self.batches = 0

    def launch(self) -> None:
        """Begin on the open batch; there must be a free one to follow it."""
        batch = self.open
        with self.engine.accelerator.computing():
            for copied in {id(b.copied): b.copied for b, _, _ in batch.taken}.values():
                assert copied
                self.engine.accelerator.wait_for(copied)
            self.engine.launch(batch.places, batch.scores)
            batch.over = self.engine.accelerator.mark()
        self.patches, self.batches = self.patches + batch.filled, self.batches + 1
        self.running.append(batch)
        self.open = self.free.pop()

    def take_done(self) -> bool:
        """Take the scores of the oldest batch if it is over."""
        if not self.running or not (over := self.running[0].over) or not over.query():
            return False
        batch, start = self.running.popleft(), 0
        scores = batch.scores.numpy()
        for block, first, count in batch.taken:
            found = all_numbers(scores[start : start + count])
            block.scores[self.number, block.places[first : first + count]] = found
            block.left -= count
            start += count
        batch.taken, batch.filled, batch.over = [], 0, None
        self.free.append(batch)
        return True


def score_on_device(
    blocks: Iterable[Block],
    grid: Grid,
    read: Reads,
    engines: Sequence[tuple[CudaEngine, SlideInput]],
    threads: int,
) -> Iterator[tuple[Block, NDArray[np.float32]]]:
    """Each block with the scores that each engine gives its patches, float32 [engines, n], in the blocks' order.

    NaN where a patch cannot be read. The engines share a device; each is given what it takes of the slide. `threads`
    decode; `read` is called from as many, or from fewer that have several each. Begun and not given out are at most the
    blocks that are read at once, those of one more reader, and 2 * MOST_WAITING.
    Raises what `read` raises, and DeviceLostError.
    """
    blocks = list(blocks)
    if not blocks:
        return
    with device_errors(engines[0][0].accelerator):
        run = _Run(blocks, grid, read, engines, threads)
        try:
            yield from run.blocks()
        finally:
            run.leave()


class _Run:
    """One slide's blocks on their way."""

    def __init__(
        self,
        blocks: Sequence[Block],
        grid: Grid,
        read: Reads,
        engines: Sequence[tuple[CudaEngine, SlideInput]],
        threads: int,
    ):
        self._grid, self._read = grid, read
        many = isinstance(read, PlaneReader) and read.decodes_many
        self._threads_each = min(threads, THREADS_A_READER) if many else 1
        self._readers = threads if self._threads_each == 1 else -(-threads // self._threads_each) + 1
        together = MOST_TOGETHER if many else 1
        groups = group_blocks(blocks, together)
        self._todo = deque(groups)
        self._ring, self._accelerator = engines[0][0].ring, engines[0][0].accelerator
        self._has_ended = False
        self._members: list[_Member] = []
        self._reading: deque[_Reading] = deque()
        self._on_device: deque[_Block] = deque()
        self._uploading: deque[tuple[Piece, Event]] = deque()
        self._pool = ThreadPoolExecutor(self._readers, thread_name_prefix="reader")
        with self._ring.lock:
            self._ring.take_over(self.leave)
            self._make_room([group.whole for group in groups], [engine for engine, _ in engines])
            for engine, slide in engines:
                engine.set_slide(slide)
        self._members += [_Member(i, engine) for i, (engine, _) in enumerate(engines)]
        self._waiting = self._begun = 0
        self._most_begun = (self._readers + 1) * together + 2 * MOST_WAITING

    def blocks(self) -> Iterator[tuple[Block, NDArray[np.float32]]]:
        """Each block that is done. Raises RuntimeError where another use of the device has ended the run."""
        while self._todo or self._reading or self._on_device:
            moved = self._take_done()
            while self._on_device and not self._on_device[0].left:
                done, start = self._on_device.popleft(), 0
                self._give_back(done)
                for block in done.group.blocks:
                    self._begun -= 1
                    yield block, done.scores[:, start : start + len(block.patches)]
                    start += len(block.patches)
                    if self._has_ended:
                        raise RuntimeError(
                            "its memory on the device was taken over before all blocks were asked for"
                        )
                moved = True
            moved |= self._begin_reading()
            moved |= self._begin_computing()
            if not moved:
                self._wait()

    def leave(self) -> None:
        """Nothing of it is read or computed any more; once is enough."""
        if self._has_ended:
            return
        self._has_ended = True
        self._pool.shutdown(cancel_futures=True)
        for member in self._members:
            for batch in member.running:
                if batch.over:
                    batch.over.synchronize()
        for _, copied in self._uploading:
            copied.synchronize()
        for member in self._members:
            if member.batches:
                size = member.engine.batch_size
                log.debug(
                    "%d patches in %d batches of %d, %.0f%% full",
                    member.patches,
                    member.batches,
                    size,
                    100 * member.patches / (member.batches * size),
                )

    def _make_room(self, blocks: Sequence[Block], engines: Sequence[CudaEngine]) -> None:
        each = np.array([bytes_of(block, self._read) for block in blocks]) + SPARE_BYTES
        host, device = (
            int(max(sizes.max(), min(most, sizes.sum())))
            for sizes, most in zip(each.T, (HOST_BYTES, DEVICE_BYTES), strict=True)
        )
        for engine in engines:  # the first one that makes it grow moves it for all
            engine.make_room(host, device)
        for engine in engines:
            engine.make_room(0, 0)

    def _begin_reading(self) -> bool:
        begun = False
        while (
            self._todo
            and sum(not reading.loaded.done() for reading in self._reading) <= self._readers
            and (not self._begun or self._begun + len(self._todo[0].blocks) <= self._most_begun)
            and (piece := self._ring.host.take(bytes_of(self._todo[0].whole, self._read)[0]))
        ):
            group = self._todo.popleft()
            memory = self._ring.host_bytes(piece)
            loaded = self._pool.submit(
                load_block, group.whole, self._grid, self._read, memory, self._threads_each
            )
            self._reading.append(_Reading(group, piece, loaded))
            self._begun += len(group.blocks)
            begun = True
        return begun

    def _begin_computing(self) -> bool:
        """Bring the next blocks that were read to the device, and begin on batches that are full or have waited."""
        moved = False
        while self._uploading and self._uploading[0][1].query():
            self._ring.host.give_back(self._uploading.popleft()[0])
            moved = True
        if self._can_add() and self._reading and self._reading[0].loaded.done():
            loaded = self._reading[0].loaded.result()
            if piece := self._ring.device.take(loaded.device_count):
                self._add(self._reading.popleft(), loaded, piece)
                return True
        if self._waiting and self._can_add() and self._has_waited():
            for member in self._members:
                if member.open.filled:
                    member.launch()
            self._waiting = 0
            moved = True
        return moved

    def _has_waited(self) -> bool:
        """Whether batches that are not full are to be begun: nothing more comes, or enough has come."""
        running = max(len(member.running) for member in self._members)
        if not self._reading:
            return not self._todo or not running
        if self._reading[0].loaded.done():  # and there is no room for it
            return not running
        return self._waiting >= MOST_WAITING and running < 2

    def _can_add(self) -> bool:
        """Whether each member has a batch free, should the open one be begun."""
        return all(member.free for member in self._members)

    def _add(self, reading: _Reading, loaded: _Loaded, piece: Piece) -> None:
        """Begin to copy the blocks' pixels, and put their patches into batches; those that are full are begun."""
        with self._accelerator.copying():
            self._ring.upload(reading.piece, piece, loaded.count)
            for resampling in loaded.resamplings:
                self._ring.resample(resampling.moved(piece.start))
            copied = self._accelerator.mark()
        self._uploading.append((reading.piece, copied))
        n = len(reading.group.whole.patches)
        scores = np.full((len(self._members), n), np.nan, np.float32)
        places = np.flatnonzero(loaded.readable)
        block = _Block(reading.group, scores, places, piece, copied, len(self._members) * len(places))
        self._on_device.append(block)
        corners, pitches = loaded.corners[places] + piece.start, loaded.pitches[places]
        self._waiting += len(reading.group.blocks)
        for member in self._members:
            first = 0
            while first < len(places):
                batch = member.open
                count = min(len(places) - first, member.engine.batch_size - batch.filled)
                into = batch.places.numpy()[:, batch.filled : batch.filled + count]
                into[0], into[1] = corners[first : first + count], pitches[first : first + count]
                batch.taken.append((block, first, count))
                batch.filled += count
                first += count
                if batch.filled == member.engine.batch_size:
                    self._launch(member)
        if not any(member.open.filled for member in self._members):
            self._waiting = 0

    def _launch(self, member: _Member) -> None:
        """Begin on its open batch, once another one is free to follow."""
        while not member.free:
            over = member.running[0].over
            assert over
            over.synchronize()
            member.take_done()
        member.launch()
        self._waiting = min(self._waiting, 1)  # what is left of those that filled it

    def _take_done(self) -> bool:
        return any([member.take_done() for member in self._members])

    def _give_back(self, block: _Block) -> None:
        assert block.piece
        self._ring.device.give_back(block.piece)

    def _wait(self) -> None:
        """Until something may have happened."""
        running = any(member.running for member in self._members) or bool(self._uploading)
        reading = self._reading[0].loaded if self._reading else None
        if reading and not reading.done():
            wait([reading], timeout=POLL_S if running else None)
            return
        for member in self._members:
            if member.running and (over := member.running[0].over):
                over.synchronize()
                return
        if self._uploading:
            self._uploading[0][1].synchronize()


def bytes_of(block: Block, read: Reads) -> tuple[int, int]:
    """The bytes that the block takes at most, on the host and on the device."""
    box = block.read_box
    pixels = box.width * box.height * 3
    if not isinstance(read, PlaneReader):
        return pixels, pixels
    size, (taps_x, taps_y) = read.source_size(box), map(taps_of, read.step)
    # Of parts of a block, each has its own margin; what does not fit is read whole.
    source = (size.width + 4) * (size.height + 4) * 3
    tables = 4 * (box.width * (1 + taps_x) + box.height * (1 + taps_y)) + 5 * _WORD
    return source + tables, source + tables + pixels


def load_block(block: Block, grid: Grid, read: Reads, memory: NDArray[np.uint8], threads: int = 1) -> _Loaded:
    """Read the block's pixels into memory of as many bytes as it takes at most, by so many threads.

    Those of a slide's level go there as they are decoded; what is of another scale is resampled on the device.
    """
    load = _Loading(block, grid, read, memory, threads)
    parts = split_block(block, grid)
    if len(parts) == 1 or sum(bytes_of(part, read)[0] for _, part in parts) > len(memory):
        parts = [(np.arange(len(block.patches)), block)]  # patches overlap, and so do the boxes around them
    for which, part in parts:
        load.part(which, part)
    return load.finished()


class _Loading:
    """Part after part of a block, one behind the other in memory."""

    def __init__(self, block: Block, grid: Grid, read: Reads, memory: NDArray[np.uint8], threads: int):
        self._grid, self._read, self._memory, self._threads = grid, read, memory, threads
        n = len(block.patches)
        self._corners, self._pitches = np.empty(n, np.int64), np.empty(n, np.int64)
        self._readable = np.empty(n, np.bool_)
        self._used = 0
        self._resampled: list[tuple[Resampling, NDArray[np.intp]]] = []

    def part(self, which: NDArray[np.intp], part: Block) -> None:
        """Read one."""
        box, start = part.read_box, self._used
        x, y = (part.patches * self._grid.stride_px - (box.x, box.y)).T.astype(np.int64)
        if isinstance(self._read, PlaneReader):
            source = self._read.source(box, self._memory[start:], self._threads)
            pixels, size = Pixels(source.rgb, source.unreadable), source.rgb.shape[1::-1]
            self._used += source.rgb.size
            if source.is_same:
                x, y, width = x + int(source.start[0]), y + int(source.start[1]), size[0]
            else:
                self._resampled.append((self._resampling(source, start, (box.width, box.height)), which))
                start, width = 0, box.width  # from where it will be
        else:
            pixels, width = self._read(box), box.width
            self._used += pixels.rgb.size
            self._memory[start : self._used] = pixels.rgb.reshape(-1)
        self._corners[which], self._pitches[which] = start + (y * width + x) * 3, width * 3
        self._readable[which] = readable_patches(pixels, part, self._grid)

    def finished(self) -> _Loaded:
        """All of it; what the device makes comes behind what it is given."""
        behind, work = self._aligned(self._used), []
        for resampling, which in self._resampled:
            work.append(replace(resampling, target=behind))
            self._corners[which] += behind
            behind = self._aligned(behind + resampling.size[0] * resampling.size[1] * 3)
        needed = max(behind, self._used)
        return _Loaded(self._corners, self._pitches, self._readable, self._used, needed, tuple(work))

    def _resampling(self, source: SourcePixels, start: int, size: tuple[int, int]) -> Resampling:
        """How the device makes `size` pixels of the source, which lies from `start`; its tables go behind it."""
        height, width = source.rgb.shape[:2]
        (first_x, share_x), (first_y, share_y) = (
            axis_taps(n_out, source.start[i], source.step[i], n_in)
            for i, (n_out, n_in) in enumerate(zip(size, (width, height), strict=True))
        )
        places = []
        for table in (first_x, share_x, first_y, share_y):
            place = self._aligned(self._used)
            values = np.ascontiguousarray(table).view(np.uint8).reshape(-1)
            self._used = place + len(values)
            self._memory[place : self._used] = values
            places.append(place)
        taps = (share_x.shape[1], share_y.shape[1])
        return Resampling(start, (width, height), 0, size, (places[0], places[1], places[2], places[3]), taps)

    @staticmethod
    def _aligned(count: int) -> int:
        return -(-count // _WORD) * _WORD
