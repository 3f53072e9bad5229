// Keys and what they do, by groups.
import type { KeyHelp } from "./keys";

const NAMES: Record<string, string> = {
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  PageUp: "Page up",
  PageDown: "Page down",
  Escape: "Esc",
};

export function KeyTable({ help }: { help: KeyHelp[] }) {
  const groups = [...new Set(help.map(({ group }) => group))];
  return (
    <div class="keys">
      {groups.map((group) => (
        <section key={group}>
          <h3>{group}</h3>
          <dl>
            {help
              .filter((one) => one.group === group)
              .map(({ keys, does }) => (
                <div key={does}>
                  <dt>
                    {keys.map((key) => (
                      <kbd key={key}>{NAMES[key] ?? key}</kbd>
                    ))}
                  </dt>
                  <dd>{does}</dd>
                </div>
              ))}
          </dl>
        </section>
      ))}
    </div>
  );
}
