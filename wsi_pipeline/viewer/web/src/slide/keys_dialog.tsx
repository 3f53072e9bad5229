// The keys, over the slide: whoever looks one up stays where they are.
import { useSignalEffect } from "@preact/signals";
import { useRef } from "preact/hooks";
import { KeyTable } from "../parts/key_table";
import { KEY_HELP } from "./key_help";
import type { Workspace } from "./workspace";

export function KeysDialog({ space }: { space: Workspace }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useSignalEffect(() => {
    if (space.keysShown.value) {
      dialog.current?.showModal();
    } else {
      dialog.current?.close();
    }
  });
  const leave = () => {
    space.keysShown.value = false;
  };
  return (
    <dialog ref={dialog} class="keys-dialog" aria-label="Keys" onClose={leave}>
      <p class="row">
        <button type="button" onClick={leave}>
          Close <kbd>Esc</kbd>
        </button>
        <a href="/help" target="_blank" rel="noopener">
          All help
        </a>
      </p>
      <KeyTable help={KEY_HELP} />
    </dialog>
  );
}
