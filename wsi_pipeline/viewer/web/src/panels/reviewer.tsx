import { reviewer, setReviewer } from "../slide/reviewer";

export function ReviewerName() {
  return (
    <label class="reviewer-name">
      <span>Your name</span>
      <input
        class="reviewer"
        type="text"
        title="Kept with each change"
        autocomplete="name"
        maxLength={80}
        value={reviewer.value}
        onInput={(event) => setReviewer(event.currentTarget.value)}
      />
    </label>
  );
}
