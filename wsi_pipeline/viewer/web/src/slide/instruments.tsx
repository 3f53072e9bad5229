// Scale bar, magnifications, what is under the pointer, and the colours of the map.
import { useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { getJson, slidePath } from "../api";
import { length, number } from "../format";
import type { AtPlace, Point } from "../types";
import { barLength, enlarged, MAGNIFICATIONS, named, umPerPoint } from "./scale";
import type { Workspace } from "./workspace";

const LONGEST_BAR = 180;
const REST_MS = 150;

export function ScaleBar({ space }: { space: Workspace }) {
  const current = space.current.value;
  if (!current) {
    return null;
  }
  const um = umPerPoint(current.magnification);
  const bar = barLength(um, LONGEST_BAR * enlarged());
  return (
    <div class="scale-bar" role="img" aria-label={`Scale bar: ${length(bar)}`}>
      <span>{length(bar).replace(".00", "")}</span>
      <div class="bar" style={{ width: `${bar / um}px` }} />
    </div>
  );
}

export function Magnifications({ space }: { space: Workspace }) {
  const current = space.current.value?.magnification ?? 0;
  return (
    <fieldset class="magnifications" aria-label="Magnification">
      <button type="button" onClick={() => space.stage.value?.fitAll()} title="The whole slide (0)">
        all
      </button>
      {MAGNIFICATIONS.map((magnification, i) => (
        <button
          key={magnification}
          type="button"
          title={`${named(magnification)} (${i + 1})`}
          aria-pressed={Math.abs(current / magnification - 1) < 0.01}
          onClick={() => space.stage.value?.magnify(magnification)}
        >
          {named(magnification)}
        </button>
      ))}
      <output aria-label="Magnification now">{current > 0 ? named(current) : ""}</output>
    </fieldset>
  );
}

/** What stands at a place, in words. */
export function wordsOf(space: Workspace, [x0, y0]: Point, at: AtPlace | null): string[] {
  const { view } = space;
  const local = space.values.value?.at(x0, y0);
  const probability = at ? at.probability : local;
  const words = [`x ${length(x0 * view.mpp_x)}, y ${length(y0 * view.mpp_y)}`];
  words.push(probability === null || probability === undefined ? "not scored" : `IDC ${number(probability, 2)}`);
  if (at) {
    if (at.patch_probability !== null && at.patch_probability !== undefined) {
      words.push(`patch alone ${number(at.patch_probability, 2)}`);
    }
    if (at.uncertainty !== null && at.uncertainty !== undefined) {
      words.push(`± ${number(at.uncertainty, 2)}`);
    }
    const other = space.otherClass.value;
    if (other && at.of_class !== null && at.of_class !== undefined) {
      words.push(`${other.title} ${number(at.of_class, 2)}`);
    }
    words.push(at.status);
  }
  return words;
}

export function lookAt(space: Workspace, [x0, y0]: Point): Promise<AtPlace> {
  const asked = new URLSearchParams({ x0: x0.toFixed(1), y0: y0.toFixed(1) });
  if (space.otherClass.value) {
    asked.set("shown", space.otherClass.value.name);
  }
  return getJson<AtPlace>(slidePath(space.view.id, `/at?${asked}`));
}

/** Position and probability follow the pointer at once; the rest is asked for when it rests. */
export function Readout({ space }: { space: Workspace }) {
  const answer = useSignal<{ place: Point; at: AtPlace } | null>(null);
  useSignalEffect(() => {
    const place = space.pointer.value;
    if (!place) {
      return;
    }
    const timer = window.setTimeout(async () => {
      try {
        answer.value = { place, at: await lookAt(space, place) };
      } catch {
        answer.value = null;
      }
    }, REST_MS);
    return () => window.clearTimeout(timer);
  });
  const words = useComputed(() => {
    const place = space.pointer.value;
    if (!place) {
      return [];
    }
    return wordsOf(space, place, answer.value?.place === place ? answer.value.at : null);
  });
  const place = space.pointer.value;
  return (
    <div class="readout" data-testid="readout">
      {words.value.map((word) => (
        <span key={word}>{word}</span>
      ))}
      {place && (
        <span class="faint">
          {Math.round(place[0])}, {Math.round(place[1])} px
        </span>
      )}
    </div>
  );
}

/** The colours of the map shown, with the threshold. */
export function ColourBar({ space }: { space: Workspace }) {
  const layer = space.view.layers.find(({ name }) => name === space.layer.value);
  const stops = space.view.colormap_stops?.[layer?.kind === "deviation" ? layer.kind : space.colormap.value];
  if (!layer || !stops || layer.kind === "classes" || space.mapHidden.value) {
    return null;
  }
  const isUncertainty = layer.kind === "deviation";
  const threshold = layer.kind === "probability" ? space.threshold.value : null;
  const gradient = `linear-gradient(to right, ${stops.join(", ")})`;
  const name = isUncertainty ? `${layer.title}, 0 to 0.5` : `${layer.title}, 0 to 1`;
  return (
    <div class="colour-bar" role="img" aria-label={`Colours: ${name}`}>
      <span>{layer.title}</span>
      <div class="colours" style={{ backgroundImage: gradient }}>
        {threshold !== null && <i style={{ left: `${threshold * 100}%` }} />}
      </div>
      <span class="ends">
        <span>0</span>
        <span>{isUncertainty ? "0.5" : "1"}</span>
      </span>
    </div>
  );
}
