"""What each epoch of a training reached: epochs.csv, curves.png and, if asked for, TensorBoard."""

import csv
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.base.files import new_file, write_bytes

# Measures by epoch, by the names they have in epochs.csv.
Row = dict[str, float]

# A picture takes a quarter of a second: not after each epoch of a quick training.
_DRAW_EVERY_S = 20.0
_MEASURES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "balanced_accuracy": "balanced accuracy"}


def scores(history: Sequence[Row], best_by: str) -> list[float]:
    """What each epoch reached by that measure, higher being better; what has no meaning is the lowest."""
    sign = -1 if best_by.endswith("loss") else 1
    return [-math.inf if math.isnan(row[best_by]) else sign * row[best_by] for row in history]


class HistoryFiles:
    """Writes the history of a training to its folder after each epoch."""

    def __init__(self, out: Path, name: str, best_by: str, done: int, tensorboard: bool = False):
        self._out, self._name, self._best_by = out, name, best_by
        self._drawn = time.monotonic()
        # What an earlier start wrote of the `done` epochs stays; what it wrote beyond them is done again.
        self._on_board = done if (out / "tensorboard").exists() else 0
        self._board = _tensorboard(out / "tensorboard", done + 1) if tensorboard else None

    def write(self, history: Sequence[Row], last: bool) -> None:
        """Write all epochs so far; the picture now and then, and when the training ends. Raises OutputError."""
        _write_csv(self._out / "epochs.csv", history)
        if last or time.monotonic() - self._drawn > _DRAW_EVERY_S:
            draw_curves(self._out / "curves.png", history, self._name, self._best_by)
            self._drawn = time.monotonic()
        if self._board:
            for row in history[self._on_board :]:
                for key in row.keys() - {"epoch"}:
                    self._board.add_scalar(key, row[key], int(row["epoch"]))
            self._board.flush()
            self._on_board = len(history)


def draw_curves(path: Path, history: Sequence[Row], name: str, best_by: str) -> None:
    """A picture of the loss, the validation measures and the learning rate by epoch, the best one marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    reached = scores(history, best_by)
    best = max(i for i, score in enumerate(reached) if score == max(reached))
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loss, measures, rate = figure.subplots(1, 3, width_ratios=(3, 4, 2.4))
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.4}
    for key, label in (("loss", "training"), ("val_loss", "validation")):
        loss.plot(epochs, [row[key] for row in history], label=label, **style)
    for key, label in _MEASURES.items():
        measures.plot(epochs, [row[key] for row in history], label=label, **style)
    rate.plot(epochs, [row["learning_rate"] for row in history], color="0.3", **style)
    rate.set_ylim(bottom=0)
    for axes, title in ((loss, "Loss"), (measures, "On validation patients"), (rate, "Learning rate")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axvline(epochs[best], color="0.6", linestyle="--", linewidth=1, zorder=0)
        axes.grid(alpha=0.25)
    for axes, columns in ((loss, 2), (measures, 4)):
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, frameon=False)
    shown = best_by.replace("_", " ") if best_by not in _MEASURES else _MEASURES[best_by]
    figure.suptitle(
        f"{name}: best epoch {epochs[best]:.0f} by {shown} ({history[best][best_by]:.4f})",
        fontsize=11,
        parse_math=False,
    )
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _write_csv(path: Path, history: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[-1]))
    writer.writeheader()
    writer.writerows(history)
    write_bytes(path, text.getvalue().encode())


def _tensorboard(folder: Path, next_epoch: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard: TensorBoard is not installed; pip install '.[tensorboard]', or leave it "
            "out: epochs.csv and curves.png hold the same numbers"
        ) from error
    return SummaryWriter(str(folder), purge_step=next_epoch)
