// What is drawn over the slide: outlines, circles, marks; on a canvas that follows the viewport.
import type { Geometry, Point } from "../types";
import { type Box, boxOf, polygonsOf } from "./geometry";
import { enlarged } from "./scale";
import type { Stage } from "./stage";

export interface Outline {
  kind: "outline";
  id: string;
  geometry: Geometry;
  colour: string;
  dash?: number[];
  strong?: boolean;
  label?: string;
}

export interface Circle {
  kind: "circle";
  id: string;
  centre: Point;
  radius0: Point;
  colour: string;
  dash?: number[];
  strong?: boolean;
  label?: string;
}

export interface Mark {
  kind: "mark";
  id: string;
  centre: Point;
  colour: string;
}

export type Drawing = Outline | Circle | Mark;

// A dark casing under each line: legible on white glass, on pink stroma and on dark nuclei.
const CASING = "rgba(0, 0, 0, 0.65)";

// Smaller circles would lie under their own names.
const LEAST_NAMED_PX = 45;

interface Shape {
  path: Path2D;
  box: Box;
  /** Its topmost corner. */
  top: Point;
  /** Points of the screen a level-0 pixel that its path is fine enough for. */
  scale: number;
}

export class Overlay {
  private readonly canvas = document.createElement("canvas");
  // Paths are made once a geometry, from their own corner: a canvas counts in single precision.
  private readonly shapes = new WeakMap<Geometry, Shape>();
  private drawings: Drawing[] = [];
  private cross = false;
  private unit = 1;
  /** The view that the canvas shows. */
  private drawn = "";

  constructor(private readonly stage: Stage) {
    this.canvas.className = "overlay";
    this.canvas.setAttribute("aria-hidden", "true");
    (stage.viewer.canvas as HTMLElement).append(this.canvas);
    for (const event of ["update-viewport", "resize", "open"] as const) {
      stage.viewer.addHandler(event, () => this.draw());
    }
  }

  set(drawings: Drawing[], cross: boolean): void {
    this.drawings = drawings;
    this.cross = cross;
    this.drawn = "";
    this.draw();
  }

