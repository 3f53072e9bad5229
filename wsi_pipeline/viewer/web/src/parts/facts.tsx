// Whatever the server tells, as a list of words and values; values inside of values are set in.
import { NONE, number } from "../format";

function text(value: unknown): string {
  if (value === null || value === undefined) {
    return NONE;
  }
  if (typeof value === "number") {
    return Number.isInteger(value) ? value.toLocaleString("en") : number(value, Math.abs(value) < 1 ? 3 : 2);
  }
  if (typeof value === "boolean") {
    return value ? "yes" : "no";
  }
  return String(value);
}

const isGroup = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export function Facts({ facts }: { facts: Record<string, unknown> }) {
  return (
    <dl class="facts">
      {Object.entries(facts).map(([name, value]) => (
        <div key={name} class={isGroup(value) ? "group" : ""}>
          <dt>{name.replaceAll("_", " ")}</dt>
          <dd>
            {isGroup(value) ? (
              <Facts facts={value} />
            ) : Array.isArray(value) ? (
              value.map(text).join(", ") || NONE
            ) : (
              text(value)
            )}
          </dd>
        </div>
      ))}
    </dl>
  );
}
