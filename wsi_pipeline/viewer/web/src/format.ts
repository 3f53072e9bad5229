// Numbers and times as people read them.

export const NONE = "–";

export function number(value: number | null | undefined, digits: number): string {
  if (value === null || value === undefined || !Number.isFinite(value)) {
    return NONE;
  }
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export const whole = (value: number): string => number(value, 0);

/** An area: more digits where it is small, so that a small focus is not 0.0. */
export function area(mm2: number | null | undefined): string {
  if (mm2 === null || mm2 === undefined) {
    return NONE;
  }
  return `${number(mm2, mm2 !== 0 && Math.abs(mm2) < 1 ? 2 : 1)} mm²`;
}

export const share = (value: number | null | undefined): string =>
  value === null || value === undefined ? NONE : `${number(value * 100, value < 0.1 ? 1 : 0)} %`;

/** A length: um below one mm, mm above. */
export const length = (um: number): string =>
  Math.abs(um) < 1000 ? `${number(um, 0)} µm` : `${number(um / 1000, 2)} mm`;

export function duration(seconds: number | null): string {
  if (seconds === null) {
    return NONE;
  }
  if (seconds < 60) {
    return `${Math.max(1, Math.round(seconds))} s`;
  }
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function when(iso: string | null | undefined): string {
  const time = iso ? new Date(iso) : null;
  if (!time || Number.isNaN(time.getTime())) {
    return NONE;
  }
  return time.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

/** "1 region", "3 regions". */
export const count = (n: number, one: string, many = `${one}s`): string =>
  `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
