// What happened, said to screen readers, and shown for a while to all.
import { signal } from "@preact/signals";

const said = signal("");
const isError = signal(false);
let timer = 0;

export function announce(text: string, error = false): void {
  said.value = text;
  isError.value = error;
  window.clearTimeout(timer);
  timer = window.setTimeout(
    () => {
      said.value = "";
    },
    error ? 12_000 : 4_000,
  );
}

export function Announcements() {
  return (
    <div class={`toast ${isError.value ? "error" : ""}`} role={isError.value ? "alert" : "status"} aria-live="polite">
      {said.value}
    </div>
  );
}
