// The model's card in full.
import { useEffect, useState } from "preact/hooks";
import { getJson, sentence } from "../api";
import { Facts } from "../parts/facts";
import { Shell } from "../parts/shell";
import { Trouble } from "../parts/trouble";

const FIRST: [string, string][] = [
  ["trained_on", "What it was trained on"],
  ["measured", "What it was measured to do"],
  ["not_for", "What it is not for"],
];

export function ModelPage() {
  const [card, setCard] = useState<Record<string, unknown> | null>(null);
  const [trouble, setTrouble] = useState("");
  useEffect(() => {
    getJson<Record<string, unknown>>("/api/model").then(setCard, (error) => setTrouble(sentence(error)));
  }, []);
  return (
    <Shell title="The model">
      <h1>The model</h1>
      {trouble && <Trouble>{trouble}</Trouble>}
      {!card && !trouble && <p role="status">Loading the model…</p>}
      {card && (
        <>
          {FIRST.map(([key, title]) => (
            <section key={key}>
              <h2>{title}</h2>
              <Said value={card[key]} />
            </section>
          ))}
          <h2>The card in full</h2>
          <Facts
            facts={Object.fromEntries(Object.entries(card).filter(([key]) => !FIRST.some(([first]) => first === key)))}
          />
        </>
      )}
    </Shell>
  );
}

function Said({ value }: { value: unknown }) {
  if (Array.isArray(value)) {
    return (
      <ul>
        {value.map((line) => (
          <li key={String(line)}>{String(line)}</li>
        ))}
      </ul>
    );
  }
  if (typeof value === "object" && value !== null) {
    return <Facts facts={value as Record<string, unknown>} />;
  }
  return <p>{value === undefined || value === null ? "The card does not say." : String(value)}</p>;
}
