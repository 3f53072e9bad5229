// The table of keys for the help page: the bindings themselves, of a slide that is not there.
import type { KeyHelp } from "../parts/keys";
import { bindings } from "./shortcuts";
import type { Workspace } from "./workspace";

export const KEY_HELP: KeyHelp[] = bindings({ stage: { value: null } } as unknown as Workspace);
