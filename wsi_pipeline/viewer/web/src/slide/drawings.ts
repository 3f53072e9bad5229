// What is drawn over the slide now.
import type { GradingPlace, Point, Verdict } from "../types";
import { drawing, target } from "./outline_tools";
import type { Drawing } from "./overlay";
import type { Workspace } from "./workspace";

// Told apart by their dashes, too; each has a dark casing.
export const COLOURS = {
  region: "#ffe45e",
  moved: "#ff9d00",
  accepted: "#5dff9b",
  rejected: "#ff8a8a",
  field: "#ffffff",
  mitosis: "#5ee7ff",
} as const;

const DOTS = [2, 4];
const DASHES = [8, 4];

function look(verdict: Verdict | null): { colour: string; dash?: number[] } {
  if (verdict === "rejected") {
    return { colour: COLOURS.rejected, dash: DOTS };
  }
  return verdict === null ? { colour: COLOURS.region } : { colour: COLOURS.accepted };
}

/** Outlines and fields; those of the model that were reviewed show their review in place of themselves. */
export function drawingsOf(space: Workspace): Drawing[] {
  const drawings: Drawing[] = [];
  const selected = space.selected.value;
  const reviewed = space.review.review.value?.features.features ?? [];
  const moved = space.outlines.value !== null;
  // Annotorious shows it meanwhile.
  const mended = drawing.value?.mends ? target.value?.id : undefined;
  if (space.outlinesShown.value) {
    const answered = new Set(reviewed.map((feature) => feature.properties.source_region));
    for (const { id, feature } of space.regions.value) {
      if ((moved || !answered.has(id)) && id !== mended) {
        drawings.push({
          kind: "outline",
          id,
          geometry: feature.geometry,
          strong: id === selected,
          ...(moved ? { colour: COLOURS.moved, dash: DASHES } : { colour: COLOURS.region }),
          ...(id === selected ? { label: id } : {}),
        });
      }
    }
    for (const { geometry, properties } of reviewed) {
      const id = properties.source_region ?? properties.id;
      if (id === mended) {
        continue;
      }
      const strong = id === selected;
      const label = strong
        ? { label: `${properties.class}${properties.verdict ? `, ${properties.verdict}` : ""}` }
        : {};
      drawings.push({ kind: "outline", id, geometry, strong, ...look(properties.verdict), ...label });
    }
  }
  if (space.fieldsShown.value) {
    for (const field of space.view.fields) {
      drawings.push(circleOf(space, field));
      const { mitoses } = space.grades.of(field.id);
      mitoses.forEach((centre, i) => {
        drawings.push({ kind: "mark", id: `${field.id} ${i}`, centre, colour: COLOURS.mitosis });
      });
    }
  }
  const place = space.place.value;
  if (place) {
    drawings.push({ kind: "mark", id: "place", centre: place, colour: "#ffffff" });
  }
  const corners = space.corners.value;
  if (corners.length > 0) {
    drawings.push({
      kind: "outline",
      id: "corners",
      geometry: ringOf(corners),
      colour: COLOURS.accepted,
      dash: DASHES,
      strong: true,
    });
  }
  return drawings;
}

const ringOf = (points: Point[]) => ({ type: "Polygon" as const, coordinates: [points] });

function circleOf(space: Workspace, field: GradingPlace): Drawing {
  const strong = field.id === space.field.value;
  return {
    kind: "circle",
    id: field.id,
    centre: [field.x0, field.y0],
    radius0: [field.radius_x0, field.radius_y0],
    colour: COLOURS.field,
    dash: DASHES,
    strong,
    label: field.id,
  };
}
