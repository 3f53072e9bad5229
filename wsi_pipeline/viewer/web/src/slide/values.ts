// The whole map in the page, so that the value under the pointer needs no request.
import { getBytes, slidePath } from "../api";

export class ValueMap {
  private constructor(
    private readonly values: Float32Array,
    private readonly rows: number,
    private readonly columns: number,
    private readonly cell: [number, number],
    private readonly origin: [number, number],
  ) {}

  /** The map of a slide; null where the server finds it too large to send. */
  static async load(id: string): Promise<ValueMap | null> {
    try {
      const { bytes, headers } = await getBytes(slidePath(id, "/values"));
      const [rows, columns] = [Number(headers.get("X-Rows")), Number(headers.get("X-Cols"))];
      const [cell, origin] = [pair(headers.get("X-Cell-Px")), pair(headers.get("X-Origin"))];
      if (!cell || !origin || rows * columns * 4 !== bytes.byteLength) {
        return null;
      }
      return new ValueMap(new Float32Array(bytes), rows, columns, cell, origin);
    } catch {
      return null;
    }
  }

  /** The probability at a level-0 place; null where nothing was scored. */
  at(x0: number, y0: number): number | null {
    const column = Math.floor((x0 - this.origin[0]) / this.cell[0]);
    const row = Math.floor((y0 - this.origin[1]) / this.cell[1]);
    if (column < 0 || row < 0 || column >= this.columns || row >= this.rows) {
      return null;
    }
    const value = this.values[row * this.columns + column];
    return value === undefined || Number.isNaN(value) ? null : value;
  }
}

function pair(text: string | null): [number, number] | null {
  const parts = (text ?? "").split(/[\s,]+/).map(Number);
  const [x, y] = parts.length === 1 ? [parts[0], parts[0]] : parts;
  return x !== undefined && y !== undefined && Number.isFinite(x) && Number.isFinite(y) ? [x, y] : null;
}
