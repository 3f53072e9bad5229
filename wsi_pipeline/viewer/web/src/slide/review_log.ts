// The review beside the run: loaded, changed one feature at a time, undone. The server keeps every change.
import { signal } from "@preact/signals";
import { ApiError, getJson, send, sentence, slidePath } from "../api";
import { announce } from "../parts/announce";
import type { Feature, Geometry, Review, ReviewProperties, Verdict } from "../types";
import { requireReviewer } from "./reviewer";

export type Reviewed = Feature<ReviewProperties>;

export interface Change {
  id?: string;
  geometry: Geometry;
  class: string;
  verdict: Verdict | null;
  note: string;
  source_region: string | null;
}

export class ReviewLog {
  readonly review = signal<Review | null>(null);
  readonly saving = signal(false);
  /** Why it cannot be shown. */
  readonly trouble = signal("");

  constructor(private readonly slide: string) {}

  async load(): Promise<void> {
    try {
      this.review.value = await getJson<Review>(slidePath(this.slide, "/review"));
      this.trouble.value = "";
    } catch (error) {
      this.trouble.value = sentence(error);
    }
  }

  /** What was said of a region of the model, if anything. */
  of(region: string): Reviewed | undefined {
    return this.review.value?.features.features.find((feature) => feature.properties.source_region === region);
  }

  put(change: Change): Promise<string | null> {
    const id = change.id ?? crypto.randomUUID();
    const { geometry, ...said } = change;
    const feature = { type: "Feature", id, geometry, properties: { ...said, id } };
    return this.post({ action: "put", feature }, id);
  }

  remove(id: string): Promise<string | null> {
    return this.post({ action: "delete", feature_id: id }, id);
  }

  undo(): Promise<string | null> {
    return this.post({ action: "undo" }, "");
  }

  /** The feature's id once saved, else null, and why is said. */
  private async post(body: Record<string, unknown>, id: string): Promise<string | null> {
    const name = requireReviewer();
    if (name === null || this.saving.value) {
      return null;
    }
    this.saving.value = true;
    try {
      const revision = this.review.value?.revision ?? 0;
      this.review.value = await send<Review>("POST", slidePath(this.slide, "/review"), {
        revision,
        reviewer: name,
        ...body,
      });
      return id;
    } catch (error) {
      if (error instanceof ApiError && error.status === 409) {
        await this.load();
        announce("Somebody else changed this review meanwhile. It is shown as it is now: please do it again.", true);
      } else {
        announce(`Not saved: ${sentence(error)}`, true);
      }
      return null;
    } finally {
      this.saving.value = false;
    }
  }
}
