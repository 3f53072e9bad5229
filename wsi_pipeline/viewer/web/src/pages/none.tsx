import { Shell } from "../parts/shell";

export function NoPage() {
  return (
    <Shell title="No such page">
      <h1>No such page</h1>
      <p>
        There is nothing at {window.location.pathname}. <a href="/">All slides</a>
      </p>
    </Shell>
  );
}
