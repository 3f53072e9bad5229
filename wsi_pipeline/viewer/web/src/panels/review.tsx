// Review: what the model outlined, accepted, rejected, mended; what it missed, added.
import { useState } from "preact/hooks";
import { NONE, when } from "../format";
import { Trouble } from "../parts/trouble";
import { boxOf } from "../slide/geometry";
import { draw, drawing, drawWithKeys, finishCorners, mend, saveMended, stopDrawing } from "../slide/outline_tools";
import { CLASSES, change, type Item, itemsOf, selectedItem } from "../slide/review_actions";
import type { Workspace } from "../slide/workspace";
import { ReviewerName } from "./reviewer";

export function ReviewPanel({ space }: { space: Workspace }) {
  const review = space.review.review.value;
  if (space.review.trouble.value) {
    return <Trouble>{space.review.trouble.value}</Trouble>;
  }
  if (!review) {
    return <p>Loading…</p>;
  }
  if (space.readOnly) {
    return (
      <>
        <p class="small">Read only: the review is shown, and cannot be changed.</p>
        <Items space={space} />
      </>
    );
  }
  const item = selectedItem(space);
  return (
    <>
      <ReviewerName />
      <Drawing space={space} />
      <Items space={space} />
      {item && <Details key={item.id} space={space} item={item} classes={review.classes} />}
      <p class="row">
        <button
          type="button"
          disabled={review.revision === 0 || space.review.saving.value}
          onClick={() => space.review.undo()}
        >
          Undo the last change <kbd>z</kbd>
        </button>
      </p>
      <details>
        <summary>History ({review.history.length})</summary>
        <ol class="history" reversed>
          {[...review.history].reverse().map((entry) => (
            <li key={entry.revision}>
              {when(entry.time)}, {entry.reviewer}: {entry.action}
            </li>
          ))}
        </ol>
      </details>
      <p class="small">
        Saved beside the run as <code>review.geojson</code>, never over the model's own regions. QuPath opens it, and
        tile-slides takes it as labels for training.
      </p>
    </>
  );
}

function Drawing({ space }: { space: Workspace }) {
  const current = drawing.value;
  if (current?.mends) {
    return (
      <p class="row">
        <button type="button" class="main" onClick={() => saveMended(space)}>
          Save the outline
        </button>
        <button type="button" onClick={() => stopDrawing(space)}>
          Leave it as it was
        </button>
      </p>
    );
  }
  if (current || space.tool.value === "corners") {
    return (
      <p class="row">
        <span class="small">
          {current ? "Click corner after corner; double click ends." : "b sets a corner at the cross, e ends."}
        </span>
        {!current && (
          <button type="button" class="main" onClick={() => finishCorners(space)}>
            End the outline <kbd>e</kbd>
          </button>
        )}
        <button type="button" onClick={() => stopDrawing(space)}>
          Cancel <kbd>Esc</kbd>
        </button>
      </p>
    );
  }
  return (
    <p class="row">
      <button type="button" onClick={() => draw(space, null)}>
        Draw a region
      </button>
      <button type="button" onClick={() => drawWithKeys(space, null)}>
        With the keys <kbd>b</kbd>
      </button>
    </p>
  );
}

function Items({ space }: { space: Workspace }) {
  const items = itemsOf(space);
  const show = (item: Item) => {
    space.selected.value = item.id;
    const geometry = item.reviewed?.geometry ?? item.region?.feature.geometry;
    if (geometry) {
      space.stage.value?.fit(boxOf(geometry));
    }
  };
  const open = items.filter((item) => !item.reviewed?.properties.verdict).length;
  return (
    <>
      <h2>
        Regions{" "}
        <small>
          {items.length === 0 ? "none" : open > 0 ? `${open} of ${items.length} to review` : "all reviewed"}
        </small>
      </h2>
      <ul class="places">
        {items.map((item) => {
          const said = item.reviewed?.properties;
          return (
            <li key={item.id}>
              <button type="button" aria-pressed={item.id === space.selected.value} onClick={() => show(item)}>
                <b>{item.region ? item.id : (said?.source_region ?? "Added")}</b>
                <span>{said?.class ?? NONE}</span>
                <span class={`verdict ${said?.verdict ?? ""}`}>{said?.verdict ?? "not reviewed"}</span>
              </button>
            </li>
          );
        })}
      </ul>
    </>
  );
}

function Details({ space, item, classes }: { space: Workspace; item: Item; classes: string[] }) {
  const said = item.reviewed?.properties;
  const [note, setNote] = useState(said?.note ?? "");
  const [own, setOwn] = useState("");
  const known = [...new Set([...classes, ...CLASSES, ...(said ? [said.class] : [])])];
  const busy = space.review.saving.value;
  const addClass = (event: Event) => {
    event.preventDefault();
    if (own.trim()) {
      void change(space, item, { class: own.trim() });
      setOwn("");
    }
  };
  return (
    <section class="details" aria-label={`Review of ${item.id}`}>
      <h3>{item.region ? item.id : "Added region"}</h3>
      <fieldset class="row" aria-label="Verdict">
        <button
          type="button"
          class="accept"
          disabled={busy}
          aria-pressed={said?.verdict === "accepted"}
          onClick={() => change(space, item, { verdict: "accepted" })}
        >
          Accept <kbd>y</kbd>
        </button>
        <button
          type="button"
          class="reject"
          disabled={busy}
          aria-pressed={said?.verdict === "rejected"}
          onClick={() => change(space, item, { verdict: "rejected" })}
        >
          Reject <kbd>r</kbd>
        </button>
      </fieldset>
      <div class="row">
        <button type="button" disabled={busy} onClick={() => mend(space, item)}>
          Edit its outline
        </button>
        <button type="button" disabled={busy} onClick={() => draw(space, item)}>
          Redraw it
        </button>
        <button type="button" disabled={busy} onClick={() => drawWithKeys(space, item)}>
          Redraw with the keys
        </button>
      </div>
      <label class="line">
        Class{" "}
        <select
          value={said?.class ?? classes[0]}
          disabled={busy}
          onChange={(event) => change(space, item, { class: event.currentTarget.value })}
        >
          {known.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </label>
      <form class="row" onSubmit={addClass}>
        <label>
          <span class="hidden">A class of your own</span>
          <input
            placeholder="a class of your own"
            maxLength={60}
            value={own}
            onInput={(event) => setOwn(event.currentTarget.value)}
          />
        </label>
        <button type="submit" disabled={busy || !own.trim()}>
          Set
        </button>
      </form>
      <label class="stacked">
        <span>Note</span>
        <textarea rows={2} maxLength={2000} value={note} onInput={(event) => setNote(event.currentTarget.value)} />
      </label>
      <p class="row">
        <button
          type="button"
          disabled={busy || note === (said?.note ?? "")}
          onClick={() => change(space, item, { note })}
        >
          Save the note
        </button>
        {said && (
          <button type="button" disabled={busy} onClick={() => space.review.remove(said.id)}>
            {item.region ? "Withdraw the review" : "Delete"}
          </button>
        )}
      </p>
      {said?.time && (
        <p class="small">
          {said.reviewer}, {when(said.time)}
        </p>
      )}
    </section>
  );
}
