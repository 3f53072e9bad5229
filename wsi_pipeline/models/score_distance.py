"""How scores given today spread, beside those of the validation patches that a model's card keeps."""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# As many as the card's `reliability` has (learning/evaluation/metrics.py): counts of both are of the same bins.
SCORE_BINS = 15

Reliability = Sequence[Mapping[str, Any]]
"""What a card says of the validation patches' scores: of each bin that holds any, `from`, `to` and `patches`."""


def count_scores(scores: ArrayLike) -> list[int]:
    """How many of the probabilities, 0 to 1, lie in each of `SCORE_BINS` bins of equal width; NaN in none."""
    values = np.asarray(scores, np.float64)
    values = values[np.isfinite(values)]
    bins = np.minimum((values * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    return [int(count) for count in np.bincount(bins, minlength=SCORE_BINS)]


def in_bins_of(reliability: Reliability, counts: Sequence[float]) -> list[float]:
    """Counts over bins of equal width, as `count_scores` gives them, over the card's bins."""
    given = [0.0] * len(reliability)
    for number, count in enumerate(counts):
        given[bin_of((number + 0.5) / len(counts), reliability)] += count
    return given


def bin_of(value: float, reliability: Reliability) -> int:
    """In which of the card's bins a probability lies; what lies between two, where no validation patch did, in the
    lower one."""
    return max(0, bisect.bisect_right([float(row["from"]) for row in reliability], value) - 1)


def score_distance(given: Sequence[float], expected: Sequence[float]) -> float:
    """Largest difference between the cumulative shares of two counts over the same bins: 0 alike, 1 apart.

    The statistic of Kolmogorov and Smirnov, of binned scores. Each must count something.
    """
    first, second = (list(itertools.accumulate(counts)) for counts in (given, expected))
    return max(abs(a / first[-1] - b / second[-1]) for a, b in zip(first, second, strict=True))
