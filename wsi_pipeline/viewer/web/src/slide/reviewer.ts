// Who reviews: kept in this browser, written with each change.
import { signal } from "@preact/signals";
import { announce } from "../parts/announce";

const KEY = "wsi-pipeline-reviewer";

export const reviewer = signal(localStorage.getItem(KEY) ?? "");

export function setReviewer(name: string): void {
  reviewer.value = name;
  localStorage.setItem(KEY, name);
}

/** The reviewer's name, or null after asking for it: nothing is saved in nobody's name. */
export function requireReviewer(): string | null {
  const name = reviewer.value.trim();
  if (name) {
    return name;
  }
  announce("Enter your name first: each change is kept with who made it.", true);
  window.setTimeout(() => document.querySelector<HTMLInputElement>("input.reviewer")?.focus(), 50);
  return null;
}
