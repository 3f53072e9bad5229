"""Sizes, boxes and planes: frozen values in (x, y) and (width, height), conversions that round-trip.

A plane is a pixel grid laid on the slide. Its pixel (0, 0) has its upper left corner at level-0 point
(origin_x0, origin_y0), and one of its pixels is (downsample_x, downsample_y) level-0 pixels wide and high.
Coordinates are of pixel corners, continuous; the centre of pixel i lies at i + 0.5.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Width and height in pixels of some plane."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise ValueError(f"a size cannot be negative: {self.width} x {self.height}")

    @property
    def area(self) -> int:
        """Pixels inside."""
        return self.width * self.height


@dataclass(frozen=True)
class Box:
    """Whole pixels [x, x + width) by [y, y + height) of some plane; may lie partly outside of it."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise ValueError(f"a box cannot have a negative size: {self.width} x {self.height}")

    @property
    def right(self) -> int:
        """First column past the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row past the box."""
        return self.y + self.height

    @property
    def is_empty(self) -> bool:
        """Whether no pixel lies inside."""
        return self.width == 0 or self.height == 0

    def intersect(self, other: "Box") -> "Box":
        """The pixels in both; an empty box when there are none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Box(x, y, max(0, right - x), max(0, bottom - y))

    def contains(self, other: "Box") -> bool:
        """Whether every pixel of `other` is inside."""
        return other.is_empty or self.intersect(other) == other


@dataclass(frozen=True)
class Region:
    """A rectangle with fractional edges (left, top, right, bottom) in some plane's pixels."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Plane:
    """A pixel grid laid on the slide: level-0 pixels per pixel along x and y, and its origin in level 0.

    >>> plane = Plane(16.0, 16.0)
    >>> plane.to_level0(Box(1, 2, 3, 4))
    Region(left=16.0, top=32.0, right=64.0, bottom=96.0)
    """

    downsample_x: float
    downsample_y: float
    origin_x0: float = 0.0
    origin_y0: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.downsample_x, self.downsample_y):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"a plane's downsample is positive and finite, not {value}")
        if not (math.isfinite(self.origin_x0) and math.isfinite(self.origin_y0)):
            raise ValueError(f"a plane's origin is finite, not ({self.origin_x0}, {self.origin_y0})")

    def point_to_level0(self, x: float, y: float) -> tuple[float, float]:
        """Level-0 point of a point of this plane."""
        return self.origin_x0 + x * self.downsample_x, self.origin_y0 + y * self.downsample_y

    def point_from_level0(self, x0: float, y0: float) -> tuple[float, float]:
        """This plane's point of a level-0 point."""
        return (x0 - self.origin_x0) / self.downsample_x, (y0 - self.origin_y0) / self.downsample_y

    def to_level0(self, box: Box | Region) -> Region:
        """The same rectangle in level-0 pixels."""
        region = _region(box)
        return Region(
            *self.point_to_level0(region.left, region.top), *self.point_to_level0(region.right, region.bottom)
        )

    def from_level0(self, box: Box | Region) -> Region:
        """A level-0 rectangle in this plane's pixels."""
        region = _region(box)
        return Region(
            *self.point_from_level0(region.left, region.top),
            *self.point_from_level0(region.right, region.bottom),
        )

    def coarser(self, factor_x: float, factor_y: float) -> "Plane":
        """The plane of the same origin whose pixels are `factor_x` by `factor_y` of this one's."""
        return Plane(
            self.downsample_x * factor_x, self.downsample_y * factor_y, self.origin_x0, self.origin_y0
        )


def cover(region: Region) -> Box:
    """The fewest whole pixels that cover the region: its start floored, its end ceiled.

    An edge within a millionth of a pixel of a whole one counts as whole, so that conversions round-trip.
    """
    left, top = math.floor(region.left + 1e-6), math.floor(region.top + 1e-6)
    right, bottom = math.ceil(region.right - 1e-6), math.ceil(region.bottom - 1e-6)
    return Box(left, top, max(0, right - left), max(0, bottom - top))


def _region(box: Box | Region) -> Region:
    return box if isinstance(box, Region) else Region(box.x, box.y, box.right, box.bottom)
