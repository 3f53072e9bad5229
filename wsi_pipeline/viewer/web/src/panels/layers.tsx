// Which map, how it is coloured, where the threshold lies.
import { area, count } from "../format";
import type { Workspace } from "../slide/workspace";

const KEYS: Record<string, string> = { heatmap: "m", patch_heatmap: "a", uncertainty: "u", tissue: "t", status: "x" };

export function LayersPanel({ space }: { space: Workspace }) {
  const { view } = space;
  const maps = view.layers.filter((layer) => layer.kind !== "classes");
  const masks = view.layers.filter((layer) => layer.kind === "classes");
  return (
    <>
      <fieldset>
        <legend>Map</legend>
        {[...maps.map(({ name, title }) => ({ name, title })), { name: "", title: "None" }].map(({ name, title }) => (
          <label key={name} class="line">
            <input
              type="radio"
              name="map"
              checked={space.layer.value === name}
              onChange={() => {
                space.layer.value = name;
              }}
            />{" "}
            {title} {KEYS[name] && <kbd>{KEYS[name]}</kbd>}
          </label>
        ))}
      </fieldset>
      <fieldset>
        <legend>How it is shown</legend>
        <label class="stacked">
          <span>
            Opacity <kbd>[</kbd> <kbd>]</kbd>
            {/* No <output>, which the label would name in the slider's place. */}
            <b>{Math.round(space.opacity.value * 100)} %</b>
          </span>
          <input
            type="range"
            min="0"
            max="1"
            step="0.05"
            value={space.opacity.value}
            onInput={(event) => {
              space.opacity.value = event.currentTarget.valueAsNumber;
            }}
          />
        </label>
        <label class="line">
          Colours{" "}
          <select
            value={space.colormap.value}
            onChange={(event) => {
              space.colormap.value = event.currentTarget.value;
            }}
          >
            {view.colormaps.map((name) => (
              <option key={name} value={name}>
                {name.replaceAll("_", " to ")}
              </option>
            ))}
          </select>
        </label>
        <label class="line">
          <input
            type="checkbox"
            checked={space.beside.value}
            onChange={(event) => {
              space.beside.value = event.currentTarget.checked;
            }}
          />{" "}
          Side by side <kbd>s</kbd>
        </label>
        <label class="line">
          <input
            type="checkbox"
            checked={space.hideBelow.value}
            onChange={(event) => {
              space.hideBelow.value = event.currentTarget.checked;
            }}
          />{" "}
          Hide below the threshold <kbd>h</kbd>
        </label>
      </fieldset>
      {view.threshold !== null && <Threshold space={space} />}
      <fieldset>
        <legend>Also shown</legend>
        {masks.map((layer) => (
          <label key={layer.name} class="line">
            <input
              type="checkbox"
              checked={space.masks.value.includes(layer.name)}
              onChange={() => space.toggleMask(layer.name)}
            />{" "}
            {layer.title} {KEYS[layer.name] && <kbd>{KEYS[layer.name]}</kbd>}
          </label>
        ))}
        <label class="line">
          <input
            type="checkbox"
            checked={space.outlinesShown.value}
            onChange={(event) => {
              space.outlinesShown.value = event.currentTarget.checked;
            }}
          />{" "}
          Outlines <kbd>o</kbd>
        </label>
        <label class="line">
          <input
            type="checkbox"
            checked={space.fieldsShown.value}
            onChange={(event) => {
              space.fieldsShown.value = event.currentTarget.checked;
            }}
          />{" "}
          Grading fields <kbd>l</kbd>
        </label>
        {masks
          .filter(({ name }) => space.masks.value.includes(name))
          .map((layer) => (
            <ul key={layer.name} class="swatches" aria-label={`Colours: ${layer.title}`}>
              {layer.legend?.map(({ value, name, rgba: [red, green, blue, alpha] }) => (
                <li key={value}>
                  <i
                    class={alpha > 0 ? "" : "none"}
                    style={alpha > 0 ? { backgroundColor: `rgb(${red} ${green} ${blue} / ${alpha / 255})` } : {}}
                  />{" "}
                  {name}
                </li>
              ))}
            </ul>
          ))}
      </fieldset>
    </>
  );
}

function Threshold({ space }: { space: Workspace }) {
  const threshold = space.threshold.value ?? 0.5;
  const outlines = space.outlines.value;
  const own = space.view.threshold ?? 0.5;
  return (
    <fieldset>
      <legend>Threshold</legend>
      <label class="stacked">
        <span>
          IDC from <kbd>,</kbd> <kbd>.</kbd> <b>{threshold.toFixed(2)}</b>
        </span>
        <input
          type="range"
          min="0.01"
          max="1"
          step="0.01"
          value={threshold}
          onInput={(event) => space.setThreshold(event.currentTarget.valueAsNumber)}
        />
      </label>
      <p class="small" role="status">
        {outlines ? (
          <>
            At {outlines.threshold.toFixed(2)}: {count(outlines.n, "region")}, {area(outlines.idc_mm2)}. Nothing is
            saved.
          </>
        ) : (
          `The run's own threshold: ${own.toFixed(2)}.`
        )}
      </p>
      {space.moved.value && (
        <button type="button" onClick={() => space.setThreshold(space.view.threshold)}>
          Back to {own.toFixed(2)}
        </button>
      )}
    </fieldset>
  );
}
