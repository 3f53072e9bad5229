// The stage as a part of the page: slide, map, drawings, and the small instruments on it.
import { effect, useSignalEffect } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { count } from "../format";
import { useClicks } from "./clicks";
import { drawingsOf } from "./drawings";
import { ColourBar, Magnifications, Readout, ScaleBar } from "./instruments";
import { Overlay } from "./overlay";
import { link, Stage } from "./stage";
import { layerTiles } from "./tiles";
import { ValueMap } from "./values";
import { writeView } from "./view_url";
import type { Workspace } from "./workspace";

/** What stands in for a slide that cannot be read. */
const picture = (space: Workspace): string | null => space.view.pictures.tissue ?? null;

/** Map and masks on a stage, kept as the workspace says. */
function keepLayers(space: Workspace, stage: Stage, withMap: () => boolean): () => void {
  let shown = "";
  const masks = new Set<string>();
  const stopMap = effect(() => {
    const layer = withMap() ? space.view.layers.find(({ name }) => name === space.layer.value) : undefined;
    // Whoever grades looks at the tissue, not through a map.
    const opacity = space.mapHidden.value ? 0 : space.opacity.value;
    // All opaque, it is looked at for itself.
    const faint = space.opacity.value < 1;
    const threshold = space.hideBelow.value ? space.threshold.value : null;
    const wanted = layer ? `${layer.name} ${space.colormap.value} ${threshold} ${faint}` : "";
    if (wanted === shown) {
      stage.setLayerOpacity("map", opacity);
      return;
    }
    shown = wanted;
    if (layer) {
      stage.setLayer(
        "map",
        layerTiles(space.view, layer, { colormap: space.colormap.value, threshold, faint }),
        opacity,
      );
    } else {
      stage.removeLayer("map");
    }
  });
  const stopMasks = effect(() => {
    const wanted = withMap() ? space.masks.value : [];
    for (const name of [...masks].filter((shown) => !wanted.includes(shown))) {
      stage.removeLayer(name);
      masks.delete(name);
    }
    for (const layer of space.view.layers.filter(({ name }) => wanted.includes(name) && !masks.has(name))) {
      stage.setLayer(
        layer.name,
        layerTiles(space.view, layer, { colormap: space.colormap.value, threshold: null, faint: false }),
        0.6,
      );
      masks.add(layer.name);
    }
  });
  return () => {
    stopMap();
    stopMasks();
  };
}

function keepDrawings(space: Workspace, overlay: Overlay): () => void {
  return effect(() => overlay.set(drawingsOf(space), space.cross.value));
}

export function StageView({ space }: { space: Workspace }) {
  const main = useRef<HTMLDivElement>(null);
  const other = useRef<HTMLDivElement>(null);
  const [second, setSecond] = useState<Stage | null>(null);
  const [beside, setBeside] = useState(space.beside.value);
  useSignalEffect(() => setBeside(space.beside.value));
  useClicks(space);

  useEffect(() => {
    const element = main.current;
    if (!element) {
      return;
    }
    const stage = new Stage(
      element,
      space.view,
      `Slide ${space.view.name}: arrows move, plus and minus zoom`,
      picture(space),
      true,
    );
    const stops = [keepLayers(space, stage, () => !space.beside.value), keepDrawings(space, new Overlay(stage))];
    // Another view in the address, by hand or by a link: the page comes anew.
    const goElsewhere = () => window.location.reload();
    window.addEventListener("hashchange", goElsewhere);
    let timer = 0;
    const { viewer } = stage;
    // The map's values are as large as all tiles of a view: they come after the picture.
    void stage.opened
      .then(() => ValueMap.load(space.view.id))
      .then((values) => {
        space.values.value = values;
      });
    viewer.addHandler("tile-load-failed", () => {
      space.unreadable.value += 1;
    });
    const moved = () => {
      space.current.value = stage.current;
      window.clearTimeout(timer);
      timer = window.setTimeout(() => writeView(space, stage.current), 250);
    };
    viewer.world.addOnceHandler("add-item", () => {
      window.setTimeout(() => {
        if (space.first.view) {
          stage.show(space.first.view, true);
        } else {
          stage.fitAll(true);
        }
        space.stage.value = stage;
        viewer.addHandler("viewport-change", moved);
        viewer.addHandler("resize", moved);
        moved();
      }, 0);
    });
    stops.push(
      effect(() => {
        // Whatever the URL keeps is read here, so that each change is written.
        void [space.layer.value, space.masks.value, space.opacity.value, space.colormap.value, space.hideBelow.value];
        void [space.beside.value, space.threshold.value, space.tab.value, space.selected.value];
        if (space.stage.value) {
          moved();
        }
      }),
    );
    return () => {
      window.clearTimeout(timer);
      window.removeEventListener("hashchange", goElsewhere);
      for (const stop of stops) {
        stop();
      }
      space.stage.value = null;
      stage.destroy();
    };
  }, [space]);

  useEffect(() => {
    const [element, first] = [other.current, space.stage.value];
    if (!beside || !element || !first) {
      return;
    }
    const stage = new Stage(
      element,
      space.view,
      `Map of ${space.view.name}, moving along with the slide`,
      picture(space),
      false,
    );
    const overlay = new Overlay(stage);
    const stops = [keepLayers(space, stage, () => true), keepDrawings(space, overlay), link(first, stage)];
    setSecond(stage);
    return () => {
      for (const stop of stops.reverse()) {
        stop();
      }
      setSecond(null);
      stage.destroy();
    };
  }, [space, beside, space.stage.value]);

  return (
    <div class={`stages ${beside ? "two" : ""}`} data-second={second ? "there" : undefined}>
      <div class="stage">
        <div class="osd" ref={main} />
        <Magnifications space={space} />
        <div class="below">
          <ScaleBar space={space} />
          <Readout space={space} />
          {space.unreadable.value > 0 && (
            <p class="readout" role="status">
              {count(space.unreadable.value, "tile")} of the slide cannot be read.
            </p>
          )}
        </div>
        {!beside && <ColourBar space={space} />}
      </div>
      {beside && (
        <div class="stage">
          <div class="osd" ref={other} />
          <ColourBar space={space} />
        </div>
      )}
    </div>
  );
}