  private draw(): void {
    const { width, height } = this.stage.size;
    const ratio = window.devicePixelRatio || 1;
    this.unit = enlarged();
    // OpenSeadragon calls for each tile that comes, too: what has not moved is not drawn again.
    const where = [...this.stage.toScreen([0, 0]), this.stage.pointsPerPx0, width, height, ratio, this.unit].join();
    if (where === this.drawn) {
      return;
    }
    this.drawn = where;
    const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== columns || this.canvas.height !== rows) {
      this.canvas.width = columns;
      this.canvas.height = rows;
    }
    // Lines are drawn by the processor: where a machine only plays at having a GPU, that is fifty times as fast.
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    if (!context) {
      return;
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, columns, rows);
    const [left, top] = this.stage.toLevel0([0, 0]);
    const [right, bottom] = this.stage.toLevel0([width, height]);
    const seen = { left, top, right, bottom };
    for (const drawing of this.drawings) {
      this.drawOne(context, drawing, seen, ratio);
    }
    if (this.cross) {
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      drawCross(context, width / 2, height / 2, this.unit);
    }
  }

  private drawOne(context: CanvasRenderingContext2D, drawing: Drawing, seen: Box, ratio: number): void {
    const scale = this.stage.pointsPerPx0;
    if (drawing.kind === "outline") {
      const { path, box, top } = this.shapeOf(drawing.geometry);
      if (overlap(box, seen)) {
        const [x, y] = this.stage.toScreen([box.left, box.top]);
        context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);
        stroke(context, path, drawing, scale / this.unit);
        this.write(context, drawing.label, ...this.stage.toScreen(top), drawing.colour, ratio);
      }
      return;
    }
    const [x, y] = this.stage.toScreen(drawing.centre);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (drawing.kind === "circle") {
      const [radiusX, radiusY] = [drawing.radius0[0] * scale, drawing.radius0[1] * scale];
      const path = new Path2D();
      path.ellipse(x, y, Math.max(radiusX, 3), Math.max(radiusY, 3), 0, 0, 2 * Math.PI);
      stroke(context, path, drawing, 1 / this.unit);
      if (radiusX >= LEAST_NAMED_PX * this.unit || drawing.strong) {
        this.write(context, drawing.label, x - radiusX * 0.7, y - radiusY * 0.7, drawing.colour, ratio);
      }
    } else {
      const path = new Path2D();
      const { unit } = this;
      path.arc(x, y, 8 * unit, 0, 2 * Math.PI);
      path.moveTo(x - 12 * unit, y);
      path.lineTo(x - 5 * unit, y);
      path.moveTo(x + 5 * unit, y);
      path.lineTo(x + 12 * unit, y);
      stroke(context, path, drawing, 1 / unit);
    }
  }

  private write(
    context: CanvasRenderingContext2D,
    text: string | undefined,
    x: number,
    y: number,
    colour: string,
    ratio: number,
  ): void {
    if (!text) {
      return;
    }
    const scale = ratio * this.unit;
    context.setTransform(scale, 0, 0, scale, ratio * x, ratio * y);
    context.font = "600 12px system-ui, sans-serif";
    const width = context.measureText(text).width;
    context.fillStyle = CASING;
    context.fillRect(-3, -18, width + 8, 17);
    context.fillStyle = colour;
    context.fillText(text, 1, -5);
  }

  private shapeOf(geometry: Geometry): Shape {
    // Corners nearer to each other than half a point of the screen are one: a path for each doubling of the zoom.
    const scale = 2 ** Math.ceil(Math.log2(this.stage.pointsPerPx0));
    let shape = this.shapes.get(geometry);
    if (shape?.scale !== scale) {
      shape = shapeOf(geometry, scale);
      this.shapes.set(geometry, shape);
    }
    return shape;
  }
}

function shapeOf(geometry: Geometry, scale: number): Shape {
  const box = boxOf(geometry);
  const apart = 0.5 / scale;
  const path = new Path2D();
  for (const ring of polygonsOf(geometry).flat()) {
    let last: Point | null = null;
    for (const [x, y] of ring) {
      if (last === null) {
        path.moveTo(x - box.left, y - box.top);
      } else if (Math.abs(x - last[0]) < apart && Math.abs(y - last[1]) < apart) {
        continue;
      } else {
        path.lineTo(x - box.left, y - box.top);
      }
      last = [x, y];
    }
    path.closePath();
  }
  const top = polygonsOf(geometry)
    .flat(2)
    .find(([, y]) => y === box.top) ?? [box.left, box.top];
  return { path, box, top, scale };
}

function stroke(
  context: CanvasRenderingContext2D,
  path: Path2D,
  { colour, dash, strong }: { colour: string; dash?: number[]; strong?: boolean },
  scale: number,
): void {
  const width = strong ? 3.5 : 2;
  context.lineJoin = "bevel";
  context.setLineDash([]);
  context.strokeStyle = CASING;
  context.lineWidth = (width + 2) / scale;
  context.stroke(path);
  context.setLineDash((dash ?? []).map((part) => part / scale));
  context.strokeStyle = colour;
  context.lineWidth = width / scale;
  context.stroke(path);
  context.setLineDash([]);
}

function drawCross(context: CanvasRenderingContext2D, x: number, y: number, unit: number): void {
  const path = new Path2D();
  for (const [dx, dy] of [
    [1, 0],
    [-1, 0],
    [0, 1],
    [0, -1],
  ] as Point[]) {
    path.moveTo(x + 4 * unit * dx, y + 4 * unit * dy);
    path.lineTo(x + 16 * unit * dx, y + 16 * unit * dy);
  }
  stroke(context, path, { colour: "#ffffff" }, 1 / unit);
}

const overlap = (a: Box, b: Box): boolean =>
  a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
