"""How scores spread beside those of a card's validation patches."""

import numpy as np
import pytest

from wsi_pipeline.learning.evaluation.metrics import reliability
from wsi_pipeline.models.score_distance import SCORE_BINS, count_scores, in_bins_of, score_distance


def test_counts_leave_out_what_is_not_scored_and_keep_both_ends():
    counts = count_scores([[0.0, 1.0], [np.nan, 0.5]])
    assert sum(counts) == 3
    assert (counts[0], counts[-1], counts[SCORE_BINS // 2]) == (1, 1, 1)


def test_the_scores_of_a_card_lie_at_no_distance_from_themselves_though_it_leaves_empty_bins_out():
    scores = np.concatenate([np.linspace(0, 0.2, 50), np.linspace(0.7, 1, 30)])
    rows = reliability(scores, np.zeros(80, np.uint8))
    assert len(rows) < SCORE_BINS
    expected = [row["patches"] for row in rows]
    assert in_bins_of(rows, count_scores(scores)) == expected
    assert score_distance(in_bins_of(rows, count_scores(scores)), expected) == 0


def test_the_distance_is_the_largest_gap_between_cumulative_shares():
    low, high = np.full(60, 0.01), np.full(40, 0.99)
    rows = reliability(np.concatenate([low, high]), np.zeros(100, np.uint8))
    given = in_bins_of(rows, count_scores(np.concatenate([low[:10], high])))
    assert score_distance(given, [row["patches"] for row in rows]) == pytest.approx(0.6 - 0.2)
