// The numbers of the run, its warnings, its pictures; label and overview only when asked for.
import { useState } from "preact/hooks";
import { slidePath } from "../api";
import { Facts } from "../parts/facts";
import type { Workspace } from "../slide/workspace";

const CAN_SHOW = ["macro", "label"];

export function AboutPanel({ space }: { space: Workspace }) {
  const { view } = space;
  return (
    <>
      {!view.has_slide && (
        <p class="warning">
          The slide itself cannot be read, so its picture stands in: {view.why_not ?? "no reason is known"}
        </p>
      )}
      {view.warnings.map((warning) => (
        <p key={warning} class="warning">
          {warning}
        </p>
      ))}
      <Facts
        facts={{
          size: `${view.width0} x ${view.height0} px`,
          "um a pixel": `${view.mpp_x.toFixed(4)} x ${view.mpp_y.toFixed(4)}`,
          model: view.model ? `${view.model.name}${view.model.version ? ` ${view.model.version}` : ""}` : null,
        }}
      />
      <h2>Numbers</h2>
      <Facts facts={view.numbers} />
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
