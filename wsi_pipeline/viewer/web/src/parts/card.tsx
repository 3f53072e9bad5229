// A model's card: what it is for and not for, its measures openly, and all the rest folded below.
import { count, NONE, number, share } from "../format";
import type { ScoreBin } from "../types";
import { Facts } from "./facts";

type Values = Record<string, unknown>;

const isValues = (value: unknown): value is Values =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const valuesOf = (value: unknown): Values => (isValues(value) ? value : {});
const textOf = (value: unknown): string => (typeof value === "string" && value ? value : "The card does not say.");

// In the order in which people ask for them; what a card has beyond these stands in the card in full.
const MEASURES: [string, string, string][] = [
  ["recall", "Recall", "of the patches that are IDC, the share found"],
  ["precision", "Precision", "of the patches called IDC, the share that is"],
  [
    "balanced_accuracy",
    "Balanced accuracy",
    "the mean of the shares right among IDC and among the others; 0.5 by chance",
  ],
  ["f1", "F1", "recall and precision in one number"],
  ["auroc", "AUROC", "how often an IDC patch scores above another one, at any threshold; 0.5 by chance"],
  ["auprc", "AUPRC", "the mean precision over all thresholds"],
  ["ece", "Calibration error", "how far probabilities lie from the shares of IDC; 0 is best"],
];

interface Column {
  title: string;
  values: Values;
}

/** The card as /api/model gives it. */
export function ModelCard({ card }: { card: Values }) {
  const full = valuesOf(card.card);
  const [training, metrics] = [valuesOf(full.training), valuesOf(card.measured)];
  const context = valuesOf(full.context);
  return (
    <>
      <h3>What it is for</h3>
      <p>{textOf(card.intended_use)}</p>
      <h3>What it is not for</h3>
      <Lines value={card.not_for} />
      <h3>What it was trained on</h3>
      <Lines value={card.trained_on} />
      <Counts training={training} />
      <h3>What it was measured to do</h3>
      <Measured metrics={metrics} />
      <Reliability bins={binsOf(metrics)} />
      {isValues(full.context) && <Context context={context} />}
      <h3>The card in full</h3>
      <Facts facts={{ name: card.name, sha256: card.sha256, licence: card.licence, ...full }} />
    </>
  );
}

export function binsOf(metrics: Values): ScoreBin[] {
  return Array.isArray(metrics.reliability) ? (metrics.reliability as ScoreBin[]) : [];
}

function Lines({ value }: { value: unknown }) {
  if (Array.isArray(value)) {
    return (
      <ul>
        {value.map((line) => (
          <li key={String(line)}>{String(line)}</li>
        ))}
      </ul>
    );
  }
  return isValues(value) ? <Facts facts={value} /> : <p>{textOf(value)}</p>;
}

function Counts({ training }: { training: Values }) {
  const lines = ["train", "val"].flatMap((name) => {
    const { patients, patches, idc } = valuesOf(training[name]);
    const words = [
      counted(patients, "patient", "patients"),
      counted(patches, "patch", "patches"),
      counted(idc, "of them IDC", "of them IDC"),
    ];
    const found = words.filter((word) => word !== null);
    return found.length > 0 ? [`${name === "val" ? "Validation" : "Training"}: ${found.join(", ")}.`] : [];
  });
  return lines.length > 0 ? <p>{lines.join(" ")}</p> : null;
}

const counted = (value: unknown, one: string, many: string): string | null =>
  typeof value === "number" ? count(value, one, many) : null;

function Measured({ metrics }: { metrics: Values }) {
  const columns: Column[] = [
    { title: "Validation patches", values: valuesOf(metrics.val) },
    { title: "Threshold from other patients (crossfitted)", values: valuesOf(metrics.crossfitted) },
    { title: "By patient: median (lowest to highest)", values: valuesOf(metrics.patients) },
  ];
  if (!columns.some(({ values }) => MEASURES.some(([key]) => key in values))) {
    return Object.keys(metrics).length > 0 ? <Facts facts={metrics} /> : <p>The card does not say.</p>;
  }
  const { patches, idc_share } = valuesOf(metrics.val);
  return (
    <>
      <MeasureTable caption="Measures of single patches" columns={columns} />
      <p class="small">
        {counted(patches, "validation patch", "validation patches")}
        {typeof idc_share === "number" && `, ${share(idc_share)} of them IDC`}
        {typeof patches === "number" && ". "}
        {typeof metrics.note === "string" && `Of these numbers: ${metrics.note}.`}
      </p>
    </>
  );
}

function MeasureTable({ caption, columns }: { caption: string; columns: Column[] }) {
  const shown = columns.filter(({ values }) => MEASURES.some(([key]) => key in values));
  const rows = MEASURES.filter(([key]) => shown.some(({ values }) => key in values));
  return (
    <table class="measures">
      <caption class="hidden">{caption}</caption>
      <thead>
        <tr>
          <th scope="col">Measure</th>
          {shown.map(({ title }) => (
            <th key={title} scope="col" class="numeric">
              {title}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows.map(([key, name, meaning]) => (
          <tr key={key}>
            <th scope="row">
              {name} <span class="small">{meaning}</span>
            </th>
            {shown.map(({ title, values }) => (
              <td key={title} class="numeric">
                {measure(values[key])}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function measure(value: unknown): string {
  if (typeof value === "number") {
    return number(value, 3);
  }
  const { median, lowest, highest } = valuesOf(value);
  return typeof median === "number"
    ? `${number(median, 2)} (${[lowest, highest].map((end) => (typeof end === "number" ? number(end, 2) : NONE)).join(" to ")})`
    : NONE;
}

function Reliability({ bins }: { bins: ScoreBin[] }) {
  if (bins.length === 0) {
    return null;
  }
  return (
    <details>
      <summary>How often patches of each score were IDC</summary>
      <table class="measures">
        <thead>
          <tr>
            <th scope="col">Score</th>
            <th scope="col" class="numeric">
              Validation patches
            </th>
            <th scope="col" class="numeric">
              Of them IDC
            </th>
          </tr>
        </thead>
        <tbody>
          {bins.map((bin) => (
            <tr key={bin.from}>
              <th scope="row">
                {number(bin.from, 2)} to {number(bin.to, 2)}
              </th>
              <td class="numeric">{bin.patches.toLocaleString("en")}</td>
              <td class="numeric">{share(bin.idc_share)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

/** The step that makes the map of a slide from its patches. */
function Context({ context }: { context: Values }) {
  const metrics = valuesOf(context.metrics);
  const [val, dice] = [valuesOf(metrics.val), Object.values(valuesOf(metrics.dice_by_slide)).map(valuesOf)];
  const columns: Column[] = [
    { title: "Each patch alone", values: valuesOf(val.alone) },
    { title: "Each patch among its neighbours, as maps show", values: valuesOf(val.context) },
  ];
  if (columns.every(({ values }) => Object.keys(values).length === 0)) {
    return null;
  }
  const overlaps = dice.map(({ context }) => context).filter((value) => typeof value === "number");
  return (
    <>
      <h4>On maps of whole slides</h4>
      <MeasureTable caption="Measures of maps" columns={columns} />
      <p class="small">
        {overlaps.length > 0 &&
          `Overlap with the pathologist's outlines (Dice) on ${count(overlaps.length, "validation slide")}: ${number(Math.min(...overlaps), 2)} to ${number(Math.max(...overlaps), 2)}. `}
        {typeof metrics.note === "string" && `Of these numbers: ${metrics.note}.`}
      </p>
    </>
  );
}
