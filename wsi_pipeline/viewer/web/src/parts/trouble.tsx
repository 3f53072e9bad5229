import type { ComponentChildren } from "preact";

/** A reason why something is not here. */
export function Trouble({ children }: { children: ComponentChildren }) {
  return (
    <p class="trouble" role="alert">
      {children}
    </p>
  );
}
