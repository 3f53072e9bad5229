// The patches of a picture, drawn on it with their values.
import { useState } from "preact/hooks";
import { number } from "../format";
import type { Prediction } from "../types";

export function PatchedPicture({ picture, prediction }: { picture: string; prediction: Prediction | null }) {
  const [size, setSize] = useState<[number, number] | null>(null);
  const boxes = prediction?.boxes_px ?? [];
  const values = prediction?.values ?? [];
  const text = boxes[0] ? Math.min(boxes[0][2], boxes[0][3]) * 0.13 : 10;
  return (
    <figure class="patched">
      <img
        src={picture}
        alt="What was chosen"
        onLoad={(event) => setSize([event.currentTarget.naturalWidth, event.currentTarget.naturalHeight])}
      />
      {size && boxes.length > 1 && (
        <svg viewBox={`0 0 ${size[0]} ${size[1]}`} role="img" aria-label="The value of each patch">
          <title>The value of each patch</title>
          {boxes.map(([x, y, width, height], i) => (
            <g key={`${x} ${y}`}>
              <rect
                x={x}
                y={y}
                width={width}
                height={height}
                class={(values[i] ?? 0) >= (prediction?.threshold ?? 1) ? "above" : ""}
              />
              <text x={x + width / 2} y={y + height / 2} font-size={text}>
                {number(values[i], 2)}
              </text>
            </g>
          ))}
        </svg>
      )}
    </figure>
  );
}
