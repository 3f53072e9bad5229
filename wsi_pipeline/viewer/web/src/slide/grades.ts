// The grading sheet: what the person entered for each field, saved at once; the server computes, never guesses.
import { signal } from "@preact/signals";
import { ApiError, getJson, send, sentence, slidePath } from "../api";
import { announce } from "../parts/announce";
import type { FieldGrades, Grading, Point } from "../types";
import { requireReviewer } from "./reviewer";

const EMPTY = { tubules: null, nuclei: null, mitoses: [] as Point[], counted: false };

export class Grades {
  readonly grading = signal<Grading | null>(null);
  readonly saving = signal(false);
  /** Why it cannot be shown. */
  readonly trouble = signal("");
  private again = false;

  constructor(private readonly slide: string) {}

  async load(): Promise<void> {
    try {
      this.grading.value = await getJson<Grading>(slidePath(this.slide, "/grading"));
      this.trouble.value = "";
    } catch (error) {
      this.trouble.value = sentence(error);
    }
  }

  of(field: string): FieldGrades {
    return this.grading.value?.fields.find((grades) => grades.id === field) ?? { id: field, ...EMPTY };
  }

  /** Change one field and save. */
  change(field: string, part: Partial<FieldGrades>): Promise<void> {
    const changed = { ...this.of(field), ...part };
    const others = (this.grading.value?.fields ?? []).filter((grades) => grades.id !== field);
    return this.changeSheet({ fields: [...others, changed] });
  }

  /** Change the sheet and save. What is changed while a save is under way goes with the next one. */
  async changeSheet(part: Partial<Pick<Grading, "fields" | "tubules" | "nuclei">>): Promise<void> {
    const grading = this.grading.value;
    if (!grading || requireReviewer() === null) {
      return;
    }
    this.grading.value = { ...grading, ...part };
    if (this.saving.value) {
      this.again = true;
      return;
    }
    this.saving.value = true;
    do {
      this.again = false;
      await this.save();
    } while (this.again);
    this.saving.value = false;
  }

  private async save(): Promise<void> {
    const sent = this.grading.value;
    const name = requireReviewer();
    if (!sent || name === null) {
      return;
    }
    try {
      const { revision, fields, tubules, nuclei } = sent;
      const body = { revision, reviewer: name, fields, tubules, nuclei };
      const saved = await send<Grading>("PUT", slidePath(this.slide, "/grading"), body);
      const newer = this.again ? this.grading.value : null;
      this.grading.value = newer
        ? { ...saved, fields: newer.fields, tubules: newer.tubules, nuclei: newer.nuclei }
        : saved;
    } catch (error) {
      this.again = false;
      await this.load();
      const conflict = error instanceof ApiError && error.status === 409;
      announce(
        conflict
          ? "Somebody else changed this sheet meanwhile. It is shown as it is now: please do it again."
          : `Not saved: ${sentence(error)}`,
        true,
      );
    }
  }

  countMitosis(field: string, place: Point): Promise<void> {
    return this.change(field, { mitoses: [...this.of(field).mitoses, place], counted: true });
  }

  removeMitosis(field: string, index: number): Promise<void> {
    return this.change(field, { mitoses: this.of(field).mitoses.filter((_, i) => i !== index) });
  }
}
