// Where the tiles of the slide and of its layers come from: one deep-zoom pyramid for both.
//
// Level `levels - 1` is level 0 of the slide, each level below is half as large, rounded up; pixel (i, j) of a level
// that is reduced 2**k times covers level-0 pixels from (i, j) * 2**k. So a layer whose finest tiles are coarser than
// the slide's is placed by its own rounded size, not stretched to the slide's.
import OpenSeadragon from "openseadragon";
import { slidePath } from "../api";
import type { Layer, SlideView } from "../types";

// Levels of fewer pixels than this are never asked for: one tile holds them.
const SMALLEST_LEVEL = 9;

export interface PlacedTiles {
  source: OpenSeadragon.TileSource;
  /** Width in viewport units, of which the slide has 1. */
  width: number;
}

function pyramid(
  view: SlideView,
  levels: number,
  url: (level: number, column: number, row: number) => string,
): PlacedTiles {
  const reduced = 2 ** (view.levels - levels);
  const width = Math.ceil(view.width0 / reduced);
  const source = new OpenSeadragon.TileSource({
    width,
    height: Math.ceil(view.height0 / reduced),
    tileSize: view.tile_size,
    tileOverlap: 0,
    minLevel: Math.min(SMALLEST_LEVEL, levels - 1),
    maxLevel: levels - 1,
  } as OpenSeadragon.TileSourceOptions);
  source.getTileUrl = url;
  return { source, width: (width * reduced) / view.width0 };
}

export const slideTiles = (view: SlideView): PlacedTiles =>
  pyramid(view, view.levels, (level, column, row) =>
    slidePath(view.id, `/tiles/${level}/${column}_${row}.jpg?v=${view.stamp}`),
  );

export interface Colouring {
  colormap: string;
  /** Below this probability the layer is transparent; null: nowhere. */
  threshold: number | null;
  /** Low probabilities leave the tissue to be seen. */
  faint: boolean;
}

// The finest pixels of a layer, in um: cells are a hundred times as large, and their edges lie right within half of it.
const FINEST_UM = 1;

export function layerTiles(view: SlideView, layer: Layer, colouring: Colouring): PlacedTiles {
  const asked = new URLSearchParams({ v: view.stamp });
  if (layer.kind === "probability" || layer.kind === "of_class") {
    asked.set("colormap", colouring.colormap);
    if (colouring.threshold !== null && layer.kind === "probability") {
      asked.set("threshold", String(colouring.threshold));
    }
    if (colouring.faint) {
      asked.set("faint", "1");
    }
  }
  const coarser = Math.max(0, Math.floor(Math.log2(FINEST_UM / Math.max(view.mpp_x, view.mpp_y))));
  const levels = Math.max(1, view.levels - coarser);
  return pyramid(view, levels, (level, column, row) =>
    slidePath(view.id, `/layers/${layer.name}/${level}/${column}_${row}.png?${asked}`),
  );
}
