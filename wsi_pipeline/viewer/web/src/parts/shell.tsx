// What stands around every page.
import type { ComponentChildren } from "preact";
import { Announcements } from "./announce";
import { ThemeChoice } from "./theme";

const PAGES: [string, string][] = [
  ["/", "Slides"],
  ["/try", "Try a picture"],
  ["/model", "Model"],
  ["/help", "Help"],
];

interface Props {
  title: string;
  wide?: boolean;
  beside?: ComponentChildren;
  children: ComponentChildren;
}

export function Shell({ title, wide, beside, children }: Props) {
  document.title = title;
  const here = window.location.pathname;
  return (
    <div class={wide ? "shell wide" : "shell"}>
      <a class="skip" href="#content">
        Skip to the content
      </a>
      <header class="top">
        <nav aria-label="Pages">
          {PAGES.map(([path, name]) => (
            <a key={path} href={path} aria-current={here === path ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        <div class="beside">{beside}</div>
        <ThemeChoice />
      </header>
      <main id="content" tabIndex={-1}>
        {children}
      </main>
      <Announcements />
    </div>
  );
}
