// A picture of one's own, scored at once.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { getJson, send, sentence } from "../api";
import { ModelCard } from "../parts/card";
import { PatchedPicture } from "../parts/patches";
import { PredictionResult } from "../parts/prediction";
import { Shell } from "../parts/shell";
import { Trouble } from "../parts/trouble";
import type { Prediction } from "../types";

const MOST_BYTES = 20_000_000;

export function TryPage() {
  const file = useSignal<File | null>(null);
  const picture = useSignal("");
  const mpp = useSignal("");
  const over = useSignal(false);
  const busy = useSignal(false);
  const trouble = useSignal("");
  const prediction = useSignal<Prediction | null>(null);
  const card = useSignal<Record<string, unknown> | null>(null);

  useEffect(() => () => URL.revokeObjectURL(picture.value), []);

  const take = (given: File | undefined | null) => {
    if (!given) {
      return;
    }
    URL.revokeObjectURL(picture.value);
    prediction.value = null;
    trouble.value =
      given.size > MOST_BYTES ? `${given.name} has ${Math.round(given.size / 1e6)} MB; at most 20 MB can be sent.` : "";
    file.value = trouble.value ? null : given;
    picture.value = file.value ? URL.createObjectURL(given) : "";
  };
  const ask = async (event: Event) => {
    event.preventDefault();
    if (!file.value) {
      trouble.value = "Choose a picture first.";
      return;
    }
    busy.value = true;
    trouble.value = "";
    prediction.value = null;
    try {
      const asked = new URLSearchParams({ name: file.value.name.slice(0, 200) });
      if (mpp.value.trim()) {
        asked.set("mpp", mpp.value.trim().replace(",", "."));
      }
      prediction.value = await send<Prediction>("POST", `/api/predict?${asked}`, file.value);
      card.value ??= await getJson<Record<string, unknown>>("/api/model");
    } catch (error) {
      trouble.value = sentence(error);
    }
    busy.value = false;
  };

  return (
    <Shell title="Try a picture">
      <h1>Try a picture</h1>
      <p>
        A patch or a field of an H&amp;E section: PNG, JPEG or TIFF, at most 20 MB. It is sent to this server only, and
        not kept.
      </p>
      <form onSubmit={ask}>
        <label
          class={`drop ${over.value ? "over" : ""}`}
          onDragOver={(event) => {
            event.preventDefault();
            over.value = true;
          }}
          onDragLeave={() => {
            over.value = false;
          }}
          onDrop={(event) => {
            event.preventDefault();
            over.value = false;
            take(event.dataTransfer?.files[0]);
          }}
        >
          <span>{file.value ? file.value.name : "Drop a picture here, or click to choose one"}</span>
          {file.value && <span class="small">Drop another here, or click to choose it</span>}
          <input
            type="file"
            class="hidden"
            accept="image/png,image/jpeg,image/tiff,image/webp,image/bmp"
            onChange={(event) => take(event.currentTarget.files?.[0])}
          />
        </label>
        <p class="row">
          <label>
            Micrometres a pixel{" "}
            <input
              inputMode="decimal"
              size={7}
              placeholder="0.25"
              value={mpp.value}
              onInput={(event) => {
                mpp.value = event.currentTarget.value;
              }}
            />
          </label>
          <span class="small">
            0.25 at 40x, 0.5 at 20x; may be left out for a patch just as large as the model's own
          </span>
        </p>
        <p>
          <button type="submit" class="main" disabled={busy.value}>
            {busy.value ? "Asking the model…" : "Ask the model"}
          </button>
        </p>
      </form>
      {trouble.value && <Trouble>{trouble.value}</Trouble>}
      <div class="answer">
        {picture.value && <PatchedPicture picture={picture.value} prediction={prediction.value} />}
        {prediction.value && <PredictionResult prediction={prediction.value} hasCard={card.value !== null} />}
      </div>
      {prediction.value && card.value && (
        <section aria-label="The model">
          <h2>The model: {String(card.value.name)}</h2>
          <ModelCard card={card.value} />
        </section>
      )}
    </Shell>
  );
}
