// Which slides are listed, and in which order; kept in the URL.
import type { ListedSlide } from "../types";

export interface Query {
  text: string;
  status: string;
  sort: string;
  descending: boolean;
}

export const WITH_WARNINGS = "warnings";

interface Column {
  key: string;
  title: string;
  numeric: boolean;
  value: (slide: ListedSlide) => string | number | null;
}

export const COLUMNS: Column[] = [
  { key: "name", title: "Slide", numeric: false, value: (slide) => slide.name },
  { key: "patient", title: "Patient", numeric: false, value: (slide) => slide.patient },
  { key: "status", title: "Status", numeric: false, value: (slide) => slide.status },
  { key: "idc", title: "IDC", numeric: true, value: (slide) => slide.idc_mm2 },
  { key: "share", title: "Share of tissue", numeric: true, value: (slide) => slide.share },
  { key: "warnings", title: "Warnings", numeric: false, value: (slide) => slide.warnings.length },
  { key: "model", title: "Model", numeric: false, value: (slide) => slide.model },
  { key: "finished", title: "Finished", numeric: false, value: (slide) => slide.finished },
];

export function queryOf(search: string): Query {
  const given = new URLSearchParams(search);
  return {
    text: given.get("q") ?? "",
    status: given.get("show") ?? "",
    sort: given.get("sort") ?? "name",
    descending: given.has("down"),
  };
}

export function searchOf(query: Query): string {
  const kept = new URLSearchParams();
  if (query.text) {
    kept.set("q", query.text);
  }
  if (query.status) {
    kept.set("show", query.status);
  }
  if (query.sort !== "name") {
    kept.set("sort", query.sort);
  }
  if (query.descending) {
    kept.set("down", "");
  }
  const text = kept.toString();
  return text ? `?${text}` : window.location.pathname;
}

const inOrder = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** The slides that match, in order; what has no value comes last either way. */
export function shown(slides: ListedSlide[], query: Query): ListedSlide[] {
  const words = query.text.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (slide: ListedSlide) => {
    const text = [slide.name, slide.patient, slide.model, slide.status, slide.reason].join("\n").toLowerCase();
    const fits =
      !query.status || (query.status === WITH_WARNINGS ? slide.warnings.length > 0 : slide.status === query.status);
    return fits && words.every((word) => text.includes(word));
  };
  const column = COLUMNS.find((candidate) => candidate.key === query.sort) ?? COLUMNS[0];
  const compare = (a: ListedSlide, b: ListedSlide) => {
    const [left, right] = [column?.value(a) ?? null, column?.value(b) ?? null];
    if (left === null || right === null) {
      return left === right ? 0 : left === null ? 1 : -1;
    }
    const order =
      typeof left === "number" && typeof right === "number" ? left - right : inOrder.compare(`${left}`, `${right}`);
    return query.descending ? -order : order;
  };
  return slides.filter(matches).sort((a, b) => compare(a, b) || inOrder.compare(a.name, b.name));
}
