import { area, NONE, share, when } from "../format";
import type { ListedSlide, SlideStatus } from "../types";

const SIGN: Record<SlideStatus, string> = { done: "✓", running: "▶", unfinished: "…", failed: "✕", broken: "✕" };

export function SlideRow({ slide }: { slide: ListedSlide }) {
  return (
    <tr class={`slide ${slide.status}`}>
      <td class="thumb">{slide.thumbnail && <img src={slide.thumbnail} alt="" loading="lazy" decoding="async" />}</td>
      <th scope="row">
        <a href={`/slides/${slide.id}`}>{slide.name}</a>
        {slide.reason && <p class="reason">{slide.reason}</p>}
      </th>
      <td>{slide.patient ?? NONE}</td>
      <td>
        <span class={`badge ${slide.status}`}>
          <span aria-hidden="true">{SIGN[slide.status]} </span>
          {slide.status}
        </span>
        {slide.progress !== null && slide.status !== "done" && (
          <progress aria-label={`Progress of ${slide.name}`} value={slide.progress} max={1} />
        )}
      </td>
      <td class="numeric">{area(slide.idc_mm2)}</td>
      <td class="numeric">{share(slide.share)}</td>
      <td>
        {slide.warnings.length > 0 && (
          <details>
            <summary>
              {slide.warnings.length}
              <span class="hidden"> warnings of {slide.name}</span>
            </summary>
            <ul>
              {slide.warnings.map((warning) => (
                <li key={warning}>{warning}</li>
              ))}
            </ul>
          </details>
        )}
      </td>
      <td>{slide.model ?? NONE}</td>
      <td>{when(slide.finished)}</td>
    </tr>
  );
}
