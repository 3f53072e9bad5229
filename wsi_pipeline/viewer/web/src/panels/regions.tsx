// Regions and grading fields: a click flies there.
import { area, length, number } from "../format";
import type { Workspace } from "../slide/workspace";

export function RegionsPanel({ space }: { space: Workspace }) {
  const regions = space.regions.value;
  return (
    <>
      <h2>
        Regions <small>{regions.length}</small>
        <span class="steps">
          <button
            type="button"
            onClick={() => space.stepRegion(-1)}
            title="Previous region (p)"
            aria-label="Previous region"
          >
            ‹
          </button>
          <button type="button" onClick={() => space.stepRegion(1)} title="Next region (n)" aria-label="Next region">
            ›
          </button>
        </span>
      </h2>
      {space.outlines.value && (
        <p class="small">At a threshold of {space.outlines.value.threshold.toFixed(2)}, not the run's own.</p>
      )}
      {regions.length === 0 && <p>No region reaches the threshold.</p>}
      <ul class="places">
        {regions.map((region) => (
          <li key={region.id}>
            <button
              type="button"
              aria-pressed={region.id === space.selected.value}
              onClick={() => space.flyToRegion(region)}
            >
              <b>{region.id}</b>
              <span>{area(region.feature.properties.area_mm2)}</span>
              <span>mean {number(region.feature.properties.mean_probability, 2)}</span>
            </button>
          </li>
        ))}
      </ul>
      <h2>
        Grading fields <small>{space.view.fields.length}</small>
        <span class="steps">
          <button
            type="button"
            onClick={() => space.stepField(-1)}
            title="Previous field (d)"
            aria-label="Previous field"
          >
            ‹
          </button>
          <button type="button" onClick={() => space.stepField(1)} title="Next field (f)" aria-label="Next field">
            ›
          </button>
        </span>
      </h2>
      {space.view.fields.length === 0 && <p>None: no region holds a whole field.</p>}
      <ul class="places">
        {space.view.fields.map((field) => (
          <li key={field.id}>
            <button type="button" aria-pressed={field.id === space.field.value} onClick={() => space.flyToField(field)}>
              <b>{field.id}</b>
              <span>{length(field.diameter_um)} wide</span>
              <span>mean {number(field.mean_probability, 2)}</span>
            </button>
          </li>
        ))}
      </ul>
    </>
  );
}
