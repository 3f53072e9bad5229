import { reviewer, setReviewer } from "../slide/reviewer";

export function ReviewerName() {
  return (
    <label class="stacked">
      <span>Your name, kept with each change</span>
      <input
        class="reviewer"
        type="text"
        autocomplete="name"
        maxLength={80}
        value={reviewer.value}
        onInput={(event) => setReviewer(event.currentTarget.value)}
      />
    </label>
  );
}
