import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.results.grading import (
    mitoses_words,
    mitotic_score,
    mitotic_thresholds,
    nottingham_grade,
    thresholds_of_area,
)

# The published table, as reporting guidelines print it: diameter in mm, highest count of score 1, and of score 2.
PUBLISHED = """
0.40 4 9, 0.41 4 9, 0.42 5 10, 0.43 5 10, 0.44 5 11, 0.45 5 11, 0.46 6 12, 0.47 6 12, 0.48 6 13, 0.49 6 13,
0.50 7 14, 0.51 7 14, 0.52 7 15, 0.53 8 16, 0.54 8 16, 0.55 8 17, 0.56 8 17, 0.57 9 18, 0.58 9 19, 0.59 9 19,
0.60 10 20, 0.61 10 21, 0.62 11 22, 0.63 11 22, 0.64 11 23, 0.65 12 24, 0.66 12 24, 0.67 12 25, 0.68 13 26, 0.69 13 27
"""
ROWS = [row.split() for row in PUBLISHED.replace("\n", " ").split(",")]


@pytest.mark.parametrize(("diameter", "first", "second"), ROWS)
def test_the_published_table_comes_out_at_each_of_its_diameters(diameter, first, second):
    found = mitotic_thresholds(float(diameter))
    assert (found.score2_from, found.score3_from) == (int(first) + 1, int(second) + 1)
    assert found.is_published


def test_a_square_millimetre_has_the_thresholds_that_are_printed_for_it():
    assert thresholds_of_area(1.0) == (4, 8)
    assert thresholds_of_area(2.74) == (10, 20)


def test_beyond_the_table_the_rule_goes_on_and_says_so():
    for found in (mitotic_thresholds(0.3), mitotic_thresholds(1.0), mitotic_thresholds(0.55, fields=5)):
        assert not found.is_published
        assert found.area_mm2 == pytest.approx(found.fields * math.pi * found.field_mm**2 / 4)
        assert 1 <= found.score2_from < found.score3_from


@given(st.integers(0, 200), st.floats(0.05, 10))
def test_a_score_is_what_the_thresholds_of_its_area_say(count, area_mm2):
    second, third = thresholds_of_area(area_mm2)
    score = mitotic_score(count, area_mm2)
    assert score == (1 if count < second else 2 if count < third else 3)
    assert mitotic_score(count + 1, area_mm2) >= score
    assert mitotic_score(count, area_mm2 * 2) <= score


def test_every_sum_of_three_scores_has_the_grade_of_elston_and_ellis():
    for scores in itertools.product((1, 2, 3), repeat=3):
        found = nottingham_grade(*scores)
        assert found.total == sum(scores)
        assert found.grade == {3: 1, 4: 1, 5: 1, 6: 2, 7: 2, 8: 3, 9: 3}[found.total]


@pytest.mark.parametrize(
    "call",
    [
        lambda: mitotic_thresholds(0),
        lambda: mitotic_thresholds(math.nan),
        lambda: mitotic_thresholds(0.55, fields=0),
        lambda: thresholds_of_area(-1),
        lambda: thresholds_of_area(math.inf),
        lambda: mitotic_score(-1, 2.0),
        lambda: nottingham_grade(0, 2, 2),
        lambda: nottingham_grade(1, 2, 4),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(ValueError, match="not"):
        call()


def test_scores_are_said_in_one_line_even_where_score_two_is_one_count():
    assert mitotic_thresholds(0.55).text == "score 1: up to 8, 2: 9 to 17, 3: from 18"
    assert mitotic_thresholds(0.4, fields=2).text == "score 1: up to 0, 2: 1, 3: from 2"


@pytest.mark.parametrize("fields", [0, 1])
def test_of_one_field_alone_no_score_is_made(fields):
    with pytest.raises(ValueError, match="mitoses are scored in 2 fields or more, not in"):
        mitotic_thresholds(0.55, fields)
    said = mitoses_words(0.55, fields)
    assert said.startswith("no score")
    assert not re.search(r"\b10\b|\bten\b", said)
