// The URL keeps the view: what is after the # comes back when the page is loaded again or sent to a colleague.
import type { View } from "./stage";
import type { Tab, Workspace } from "./workspace";

export interface UrlView {
  view: View | null;
  layer: string | null;
  masks: string[];
  opacity: number | null;
  colormap: string | null;
  hideBelow: boolean;
  beside: boolean;
  threshold: number | null;
  tab: Tab | null;
  selected: string | null;
}

const TABS: Tab[] = ["map", "regions", "review", "grading", "place", "about"];

function within(text: string | null, low: number, high: number): number | null {
  const value = text === null || text === "" ? Number.NaN : Number(text);
  return value >= low && value <= high ? value : null;
}

export function readView(hash: string): UrlView {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const [x0, y0, magnification] = [
    within(given.get("x"), -1e7, 1e7),
    within(given.get("y"), -1e7, 1e7),
    within(given.get("at"), 0.001, 1000),
  ];
  return {
    view: x0 !== null && y0 !== null && magnification !== null ? { x0, y0, magnification } : null,
    layer: given.get("map"),
    masks: (given.get("also") ?? "").split(",").filter(Boolean),
    opacity: within(given.get("opacity"), 0, 1),
    colormap: given.get("colours"),
    hideBelow: given.has("above"),
    beside: given.has("beside"),
    threshold: within(given.get("threshold"), 0, 1),
    tab: TABS.find((tab) => tab === given.get("tab")) ?? null,
    selected: given.get("region"),
  };
}

export function writeView(space: Workspace, view: View): void {
  const kept = new URLSearchParams({
    x: view.x0.toFixed(1),
    y: view.y0.toFixed(1),
    at: view.magnification.toFixed(4),
    map: space.layer.value,
    tab: space.tab.value,
    opacity: space.opacity.value.toFixed(2),
  });
  if (space.masks.value.length > 0) {
    kept.set("also", space.masks.value.join(","));
  }
  if (space.colormap.value !== space.view.default_colormap) {
    kept.set("colours", space.colormap.value);
  }
  if (space.hideBelow.value) {
    kept.set("above", "");
  }
  if (space.beside.value) {
    kept.set("beside", "");
  }
  if (space.moved.value && space.threshold.value !== null) {
    kept.set("threshold", String(space.threshold.value));
  }
  if (space.selected.value) {
    kept.set("region", space.selected.value);
  }
  window.history.replaceState(null, "", `#${kept}`);
}
