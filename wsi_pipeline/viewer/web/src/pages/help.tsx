// Help: what is where, and every key.
import { KeyTable } from "../parts/key_table";
import { Shell } from "../parts/shell";
import { KEY_HELP } from "../slide/key_help";

export function HelpPage() {
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
      <p>
        Keys belong to a text field while you type in it, and arrows to a list or a panel that has the focus: Esc goes
        back to the slide. In the list of slides, / goes to the search and ? comes here.
      </p>
      <KeyTable help={KEY_HELP} />
      <h2>About</h2>
      <p>
        Made with OpenSeadragon, Annotorious and others: <a href="/static/licences.txt">their licences</a>.
      </p>
    </Shell>
  );
}
