import { duration, when } from "../format";
import type { Batch } from "../types";

/** How far a running batch is; nothing where none is running. */
export function BatchProgress({ batch }: { batch: Batch }) {
  const ended = batch.done + batch.failed;
  if (!batch.running) {
    return null;
  }
  const left = batch.seconds_left === null ? "" : `, about ${duration(batch.seconds_left)} left`;
  return (
    <section class="batch" aria-label="Running batch">
      <progress aria-label="Slides ended" value={ended} max={Math.max(batch.planned, 1)} />
      <span>
        {ended} of {batch.planned} slides ended
        {batch.failed > 0 && `, ${batch.failed} failed`}
        {left}. Last heard of {when(batch.last_event)}.
      </span>
    </section>
  );
}
