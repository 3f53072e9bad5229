// Polygons in level-0 pixels.
import type { Geometry, Point, Ring } from "../types";

export interface Box {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

/** Each polygon's rings, the outer one first. */
export const polygonsOf = (geometry: Geometry): Ring[][] =>
  geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;

export function boxOf(geometry: Geometry): Box {
  const box = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };
  for (const [x, y] of polygonsOf(geometry).flat(2)) {
    box.left = Math.min(box.left, x);
    box.top = Math.min(box.top, y);
    box.right = Math.max(box.right, x);
    box.bottom = Math.max(box.bottom, y);
  }
  return box;
}

export function centreOf(geometry: Geometry): Point {
  const box = boxOf(geometry);
  return [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
}

/** Inside of an odd number of rings: holes are outside. */
export function contains(geometry: Geometry, [x, y]: Point): boolean {
  let inside = false;
  for (const ring of polygonsOf(geometry).flat()) {
    for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
      const [ax, ay] = ring[i] as Point;
      const [bx, by] = ring[j] as Point;
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) {
        inside = !inside;
      }
    }
  }
  return inside;
}

/** Area in square level-0 pixels, holes taken off. */
export function areaOf(geometry: Geometry): number {
  const ringArea = (ring: Ring) =>
    Math.abs(
      ring.reduce((sum, [x, y], i) => {
        const [nextX, nextY] = ring[(i + 1) % ring.length] as Point;
        return sum + x * nextY - nextX * y;
      }, 0) / 2,
    );
  return polygonsOf(geometry).reduce(
    (sum, [outer, ...holes]) =>
      sum + (outer ? ringArea(outer) : 0) - holes.reduce((taken, hole) => taken + ringArea(hole), 0),
    0,
  );
}

/** A ring as GeoJSON wants it: its first point again at its end. */
export function closed(points: Point[]): Ring {
  const [first, last] = [points[0], points[points.length - 1]];
  return first && last && (first[0] !== last[0] || first[1] !== last[1]) ? [...points, first] : points;
}
