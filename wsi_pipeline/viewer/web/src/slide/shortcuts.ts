// The keys of a slide's page. The help page lists this table.
import { announce } from "../parts/announce";
import { isTyping, type KeyBinding } from "../parts/keys";
import { countAt } from "./clicks";
import { lookAt, wordsOf } from "./instruments";
import { addCorner, finishCorners, stopDrawing, undoCorner } from "./outline_tools";
import { acceptSelected, rejectSelected } from "./review_actions";
import { MAGNIFICATIONS, named } from "./scale";
import { STEP } from "./stage";
import type { Tab, Workspace } from "./workspace";

const FAR = 0.8;

async function sayWhere(space: Workspace): Promise<void> {
  const { middle } = space;
  if (!middle) {
    return;
  }
  space.cross.value = true;
  const at = await lookAt(space, middle).catch(() => null);
  announce(`In the middle: ${wordsOf(space, middle, at).join(", ")}`);
}

function mitosisAtCross(space: Workspace): void {
  const { middle } = space;
  if (middle) {
    space.cross.value = true;
    countAt(space, middle);
  }
}

export function bindings(space: Workspace): KeyBinding[] {
  const { stage } = space;
  const pan = (x: number, y: number) => () => stage.value?.panBy(x, y);
  const nudge = (by: number) => () => {
    const threshold = Math.round(((space.threshold.value ?? 0.5) + by) * 100) / 100;
    space.setThreshold(Math.min(1, Math.max(0.01, threshold)));
    announce(`Threshold ${space.threshold.value?.toFixed(2)}`);
  };
  const fade = (by: number) => () => {
    space.opacity.value = Math.min(1, Math.max(0, Math.round((space.opacity.value + by) * 20) / 20));
    announce(`Opacity ${Math.round(space.opacity.value * 100)} %`);
  };
  const to = (tab: Tab) => () => {
    space.tab.value = tab;
    window.setTimeout(() => document.getElementById(`tab-${tab}`)?.focus(), 0);
  };
  const putDown = () => {
    // Out of a text field, nothing that is being drawn is lost.
    if (!isTyping(document.activeElement)) {
      stopDrawing(space);
    }
    space.focusSlide();
  };
  const move = "Moving";
  const maps = "Maps";
  const regions = "Regions and fields";
  const work = "Review and grading";
  return [
    { group: move, keys: ["ArrowLeft"], does: "move left", act: pan(-STEP, 0) },
    { group: move, keys: ["ArrowRight"], does: "move right", act: pan(STEP, 0) },
    { group: move, keys: ["ArrowUp"], does: "move up", act: pan(0, -STEP) },
    { group: move, keys: ["ArrowDown"], does: "move down", act: pan(0, STEP) },
    { group: move, keys: ["PageUp"], does: "move up by a view", act: pan(0, -FAR) },
    { group: move, keys: ["PageDown"], does: "move down by a view", act: pan(0, FAR) },
    { group: move, keys: ["+", "="], does: "zoom in", act: () => stage.value?.zoomBy(1.41) },
    { group: move, keys: ["-"], does: "zoom out", act: () => stage.value?.zoomBy(1 / 1.41) },
    { group: move, keys: ["0"], does: "the whole slide", act: () => stage.value?.fitAll() },
    ...MAGNIFICATIONS.map((magnification, i) => ({
      group: move,
      keys: [String(i + 1)],
      does: named(magnification),
      act: () => stage.value?.magnify(magnification),
    })),
    {
      group: move,
      keys: ["c"],
      does: "cross in the middle on or off",
      act: () => (space.cross.value = !space.cross.value),
    },
    { group: move, keys: ["w"], does: "say what stands in the middle", act: () => void sayWhere(space) },
    { group: maps, keys: ["m"], does: "map on or off", act: () => space.showLayer("heatmap") },
    {
      group: maps,
      keys: ["a"],
      does: "map of each patch alone on or off",
      act: () => space.showLayer("patch_heatmap"),
    },
    { group: maps, keys: ["u"], does: "uncertainty on or off", act: () => space.showLayer("uncertainty") },
    { group: maps, keys: ["t"], does: "tissue found on or off", act: () => space.toggleMask("tissue") },
    { group: maps, keys: ["x"], does: "status of each cell on or off", act: () => space.toggleMask("status") },
    {
      group: maps,
      keys: ["s"],
      does: "side by side or overlaid",
      act: () => (space.beside.value = !space.beside.value),
    },
    { group: maps, keys: ["["], does: "map more transparent", act: fade(-0.1) },
    { group: maps, keys: ["]"], does: "map less transparent", act: fade(0.1) },
    { group: maps, keys: [","], does: "threshold down", act: nudge(-0.02) },
    { group: maps, keys: ["."], does: "threshold up", act: nudge(0.02) },
    {
      group: maps,
      keys: ["h"],
      does: "hide the map below the threshold",
      act: () => (space.hideBelow.value = !space.hideBelow.value),
    },
    {
      group: maps,
      keys: ["o"],
      does: "outlines on or off",
      act: () => (space.outlinesShown.value = !space.outlinesShown.value),
    },
    { group: regions, keys: ["n"], does: "next region", act: () => space.stepRegion(1) },
    { group: regions, keys: ["p"], does: "previous region", act: () => space.stepRegion(-1) },
    { group: regions, keys: ["f"], does: "next field", act: () => space.stepField(1) },
    { group: regions, keys: ["d"], does: "previous field", act: () => space.stepField(-1) },
    {
      group: regions,
      keys: ["l"],
      does: "fields on or off",
      act: () => (space.fieldsShown.value = !space.fieldsShown.value),
    },
    { group: work, keys: ["y"], does: "accept the chosen region", act: () => void acceptSelected(space) },
    { group: work, keys: ["r"], does: "reject the chosen region", act: () => void rejectSelected(space) },
    { group: work, keys: ["b"], does: "draw an outline: set a corner at the cross", act: () => addCorner(space) },
    { group: work, keys: ["Backspace"], does: "take the last corner back", act: () => undoCorner(space) },
    { group: work, keys: ["e"], does: "end the outline at its first corner", act: () => void finishCorners(space) },
    { group: work, keys: ["z"], does: "undo the last change of the review", act: () => void space.review.undo() },
    { group: work, keys: ["k"], does: "count a mitosis at the cross", act: () => mitosisAtCross(space) },
    {
      group: work,
      keys: ["q"],
      does: "ask the model about the place at the cross",
      act: () => {
        space.cross.value = true;
        space.tab.value = "place";
        space.place.value = space.middle;
      },
    },
    { group: work, keys: ["Escape"], does: "put the tool down; back to the slide", act: putDown },
    { group: "Panels", keys: ["v"], does: "panel: review", act: to("review") },
    { group: "Panels", keys: ["g"], does: "panel: grading", act: to("grading") },
    { group: "Panels", keys: ["i"], does: "panel: about this slide", act: to("about") },
    { group: "Panels", keys: ["?"], does: "these keys", act: () => (space.keysShown.value = true) },
  ];
}
