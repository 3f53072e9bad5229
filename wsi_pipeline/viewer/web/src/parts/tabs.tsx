// Panels behind tabs: arrows go from tab to tab, as screen readers expect.
import type { ComponentChildren } from "preact";

interface Props<T extends string> {
  tabs: [T, string][];
  chosen: T;
  choose: (tab: T) => void;
  label: string;
  children: ComponentChildren;
}

export function Tabs<T extends string>({ tabs, chosen, choose, label, children }: Props<T>) {
  const step = (event: KeyboardEvent) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    const at = tabs.findIndex(([tab]) => tab === chosen);
    const next = tabs[(at + by + tabs.length) % tabs.length];
    if (next) {
      choose(next[0]);
      document.getElementById(`tab-${next[0]}`)?.focus();
    }
  };
  return (
    <>
      <div class="tabs" role="tablist" aria-label={label} onKeyDown={step}>
        {tabs.map(([tab, name]) => (
          <button
            key={tab}
            id={`tab-${tab}`}
            type="button"
            role="tab"
            aria-selected={tab === chosen}
            aria-controls="panel"
            tabIndex={tab === chosen ? 0 : -1}
            onClick={() => choose(tab)}
          >
            {name}
          </button>
        ))}
      </div>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, so the keys must reach it */}
      <div id="panel" class="panel" role="tabpanel" aria-labelledby={`tab-${chosen}`} tabIndex={0}>
        {children}
      </div>
    </>
  );
}
