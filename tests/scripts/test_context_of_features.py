"""The context step over features: neighbours are those of the mount, and a fit finds what the features add."""

import numpy as np

from scripts.results.compare_adaptations import needed_shifts
from scripts.results.context_of_features import corrected, means_around
from wsi_pipeline.learning.datasets import LabelledPatches


def side(patients: list[str], rows: int, columns: int) -> LabelledPatches:
    """Whole grids of patches of 8 px."""
    names = [
        f"{p}_idx5_x{1 + 8 * x}_y{1 + 8 * y}_class0.png"
        for p in patients
        for y, x in np.ndindex(rows, columns)
    ]
    count = len(names)
    return LabelledPatches(
        np.zeros((count, 8, 8, 3), np.uint8),
        np.zeros(count, np.uint8),
        np.repeat(patients, rows * columns),
        names=np.array(names),
    )


def test_the_mean_is_that_of_neighbours_on_the_same_mount_and_of_what_is_there() -> None:
    mounts = side(["a", "b"], 9, 7)
    values = np.zeros((len(mounts), 2))
    values[:63, 0], values[63:, 0] = 1, 5  # each mount's own value stays, up to its edge
    values[31, 1] = 1  # the middle of the first
    means = means_around(values, mounts)
    np.testing.assert_allclose(means[:, 0], values[:, 0])
    spread = means[:63, 1].reshape(9, 7)
    assert spread[4, 3] == spread.max()
    np.testing.assert_allclose(spread, spread[:, ::-1])
    assert not means[63:, 1].any()


def test_a_fit_on_the_training_rows_adds_what_a_feature_tells_and_nothing_where_it_is_held() -> None:
    random = np.random.default_rng(0)
    mean, feature = random.normal(0, 2, 4000), random.normal(0, 1, 4000)
    labels = (random.random(4000) < 1 / (1 + np.exp(-(mean + 2 * feature)))).astype(np.uint8)
    train = np.arange(4000) < 3000
    found = corrected(mean, feature[:, None], labels, train, 1e-4)
    np.testing.assert_allclose(found, mean + 2 * feature, atol=1.2)
    held = corrected(mean, feature[:, None], labels, train, 1e3)
    assert np.abs(np.corrcoef(held, mean)[0, 1]) > 0.999


def test_shifts_that_follow_the_outlined_share_are_said_to() -> None:
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(40).astype(str), 200)
    share = np.repeat(random.uniform(0.05, 0.95, 40), 200)
    labels = (random.random(8000) < share).astype(np.uint8)
    odds = 2.0 * labels + random.normal(0, 1, 8000)
    text = needed_shifts(np.stack([np.zeros(8000), odds], axis=1), labels, patients)
    assert "(40 with 32 patches or more" in text
    of_share, of_expected = (
        float(part.split(" ")[0]) for part in (text.split("correlation of ")[1], text.split("and of ")[1])
    )
    assert of_share > of_expected > 0.5
