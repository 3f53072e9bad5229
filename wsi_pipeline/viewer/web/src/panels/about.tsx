// The numbers of the run, its warnings, its pictures; label and overview only when asked for.
import { useState } from "preact/hooks";
import { slidePath } from "../api";
import { when, whole } from "../format";
import { Facts } from "../parts/facts";
import type { Workspace } from "../slide/workspace";

// What is read first; all the rest is folded away.
const MAIN: [string, string][] = [
  ["idc_mm2", "IDC, mm²"],
  ["tissue_mm2", "tissue, mm²"],
  ["tissue_reason", "tissue"],
  ["threshold", "threshold"],
  ["finished", "finished"],
];

const CAN_SHOW = ["macro", "label"];

export function AboutPanel({ space }: { space: Workspace }) {
  const { view } = space;
  const main = Object.fromEntries(
    MAIN.filter(([key]) => view.numbers[key] !== null && view.numbers[key] !== undefined).map(([key, name]) => [
      name,
      key === "finished" ? when(String(view.numbers[key])) : view.numbers[key],
    ]),
  );
  return (
    <>
      {view.warnings.map((warning) => (
        <p key={warning} class="warning">
          {warning}
        </p>
      ))}
      <Facts
        facts={{
          ...main,
          map: view.map_kind,
          size: `${whole(view.width0)} x ${whole(view.height0)} px`,
          "µm a pixel": `${view.mpp_x.toFixed(4)} x ${view.mpp_y.toFixed(4)}`,
          model: view.model ? `${view.model.name}${view.model.version ? ` ${view.model.version}` : ""}` : null,
        }}
      />
      <details>
        <summary>All numbers of the run</summary>
        <Facts facts={view.numbers} />
      </details>
      <h2>Pictures</h2>
      <ul>
        {Object.entries(view.pictures).map(([name, url]) => (
          <li key={name}>
            <a href={url} target="_blank" rel="noopener">
              {name}
            </a>
          </li>
        ))}
      </ul>
      {view.associated.some((name) => CAN_SHOW.includes(name)) && <Associated space={space} />}
    </>
  );
}

function Associated({ space }: { space: Workspace }) {
  const [shown, setShown] = useState<string[]>([]);
  const kinds = CAN_SHOW.filter((name) => space.view.associated.includes(name));
  return (
    <>
      <h2>Label and overview</h2>
      <p class="small">They can carry a patient's name, so they are fetched only when asked for.</p>
      {kinds.map((kind) =>
        shown.includes(kind) ? (
          <figure key={kind}>
            <img src={slidePath(space.view.id, `/associated/${kind}.jpg`)} alt={`The slide's ${kind}`} />
          </figure>
        ) : (
          <p key={kind}>
            <button type="button" onClick={() => setShown([...shown, kind])}>
              Show the {kind}
            </button>
          </p>
        ),
      )}
    </>
  );
}
