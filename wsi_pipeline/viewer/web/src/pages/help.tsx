// Help: what is where, and every key.

import { Shell } from "../parts/shell";
import { KEY_HELP } from "../slide/key_help";

const NAMES: Record<string, string> = {
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  PageUp: "Page up",
  PageDown: "Page down",
  Escape: "Esc",
};

export function HelpPage() {
  const groups = [...new Set(KEY_HELP.map(({ group }) => group))];
  return (
    <Shell title="Help">
      <h1>Help</h1>
      <p>
        The map shows, for each place of the tissue, the probability of invasive ductal carcinoma that the model gives.
        It is an aid for finding places, no diagnosis. Nothing here changes the model's own files: reviews and grading
        sheets lie beside them.
      </p>
      <h2>On a slide</h2>
      <ul>
        <li>Drag to move, turn the wheel or double click to zoom. The address keeps the view: send it, or keep it.</li>
        <li>
          Magnification is as on a microscope, for a picture on the screen: at 40x a point of the screen is 0.25 µm, at
          10x 1 µm.
        </li>
        <li>
          A click on an outline chooses it. Yellow: the model's region. Orange, dashed: regions at another threshold.
          Green: accepted, redrawn or added. Red, dotted: rejected. White, dashed circles: grading fields.
        </li>
        <li>With the keys alone: the cross in the middle stands for the pointer; move the slide under it.</li>
      </ul>
      <h2>Keys</h2>
      <p>Keys belong to a text field while you type in it. In the list of slides, / goes to the search.</p>
      <div class="keys">
        {groups.map((group) => (
          <section key={group}>
            <h3>{group}</h3>
            <dl>
              {KEY_HELP.filter((help) => help.group === group).map(({ keys, does }) => (
                <div key={does}>
                  <dt>
                    {keys.map((key) => (
                      <kbd key={key}>{NAMES[key] ?? key}</kbd>
                    ))}
                  </dt>
                  <dd>{does}</dd>
                </div>
              ))}
            </dl>
          </section>
        ))}
      </div>
      <h2>About</h2>
      <p>
        Made with OpenSeadragon, Annotorious and others: <a href="/static/licences.txt">their licences</a>.
      </p>
    </Shell>
  );
}
