// Light or dark: as the system says, unless chosen.
import { signal } from "@preact/signals";

type Theme = "auto" | "light" | "dark";
const KEY = "wsi-pipeline-theme";

function stored(): Theme {
  const value = localStorage.getItem(KEY);
  return value === "light" || value === "dark" ? value : "auto";
}

export const theme = signal<Theme>(stored());

export function applyTheme(): void {
  if (theme.value === "auto") {
    delete document.documentElement.dataset.theme;
  } else {
    document.documentElement.dataset.theme = theme.value;
  }
}

export function ThemeChoice() {
  const choose = (value: string) => {
    theme.value = value as Theme;
    localStorage.setItem(KEY, value);
    applyTheme();
  };
  return (
    <label class="quiet">
      <span class="hidden">Colours of the page</span>
      <select value={theme.value} onChange={(event) => choose(event.currentTarget.value)}>
        <option value="auto">Light or dark: auto</option>
        <option value="light">Light</option>
        <option value="dark">Dark</option>
      </select>
    </label>
  );
}
