// Accept, reject, class, note: what a click or a key changes in the review.
import { announce } from "../parts/announce";
import type { Verdict } from "../types";
import type { Change, Reviewed } from "./review_log";
import type { Region, Workspace } from "./workspace";

export const CLASSES = ["IDC", "DCIS", "Normal", "Ignore"];

/** One line of the review: a region of the model, what was said of it, or what somebody added. */
export interface Item {
  id: string;
  region: Region | null;
  reviewed: Reviewed | null;
}

export function itemsOf(space: Workspace): Item[] {
  const reviewed = space.review.review.value?.features.features ?? [];
  const regions = space.regions.value.map((region) => ({
    id: region.id,
    region,
    reviewed: space.review.of(region.id) ?? null,
  }));
  const known = new Set(regions.map(({ id }) => id));
  const others = reviewed
    .filter(({ properties }) => properties.source_region === null || !known.has(properties.source_region))
    .map((feature) => ({
      id: feature.properties.source_region ?? feature.properties.id,
      region: null,
      reviewed: feature,
    }));
  return [...regions, ...others];
}

export const selectedItem = (space: Workspace): Item | undefined =>
  itemsOf(space).find(({ id }) => id === space.selected.value);

/** The item's feature as it would be saved, with some of it changed; null where there is nothing to save. */
export function changeOf(space: Workspace, item: Item, part: Partial<Change>): Change | null {
  const geometry = item.reviewed?.geometry ?? item.region?.feature.geometry;
  if (!geometry) {
    return null;
  }
  const said = item.reviewed?.properties;
  return {
    ...(said ? { id: said.id } : {}),
    geometry,
    class: said?.class ?? space.review.review.value?.classes[0] ?? "IDC",
    verdict: said?.verdict ?? null,
    note: said?.note ?? "",
    source_region: said ? said.source_region : (item.region?.id ?? null),
    ...part,
  };
}

export async function change(space: Workspace, item: Item, part: Partial<Change>): Promise<void> {
  const wanted = changeOf(space, item, part);
  if (wanted && (await space.review.put(wanted))) {
    announce(`${item.id}: ${part.verdict ?? part.class ?? "note"} saved`);
  }
}

async function judge(space: Workspace, verdict: Verdict): Promise<void> {
  const item = selectedItem(space);
  if (!item) {
    announce("Choose a region first: click on it, or press n.", true);
    return;
  }
  await change(space, item, { verdict });
}

export const acceptSelected = (space: Workspace): Promise<void> => judge(space, "accepted");
export const rejectSelected = (space: Workspace): Promise<void> => judge(space, "rejected");
