// Drawing and mending an outline with the mouse, by Annotorious; loaded when it is first needed.
import type { ImageAnnotation, MultiPolygon, OpenSeadragonAnnotator, Polygon } from "@annotorious/openseadragon";
import type { Geometry, Point, Ring } from "../types";
import { boxOf, closed, polygonsOf } from "./geometry";
import type { Stage } from "./stage";

const EDITED = "edited";

export class OutlineEditor {
  private constructor(
    private readonly annotator: OpenSeadragonAnnotator,
    private readonly stage: Stage,
  ) {}

  /** Draw a new outline: `drawn` is called with it when its last corner is set. */
  static async draw(stage: Stage, drawn: (geometry: Geometry) => void): Promise<OutlineEditor> {
    const editor = await OutlineEditor.open(stage);
    editor.annotator.setDrawingTool("polygon");
    editor.annotator.setDrawingEnabled(true);
    // Its layer is put in place at the next drawing of the slide, and none is due while nothing moves.
    window.setTimeout(() => stage.viewer.forceRedraw(), 0);
    editor.annotator.on("createAnnotation", (annotation) => {
      editor.annotator.setDrawingEnabled(false);
      drawn(editor.toLevel0(annotation));
    });
    return editor;
  }

  /** Mend an outline: its corners can be dragged, added and taken away until `geometry` is read. */
  static async mend(stage: Stage, geometry: Geometry): Promise<OutlineEditor> {
    const editor = await OutlineEditor.open(stage);
    editor.annotator.setAnnotations([editor.fromLevel0(geometry)]);
    editor.annotator.setSelected(EDITED, true);
    return editor;
  }

  private static async open(stage: Stage): Promise<OutlineEditor> {
    const { createOSDAnnotator } = await import("@annotorious/openseadragon");
    const annotator = createOSDAnnotator(stage.viewer, {
      drawingEnabled: false,
      drawingMode: "click",
      autoSave: true,
      style: { stroke: "#5dff9b", strokeWidth: 2, fillOpacity: 0 },
    });
    return new OutlineEditor(annotator, stage);
  }

  /** The outline as it stands, or null where there is none. */
  get geometry(): Geometry | null {
    const [annotation] = this.annotator.getAnnotations();
    return annotation ? this.toLevel0(annotation) : null;
  }

  close(): void {
    this.annotator.destroy();
  }

  // Annotorious counts in pixels of the finest image on the stage, which is not always level 0: a picture may stand in.
  private get perPx0(): number {
    return this.stage.viewer.world.getContentFactor() / this.stage.view.width0;
  }

  private toLevel0(annotation: ImageAnnotation): Geometry {
    const scale = this.perPx0;
    const ring = (points: number[][]): Ring =>
      closed(points.map(([x, y]) => [(x ?? 0) / scale, (y ?? 0) / scale] as Point));
    const { selector } = annotation.target;
    if ("polygons" in selector.geometry) {
      const { polygons } = (selector as MultiPolygon).geometry;
      const coordinates = polygons.map((polygon) => polygon.rings.map(({ points }) => ring(points)));
      const [only] = coordinates;
      return only && coordinates.length === 1
        ? { type: "Polygon", coordinates: only }
        : { type: "MultiPolygon", coordinates };
    }
    return { type: "Polygon", coordinates: [ring((selector as Polygon).geometry.points)] };
  }

  private fromLevel0(geometry: Geometry): ImageAnnotation {
    const scale = this.perPx0;
    const points = (ring: Ring): Point[] => ring.slice(0, -1).map(([x, y]) => [x * scale, y * scale]);
    const bounds = (rings: Ring[]) => {
      const box = boxOf({ type: "Polygon", coordinates: rings });
      return { minX: box.left * scale, minY: box.top * scale, maxX: box.right * scale, maxY: box.bottom * scale };
    };
    const polygons = polygonsOf(geometry);
    const [only] = polygons;
    const selector =
      only && polygons.length === 1 && only.length === 1
        ? { type: "POLYGON", geometry: { points: points(only[0] as Ring), bounds: bounds(only) } }
        : {
            type: "MULTIPOLYGON",
            geometry: {
              polygons: polygons.map((rings) => ({
                rings: rings.map((ring) => ({ points: points(ring) })),
                bounds: bounds(rings),
              })),
              bounds: bounds(polygons.flat()),
            },
          };
    return { id: EDITED, bodies: [], target: { annotation: EDITED, selector } } as unknown as ImageAnnotation;
  }
}
