"""Outlines with fewer points, none of which changes on which side a cell's centre lies.

A point is left out only if the triangle that it makes with the two beside it holds no cell's centre and no other point
of any outline (as in the removal of points by Visvalingam and Whyatt 1993). So no centre changes sides, no two outlines
meet, and none meets itself: it holds of each step, and of all together. And only if all points left out between the two
lie within the tolerance of the straight line between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Indices = NDArray[np.intp]
# Lines are no longer than so many cells: what is looked at around a line grows with the square of its length.
LONGEST = 48.0
# How often all points are looked at.
LOOKS = 3
# Cells looked at together: what is worked out of them takes some hundred bytes each.
CELLS_AT_ONCE = 500_000
# Of a ring so many points stay.
LEAST_POINTS = 3


def with_fewer_points(rings: Sequence[Points], tolerance: float, clearance: float) -> list[Points]:
    """The rings with fewer points, in their order, each closed: its last point is its first.

    rings: each float64 [n, 2], closed, in cells: a cell's centre lies at index + 0.5 along x and y. None meets another.
    tolerance: how far, in cells, a ring may come to lie from where it was.
    clearance: how near, in cells, a new line comes at most to a centre; to another point twice as near: lines whose
    points are then moved by less than the clearance still do not meet, nor pass a centre.
    """
    if not rings or tolerance <= 0:
        return list(rings)
    outlines, count = _Outlines.of(rings), -1
    # What stood in a point's way may be left out after it: another look takes a tenth off.
    for _ in range(LOOKS):
        todo = np.flatnonzero(outlines.alive)
        if todo.size == count:
            break
        count = todo.size
        while todo.size:
            todo = outlines.remove(_independent(outlines, todo, tolerance, clearance))
    return outlines.rings()


@dataclass(frozen=True, eq=False)
class _Outlines:
    """The points of all rings, one after the other; arrays are changed in place."""

    xy: Points
    """[n, 2]."""

    ring: Indices
    """[n], the ring of each."""

    first: Indices
    """[rings], the first point of each."""

    before: Indices
    after: Indices
    """[n], of a point that is alive the point before and after it on its ring."""

    alive: NDArray[np.bool_]
    left: Indices
    """[rings], how many points are alive."""

    square: "_Squares"

    @classmethod
    def of(cls, rings: Sequence[Points]) -> "_Outlines":
        counts = np.array([len(ring) - 1 for ring in rings])
        xy = np.concatenate([ring[:-1] for ring in rings])
        first = np.cumsum(counts) - counts
        at = np.arange(len(xy))
        before, after = at - 1, at + 1
        before[first], after[first + counts - 1] = first + counts - 1, first
        ring = np.repeat(np.arange(len(rings)), counts)
        alive = np.ones(len(xy), np.bool_)
        return cls(xy, ring, first, before, after, alive, counts.copy(), _Squares.of(xy))

    def remove(self, points: Indices) -> Indices:
        """Take points out, no two of them beside each other; those beside them."""
        before, after = self.before[points], self.after[points]
        self.alive[points] = False
        self.after[before] = after
        self.before[after] = before
        np.subtract.at(self.left, self.ring[points], 1)
        beside = np.unique(np.concatenate([before, after]))
        return np.asarray(beside[self.alive[beside]])

    def rings(self) -> list[Points]:
        """What is left of each, closed."""
        xy, ring = self.xy[self.alive], self.ring[self.alive]
        parts = np.split(xy, np.flatnonzero(np.diff(ring)) + 1)
        return [np.concatenate([part, part[:1]]) for part in parts]


@dataclass(frozen=True, eq=False)
class _Squares:
    """The points by the cell in which each lies."""

    left: int
    top: int
    shape: tuple[int, int]
    start: Indices
    """[cells + 1], where a cell's points begin in `points`, row by row."""

    points: Indices

    @classmethod
    def of(cls, xy: Points) -> "_Squares":
        cells = np.floor(xy).astype(np.intp)
        left, top = cells.min(axis=0)
        width, height = cells.max(axis=0) - (left, top) + 1
        number = (cells[:, 1] - top) * width + cells[:, 0] - left
        points = np.argsort(number, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=width * height))])
        return cls(int(left), int(top), (int(height), int(width)), start, points)

    def points_in(self, columns: Indices, rows: Indices) -> tuple[Indices, Indices]:
        """Of cells, each given by column and row, the points in them, and to which of the cells each belongs."""
        height, width = self.shape
        columns, rows = columns - self.left, rows - self.top
        there = np.flatnonzero((columns >= 0) & (columns < width) & (rows >= 0) & (rows < height))
        number = rows[there] * width + columns[there]
        counts = self.start[number + 1] - self.start[number]
        which, offset = _spread(counts)
        return self.points[self.start[number][which] + offset], there[which]


