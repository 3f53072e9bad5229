// The model's card in full.
import { useEffect, useState } from "preact/hooks";
import { getJson, sentence } from "../api";
import { ModelCard } from "../parts/card";
import { Shell } from "../parts/shell";
import { Trouble } from "../parts/trouble";

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
          <h2>{String(card.name)}</h2>
          <ModelCard card={card} />
        </>
      )}
    </Shell>
  );
}
