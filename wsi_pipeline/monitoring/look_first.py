"""Which slides somebody should look at first, and why: uncertain, far from training, strongly corrected."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wsi_pipeline.inference.stain_check import MAX_HUE_FOLD, MAX_SPREADS
from wsi_pipeline.monitoring.against_card import MAX_CONDITION_DISTANCE, MAX_CORRECTED_SHARE, wrong_limit
from wsi_pipeline.monitoring.runs import MappedSlide

# Of an ensemble: the mean standard deviation between its models.
MAX_UNCERTAINTY = 0.1
# Red and blue swapped: nothing that the map says means anything.
SWAPPED = 10.0


@dataclass(frozen=True)
class LookFirst:
    """A slide to look at, by how many times its worst figure is its limit."""

    slide: MappedSlide
    times: float
    reasons: tuple[str, ...]
    """The worst first."""


def look_first(slides: Sequence[MappedSlide]) -> list[LookFirst]:
    """The slides of which a figure is beyond its limit, those furthest beyond first."""
    found = []
    for slide in slides:
        reasons = sorted(
            (reason for reason in _reasons(slide) if reason[0] > 1), key=lambda reason: -reason[0]
        )
        if reasons:
            found.append(LookFirst(slide, reasons[0][0], tuple(words for _, words in reasons)))
    return sorted(found, key=lambda each: (-each.times, -len(each.reasons), each.slide.name))


def _reasons(slide: MappedSlide) -> Iterator[tuple[float, str]]:
    """Each figure, as how many times its limit, and in words."""
    if slide.swapped:
        yield SWAPPED, "far from training: red and blue look swapped"
    if slide.spreads is not None:
        words = f"far from training: its stain is {slide.spreads:.1f} spreads off (at most {MAX_SPREADS:g})"
        yield slide.spreads / MAX_SPREADS, words
    if slide.hue_fold is not None:
        words = f"far from training: its hue is {slide.hue_fold:.1f}-fold off (at most {MAX_HUE_FOLD:g})"
        yield slide.hue_fold / MAX_HUE_FOLD, words
    if slide.distance is not None:
        words = f"far from training: it looks {slide.distance:.1f} times as far off as the farthest usual one of them"
        yield slide.distance / MAX_CONDITION_DISTANCE, words
    if slide.expected_wrong is not None:
        limit = wrong_limit(slide)
        words = f"uncertain: {slide.expected_wrong:.0%} of its cells are expected to be wrong (at most {limit:.0%})"
        yield slide.expected_wrong / limit, words
    if slide.uncertainty is not None:
        words = f"uncertain: the models are {slide.uncertainty:.2f} apart (at most {MAX_UNCERTAINTY:g})"
        yield slide.uncertainty / MAX_UNCERTAINTY, words
    if slide.review and slide.review.corrected_share is not None:
        share = slide.review.corrected_share
        words = (
            f"strongly corrected: {share:.0%} of the IDC area is that of the map or of the reviewer alone (at most "
            f"{MAX_CORRECTED_SHARE:.0%})"
        )
        yield share / MAX_CORRECTED_SHARE, words
