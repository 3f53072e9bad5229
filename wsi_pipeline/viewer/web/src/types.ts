// What the server answers. Positions are level-0 pixels (x0, y0), lengths micrometres, areas mm2, times ISO 8601.

export type SlideStatus = "done" | "failed" | "running" | "unfinished" | "broken";

export interface ListedSlide {
  id: string;
  name: string;
  patient: string | null;
  status: SlideStatus;
  reason: string | null;
  idc_mm2: number | null;
  tissue_mm2: number | null;
  share: number | null;
  warnings: string[];
  model: string | null;
  started: string | null;
  finished: string | null;
  progress: number | null;
  thumbnail: string | null;
}

export interface Batch {
  running: boolean;
  done: number;
  failed: number;
  planned: number;
  seconds_left: number | null;
  last_event: string | null;
}

export interface SlideList {
  out: string;
  read_only: boolean;
  batch: Batch | null;
  slides: ListedSlide[];
}

export type Point = [number, number];
export type Ring = Point[];

export interface PolygonGeometry {
  type: "Polygon";
  coordinates: Ring[];
}

export interface MultiPolygonGeometry {
  type: "MultiPolygon";
  coordinates: Ring[][];
}

export type Geometry = PolygonGeometry | MultiPolygonGeometry;

export interface Feature<P> {
  type: "Feature";
  id?: string;
  geometry: Geometry;
  properties: P;
}

export interface FeatureCollection<P> {
  type: "FeatureCollection";
  features: Feature<P>[];
}

export interface RegionProperties {
  name: string;
  area_mm2: number;
  mean_probability: number;
  max_probability: number;
}

export interface Layer {
  name: string;
  title: string;
  /** of_class: the probability of another class of the model, which no threshold is for. */
  kind: "probability" | "of_class" | "deviation" | "classes";
  /** Width and height of a cell. */
  cell_um: [number, number];
  legend: LegendEntry[] | null;
}

export interface LegendEntry {
  value: number;
  name: string;
  rgba: [number, number, number, number];
}

export interface GradingPlace {
  id: string;
  x0: number;
  y0: number;
  radius_x0: number;
  radius_y0: number;
  diameter_um: number;
  usable_mm2: number | null;
  mean_probability: number | null;
}

export interface ModelFacts {
  name: string;
  version?: string | null;
  sha256?: string | null;
}

export interface SlideView {
  id: string;
  name: string;
  width0: number;
  height0: number;
  mpp_x: number;
  mpp_y: number;
  has_slide: boolean;
  why_not: string | null;
  tile_size: number;
  levels: number;
  /** Changes when the result does: what carries it may be kept by the browser. */
  stamp: string;
  layers: Layer[];
  threshold: number | null;
  threshold_low: number | null;
  colormaps: string[];
  colormap_stops?: Record<string, string[]>;
  default_colormap: string;
  regions: FeatureCollection<RegionProperties>;
  fields: GradingPlace[];
  numbers: Record<string, unknown>;
  warnings: string[];
  model: ModelFacts | null;
  pictures: Record<string, string>;
  read_only: boolean;
  complete: boolean;
  map_kind: string | null;
  associated: string[];
}

export interface Outlines {
  threshold: number;
  regions: FeatureCollection<RegionProperties>;
  idc_mm2: number;
  n: number;
}

export interface AtPlace {
  probability: number | null;
  patch_probability: number | null;
  uncertainty: number | null;
  /** Of the layer of another class that was asked for. */
  of_class?: number | null;
  status: string;
}

export type Verdict = "accepted" | "rejected" | "redrawn" | "added";

export interface ReviewProperties {
  id: string;
  class: string;
  verdict: Verdict | null;
  note: string;
  reviewer?: string;
  time?: string;
  source_region: string | null;
}

export interface ReviewChange {
  revision: number;
  time: string;
  reviewer: string;
  action: string;
  feature_id: string | null;
}

/** Lines of a file of changes that are no whole change; `first` counts from 1. */
export interface PassedOver {
  file: string;
  lines: number;
  first: number;
}

export interface Review {
  revision: number;
  features: FeatureCollection<ReviewProperties>;
  classes: string[];
  history: ReviewChange[];
  passed_over: PassedOver | null;
}

export type Score = 1 | 2 | 3;

export interface FieldGrades {
  id: string;
  tubules: Score | null;
  nuclei: Score | null;
  mitoses: Point[];
  /** Whether somebody looked for mitoses: none found is a count, too. */
  counted: boolean;
}

export interface ComputedGrade {
  fields_counted: number;
  mitotic_count: number | null;
  mitotic_score: number | null;
  field_area_mm2: number | null;
  total: number | null;
  grade: number | null;
  missing: string[];
  thresholds: { score2_from: number; score3_from: number; source: string } | null;
}

export interface Grading {
  revision: number;
  reviewer: string | null;
  time: string | null;
  fields: FieldGrades[];
  /** Of the tumour as a whole: the grade is computed from these. */
  tubules: Score | null;
  nuclei: Score | null;
  computed: ComputedGrade;
  passed_over: PassedOver | null;
}

/** Of validation patches with about one score: how many, and the share that is IDC. */
export interface ScoreBin {
  from: number;
  to: number;
  patches: number;
  idc_share: number | null;
}

export interface Standing {
  bin_low: number;
  bin_high: number;
  idc_share: number | null;
  n: number;
  /** Shares of all validation patches, in bins of lower and of higher scores. */
  lower_share: number;
  higher_share: number;
  scores: ScoreBin[];
}

export interface Prediction {
  probability: number;
  threshold: number | null;
  standing: Standing | null;
  warnings: string[];
  model: string;
  /** Of a picture: its patches, each with its place in the picture (x, y, width, height in px) and its value. */
  highest?: number;
  patches?: number;
  boxes_px?: [number, number, number, number][];
  values?: number[];
  scale_from?: string;
}
