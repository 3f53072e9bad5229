// A score in its place among the validation patients'.
import { count, number, share } from "../format";
import type { Prediction } from "../types";

export function PredictionResult({ prediction }: { prediction: Prediction }) {
  const { probability, standing, warnings, model, threshold } = prediction;
  const shown = number(probability, 2);
  return (
    <section class="prediction" aria-label="Result" aria-live="polite">
      <p class="big">Probability of IDC {shown}</p>
      <div class="scale" role="img" aria-label={`${shown} on a scale from 0 to 1`}>
        {standing && (
          <i
            class="bin"
            style={{ left: `${standing.bin_low * 100}%`, width: `${(standing.bin_high - standing.bin_low) * 100}%` }}
          />
        )}
        <i class="needle" style={{ left: `${probability * 100}%` }} />
        <span>0</span>
        <span>1</span>
      </div>
      <Standing prediction={prediction} />
      {threshold !== null && (
        <p>
          {probability >= threshold ? "At or above" : "Below"} the model's threshold of {number(threshold, 2)}.
        </p>
      )}
      {prediction.patches !== undefined && prediction.patches > 1 && (
        <p>
          The mean of {count(prediction.patches, "patch", "patches")}; the highest is {number(prediction.highest, 2)}.
        </p>
      )}
      {prediction.scale_from && <p class="small">Scale: {prediction.scale_from}.</p>}
      {warnings.map((warning) => (
        <p key={warning} class="warning">
          {warning}
        </p>
      ))}
      <p class="small">
        By {model}. <a href="/model">What it was trained on, and what it is not for</a>
      </p>
    </section>
  );
}

function Standing({ prediction: { standing } }: { prediction: Prediction }) {
  if (!standing) {
    return <p>The model's card does not say how validation patients scored.</p>;
  }
  const [low, high] = [number(standing.bin_low, 2), number(standing.bin_high, 2)];
  if (standing.idc_share === null || standing.n === 0) {
    return (
      <p>
        No validation patch scored between {low} and {high}.
      </p>
    );
  }
  return (
    <p>
      Of the {standing.n.toLocaleString("en")} validation patches scored between {low} and {high},{" "}
      {share(standing.idc_share)} were IDC.
    </p>
  );
}
