// OpenSeadragon, told in level-0 pixels and micrometres. The slide is 1 wide in the viewport's own units.
import OpenSeadragon from "openseadragon";
import type { Point, SlideView } from "../types";
import type { Box } from "./geometry";
import { enlarged, magnificationOf, umPerPoint } from "./scale";
import { type PlacedTiles, slideTiles } from "./tiles";

const MOST_MAGNIFICATION = 80;
const NAVIGATOR_PX = 160;
// Of the view's width, at each press of an arrow.
export const STEP = 0.1;

export interface View {
  x0: number;
  y0: number;
  magnification: number;
}

/** How many tiles an element shows at least where a pixel of them is a point of the screen. */
const tilesAcross = ({ clientWidth, clientHeight }: HTMLElement, side: number): number =>
  (clientWidth / side + 1) * (clientHeight / side + 1);

export class Stage {
  readonly viewer: OpenSeadragon.Viewer;
  private readonly layers = new Map<string, OpenSeadragon.TiledImage>();
  private readonly wanted = new Map<string, PlacedTiles>();
  /** When the first view is there, all of it. */
  readonly opened: Promise<void>;
  private sayOpened = () => {};

  constructor(
    element: HTMLElement,
    readonly view: SlideView,
    label: string,
    picture: string | null,
    navigator: boolean,
  ) {
    this.opened = new Promise((resolve) => {
      this.sayOpened = resolve;
    });
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const navigatorPx = NAVIGATOR_PX * enlarged();
    this.viewer = new OpenSeadragon.Viewer({
      element,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: navigator,
      navigatorPosition: "TOP_RIGHT",
      navigatorWidth: `${navigatorPx}px`,
      navigatorHeight: `${Math.min(1.5, Math.max(0.3, view.height0 / view.width0)) * navigatorPx}px`,
      navigatorAutoFade: false,
      navigatorBackground: "#ffffff",
      navigatorBorderColor: "#888888",
      navigatorDisplayRegionColor: "#b00020",
      navigatorOpacity: 1,
      silenceMultiImageWarnings: true,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false },
      gestureSettingsPen: { clickToZoom: false },
      visibilityRatio: 0.2,
      // Small slides, too, can be seen at 1.25x.
      minZoomImageRatio: 0.05,
      maxZoomPixelRatio: Math.max(2, view.mpp_x / umPerPoint(MOST_MAGNIFICATION)),
      animationTime: still ? 0 : 0.5,
      springStiffness: 10,
      // Of what is new only the tiles of the view are asked for; later, whoever moves on sees coarse ones at once.
      immediateRender: true,
      maxImageCacheCount: 400,
      imageLoaderLimit: 16,
      // Ten times as many at first: about those that the view is made of, and few coarse ones, which they cover.
      maxTilesPerFrame: Math.max(1, Math.floor(tilesAcross(element, view.tile_size) / 10)),
      // Else seams show between tiles of a layer that is seen through.
      subPixelRoundingForTransparency: OpenSeadragon.SUBPIXEL_ROUNDING_OCCURRENCES.ALWAYS,
      preserveImageSizeOnResize: true,
    } as unknown as OpenSeadragon.Options);
    const canvas = this.viewer.canvas as HTMLElement;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", label);
    // Keys are the page's own: OpenSeadragon's letters would do two things at once.
    this.viewer.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = true;
    });
    this.tellTiles(element);
    if (view.has_slide) {
      const tiles = slideTiles(view);
      this.viewer.addTiledImage({ tileSource: tiles.source, x: 0, y: 0, width: tiles.width, index: 0 });
    } else if (picture) {
      this.viewer.addTiledImage({ tileSource: { type: "image", url: picture }, x: 0, y: 0, width: 1, index: 0 });
    }
  }

  /** The element says whether all tiles of the view are there: data-tiles is "whole" or "coming". */
  private tellTiles(element: HTMLElement): void {
    const { world } = this.viewer;
    const tell = () => {
      const items = Array.from({ length: world.getItemCount() }, (_, i) => world.getItemAt(i));
      // Of what is not seen no tile is asked for.
      const isWhole = (item: OpenSeadragon.TiledImage) => item.getOpacity() === 0 || item.getFullyLoaded();
      const whole = items.every(isWhole);
      element.dataset.tiles = whole ? "whole" : "coming";
      if (whole) {
        this.sayOpened();
      }
    };
    element.dataset.tiles = "coming";
    world.addHandler("add-item", ({ item }: { item: OpenSeadragon.TiledImage }) => {
      tell();
      const loading = item as unknown as { immediateRender: boolean; maxTilesPerFrame: number };
      // One alone, as by default, makes a large screen wait a frame for each tile.
      loading.maxTilesPerFrame = 8;
      item.addOnceHandler("fully-loaded-change", () => {
        loading.immediateRender = false;
      });
      item.addHandler("fully-loaded-change", tell);
      item.addHandler("opacity-change", tell);
    });
    world.addHandler("remove-item", tell);
  }

  private point(x0: number, y0: number): OpenSeadragon.Point {
    return new OpenSeadragon.Point(x0 / this.view.width0, y0 / this.view.width0);
  }

  private rect(box: Box): OpenSeadragon.Rect {
    const unit = this.view.width0;
    return new OpenSeadragon.Rect(
      box.left / unit,
      box.top / unit,
      (box.right - box.left) / unit,
      (box.bottom - box.top) / unit,
    );
  }

  get size(): { width: number; height: number } {
    const size = this.viewer.viewport.getContainerSize();
    return { width: size.x, height: size.y };
  }

  /** Points of the screen (CSS px) a level-0 pixel, as shown at this instant. */
  get pointsPerPx0(): number {
    return (this.viewer.viewport.getZoom(true) * this.size.width) / this.view.width0;
  }

  get umPerPoint(): number {
    return this.view.mpp_x / this.pointsPerPx0;
  }

  /** Where a level-0 place is on the stage, in CSS px from its corner. */
  toScreen([x0, y0]: Point): Point {
    const at = this.viewer.viewport.viewportToViewerElementCoordinates(this.point(x0, y0));
    return [at.x, at.y];
  }

  toLevel0([x, y]: Point): Point {
    const at = this.viewer.viewport.viewerElementToViewportCoordinates(new OpenSeadragon.Point(x, y));
    return [at.x * this.view.width0, at.y * this.view.width0];
  }

  get current(): View {
    const centre = this.viewer.viewport.getCenter(false);
    const points = (this.viewer.viewport.getZoom(false) * this.size.width) / this.view.width0;
    return {
      x0: centre.x * this.view.width0,
      y0: centre.y * this.view.width0,
      magnification: magnificationOf(this.view.mpp_x / points),
    };
  }

  private zoomOf(magnification: number): number {
    const points = this.view.mpp_x / umPerPoint(magnification);
    return (points * this.view.width0) / this.size.width;
  }

  show(view: View, immediately = false): void {
    const { viewport } = this.viewer;
    viewport.panTo(this.point(view.x0, view.y0), immediately);
    viewport.zoomTo(this.zoomOf(view.magnification), undefined, immediately);
    viewport.applyConstraints(immediately);
  }

  magnify(magnification: number): void {
    this.viewer.viewport.zoomTo(this.zoomOf(magnification));
    this.viewer.viewport.applyConstraints();
  }

  zoomBy(factor: number): void {
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  /** Move by shares of the view. */
  panBy(right: number, down: number): void {
    const bounds = this.viewer.viewport.getBounds(false);
    this.viewer.viewport.panBy(new OpenSeadragon.Point(right * bounds.width, down * bounds.height));
    this.viewer.viewport.applyConstraints();
  }

  fit(box: Box): void {
    const [padX, padY] = [(box.right - box.left) * 0.15, (box.bottom - box.top) * 0.15];
    const wide = { left: box.left - padX, top: box.top - padY, right: box.right + padX, bottom: box.bottom + padY };
    this.viewer.viewport.fitBounds(this.rect(wide));
  }

  fitAll(immediately = false): void {
    const { width0, height0 } = this.view;
    this.viewer.viewport.fitBounds(this.rect({ left: 0, top: 0, right: width0, bottom: height0 }), immediately);
  }

  /** Show a layer, or other tiles of it in place of those shown; the old ones stay until the new ones are there. */
  setLayer(name: string, tiles: PlacedTiles, opacity: number): void {
    const old = this.layers.get(name);
    this.wanted.set(name, tiles);
    this.viewer.addTiledImage({
      tileSource: tiles.source,
      x: 0,
      y: 0,
      width: tiles.width,
      opacity,
      success: (event: unknown) => {
        const item = (event as { item: OpenSeadragon.TiledImage }).item;
        if (this.wanted.get(name) !== tiles) {
          this.viewer.world.removeItem(item);
          return;
        }
        this.layers.set(name, item);
        if (old) {
          const leave = () => this.viewer.world.getIndexOfItem(old) >= 0 && this.viewer.world.removeItem(old);
          if (item.getFullyLoaded()) {
            leave();
          } else {
            item.addOnceHandler("fully-loaded-change", leave);
          }
        }
      },
    });
  }

  setLayerOpacity(name: string, opacity: number): void {
    this.layers.get(name)?.setOpacity(opacity);
  }

  removeLayer(name: string): void {
    this.wanted.delete(name);
    const item = this.layers.get(name);
    this.layers.delete(name);
    if (item) {
      this.viewer.world.removeItem(item);
    }
  }

  hasLayer(name: string): boolean {
    return this.wanted.has(name);
  }

  focus(): void {
    (this.viewer.canvas as HTMLElement).focus();
  }

  destroy(): void {
    this.viewer.destroy();
  }
}

/** The second stage goes where the first is, then both move as one, until the answer is called. */
export function link(first: Stage, second: Stage): () => void {
  let following = false;
  const follow = (leader: Stage, follower: Stage) => () => {
    if (following) {
      return;
    }
    following = true;
    const from = leader.viewer.viewport;
    follower.viewer.viewport.panTo(from.getCenter(true), true);
    // Zoom is the view's share of the slide; on stages of other widths the scale is what must agree.
    const zoom = (from.getZoom(true) * leader.size.width) / follower.size.width;
    follower.viewer.viewport.zoomTo(zoom, undefined, true);
    following = false;
  };
  const [there, back] = [follow(first, second), follow(second, first)];
  // With its first image OpenSeadragon shows the whole of it, and must not take the first stage along.
  const begin = () => {
    there();
    first.viewer.addHandler("viewport-change", there);
    second.viewer.addHandler("viewport-change", back);
  };
  let timer = 0;
  second.viewer.world.addOnceHandler("add-item", () => {
    timer = window.setTimeout(begin, 0);
  });
  return () => {
    window.clearTimeout(timer);
    first.viewer.removeHandler("viewport-change", there);
    second.viewer.removeHandler("viewport-change", back);
  };
}
