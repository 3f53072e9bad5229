// Slides of one patient belong together: sorted by patient, the list has a row of sums before each one's slides.
import { area, count, NONE, share } from "../format";
import type { ListedSlide } from "../types";
import { SlideRow } from "./row";

interface Sums {
  slides: number;
  mapped: number;
  idc: number;
  tissue: number;
}

/** Over the slides of each patient; of slides that have no map, only how many they are. */
export function sumsOf(slides: ListedSlide[]): Map<string, Sums> {
  const found = new Map<string, Sums>();
  for (const slide of slides) {
    if (slide.patient === null) {
      continue;
    }
    const sums = found.get(slide.patient) ?? { slides: 0, mapped: 0, idc: 0, tissue: 0 };
    sums.slides += 1;
    if (slide.idc_mm2 !== null && slide.tissue_mm2 !== null) {
      sums.mapped += 1;
      sums.idc += slide.idc_mm2;
      sums.tissue += slide.tissue_mm2;
    }
    found.set(slide.patient, sums);
  }
  return found;
}

function PatientRow({ patient, sums }: { patient: string; sums: Sums }) {
  const missing = sums.slides - sums.mapped;
  return (
    <tr class="patient">
      <td class="thumb" />
      <th scope="rowgroup">{patient}</th>
      <td />
      <td>
        {count(sums.slides, "slide")}
        {missing > 0 && `, ${missing} without a map`}
      </td>
      <td class="numeric">{sums.mapped > 0 ? area(sums.idc) : NONE}</td>
      <td class="numeric">{share(sums.tissue > 0 ? sums.idc / sums.tissue : null)}</td>
      <td />
      <td />
      <td />
    </tr>
  );
}

/** The rows of the first `most` slides; `all` are those that match, which the sums are of. */
export function Rows({ all, most, byPatient }: { all: ListedSlide[]; most: number; byPatient: boolean }) {
  const sums = byPatient ? sumsOf(all) : new Map<string, Sums>();
  const rows = [];
  let last: string | null = null;
  for (const slide of all.slice(0, most)) {
    const own = slide.patient === null ? undefined : sums.get(slide.patient);
    if (own && slide.patient !== null && slide.patient !== last) {
      rows.push(<PatientRow key={`patient ${slide.patient}`} patient={slide.patient} sums={own} />);
    }
    last = slide.patient;
    rows.push(<SlideRow key={slide.id} slide={slide} />);
  }
  return <tbody>{rows}</tbody>;
}
