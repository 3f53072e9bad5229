// The model asked about one place on the slide.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { send, sentence, slidePath } from "../api";
import { length } from "../format";
import { PredictionResult } from "../parts/prediction";
import { Trouble } from "../parts/trouble";
import type { Workspace } from "../slide/workspace";
import type { Point, Prediction } from "../types";

export function PlacePanel({ space }: { space: Workspace }) {
  const answer = useSignal<{ place: Point; prediction: Prediction } | null>(null);
  const trouble = useSignal("");
  const busy = useSignal(false);
  const place = space.place.value;
  useEffect(() => {
    if (!place || answer.value?.place === place) {
      return;
    }
    let stale = false;
    trouble.value = "";
    busy.value = true;
    send<Prediction>("POST", slidePath(space.view.id, "/predict"), { x0: place[0], y0: place[1] })
      .then((prediction) => {
        if (!stale) {
          answer.value = { place, prediction };
        }
      })
      .catch((error) => {
        if (!stale) {
          answer.value = null;
          trouble.value = sentence(error);
        }
      })
      .finally(() => {
        if (!stale) {
          busy.value = false;
        }
      });
    return () => {
      stale = true;
    };
  }, [place]);
  useEffect(
    () => () => {
      if (space.tool.value === "place") {
        space.tool.value = "look";
      }
      space.place.value = null;
    },
    [],
  );
  if (!space.view.has_slide) {
    return <p>The slide itself is not here, so no place on it can be scored.</p>;
  }
  const picking = space.tool.value === "place";
  return (
    <>
      <p>The model sees one patch at the place, by itself: what the map shows there may differ by its neighbours.</p>
      <p class="row">
        <button
          type="button"
          aria-pressed={picking}
          onClick={() => {
            space.tool.value = picking ? "look" : "place";
          }}
        >
          {picking ? "Stop picking" : "Pick by clicking"}
        </button>
        <button
          type="button"
          onClick={() => {
            space.cross.value = true;
            space.place.value = space.middle;
          }}
        >
          In the middle of the view
        </button>
      </p>
      {busy.value && <p role="status">Asking the model…</p>}
      {trouble.value && <Trouble>{trouble.value}</Trouble>}
      {answer.value && place && (
        <>
          <p class="small">
            At x {length(place[0] * space.view.mpp_x)}, y {length(place[1] * space.view.mpp_y)}
          </p>
          <PredictionResult prediction={answer.value.prediction} />
        </>
      )}
    </>
  );
}
