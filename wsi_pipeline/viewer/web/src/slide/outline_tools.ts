// Drawing a new outline and mending one: with the mouse by Annotorious, with the keys corner by corner at the cross.
import { signal } from "@preact/signals";
import { sentence } from "../api";
import { announce } from "../parts/announce";
import type { Geometry } from "../types";
import { OutlineEditor } from "./editor";
import { closed } from "./geometry";
import { change, type Item } from "./review_actions";
import { requireReviewer } from "./reviewer";
import type { Workspace } from "./workspace";

/** What is being drawn or mended with the mouse; null where nothing is. */
export const drawing = signal<{ editor: OutlineEditor; mends: boolean } | null>(null);
/** Whose outline the one being drawn replaces; null: it is a new one. */
export const target = signal<Item | null>(null);

const NO_EDITOR = "The mouse cannot draw here (Annotorious needs WebGL). Draw with the keys: b sets a corner, e ends.";

async function save(space: Workspace, geometry: Geometry, item: Item | null): Promise<void> {
  if (item) {
    const verdict = item.reviewed?.properties.verdict === "added" ? "added" : "redrawn";
    await change(space, item, { geometry, verdict });
    return;
  }
  const classes = space.review.review.value?.classes;
  const id = await space.review.put({
    geometry,
    class: classes?.[0] ?? "IDC",
    verdict: "added",
    note: "",
    source_region: null,
  });
  if (id) {
    space.selected.value = id;
    announce("Outline added: choose its class.");
  }
}

/** Draw with the mouse: a new outline, or one in place of an item's. */
export async function draw(space: Workspace, item: Item | null): Promise<void> {
  const stage = space.stage.value;
  if (!stage || requireReviewer() === null) {
    return;
  }
  stopDrawing(space);
  target.value = item;
  try {
    const editor = await OutlineEditor.draw(stage, (geometry) => {
      stopDrawing(space);
      void save(space, geometry, item);
    });
    drawing.value = { editor, mends: false };
    space.tool.value = "outline";
    announce("Click corner after corner; a double click ends the outline.");
  } catch (error) {
    announce(`${NO_EDITOR} (${sentence(error)})`, true);
  }
}

export async function mend(space: Workspace, item: Item): Promise<void> {
  const stage = space.stage.value;
  const geometry = item.reviewed?.geometry ?? item.region?.feature.geometry;
  if (!stage || !geometry || requireReviewer() === null) {
    return;
  }
  stopDrawing(space);
  target.value = item;
  try {
    drawing.value = { editor: await OutlineEditor.mend(stage, geometry), mends: true };
    space.tool.value = "outline";
    announce("Drag the corners, then save the outline.");
  } catch (error) {
    announce(`${NO_EDITOR} (${sentence(error)})`, true);
  }
}

export async function saveMended(space: Workspace): Promise<void> {
  const geometry = drawing.value?.editor.geometry;
  const item = target.value;
  if (geometry && item) {
    stopDrawing(space);
    await save(space, geometry, item);
  }
}

/** Put the tool down; what was not saved is gone. */
export function stopDrawing(space: Workspace): void {
  drawing.value?.editor.close();
  drawing.value = null;
  target.value = null;
  space.tool.value = "look";
  space.corners.value = [];
}

export function addCorner(space: Workspace): void {
  const { middle } = space;
  if (!middle) {
    return;
  }
  space.cross.value = true;
  space.tool.value = "corners";
  space.focusSlide();
  space.corners.value = [...space.corners.value, middle];
  announce(`Corner ${space.corners.value.length}: move on and press b, or e to end.`);
}

/** The next corners set with the keys replace this item's outline. */
export function drawWithKeys(space: Workspace, item: Item | null): void {
  stopDrawing(space);
  target.value = item;
  space.cross.value = true;
  space.tool.value = "corners";
  space.focusSlide();
  announce("Move the cross with the arrows; b sets a corner, Backspace takes it back, e ends the outline.");
}

export function undoCorner(space: Workspace): void {
  space.corners.value = space.corners.value.slice(0, -1);
}

export async function finishCorners(space: Workspace): Promise<void> {
  const corners = space.corners.value;
  if (corners.length < 3) {
    announce("An outline needs three corners at least: b sets one at the cross.", true);
    return;
  }
  if (requireReviewer() === null) {
    return;
  }
  const item = target.value;
  stopDrawing(space);
  await save(space, { type: "Polygon", coordinates: [closed(corners)] }, item);
}