def _independent(outlines: _Outlines, todo: Indices, tolerance: float, clearance: float) -> Indices:
    """The points, of those to look at, that can be left out now: of least loss, no two of them neighbours."""
    before, after = outlines.before[todo], outlines.after[todo]
    todo = todo[
        (outlines.left[outlines.ring[todo]] > LEAST_POINTS)
        & (np.abs(outlines.xy[after] - outlines.xy[before]).max(axis=1) <= LONGEST)
    ]
    loss = _loss(outlines, todo)
    near = loss <= tolerance
    todo, loss = todo[near], loss[near]
    free = ~_is_blocked(outlines, todo, clearance)
    todo, loss = todo[free], loss[free]
    # A point that is no candidate never stands before one; equals go by a scrambled number, so that of a long row of
    # equals many go at once.
    rank = np.full(len(outlines.xy), np.inf)
    order = np.lexsort(((todo * 2654435761) % 4294967296, loss))
    rank[todo[order]] = np.arange(len(todo))
    own = rank[todo]
    chosen = todo[(own < rank[outlines.before[todo]]) & (own < rank[outlines.after[todo]])]
    # Of a ring with few points left one at a time.
    few = outlines.left[outlines.ring[chosen]] <= 2 * LEAST_POINTS
    _, once = np.unique(outlines.ring[chosen[few]], return_index=True)
    return np.concatenate([chosen[~few], chosen[few][once]])


def _loss(outlines: _Outlines, points: Indices) -> NDArray[np.float64]:
    """How far the outlines would come to lie from where they were, were each point left out."""
    first, last = outlines.before[points], outlines.after[points]
    ring = outlines.ring[points]
    start = outlines.first[ring]
    end = np.append(outlines.first, len(outlines.xy))[ring + 1]
    which, offset = _spread(np.where(last > first, last - first, last - first + end - start) - 1)
    between = first[which] + 1 + offset
    between -= np.where(between >= end[which], (end - start)[which], 0)
    xy = outlines.xy
    apart = _distance(xy[between], xy[first[which]], xy[last[which]])
    loss = np.zeros(len(points))
    np.maximum.at(loss, which, apart)
    return loss


def _is_blocked(outlines: _Outlines, points: Indices, clearance: float) -> NDArray[np.bool_]:
    """Whether a centre or another point stands in the way of leaving a point out."""
    xy = outlines.xy
    corners = xy[outlines.before[points]], xy[points], xy[outlines.after[points]]
    low = np.floor(np.minimum.reduce(corners) - clearance).astype(np.intp)
    high = np.floor(np.maximum.reduce(corners) + clearance).astype(np.intp)
    cells = np.cumsum((high - low + 1).prod(axis=1))
    cuts = np.flatnonzero(np.diff(cells // CELLS_AT_ONCE)) + 1
    blocked = [
        _blocked_in(outlines, points[part], low[part], high[part], clearance)
        for part in np.split(np.arange(len(points)), cuts)
    ]
    return np.concatenate(blocked)


def _blocked_in(
    outlines: _Outlines, points: Indices, low: Indices, high: Indices, clearance: float
) -> NDArray[np.bool_]:
    """The same of some points, where the cells to look at, first and last [n, 2], are known."""
    first, last = outlines.before[points], outlines.after[points]
    xy = outlines.xy
    wide, tall = (high - low + 1).T
    which, offset = _spread(wide * tall)
    columns, rows = low[which, 0] + offset % wide[which], low[which, 1] + offset // wide[which]

    def in_the_way(of: Indices, place: Points, least: float) -> NDArray[np.bool_]:
        a, b, c = xy[first[of]], xy[points[of]], xy[last[of]]
        return _in_triangle(place, a, b, c) | (_distance(place, a, c) < least)

    blocked = np.zeros(len(points), np.bool_)
    centres = np.stack([columns + 0.5, rows + 0.5], axis=1)
    blocked[which[in_the_way(which, centres, clearance)]] = True
    others, cell = outlines.square.points_in(columns, rows)
    of = which[cell]
    other = (
        outlines.alive[others]
        & ~blocked[of]
        & (others != first[of])
        & (others != points[of])
        & (others != last[of])
    )
    others, of = others[other], of[other]
    blocked[of[in_the_way(of, xy[others], 2 * clearance)]] = True
    return blocked


def _spread(counts: Indices) -> tuple[Indices, Indices]:
    """So many numbers of each: of which it is, and its number among those, from 0."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)


def _distance(points: Points, start: Points, end: Points) -> NDArray[np.float64]:
    """Of each point from its straight line, which may be of no length; all [n, 2]."""
    along, away = end - start, points - start
    squared = np.einsum("ij,ij->i", along, along)
    share = np.clip(np.einsum("ij,ij->i", away, along) / np.where(squared > 0, squared, 1), 0, 1)
    return np.asarray(np.hypot(*(away - share[:, None] * along).T))


def _in_triangle(points: Points, a: Points, b: Points, c: Points) -> NDArray[np.bool_]:
    """Whether each point lies in its triangle, its sides included; all [n, 2]."""

    def side(start: Points, end: Points) -> NDArray[np.float64]:
        return (end[:, 0] - start[:, 0]) * (points[:, 1] - start[:, 1]) - (end[:, 1] - start[:, 1]) * (
            points[:, 0] - start[:, 0]
        )

    sides = np.stack([side(a, b), side(b, c), side(c, a)])
    return np.asarray((sides >= 0).all(axis=0) | (sides <= 0).all(axis=0))
