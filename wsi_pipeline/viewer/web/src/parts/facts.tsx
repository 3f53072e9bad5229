// Whatever the server tells, as a list of words and values; values inside of values are folded away.
import { NONE, number } from "../format";

function text(value: unknown): string {
  if (value === null || value === undefined || value === "") {
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

const isGroup = (value: unknown): value is Record<string, unknown> | unknown[] =>
  typeof value === "object" && value !== null && (!Array.isArray(value) || value.some(isObject));

const isObject = (value: unknown): boolean => typeof value === "object" && value !== null;

export function Facts({ facts }: { facts: Record<string, unknown> | unknown[] }) {
  const entries = Array.isArray(facts)
    ? facts.map((value, i) => [String(i + 1), value] as const)
    : Object.entries(facts);
  return (
    <dl class="facts">
      {entries.map(([name, value]) =>
        isGroup(value) ? (
          <div key={name} class="group">
            <dt class="hidden">{name.replaceAll("_", " ")}</dt>
            <dd>
              <details>
                <summary>{name.replaceAll("_", " ")}</summary>
                <Facts facts={value} />
              </details>
            </dd>
          </div>
        ) : (
          <div key={name}>
            <dt>{name.replaceAll("_", " ")}</dt>
            <dd>{Array.isArray(value) ? value.map(text).join(", ") || NONE : text(value)}</dd>
          </div>
        ),
      )}
    </dl>
  );
}
