"""What epochs reached: scores to compare them by, and files that are whole."""

import math

from PIL import Image

from wsi_pipeline.learning.training.history import HistoryFiles, draw_curves, scores


def row(epoch: int, auroc: float, val_loss: float) -> dict[str, float]:
    measures = {"auroc": auroc, "auprc": 0.5, "f1": 0.4, "balanced_accuracy": 0.6, "val_loss": val_loss}
    return {"epoch": epoch, "loss": 0.7, "learning_rate": 0.01, **measures}


def test_a_higher_score_is_better_and_what_has_no_meaning_is_the_worst():
    history = [row(1, 0.8, 0.5), row(2, math.nan, 0.4)]
    assert scores(history, "auroc") == [0.8, -math.inf]
    assert scores(history, "val_loss") == [-0.5, -0.4]


def test_curves_are_drawn_of_one_epoch_and_of_measures_without_meaning(tmp_path):
    for number, history in enumerate(([row(1, 0.8, 0.5)], [row(1, math.nan, 0.5), row(2, math.nan, 0.4)])):
        path = tmp_path / f"{number}.png"
        draw_curves(path, history, "of $5 to $_{x$", "auroc")
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(image.convert("RGB").getcolors(2**20)) > 5


def test_a_training_that_ends_leaves_table_and_picture_and_nothing_half_written(tmp_path):
    files = HistoryFiles(tmp_path, "net", "auroc", done=0)
    files.write([row(1, 0.8, 0.5)], last=False)
    files.write([row(1, 0.8, 0.5), row(2, 0.9, 0.4)], last=True)
    assert {p.name for p in tmp_path.iterdir()} == {"epochs.csv", "curves.png"}
    assert (tmp_path / "epochs.csv").read_text().count("\n") == 3
