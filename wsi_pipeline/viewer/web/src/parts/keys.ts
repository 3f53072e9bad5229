// One table of keys: what the help page lists is what the slide's page obeys.

export interface KeyHelp {
  keys: string[];
  does: string;
  group: string;
}

export interface KeyBinding extends KeyHelp {
  act: () => unknown;
}

const NO_TEXT = ["checkbox", "radio", "button", "submit", "range", "file"];

export const isTyping = (target: Element | null): boolean =>
  (target instanceof HTMLElement && target.isContentEditable) ||
  target instanceof HTMLTextAreaElement ||
  (target instanceof HTMLInputElement && !NO_TEXT.includes(target.type));

// No text and no choice begins with them.
const NO_LETTERS = ["?", "Escape"];

/** Whether the key belongs to what has the focus: arrows to sliders and radio buttons, all to text, few to choices. */
function belongsToControl(target: EventTarget | null, key: string): boolean {
  if (!(target instanceof HTMLElement)) {
    return false;
  }
  const moves = key.startsWith("Arrow") || key.startsWith("Page");
  const takesMoves = target instanceof HTMLInputElement || target.closest("[role=tablist], [role=tabpanel]") !== null;
  if (isTyping(target)) {
    return key !== "Escape";
  }
  return target instanceof HTMLSelectElement ? !NO_LETTERS.includes(key) : moves && takesMoves;
}

/** Obey the bindings until the answer is called. Keys with Ctrl, Alt or Meta are the browser's. */
export function listen(bindings: () => Map<string, () => unknown>): () => void {
  const pressed = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) {
      return;
    }
    if (belongsToControl(event.target, event.key) || document.querySelector("dialog[open]")) {
      return;
    }
    const act = bindings().get(event.key);
    if (act) {
      event.preventDefault();
      act();
    }
  };
  window.addEventListener("keydown", pressed);
  return () => window.removeEventListener("keydown", pressed);
}
