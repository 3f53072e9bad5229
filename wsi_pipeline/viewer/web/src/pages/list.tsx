// All slides: search, sort, filter; follows a running batch.
import { useEffect, useMemo, useState } from "preact/hooks";
import { getJson, sentence } from "../api";
import { count } from "../format";
import { follow } from "../list/follow";
import { Rows } from "../list/patients";
import { BatchProgress } from "../list/progress";
import { COLUMNS, type Query, queryOf, searchOf, shown, WITH_WARNINGS } from "../list/query";
import { listen } from "../parts/keys";
import { Shell } from "../parts/shell";
import { Trouble } from "../parts/trouble";
import type { SlideList } from "../types";

const AT_ONCE = 200;
const STATUSES = ["done", "running", "unfinished", "failed", "broken"];

const KEYS = new Map([
  ["/", () => document.getElementById("search")?.focus()],
  ["?", () => window.location.assign("/help")],
]);

export function ListPage() {
  const [list, setList] = useState<SlideList | null>(null);
  const [trouble, setTrouble] = useState("");
  const [query, setQuery] = useState<Query>(() => queryOf(window.location.search));
  const [most, setMost] = useState(AT_ONCE);

  useEffect(
    () =>
      follow(async () => {
        try {
          setList(await getJson<SlideList>("/api/slides"));
          setTrouble("");
        } catch (error) {
          setTrouble(sentence(error));
        }
      }),
    [],
  );
  useEffect(() => window.history.replaceState(null, "", searchOf(query)), [query]);
  useEffect(() => listen(() => KEYS), []);

  const slides = useMemo(() => (list ? shown(list.slides, query) : []), [list, query]);
  const change = (part: Partial<Query>) => setQuery({ ...query, ...part });
  const sort = (column: string) =>
    change(query.sort === column ? { descending: !query.descending } : { sort: column, descending: false });

  return (
    <Shell title="Slides" wide>
      <h1>Slides</h1>
      {trouble && <Trouble>{trouble}</Trouble>}
      {list && (
        <>
          <p class="where">
            {list.out}
            {list.read_only && " (read only)"}
          </p>
          {list.batch && <BatchProgress batch={list.batch} />}
          <search class="filters">
            <label>
              Search{" "}
              <input
                id="search"
                type="search"
                placeholder="name, patient, model ( / )"
                value={query.text}
                onInput={(event) => change({ text: event.currentTarget.value })}
              />
            </label>
            <label>
              Show{" "}
              <select value={query.status} onChange={(event) => change({ status: event.currentTarget.value })}>
                <option value="">all</option>
                {STATUSES.map((status) => (
                  <option key={status}>{status}</option>
                ))}
                <option value={WITH_WARNINGS}>with warnings</option>
              </select>
            </label>
            <output>
              {slides.length === list.slides.length
                ? count(slides.length, "slide")
                : `${slides.length} of ${count(list.slides.length, "slide")}`}
            </output>
          </search>
          <table class="slides">
            <caption class="hidden">Slides; the buttons in the head sort</caption>
            <thead>
              <tr>
                <td class="thumb" />
                {COLUMNS.map((column) => (
                  <th
                    key={column.key}
                    scope="col"
                    class={column.numeric ? "numeric" : ""}
                    aria-sort={query.sort === column.key ? (query.descending ? "descending" : "ascending") : "none"}
                  >
                    <button type="button" class="sort" onClick={() => sort(column.key)}>
                      {column.title}
                      <span aria-hidden="true">
                        {query.sort === column.key ? (query.descending ? " ▼" : " ▲") : ""}
                      </span>
                    </button>
                  </th>
                ))}
              </tr>
            </thead>
            <Rows all={slides} most={most} byPatient={query.sort === "patient"} />
          </table>
          {slides.length > most && (
            <button type="button" onClick={() => setMost(most + AT_ONCE)}>
              Show {Math.min(AT_ONCE, slides.length - most)} more
            </button>
          )}
          {slides.length === 0 && (
            <p>{list.slides.length === 0 ? "No run folder here yet: infer-slide makes them." : "No slide matches."}</p>
          )}
        </>
      )}
    </Shell>
  );
}
