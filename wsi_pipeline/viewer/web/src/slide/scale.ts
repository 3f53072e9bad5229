// Magnification, as on a microscope: 40x shows 0.25 um a point of the screen (a CSS pixel), 10x 1 um.

export const MAGNIFICATIONS = [1.25, 2.5, 5, 10, 20, 40];

const UM_AT_ONE = 10;

export const umPerPoint = (magnification: number): number => UM_AT_ONE / magnification;
export const magnificationOf = (umPerPx: number): number => UM_AT_ONE / umPerPx;

const SMALLEST_FONT_PX = 14;

/** How much larger than on a small screen what is drawn on the slide is: as the page's letters, which grow with it. */
export const enlarged = (): number =>
  Number.parseFloat(getComputedStyle(document.documentElement).fontSize) / SMALLEST_FONT_PX;

/** The longest of 1, 2, 5 times a power of ten um that fits. */
export function barLength(umPerPx: number, mostPx: number): number {
  const most = umPerPx * mostPx;
  const power = 10 ** Math.floor(Math.log10(most));
  const step = [5, 2, 1].find((candidate) => candidate * power <= most) ?? 1;
  return step * power;
}

/** 1.25x, 10x, 7.3x. */
export const named = (magnification: number): string =>
  `${Number(magnification.toPrecision(magnification < 10 ? 3 : 2))}x`;
