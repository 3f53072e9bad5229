// What the pointer does on the slide: it reads values, and a click does what the tool in hand does.
import type OpenSeadragon from "openseadragon";
import { useEffect } from "preact/hooks";
import { count } from "../format";
import type { Point } from "../types";
import { areaOf, contains } from "./geometry";
import { enlarged } from "./scale";
import type { Stage } from "./stage";
import type { Workspace } from "./workspace";

// A click this near to a mark, in points of the screen, is on it; marks are drawn larger on a large screen.
const NEAR = 12;

/** The field that a mitosis at the place belongs to: the chosen one if it holds the place, else any that does. */
export function fieldAt(space: Workspace, [x0, y0]: Point): string | null {
  const holding = space.view.fields.filter((field) => {
    return ((x0 - field.x0) / field.radius_x0) ** 2 + ((y0 - field.y0) / field.radius_y0) ** 2 <= 1;
  });
  return (holding.find((field) => field.id === space.field.value) ?? holding[0])?.id ?? null;
}

function toggleMitosis(space: Workspace, stage: Stage, place: Point): void {
  const [x, y] = stage.toScreen(place);
  for (const field of space.view.fields) {
    const index = space.grades.of(field.id).mitoses.findIndex((mark) => {
      const [markX, markY] = stage.toScreen(mark);
      return Math.hypot(markX - x, markY - y) <= NEAR * enlarged();
    });
    if (index >= 0) {
      void space.grades.removeMitosis(field.id, index);
      return;
    }
  }
  countAt(space, place);
}

export function countAt(space: Workspace, place: Point): void {
  const field = fieldAt(space, place);
  if (field === null) {
    space.say("Outside of every grading field: mitoses are counted within a field.", true);
    return;
  }
  space.field.value = field;
  void space.grades.countMitosis(field, place).then(() => {
    space.say(`${field}: ${count(space.grades.of(field).mitoses.length, "mitosis", "mitoses")}`);
  });
}

/** Of what is drawn at the place, the smallest: a region inside another can be chosen. */
function choose(space: Workspace, place: Point): void {
  const reviewed = space.review.review.value?.features.features ?? [];
  const drawn = [
    ...space.regions.value.map(({ id, feature }) => ({ id, geometry: feature.geometry })),
    ...reviewed.map(({ geometry, properties }) => ({ id: properties.source_region ?? properties.id, geometry })),
  ];
  const under = drawn.filter(({ geometry }) => contains(geometry, place));
  under.sort((a, b) => areaOf(a.geometry) - areaOf(b.geometry));
  space.selected.value = under[0]?.id ?? null;
}

export function useClicks(space: Workspace): void {
  const stage = space.stage.value;
  useEffect(() => {
    if (!stage) {
      return;
    }
    const { viewer } = stage;
    const at = (position: OpenSeadragon.Point): Point => stage.toLevel0([position.x, position.y]);
    const clicked = (event: OpenSeadragon.CanvasClickEvent) => {
      if (!event.quick) {
        return;
      }
      const place = at(event.position);
      switch (space.tool.value) {
        case "mitoses":
          toggleMitosis(space, stage, place);
          break;
        case "place":
          space.place.value = place;
          break;
        case "corners":
          space.corners.value = [...space.corners.value, place];
          break;
        case "look":
          choose(space, place);
          break;
        case "outline":
          break;
      }
    };
    const follow = (event: PointerEvent) => {
      const corner = viewer.element.getBoundingClientRect();
      space.pointer.value = stage.toLevel0([event.clientX - corner.left, event.clientY - corner.top]);
    };
    const leave = () => {
      space.pointer.value = null;
    };
    viewer.addHandler("canvas-click", clicked);
    viewer.element.addEventListener("pointermove", follow);
    viewer.element.addEventListener("pointerleave", leave);
    return () => {
      viewer.removeHandler("canvas-click", clicked);
      viewer.element.removeEventListener("pointermove", follow);
      viewer.element.removeEventListener("pointerleave", leave);
    };
  }, [space, stage]);
}
