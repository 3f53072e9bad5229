// The grading sheet: what the person enters for each field, and what follows of it by the Nottingham rules.
import { slidePath } from "../api";
import { area, count, length, NONE, number } from "../format";
import { Trouble } from "../parts/trouble";
import type { Workspace } from "../slide/workspace";
import type { ComputedGrade, Score } from "../types";
import { ReviewerName } from "./reviewer";

const SCORES: Score[] = [1, 2, 3];
const TUBULES = { 1: "over 75 % tubules", 2: "10 to 75 % tubules", 3: "below 10 % tubules" };
const NUCLEI = { 1: "small, uniform", 2: "larger, some variation", 3: "large, marked variation" };

export function GradingPanel({ space }: { space: Workspace }) {
  const { fields } = space.view;
  const grading = space.grades.grading.value;
  if (space.grades.trouble.value) {
    return <Trouble>{space.grades.trouble.value}</Trouble>;
  }
  if (!grading) {
    return <p>Loading…</p>;
  }
  if (fields.length === 0) {
    return <p>No grading field on this slide: no region holds a whole field.</p>;
  }
  const chosen = fields.find((field) => field.id === space.field.value) ?? null;
  return (
    <>
      {!space.readOnly && <ReviewerName />}
      {space.mapHidden.value && (
        <p class="small">
          The map is hidden here, so that the tissue is seen as it is. <kbd>s</kbd> shows it beside the slide.
        </p>
      )}
      {chosen ? (
        <section class="details" aria-label={chosen.id}>
          <h2>
            {chosen.id}
            <Steps space={space} />
          </h2>
          <p class="small">
            {length(chosen.diameter_um)} wide; usable {area(chosen.usable_mm2)}
          </p>
          {!space.readOnly && (
            <>
              <Mitoses space={space} field={chosen.id} />
              <Scores
                title="Tubules in this field"
                meanings={TUBULES}
                now={space.grades.of(chosen.id).tubules}
                enter={(tubules) => space.grades.change(chosen.id, { tubules })}
              />
              <Scores
                title="Nuclei in this field"
                meanings={NUCLEI}
                now={space.grades.of(chosen.id).nuclei}
                enter={(nuclei) => space.grades.change(chosen.id, { nuclei })}
              />
            </>
          )}
        </section>
      ) : (
        <p>
          Choose a field in the table below, or the next one: <Steps space={space} />
        </p>
      )}
      <section class="details" aria-label="The tumour as a whole">
        <h2>The tumour as a whole</h2>
        <p class="small">The grade is computed from these two and from the mitoses of all fields counted.</p>
        <Scores
          title="Tubules"
          meanings={TUBULES}
          now={grading.tubules}
          enter={(tubules) => space.grades.changeSheet({ tubules })}
        />
        <Scores
          title="Nuclei"
          meanings={NUCLEI}
          now={grading.nuclei}
          enter={(nuclei) => space.grades.changeSheet({ nuclei })}
        />
        <Computed computed={grading.computed} />
      </section>
      <table class="sheet">
        <caption class="hidden">Fields to grade</caption>
        <thead>
          <tr>
            <th scope="col">Field</th>
            <th scope="col">Tubules</th>
            <th scope="col">Nuclei</th>
            <th scope="col">Mitoses</th>
          </tr>
        </thead>
        <tbody>
          {fields.map((field) => {
            const grades = space.grades.of(field.id);
            return (
              <tr key={field.id} class={field.id === chosen?.id ? "chosen" : ""}>
                <th scope="row">
                  <button type="button" aria-pressed={field.id === chosen?.id} onClick={() => space.flyToField(field)}>
                    {field.id}
                  </button>
                </th>
                <td>{grades.tubules ?? NONE}</td>
                <td>{grades.nuclei ?? NONE}</td>
                <td>{grades.counted ? grades.mitoses.length : NONE}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      <p class="row">
        <a class="button" href={slidePath(space.view.id, "/grading.csv")} download>
          CSV
        </a>
        <a class="button" href={slidePath(space.view.id, "/grading.json")} download>
          JSON
        </a>
      </p>
    </>
  );
}

function Steps({ space }: { space: Workspace }) {
  return (
    <span class="steps">
      <button type="button" onClick={() => space.stepField(-1)} title="Previous field (d)" aria-label="Previous field">
        ‹
      </button>
      <button type="button" onClick={() => space.stepField(1)} title="Next field (f)" aria-label="Next field">
        ›
      </button>
    </span>
  );
}

interface ScoresProps {
  title: string;
  now: Score | null;
  meanings: Record<Score, string>;
  enter: (score: Score | null) => void;
}

function Scores({ title, now, meanings, enter }: ScoresProps) {
  return (
    <fieldset class="scores">
      <legend>{title}</legend>
      {SCORES.map((score) => (
        <button
          key={score}
          type="button"
          title={meanings[score]}
          aria-label={`${score}: ${meanings[score]}`}
          aria-pressed={now === score}
          onClick={() => enter(now === score ? null : score)}
        >
          {score}
        </button>
      ))}
      <span class="small">{now ? meanings[now] : "not entered"}</span>
    </fieldset>
  );
}

function Mitoses({ space, field }: { space: Workspace; field: string }) {
  const counting = space.tool.value === "mitoses";
  const { mitoses, counted } = space.grades.of(field);
  return (
    <fieldset class="scores">
      <legend>Mitoses in this field</legend>
      <output aria-label="Mitoses counted">{counted ? mitoses.length : NONE}</output>
      <button
        type="button"
        aria-pressed={counting}
        onClick={() => {
          space.tool.value = counting ? "look" : "mitoses";
        }}
      >
        {counting ? "Stop counting" : "Count by clicking"}
      </button>
      <button
        type="button"
        disabled={mitoses.length === 0}
        onClick={() => space.grades.removeMitosis(field, mitoses.length - 1)}
      >
        Take one back
      </button>
      {mitoses.length === 0 && (
        <label>
          <input
            type="checkbox"
            checked={counted}
            onChange={(event) => space.grades.change(field, { counted: event.currentTarget.checked })}
          />{" "}
          looked for, none found
        </label>
      )}
      <span class="small">
        {counting
          ? "Click on each mitosis; a click on a mark takes it back. The map is hidden meanwhile."
          : "Or k: one at the cross in the middle."}
      </span>
    </fieldset>
  );
}

function Computed({ computed }: { computed: ComputedGrade }) {
  const { thresholds } = computed;
  return (
    <div class="computed" aria-live="polite">
      <dl>
        <dt>Mitoses</dt>
        <dd>
          {computed.mitotic_count ?? NONE} in {count(computed.fields_counted, "field")} of{" "}
          {number(computed.field_area_mm2, 2)} mm² in all: score {computed.mitotic_score ?? NONE}
        </dd>
        <dt>Total</dt>
        <dd>{computed.total === null ? NONE : `${computed.total} of 9`}</dd>
        <dt>Grade</dt>
        <dd class="grade">{computed.grade ?? NONE}</dd>
      </dl>
      {computed.missing.length > 0 && <p class="small">Still missing: {computed.missing.join(", ")}.</p>}
      {thresholds && (
        <p class="small">
          On this area {thresholds.score2_from} mitoses or more score 2, {thresholds.score3_from} or more 3 (
          {thresholds.source}).
        </p>
      )}
    </div>
  );
}
