"""Nottingham grading: from tubules, nuclei and a count of mitoses to a grade, whatever the microscope.

Elston and Ellis (1991, Histopathology 19:403-410) counted mitoses in ten fields of a microscope whose field is 0.59 mm
wide, 0.274 mm2: from 10 of them the score is 2, from 20 it is 3. Fields of other microscopes are larger or smaller, so
the counts go with the area (Cree et al. 2021, doi:10.1038/s41379-021-00825-7): 3.65 and 7.30 mitoses per mm2. Rounded
up to whole mitoses this gives the table that reporting guidelines print for fields of 0.40 to 0.69 mm, at every one of
its 30 diameters, and the 4 and 8 mitoses of one mm2.
"""

import math
from dataclasses import dataclass

# Ten fields of Elston and Ellis's microscope, in mm2, and the least mitoses in them that score 2 and 3.
REFERENCE_MM2 = 2.74
REFERENCE_COUNTS = (10, 20)
# As many fields the count is of where there is room for them; of fewer than the least no score is made.
FIELDS_COUNTED, LEAST_FIELDS = 10, 2
# Diameters, in mm, of the published table.
PUBLISHED_MM = (0.40, 0.69)
SOURCE = "Elston and Ellis 1991, by area (Cree et al. 2021)"
# The rule for any area that is large enough.
AREA_WORDS = "score {} is from {:.2f} mitoses per mm², {} from {:.2f}".format(
    *(2, REFERENCE_COUNTS[0] / REFERENCE_MM2), *(3, REFERENCE_COUNTS[1] / REFERENCE_MM2)
)

# Of a count: whole mitoses meet a threshold that float arithmetic puts a trifle above them.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class MitoticThresholds:
    """From which count of mitoses in `fields` fields the score is 2, and 3; below, it is 1."""

    field_mm: float
    """Diameter of a field."""

    fields: int
    area_mm2: float
    """Of all fields together."""

    score2_from: int
    score3_from: int

    @property
    def is_published(self) -> bool:
        """Whether ten fields of this diameter are in the published table; else the same rule goes beyond it."""
        least, most = PUBLISHED_MM
        return self.fields == FIELDS_COUNTED and least <= self.field_mm <= most

    @property
    def text(self) -> str:
        """The scores in one line: "score 1: up to 8, 2: 9 to 17, 3: from 18"."""
        first = f"up to {self.score2_from - 1}"
        between = (
            f"{self.score2_from} to {self.score3_from - 1}"
            if self.score3_from - self.score2_from > 1
            else f"{self.score2_from}"
        )
        return f"score 1: {first}, 2: {between}, 3: from {self.score3_from}"


@dataclass(frozen=True)
class NottinghamGrade:
    """The sum of the three scores, 3 to 9, and the grade, 1 to 3."""

    total: int
    grade: int


def mitotic_thresholds(field_mm: float, fields: int = FIELDS_COUNTED) -> MitoticThresholds:
    """From which counts in so many whole fields, `field_mm` wide, the mitotic score is 2 and 3.

    Raises ValueError for a diameter that is not positive, and for fewer fields than `LEAST_FIELDS`: what one field
    alone holds is chance.

    >>> mitotic_thresholds(0.55).text
    'score 1: up to 8, 2: 9 to 17, 3: from 18'
    """
    if not (math.isfinite(field_mm) and field_mm > 0):
        raise ValueError(f"a field's diameter is a positive number of mm, not {field_mm}")
    if fields < LEAST_FIELDS:
        raise ValueError(f"mitoses are scored in {LEAST_FIELDS} fields or more, not in {fields}")
    area_mm2 = area_of_fields(field_mm, fields)
    return MitoticThresholds(field_mm, fields, area_mm2, *thresholds_of_area(area_mm2))


def area_of_fields(field_mm: float, fields: int) -> float:
    """The area of so many whole fields, in mm2."""
    return fields * math.pi * (field_mm / 2) ** 2


def mitoses_words(field_mm: float, fields: int) -> str:
    """How mitoses in so many proposed fields are scored, in words.

    >>> mitoses_words(0.55, 4)
    'in 4 fields of 0.55 mm, 0.95 mm²: score 1: up to 3, 2: 4 to 6, 3: from 7'
    >>> mitoses_words(0.55, 1)
    'no score of one field alone; by area, score 2 is from 3.65 mitoses per mm², 3 from 7.30'
    """
    if fields >= LEAST_FIELDS:
        thresholds = mitotic_thresholds(field_mm, fields)
        return f"in {fields} fields of {field_mm:g} mm, {thresholds.area_mm2:.2f} mm²: {thresholds.text}"
    found = "of one field alone" if fields else "without a field"
    return f"no score {found}; by area, {AREA_WORDS}"


def thresholds_of_area(area_mm2: float) -> tuple[int, int]:
    """The least count of mitoses in an area, in mm2, that scores 2, and the least that scores 3.

    For an area that is no ten fields: fewer of them, fields less what is not tissue in them, a hot spot of 2 mm2.
    The smaller the area, the more of the count is chance. Raises ValueError for an area that is not positive.

    >>> thresholds_of_area(1.0)
    (4, 8)
    """
    if not (math.isfinite(area_mm2) and area_mm2 > 0):
        raise ValueError(f"mitoses are counted in a positive number of mm2, not {area_mm2}")
    second, third = (math.ceil(count * area_mm2 / REFERENCE_MM2 - _ROUNDING) for count in REFERENCE_COUNTS)
    return second, third


def mitotic_score(count: int, area_mm2: float) -> int:
    """The score, 1 to 3, of so many mitoses counted in `area_mm2`.

    Raises ValueError for a negative count, or an area that is not positive.
    """
    if count < 0:
        raise ValueError(f"a count of mitoses is not negative: {count}")
    second, third = thresholds_of_area(area_mm2)
    return 1 + (count >= second) + (count >= third)


def nottingham_grade(tubules: int, nuclei: int, mitoses: int) -> NottinghamGrade:
    """The grade of three scores, each 1 to 3: a sum of 3 to 5 is grade 1, 6 or 7 is 2, 8 or 9 is 3.

    Raises ValueError for another score.

    >>> nottingham_grade(tubules=3, nuclei=2, mitoses=1)
    NottinghamGrade(total=6, grade=2)
    """
    for name, score in (("tubules", tubules), ("nuclei", nuclei), ("mitoses", mitoses)):
        if score not in (1, 2, 3):
            raise ValueError(f"the score of {name} is 1, 2 or 3, not {score}")
    total = tubules + nuclei + mitoses
    return NottinghamGrade(total, 1 + (total >= 6) + (total >= 8))
