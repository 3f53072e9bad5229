// One slide: the stage and its panels.
import { useEffect, useState } from "preact/hooks";
import { getJson, sentence, slidePath } from "../api";
import { count } from "../format";
import { follow } from "../list/follow";
import { AboutPanel } from "../panels/about";
import { GradingPanel } from "../panels/grading";
import { LayersPanel } from "../panels/layers";
import { PlacePanel } from "../panels/place";
import { RegionsPanel } from "../panels/regions";
import { ReviewPanel } from "../panels/review";
import { listen } from "../parts/keys";
import { Shell } from "../parts/shell";
import { Tabs } from "../parts/tabs";
import { Trouble } from "../parts/trouble";
import { KeysDialog } from "../slide/keys_dialog";
import { bindings } from "../slide/shortcuts";
import { StageView } from "../slide/stage_view";
import { type Tab, Workspace } from "../slide/workspace";
import type { PassedOver, SlideList, SlideView } from "../types";

const TABS: [Tab, string][] = [
  ["map", "Map"],
  ["regions", "Regions"],
  ["review", "Review"],
  ["grading", "Grading"],
  ["place", "Ask"],
  ["about", "About"],
];

async function open(id: string): Promise<Workspace> {
  const space = new Workspace(await getJson<SlideView>(slidePath(id)));
  void space.review.load();
  void space.grades.load();
  void space.outlineAnew();
  return space;
}

function nameOf(id: string): string {
  try {
    return decodeURIComponent(id);
  } catch {
    return id;
  }
}

/** Why there is no result, as the list says. */
async function reasonOf(id: string): Promise<string | null> {
  const list = await getJson<SlideList>("/api/slides").catch(() => null);
  return list?.slides.find((slide) => slide.id === id)?.reason ?? null;
}

export function SlidePage({ id }: { id: string }) {
  const [space, setSpace] = useState<Workspace | null>(null);
  const [trouble, setTrouble] = useState("");
  useEffect(() => {
    open(id).then(setSpace, async (error) => setTrouble((await reasonOf(id)) ?? sentence(error)));
  }, [id]);
  useEffect(() => {
    if (!space) {
      return;
    }
    const acts = new Map(bindings(space).flatMap(({ keys, act }) => keys.map((key) => [key, act] as const)));
    return listen(() => acts);
  }, [space]);

  if (!space) {
    return (
      <Shell title="Slide" wide>
        {trouble ? (
          <>
            <h1>{nameOf(id)} cannot be shown</h1>
            <Trouble>{trouble}</Trouble>
            <p>
              <a href="/">All slides</a>
            </p>
          </>
        ) : (
          <p role="status">Loading…</p>
        )}
      </Shell>
    );
  }
  return <OpenSlide space={space} />;
}

function OpenSlide({ space }: { space: Workspace }) {
  const { view } = space;
  return (
    <Shell
      title={view.name}
      wide
      beside={
        <h1 class="slide-name" title={view.name}>
          {view.name}
        </h1>
      }
    >
      <div class="slide-page">
        <StageView space={space} />
        <aside class="side" aria-label="Panels">
          <Notices space={space} />
          {!view.has_slide && (
            <p class="warning">The slide itself cannot be read: its small picture stands in. {view.why_not}</p>
          )}
          <Tabs
            label="Panels"
            tabs={TABS}
            chosen={space.tab.value}
            choose={(tab) => {
              space.tab.value = tab;
            }}
          >
            <Panel space={space} />
          </Tabs>
        </aside>
      </div>
      <KeysDialog space={space} />
    </Shell>
  );
}

/** What is to be known of this slide before its map is read. */
function Notices({ space }: { space: Workspace }) {
  const { view } = space;
  const [grown, setGrown] = useState(false);
  useEffect(() => {
    if (view.complete) {
      return;
    }
    return follow(async () => {
      const now = await getJson<SlideView>(slidePath(view.id)).catch(() => null);
      setGrown(now !== null && now.stamp !== view.stamp);
    });
  }, [view]);
  const stretch = Math.round((Math.max(view.mpp_x, view.mpp_y) / Math.min(view.mpp_x, view.mpp_y) - 1) * 100);
  return (
    <>
      {!view.complete && (
        <p class="warning">
          The run of this slide has not ended: the map holds what was scored so far.{" "}
          {grown && (
            <button type="button" onClick={() => window.location.reload()}>
              Show it as it is now
            </button>
          )}
        </p>
      )}
      {stretch >= 1 && (
        <p class="warning">
          This slide's pixels are not square: it looks stretched by {stretch} %. The scale bar holds along x; positions,
          areas and fields are right.
        </p>
      )}
      <PassedOverLines found={space.review.review.value?.passed_over} />
      <PassedOverLines found={space.grades.grading.value?.passed_over} />
    </>
  );
}

/** Of what people changed, a part that cannot be read: they must not take the rest for all. */
function PassedOverLines({ found }: { found: PassedOver | null | undefined }) {
  return found ? (
    <p class="warning">
      {count(found.lines, "line")} of this slide's {found.file} cannot be read as a whole change and{" "}
      {found.lines === 1 ? "was" : "were"} passed over (line {found.first}
      {found.lines === 1 ? "" : " is the first"}): what was entered there is not shown. All other lines stand.
    </p>
  ) : null;
}

function Panel({ space }: { space: Workspace }) {
  switch (space.tab.value) {
    case "map":
      return <LayersPanel space={space} />;
    case "regions":
      return <RegionsPanel space={space} />;
    case "review":
      return <ReviewPanel space={space} />;
    case "grading":
      return <GradingPanel space={space} />;
    case "place":
      return <PlacePanel space={space} />;
    case "about":
      return <AboutPanel space={space} />;
  }
}
