// A score in its place among the validation patients'.
import { count, number, share } from "../format";
import type { Prediction } from "../types";

export function PredictionResult({ prediction, hasCard }: { prediction: Prediction; hasCard?: boolean }) {
  const { probability, warnings, model, threshold } = prediction;
  return (
    <section class="prediction" aria-label="Result" aria-live="polite">
      <p class="big">Probability of IDC {number(probability, 2)}</p>
      {prediction.patches !== undefined && prediction.patches > 1 && (
        <p>
          The mean of {count(prediction.patches, "patch", "patches")}; the highest is {number(prediction.highest, 2)}.
        </p>
      )}
      {threshold !== null && (
        <p>
          {probability >= threshold ? "At or above" : "Below"} the model's threshold of {number(threshold, 2)}.
        </p>
      )}
      {warnings.map((warning) => (
        <p key={warning} class="warning">
          {warning}
        </p>
      ))}
      <Standing prediction={prediction} />
      {prediction.scale_from && <p class="small">Scale of the picture: {prediction.scale_from}.</p>}
      <p class="small">
        By {model}.{" "}
        {hasCard ? "Its card stands below." : <a href="/model">What it was trained on, and what it is not for</a>}
      </p>
    </section>
  );
}

function Standing({ prediction }: { prediction: Prediction }) {
  const { standing } = prediction;
  if (!standing) {
    return <p>The model's card does not say how validation patients scored.</p>;
  }
  const [low, high] = [number(standing.bin_low, 2), number(standing.bin_high, 2)];
  return (
    <>
      <h2>Among the validation patients' patches</h2>
      <Scores prediction={prediction} />
      <p>
        {standing.idc_share === null || standing.n === 0
          ? `No validation patch scored between ${low} and ${high}.`
          : `Of the ${standing.n.toLocaleString("en")} that scored between ${low} and ${high}, ${share(standing.idc_share)} were IDC.`}{" "}
        {share(standing.lower_share)} of all scored lower, {share(standing.higher_share)} higher.
      </p>
      {(prediction.patches ?? 1) > 1 && (
        <p class="small">These are scores of single patches: a mean of several was not measured so.</p>
      )}
    </>
  );
}

/** For each score, the share of IDC among the patches that had it, with this score and the threshold marked. */
function Scores({ prediction: { probability, threshold, standing } }: { prediction: Prediction }) {
  if (!standing) {
    return null;
  }
  const label = `This score of ${number(probability, 2)} on a scale from 0 to 1, with the share of IDC at each score`;
  return (
    <figure class="standing">
      <div class="shares" role="img" aria-label={label}>
        {standing.scores.map((bin) => (
          <i
            key={bin.from}
            class={bin.from === standing.bin_low ? "here" : ""}
            title={`${number(bin.from, 2)} to ${number(bin.to, 2)}: ${count(bin.patches, "patch", "patches")}, ${share(bin.idc_share)} IDC`}
            style={{ left: `${bin.from * 100}%`, width: `${(bin.to - bin.from) * 100}%` }}
          >
            <i style={{ height: `${(bin.idc_share ?? 0) * 100}%` }} />
          </i>
        ))}
        {threshold !== null && <b class="threshold" style={{ left: `${threshold * 100}%` }} />}
        <b class="needle" style={{ left: `${probability * 100}%` }} />
      </div>
      <p class="ends">
        <span>0</span>
        <span>1</span>
      </p>
      <figcaption class="small">
        Filled: the share that was IDC at each score.{" "}
        <span class="mark">
          <i class="needle" /> this score
        </span>{" "}
        {threshold !== null && (
          <span class="mark">
            <i class="threshold" /> the threshold
          </span>
        )}
      </figcaption>
    </figure>
  );
}
