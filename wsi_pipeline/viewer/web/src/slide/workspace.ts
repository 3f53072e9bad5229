// What one slide's page knows and shows: signals that the stage is drawn from and the panels change.
import { computed, type Signal, signal } from "@preact/signals";
import { getJson, sentence, slidePath } from "../api";
import { announce } from "../parts/announce";
import type { Feature, GradingPlace, Outlines, Point, RegionProperties, SlideView } from "../types";
import { boxOf } from "./geometry";
import { Grades } from "./grades";
import { ReviewLog } from "./review_log";
import type { Stage, View } from "./stage";
import type { ValueMap } from "./values";
import { readView, type UrlView } from "./view_url";

export type Tab = "map" | "regions" | "review" | "grading" | "place" | "about";

/** What a click on the slide does. */
export type Tool = "look" | "mitoses" | "place" | "outline" | "corners";

export interface Region {
  id: string;
  feature: Feature<RegionProperties>;
}

export class Workspace {
  readonly stage = signal<Stage | null>(null);
  readonly values = signal<ValueMap | null>(null);

  readonly layer: Signal<string>;
  readonly masks: Signal<string[]>;
  readonly opacity: Signal<number>;
  readonly colormap: Signal<string>;
  readonly hideBelow: Signal<boolean>;
  readonly beside: Signal<boolean>;
  readonly threshold: Signal<number | null>;
  readonly tab: Signal<Tab>;
  readonly outlines = signal<Outlines | null>(null);
  readonly outlinesShown = signal(true);
  readonly fieldsShown = signal(true);
  readonly cross = signal(false);
  readonly keysShown = signal(false);
  /** Tiles that the server could not give. */
  readonly unreadable = signal(0);

  readonly tool = signal<Tool>("look");
  /** Whoever grades looks at the tissue, and not through a map; one beside the slide is in nobody's way. */
  readonly mapHidden = computed(
    () => this.tool.value === "mitoses" || (this.tab.value === "grading" && !this.beside.value),
  );
  readonly corners = signal<Point[]>([]);
  readonly selected = signal<string | null>(null);
  readonly field = signal<string | null>(null);
  readonly place = signal<Point | null>(null);
  readonly pointer = signal<Point | null>(null);
  readonly current = signal<View | null>(null);

  readonly review: ReviewLog;
  readonly grades: Grades;
  readonly first: UrlView;
  readonly readOnly: boolean;
  private asked = 0;

  constructor(readonly view: SlideView) {
    this.readOnly = view.read_only;
    this.first = readView(window.location.hash);
    const names = view.layers.map((layer) => layer.name);
    const wanted = this.first.layer;
    this.layer = signal(
      wanted !== null && (wanted === "" || names.includes(wanted))
        ? wanted
        : (names.find((n) => n === "heatmap") ?? ""),
    );
    this.masks = signal(this.first.masks.filter((name) => names.includes(name)));
    this.opacity = signal(this.first.opacity ?? 0.45);
    const colormap = this.first.colormap;
    this.colormap = signal(colormap && view.colormaps.includes(colormap) ? colormap : view.default_colormap);
    this.hideBelow = signal(this.first.hideBelow);
    this.beside = signal(this.first.beside);
    this.threshold = signal(this.first.threshold ?? view.threshold);
    this.tab = signal(this.first.tab ?? "map");
    this.selected.value = this.first.selected;
    this.review = new ReviewLog(view.id);
    this.grades = new Grades(view.id);
  }

  readonly regions = computed<Region[]>(() => {
    const moved = this.outlines.value;
    const { features } = moved?.regions ?? this.view.regions;
    // "IDC 1" of another threshold is another region than the run's own, and so is what is said of it.
    const at = moved ? ` at ${moved.threshold.toFixed(2)}` : "";
    return features.map((feature) => ({ id: `${feature.properties.name}${at}`, feature }));
  });

  /** Whether the threshold is another than the run's own. */
  readonly moved = computed(() => this.threshold.value !== this.view.threshold);

  setThreshold(threshold: number | null): void {
    this.threshold.value = threshold;
    void this.outlineAnew();
  }

  /** Regions at the threshold; only the last answer counts. */
  async outlineAnew(): Promise<void> {
    this.asked += 1;
    const asked = this.asked;
    if (!this.moved.value || this.threshold.value === null) {
      this.outlines.value = null;
      return;
    }
    await new Promise((resolve) => window.setTimeout(resolve, 120));
    if (asked !== this.asked) {
      return;
    }
    try {
      const outlines = await getJson<Outlines>(slidePath(this.view.id, `/outlines?threshold=${this.threshold.value}`));
      if (asked === this.asked) {
        this.outlines.value = outlines;
      }
    } catch (error) {
      announce(sentence(error), true);
    }
  }

  flyToRegion(region: Region): void {
    this.selected.value = region.id;
    this.stage.value?.fit(boxOf(region.feature.geometry));
    announce(`${region.id}, ${this.regions.value.indexOf(region) + 1} of ${this.regions.value.length}`);
  }

  flyToField(field: GradingPlace): void {
    this.field.value = field.id;
    const { x0, y0, radius_x0, radius_y0 } = field;
    this.stage.value?.fit({
      left: x0 - radius_x0,
      top: y0 - radius_y0,
      right: x0 + radius_x0,
      bottom: y0 + radius_y0,
    });
    announce(`${field.id}, ${this.view.fields.indexOf(field) + 1} of ${this.view.fields.length}`);
  }

  stepRegion(by: number): void {
    const regions = this.regions.value;
    const at = regions.findIndex((region) => region.id === this.selected.value);
    const next = regions[at < 0 ? (by > 0 ? 0 : regions.length - 1) : (at + by + regions.length) % regions.length];
    if (next) {
      this.flyToRegion(next);
    } else {
      announce("No region on this slide.");
    }
  }

  stepField(by: number): void {
    const { fields } = this.view;
    const at = fields.findIndex((field) => field.id === this.field.value);
    const next = fields[at < 0 ? (by > 0 ? 0 : fields.length - 1) : (at + by + fields.length) % fields.length];
    if (next) {
      this.flyToField(next);
    } else {
      announce("No grading field on this slide.");
    }
  }

  /** The layer shown, where it is that of another class. */
  readonly otherClass = computed(() =>
    this.view.layers.find(({ name, kind }) => name === this.layer.value && kind === "of_class"),
  );

  showLayer(name: string): void {
    if (!this.has(name)) {
      return;
    }
    this.layer.value = this.layer.value === name ? "" : name;
    const layer = this.view.layers.find((candidate) => candidate.name === this.layer.value);
    announce(layer ? `${layer.title} shown` : "No map shown");
  }

  /** Whether the slide has that layer; where it has none, that is said. */
  private has(name: string): boolean {
    const there = this.view.layers.some((layer) => layer.name === name);
    if (!there) {
      announce("This slide has no such layer.");
    }
    return there;
  }

  toggleMask(name: string): void {
    if (!this.has(name)) {
      return;
    }
    const on = this.masks.value.includes(name);
    this.masks.value = on ? this.masks.value.filter((other) => other !== name) : [...this.masks.value, name];
  }

  /** The arrows move the slide from now on, whatever had them. */
  focusSlide(): void {
    this.stage.value?.focus();
  }

  say(text: string, error = false): void {
    announce(text, error);
  }

  /** The place in the middle of the view, where the cross stands. */
  get middle(): Point | null {
    const current = this.stage.value?.current;
    return current ? [current.x0, current.y0] : null;
  }
}
